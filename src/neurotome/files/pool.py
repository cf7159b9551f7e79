"""Jobs on several processes: results as they come, a killed process named, none left behind.

A worker that is killed (most often by the system, when memory runs out) breaks its pool; which job it had cannot be
known, but only as many jobs are handed out as there are workers, so that those in question are few. A worker whose
parent is killed ends at once instead of waiting for work for ever.
"""

import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for
from typing import TypeVar

from neurotome.errors import NeurotomeError

Job = TypeVar("Job")
Result = TypeVar("Result")


class WorkerKilled(NeurotomeError):  # noqa: N818 - says what happened
    """A worker process was killed."""


def results(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, name: Callable[[Job], str]
) -> Iterator[Result]:
    """Yield the result of every job, in the order in which they are done.

    Args:
        function: At the top of a module, so that another process can find it; or a partial of such a function.
        jobs: Each travels to a worker.
        workers: Processes; 0 works in this one.
        name: What an error calls a job.

    Raises:
        WorkerKilled: A worker was killed; the message names the jobs that were being done.
    """
    if workers <= 0 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    workers = min(workers, len(jobs))
    todo = iter(jobs)
    running: dict[Future[Result], Job] = {}
    # spawned, not forked: a forked child inherits locks of the parent's threads
    context, module = get_context("spawn"), (function.func if isinstance(function, partial) else function).__module__
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(module,)) as pool:
        try:
            for job in todo:
                running[pool.submit(function, job)] = job
                if len(running) < workers:
                    continue
                yield from _finished(running)
            while running:
                yield from _finished(running)
        except BrokenProcessPool as error:
            names = ", ".join(name(job) for job in running.values())
            raise WorkerKilled(
                f"a worker process was killed while it did one of: {names}. Most often memory had run out. "
                "Remedy: run the same command again, with fewer --workers if it recurs."
            ) from error


def _finished(running: "dict[Future[Result], Job]") -> Iterator[Result]:
    """Yield what is done; a job leaves ``running`` only when its result is there."""
    done = wait(running, return_when=FIRST_COMPLETED).done
    for future in sorted(done, key=lambda f: f.exception() is not None):  # what is done is not lost to a failure
        result = future.result()
        del running[future]
        yield result


def _start(module: str) -> None:
    """Prepare a worker: one thread; Ctrl-C is left to the parent; it ends when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    importlib.import_module(module)  # with all it computes with, whose threads can be limited only now
    importlib.import_module("threadpoolctl").threadpool_limits(1)  # it has no type stubs
    parent = parent_process()
    if parent is None:
        return

    def watch(sentinel: int) -> None:
        wait_for([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
