"""The memory of a process is its own, not that of the process that started it."""

import resource
import subprocess
import sys
import time

import numpy as np
import pytest

from neurotome.training import cost
from neurotome.training.run_folder import RunFolder


@pytest.mark.slow
def test_a_child_of_a_large_process_reports_its_own_memory() -> None:
    held = np.ones(700 << 20, np.uint8)
    code = f"import runpy; print(runpy.run_path({cost.__file__!r})['peak_memory']()['peak_rss_mb'])"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert held[-1] == 1
    assert cost.peak_rss_mb() > 700
    assert 50 < float(child.stdout) < 550


def test_without_proc_the_kernel_is_asked(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(cost, "_STATUS", tmp_path / "none")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    assert cost.peak_rss_mb() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    (tmp_path / "none").write_text("Name:\tx\nVmHWM:\t    2048 kB\n")
    assert cost.peak_rss_mb() == 2.0


def test_cpu_seconds_begin_with_the_first_status_and_go_on_after_a_resume(tmp_path, monkeypatch) -> None:
    clock = iter([5.0, 5.0, 8.0, 100.0, 100.0, 101.5])
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    found = []
    for folder in (first, first, second, second):
        folder.status("running", 1, 2, 0.5)
        found.append(folder.read_json("status.json")["cpu_seconds"])
    assert found == [0.0, 3.0, 3.0, 4.5]
