"""``neurotome bench``: one tiny run from start to table, continued, and one that fails; real processes if slow."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from neurotome.cli.main import main
from neurotome.data.stores.store import Store
from neurotome.errors import Interrupted, NeurotomeError
from neurotome.experiments import bench_cells
from neurotome.experiments.bench import alarms

BENCH = """
steps: 2
seeds: [0]
runs:
  - name: tiny
    config: vq-vae-demo
    overrides:
      method.init_args.tokenizer.init_args.channels: [4]
      method.init_args.tokenizer.init_args.num_res_blocks: 1
      method.init_args.tokenizer.init_args.quantizer.init_args.num_codes: 64
      method.init_args.tokenizer.init_args.quantizer.init_args.reservoir: 64
      method.init_args.tokenizer.init_args.quantizer.init_args.start_after: 1
      data.batch_sessions: 2
      data.crop: 8
      trainer.precision: 32-true
  - name: broken
    config: neuroquant-demo
    overrides: {data.crop: 4096}
"""


RUN = subprocess.run


@pytest.fixture
def bench(tmp_path: Path) -> str:
    file = tmp_path / "bench.yaml"
    file.write_text(BENCH)
    return str(file)


def in_this_process(command, *, stderr=None, **rest):
    if command[0] != sys.executable:
        return RUN(command, stderr=stderr, **rest)
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        return subprocess.CompletedProcess(command, main(command[3:]))


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_bench_from_start_to_table(
    processes: bool,
    tmp_path: Path,
    bench: str,
    toy_store: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not processes:
        monkeypatch.setattr(bench_cells.subprocess, "run", in_this_process)
    out = tmp_path / "out"
    words = ["bench", str(toy_store), "--out", str(out), "--bench", bench, "--threads", "1", "--device", "cpu"]
    assert main([*words, "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in result["rows"]] == ["tiny"]
    assert result["rows"][0]["steps"] == [2]
    assert result["rows"][0]["psnr_db"]["T1w"]["n"] >= 1
    assert result["failed"][0].startswith("broken, seed 0: ")
    assert "4096" in result["failed"][0]
    assert "| tiny |" in (out / "bench.md").read_text()
    assert "tiny" in (out / "bench.html").read_text()

    metrics = out / "runs" / "tiny-0" / "metrics.json"
    before = metrics.stat().st_mtime_ns
    assert main([*words, "--only", "tiny"]) == 0
    assert "done before" in capsys.readouterr().err
    assert metrics.stat().st_mtime_ns == before
    said = {"--steps": "budget: '2 steps' -> '3 steps'", "--threads": "threads: 1 -> 3", "--split": "'test' -> 'val'",
            "--precision": "precision: \"the config's\" -> 'fp32'"}  # fmt: skip
    for flag, value in {"--steps": "3", "--threads": "3", "--split": "val", "--precision": "fp32"}.items():
        assert main([*words, flag, value]) == 2
        assert said[flag] in capsys.readouterr().err

    # the same file, but another learning rate: what is trained is not this any more
    text = Path(bench).read_text()
    Path(bench).write_text(text.replace("data.crop: 8\n", "data.crop: 8\n      optimizer.lr: 0.5\n"))
    assert main(words) == 3
    assert "experiment.optimizer.lr: 0.003 -> 0.5" in capsys.readouterr().err
    Path(bench).write_text(text)
    metrics.write_text("{")
    assert main(words) == 3
    assert "evaluated again, not trained" in capsys.readouterr().err
    (out / "settings.json").write_text("[]")
    assert main(words) == 3
    assert "holds a list, where an object is expected" in capsys.readouterr().err
    (out / "settings.json").write_text(json.dumps({"budget": "2 steps", "split": "test"}))
    assert main(words) == 2
    assert "store_sha256: 'not recorded'" in capsys.readouterr().err


def test_wrong_calls_are_named(tmp_path: Path, bench: str, toy_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", str(toy_store), "--out", str(tmp_path / "out")]
    for flags, said in (
        (["--bench", "nothing"], "neuroquant-ladder"),
        (["--bench", bench, "--only", "tony"], "tony; did you mean tiny?"),
        (["--bench", bench, "--truth", str(tmp_path / "no.tsv")], "no.tsv"),
        (["--bench", bench, "--seconds", "-1"], "seconds is -1.0; give a number > 0"),
        (["--bench", bench, "--seeds", "0", "0"], "seed 0 is given twice"),
        (
            ["--configs", "neuroquant-dem"],
            "run neuroquant-dem: there is no shipped config 'neuroquant-dem'; did you mean ",
        ),
    ):
        assert main([*words, *flags]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_empty_split_is_refused_before_anything_is_trained(
    tmp_path: Path,
    bench: str,
    toy_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Store, "split", lambda self, name: [])
    assert main(["bench", str(toy_store), "--out", str(tmp_path / "out"), "--bench", bench, "--split", "val"]) == 2
    assert "no session in its val split" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_a_training_says_is_kept_once_its_folder_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "train.log"
    codes = iter([2, 0, 75, 0])

    def say_alarm(command, *, stderr, **_):
        assert command[1:] == ["-m", "neurotome", "train"]
        stderr.write("step 40: it is collapsing\nneurotome: no such key\n")
        return subprocess.CompletedProcess(command, next(codes))

    monkeypatch.setattr(bench_cells.subprocess, "run", say_alarm)
    with pytest.raises(NeurotomeError, match=r"^no such key$"):
        bench_cells._neurotome(["train"], log)
    assert not log.exists()  # a folder that holds a log but no run would be refused at the next start
    (tmp_path / "config.yaml").touch()
    bench_cells._neurotome(["train"], log)
    with pytest.raises(Interrupted):
        bench_cells._neurotome(["train"], log)
    bench_cells._neurotome(["train"])
    assert log.read_text().count("collapsing") == 2
    assert alarms(log) == ("step 40: it is collapsing",)


def test_seconds_become_steps_once(tmp_path: Path, toy_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from neurotome.experiments import bench_pace
    from neurotome.experiments.bench_cells import Cells, checked_experiments
    from neurotome.experiments.bench_pace import steps_within
    from neurotome.experiments.bench_plan import BenchPlan, BenchRun, BenchSettings

    measured = []

    def paces(runners, *lengths):
        measured.append((sorted(runners), lengths))
        return {name: [0.05, 0.15] for name in runners}, {}

    monkeypatch.setattr(bench_pace, "paces", paces)
    store = Store.open(toy_store)
    settings = BenchSettings(str(toy_store), device="cpu", threads=1)

    def cells(runs: tuple[BenchRun, ...]) -> Cells:
        return Cells(settings, store, tmp_path, checked_experiments(settings, runs, store), {}, lambda line: None)

    def steps(**overrides: str) -> tuple[dict[str, int], dict[str, str]]:
        runs = (BenchRun("a", "neuroquant-demo", {"data.crop": "4096"}), BenchRun("b", "neuroquant-demo", overrides))
        plan = BenchPlan(runs, (0,), seconds=60.0)
        return steps_within(plan, runs, cells(runs))

    found, problems = steps(**{"data.crop": "8"})
    assert found == {"b": 600}
    assert "4096" in problems["a"]
    assert steps(**{"data.crop": "8"})[0] == found
    assert len(measured) == 1
    steps(**{"data.crop": "8", "optimizer.lr": "0.5"})  # another recipe, another pace
    assert len(measured) == 2
    settings = replace(settings, threads=2)
    steps(**{"data.crop": "8", "optimizer.lr": "0.5"})
    assert len(measured) == 3
    runs = (BenchRun("a", "neuroquant-demo"),)
    fixed = BenchPlan(runs, (0,), steps=5)
    assert steps_within(fixed, runs, cells(runs)) == ({"a": 5}, {})
