"""Every benchmark runs at tiny size; none of them is timed here. Memory is measured in processes if slow."""

import contextlib
import io
import json
import subprocess
from importlib import import_module
from types import SimpleNamespace

import pytest

JOBS = ("quantizer", "ssim", "attention", "prepare", "loading", "slabs")


def in_this_process(command, **_):
    words = command[3:]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        import_module(command[2]).main(words[: words.index("--threads")])
    return subprocess.CompletedProcess(command, 0, said.getvalue())


@pytest.mark.parametrize(
    ("job", "processes"),
    [*((job, False) for job in JOBS), pytest.param("slabs", True, marks=pytest.mark.slow)],
)
def test_a_job_runs_and_writes_its_result(job, processes, tmp_path, monkeypatch):
    if not processes:
        monkeypatch.setattr("benchmarks.slabs.subprocess", SimpleNamespace(run=in_this_process))
    assert import_module(f"benchmarks.{job}").main(["--tiny", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / f"{job}.json").read_text())
    assert found["results"]
    assert all(r["difference"] <= r["tolerance"] for r in found["results"])


def test_the_table_of_seeds_says_what_was_reached(tmp_path):
    from benchmarks.demo_table import main

    for seed, gap in ((0, 0.05), (1, 0.09)):
        run = tmp_path / "seeds" / f"neuroquant-aligned-demo-{seed}"
        run.mkdir(parents=True)
        metrics = {
            "bits": {"own_per_voxel": 1.6, "translated_per_voxel": 0.75},
            "audit": {"code_gap": {"mean": gap}, "agreement": {"agreement": {"mean": 0.4}, "self_agreement": 0.8}},
        }
        (run / "metrics.json").write_text(json.dumps(metrics))
        (run / "status.json").write_text(json.dumps({"seconds": 300.0, "peak_rss_mb": 700.0}))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- demo-seeds -->\nold\n<!-- /demo-seeds -->\nafter\n")
    assert main([str(tmp_path / "seeds"), "--readme", str(readme), "--out", str(tmp_path)]) == 0
    page = readme.read_text()
    assert "old" not in page
    assert page.endswith("after\n")
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| ")}
    assert "0.070 (0.050 to 0.090) | ≤ 0.10 yes" in rows["code gap"]
    assert "1.600 (1.600 to 1.600) | ≤ 1.5 **no**" in rows["bits per voxel, own reconstruction"]
    assert "≥ 0.5 yes" in rows["… over self-agreement"]
