import json
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def base(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import base

    return base


def slow(seconds, value=1.0):
    def run():
        time.sleep(seconds)
        return {"x": torch.tensor([value])}

    return run


def test_ratio_is_the_peers_time_over_ours(base):
    result = base.compare(base.Case("sleep", slow(0.002), slow(0.012), "a sleeper", goal=3.0), rounds=4)
    assert 3 < result.ratio < 7
    assert result.ci95[0] <= result.ratio <= result.ci95[1]
    assert result.reached
    assert result.ours_s == pytest.approx(0.002, abs=0.002)
    assert not base.compare(base.Case("sleep", slow(0.004), slow(0.002), "a sleeper", goal=3.0), rounds=2).reached


def test_different_outputs_are_refused(base):
    with pytest.raises(ValueError, match=r"outputs differ by 1\.00e-03, admissible is 1e-05"):
        base.compare(base.Case("sleep", slow(0, 1.001), slow(0), "a sleeper"), rounds=1)
    with pytest.raises(ValueError, match="shapes"):
        base.relative_difference(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="no tensor"):
        base.relative_difference(None, None)
    assert base.relative_difference([torch.zeros(2), torch.ones(1)], (torch.zeros(2), torch.ones(1))) == 0


def test_peak_memory_counts_what_was_freed_again(base):
    if base.peak_mb(lambda: None) is None:
        pytest.skip("the system does not report the peak of a process")

    def use(mb):
        return lambda: torch.ones(mb << 18).sum() and None

    assert base.peak_mb(use(200)) == pytest.approx(200, abs=40)
    assert base.peak_mb(use(20)) < 60  # the earlier peak is forgotten


def test_ssim_benchmark_runs(base, tmp_path, capsys):
    from benchmarks import ssim

    assert ssim.main(["--tiny", "--threads", "1", "--out", str(tmp_path)]) == 0
    assert "MONAI SSIMLoss" in capsys.readouterr().out
    content = json.loads((tmp_path / "ssim.json").read_text())
    assert content["environment"]["threads"] == 1
    assert all(r["difference"] < 1e-5 for r in content["results"])
    assert len(content["results"]) == 2
