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
    from benchmarks.demo_table import main, with_goal

    for seed, gap in ((0, 0.05), (1, 0.157)):
        run = tmp_path / "seeds" / f"anatome-demo-{seed}"
        run.mkdir(parents=True)
        metrics = {
            "bits": {"own_per_voxel": 1.6, "own_per_brain_voxel": 2.5, "translated_per_voxel": 0.75},
            "translation": {
                "T1w->T2w": {
                    "psnr_db": {"mean": 20.0},
                    "baselines": {
                        key: {"psnr_db": {"mean": value}}
                        for key, value in (
                            ("lookup_full_rate", 21.0 + seed),
                            ("lookup_equal_rate", 15.0),
                            ("monotone_map", 21.5),
                            ("monotone_ceiling", 23.0),
                        )
                    },
                },
                "T2w->T1w": {"psnr_db": {"mean": 20.0}},
            },
            "audit": {"code_gap": {"mean": gap}, "agreement": {"agreement": {"mean": 0.4}, "self_agreement": 0.8}},
        }
        (run / "metrics.json").write_text(json.dumps(metrics))
        (run / "status.json").write_text(json.dumps({"seconds": 300.0, "peak_rss_mb": 700.0}))
    readme = tmp_path / "demo.md"
    readme.write_text("before\n<!-- demo-seeds -->\nlast year\n<!-- /demo-seeds -->\nafter\n")
    assert main([str(tmp_path / "seeds"), "--page", str(readme), "--out", str(tmp_path)]) == 0
    page = readme.read_text()
    assert "last year" not in page
    assert page.endswith("after\n")
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| ")}
    assert "0.104 (0.050 to 0.157) | ≤ 0.10 **no**" in rows["code gap"]
    assert with_goal([0.104], "≤ 0.10", 2) == "≤ 0.10 yes"  # as it is printed: a tie is no miss
    assert with_goal([0.104], "≤ 0.10", 3) == "≤ 0.10 **no**"
    assert "1.60 (1.60 to 1.60) | ≤ 1.5 **no**" in rows["bits per voxel of the grid, own reconstruction"]
    assert "2.50 (2.50 to 2.50)" in rows["bits per brain voxel, own reconstruction"]
    # the best is bold, a tie twice; the ceiling is given the answer
    bold = {name: "**" in line for name, line in rows.items() if "T1w→T2w, " in name}
    assert bold == {
        "T1w→T2w, PSNR in the brain (dB): the model": False,
        "… T1w→T2w, voxel lookup, no bottleneck": True,
        "… T1w→T2w, voxel lookup, equal rate": False,
        "… T1w→T2w, monotone map fitted on training subjects, no network": True,
        "… T1w→T2w, best monotone map of the very scan (given the answer)": False,
    }
    assert "**20.00 (20.00 to 20.00)**" in rows["T2w→T1w, PSNR in the brain (dB): the model"]
    assert "≥ 0.5 yes" in rows["… over self-agreement"]
