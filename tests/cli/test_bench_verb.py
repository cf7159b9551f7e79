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


def test_seconds_become_steps_once(tmp_path: Path, toy_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    from neurotome.apply.bench import BenchPlan, BenchRun
    from neurotome.cli import bench
    from neurotome.training import pace

    measured = []

    def paces(runners, *lengths):
        measured.append((sorted(runners), lengths))
        return {name: [0.05, 0.15] for name in runners}, {}

    monkeypatch.setattr(pace, "paces", paces)
    runs = (BenchRun("a", "neurotome-unknown"), BenchRun("b", "neuroquant-demo", {"data.crop": "8"}))
    args = argparse.Namespace(quiet=True, device="cpu", threads=1, precision=None)
    plan = BenchPlan(runs, (0,), seconds=60.0)
    steps, problems = bench._steps(args, plan, runs, toy_store, tmp_path)
    assert steps == {"b": 600}
    assert "neurotome-unknown" in problems["a"]
    again, _ = bench._steps(args, plan, runs[1:], toy_store, tmp_path)
    assert (again, len(measured)) == (steps, 1)
    other = (BenchRun("b", "neuroquant-demo", {"data.crop": "4"}),)
    bench._steps(args, plan, other, toy_store, tmp_path)
    assert len(measured) == 2
    assert bench._steps(args, BenchPlan(runs, (0,), steps=5), runs, toy_store, tmp_path) == ({"a": 5, "b": 5}, {})
