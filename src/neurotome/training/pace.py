r"""Seconds of a training step, of several methods in one process.

    warm-up of each;  rounds r: method 1, method 2, ... take their steps in turn;  pace = median_r seconds_r / steps

Other jobs on the machine make a round dearer for all of them, so that paces compare even where seconds do not.
"""

import statistics
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from neurotome.training.base import Method
from neurotome.types import Batch


@dataclass(frozen=True)
class Runner:
    """A method with its batches.

    Args:
        method: Not yet trained.
        batches: By step.
        precision: ``32-true`` or ``bf16-mixed``.
        device: Where it runs.
    """

    method: Method
    batches: Dataset[Batch]
    precision: str
    device: torch.device


def paces(runners: Mapping[str, Runner], warm_steps: int, rounds: int, round_steps: int) -> dict[str, list[float]]:
    """Return for each runner the seconds of a step in every round: CPU seconds, on an accelerator seconds.

    Args:
        runners: By name; their methods are trained a little.
        warm_steps: Steps of each before the first round.
        rounds: How often each has its turn.
        round_steps: Steps of a turn.
    """
    steps = {name: _Steps(runner, warm_steps + rounds * round_steps) for name, runner in runners.items()}
    for one in steps.values():
        one.take(warm_steps)
    found: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, one in steps.items():
            found[name].append(one.take(round_steps) / round_steps)
    return found


def pace(seconds: list[float]) -> float:
    """Return the median over rounds."""
    return statistics.median(seconds)


class _Steps:
    """Optimiser steps of one method, as :func:`neurotome.training.fit` takes them, without logs and files."""

    def __init__(self, runner: Runner, max_steps: int) -> None:
        self.runner = runner
        self.method = runner.method.to(runner.device).train()
        self.method.max_steps = max_steps
        self.optimizer: Any = self.method.configure_optimizers()

    def take(self, steps: int) -> float:
        """Take steps and return their seconds."""
        start = self._clock()
        for _ in range(steps):
            self._take_one()
        return self._clock() - start

    def _take_one(self) -> None:
        method = self.method
        batch = method.transfer_batch_to_device(self.runner.batches[method.step], self.runner.device, 0)
        with self._autocast():
            loss = method.loss(batch)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it bare
        method.configure_gradient_clipping(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        method.step += 1
        method.on_step()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.runner.precision == "32-true":
            return nullcontext()
        return torch.autocast(self.runner.device.type, dtype=torch.bfloat16)

    def _clock(self) -> float:
        if self.runner.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.runner.device)
        return time.perf_counter()
