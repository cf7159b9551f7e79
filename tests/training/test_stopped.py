"""Trainings stopped at random moments of their life end as the one that was never stopped.

Processes are forked from a server that has torch in memory, so that a stop costs less than a second.
"""

import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from neurotome.cli.main import explain, terminable
from neurotome.training import fit
from tests.training.test_fit import STEPS, assert_same_end, status, train, whole  # noqa: F401 - a fixture
from tests.training.toy_run import Toy, ToyData, toy_config

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.training.test_stopped"])
PAUSE = 0.01  # seconds a step
LONGEST = 2.5  # seconds, about the life of an unhindered run


def work(run: Path) -> None:
    """Train as a command does, and end with its exit code."""
    try:
        with terminable():
            fit(Toy(pause=PAUSE), ToyData(STEPS), run, toy_config(STEPS))
    except BaseException as error:  # as main does
        text, code = explain(error)
        (run.parent / f"{run.name}.log").write_text(text)
        sys.exit(code)


def stop(run: Path, number: signal.Signals, after: float) -> int:
    """Start the training, send a signal after some seconds, and return the exit code."""
    process = SERVER.Process(target=work, args=(run,))
    process.start()
    process.join(after)
    if process.exitcode is None:
        assert process.pid is not None
        os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode is not None, "the training neither stopped nor ended"
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize(("number", "count"), [(signal.SIGTERM, 200), (signal.SIGKILL, 50)])
def test_stops_at_random_moments_change_nothing(
    number: signal.Signals,
    count: int,
    tmp_path: Path,
    whole: Path,  # noqa: F811
) -> None:
    draw, stopped, runs = random.Random(count), 0, 0
    while stopped < count:
        run, runs = tmp_path / f"run-{runs}", runs + 1
        while (code := stop(run, number, draw.uniform(0, LONGEST))) != 0:
            stopped += 1
            assert code == (75 if number is signal.SIGTERM else -signal.SIGKILL), code
            if stopped >= count:
                break
        result = train(run)  # what is left of it, without a stop
        assert status(run)["state"] == "finished"
        assert result.already_finished or code != 0
        assert_same_end(run, whole)
