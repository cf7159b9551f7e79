"""``neurotome bench``, with real processes: one tiny cell from start to table, continued, and one that fails."""

import json
from pathlib import Path

import pytest

from neurotome.cli.main import main

BENCH = """
steps: 2
seeds: [0]
runs:
  - name: tiny
    config: neuroquant-demo
    overrides:
      method.init_args.tokenizer.init_args.channels: [8]
      method.init_args.tokenizer.init_args.appearance_channels: [8]
      method.init_args.tokenizer.init_args.num_codes: 8
      method.init_args.tokenizer.init_args.start_after: 1
      data.batch_sessions: 2
      data.crop: 8
      trainer.precision: 32-true
  - name: broken
    config: neuroquant-demo
    overrides: {data.crop: 4096}
"""


@pytest.fixture
def bench(tmp_path: Path) -> str:
    file = tmp_path / "bench.yaml"
    file.write_text(BENCH)
    return str(file)


def test_a_bench_from_start_to_table(
    tmp_path: Path, bench: str, toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert main([*words, "--steps", "3"]) == 2
    assert "budget 2 steps" in capsys.readouterr().err


def test_wrong_calls_are_named(tmp_path: Path, bench: str, toy_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", str(toy_store), "--out", str(tmp_path / "out")]
    for flags, said in (
        (["--bench", "nothing"], "neuroquant-ladder"),
        (["--bench", bench, "--only", "tony"], "tony"),
        (["--bench", bench, "--truth", str(tmp_path / "no.tsv")], "no.tsv"),
        (["--bench", bench, "--seconds", "-1"], "above 0"),
    ):
        assert main([*words, *flags]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_seconds_become_steps_by_the_cheapest_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    from neurotome.apply.bench import BenchPlan, BenchRun
    from neurotome.cli import bench
    from neurotome.errors import NeurotomeError

    # what other jobs add to the three short and the three long trainings; "c" cannot be trained
    extra = {"a": ([9, 0, 5], [0, 4, 7]), "b": ([0, 0, 0], [3, 3, 0])}
    per_step = {"a": 0.1, "b": 0.5}
    order = []

    def train(args, one, seed, store, folder, steps) -> float:
        if one.name == "c":
            raise NeurotomeError("no memory")
        assert not folder.exists()
        folder.mkdir(parents=True)
        if steps == bench.WARM_STEPS:
            order.append(one.name)
        return 7.0 + steps * per_step[one.name] + extra[one.name][steps > bench.WARM_STEPS][order.count(one.name) - 1]

    monkeypatch.setattr(bench, "_train", train)
    runs = tuple(BenchRun(name, "x") for name in "abc")
    args = argparse.Namespace(quiet=True)
    plan = BenchPlan(runs, (0,), seconds=60.0)
    steps, problems = bench._steps(args, plan, runs, tmp_path, tmp_path)
    assert ({name: round(n, -1) for name, n in steps.items()}, problems) == ({"a": 600, "b": 120}, {"c": "no memory"})
    assert order == ["a", "b"] * 3
    again, _ = bench._steps(args, plan, runs[:2], tmp_path, tmp_path)
    assert (again, len(order)) == (steps, 6)
    assert bench._steps(args, BenchPlan(runs, (0,), steps=5), runs, tmp_path, tmp_path) == (dict.fromkeys("abc", 5), {})
