"""Processes that are killed: named, resumed to the same bytes, never a hang, none left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.build import prepare
from neurotome.files.pool import WorkerKilled, results

PREPARATION = Preparation(3.0, (20, 24, 16))
PROGRAM = """
import sys
from neurotome.data.stores.build import prepare
from neurotome.data.preparation.preparation import Preparation
if __name__ == "__main__":
    prepare(sys.argv[1], sys.argv[2], preparation=Preparation(3.0, (20, 24, 16)), workers=int(sys.argv[3]))
"""


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def square(number):
    return number * number


def die_at_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def name_of(number):
    return f"job {number}"


def started(tmp_path, dataset, store, workers=0):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    return subprocess.Popen([sys.executable, str(program), str(dataset), str(store), str(workers)])


def journal_lines(store):
    journal = store / "journal.jsonl"
    return len(journal.read_text().splitlines()) if journal.exists() else 0


def wait_until(condition, process):
    deadline = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)


@pytest.mark.slow
def test_a_prepare_killed_at_many_moments_ends_with_the_same_bytes(dataset, prepared, tmp_path):
    """Each moment comes from what lies on the disk, so that the next one goes on where the last was killed."""
    store = tmp_path / "store"
    moments = [
        store.exists,  # before anything is made
        lambda: any(store.glob("entries/.neurotome-*.tmp")) or journal_lines(store) >= 1,  # while an entry is written
        lambda: journal_lines(store) >= 5,
        lambda: (store / "splits.tsv").exists(),  # while the tables are written
    ]
    for moment in moments:
        process = started(tmp_path, dataset, store)
        wait_until(moment, process)
        process.kill()
        process.wait()
    report = prepare(dataset, store, preparation=PREPARATION)
    assert contents(store) == contents(prepared.path)
    assert report.store.fingerprint == prepared.fingerprint
    assert report.num_kept >= 5


def children(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are listed by Linux only")
@pytest.mark.slow
def test_workers_of_a_killed_prepare_end_and_another_goes_on(dataset, prepared, tmp_path):
    store = tmp_path / "store"
    process = started(tmp_path, dataset, store, workers=2)
    wait_until(lambda: journal_lines(store) >= 1, process)
    workers = children(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, workers))
    prepare(dataset, store, preparation=PREPARATION)
    assert contents(store) == contents(prepared.path)


def test_a_killed_worker_is_named_and_what_was_done_is_kept():
    done = []

    def collect():
        done.extend(results(die_at_three, range(8), 2, name_of))

    with pytest.raises(WorkerKilled, match=r"killed while it did one of: .*job 3.*--workers"):
        collect()
    assert {0, 1} <= set(done)
    assert 3 not in done


def test_no_workers_and_one_job_stay_in_this_process():
    assert list(results(square, range(4), 0, name_of)) == [0, 1, 4, 9]
    here = []
    assert list(results(here.append, [5], 4, name_of)) == [None]  # a list cannot be reached from another process
    assert here == [5]
