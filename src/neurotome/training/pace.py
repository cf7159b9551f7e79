r"""Seconds of a training step, of several methods in one process.

    warm-up of each;  rounds r: method 1, method 2, ... take their steps in turn;  pace = sum_r seconds_r / steps

Other jobs on the machine make a round dearer for all of them, so that paces compare even where seconds do not. Steps
come from all over the schedule, whole volumes and slices in their share: step k is number k s mod n, s prime to n.
"""

import math
import statistics
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from neurotome.errors import NeurotomeError
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


def paces(
    runners: Mapping[str, Runner], warm_steps: int, rounds: int, round_steps: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return for each runner the seconds of a step in every round, and why a runner failed.

    CPU seconds, on an accelerator seconds; averaged weights are not counted, they cost the same for all.

    Args:
        runners: By name; their methods are trained a little.
        warm_steps: Steps of each before the first round.
        rounds: How often each has its turn.
        round_steps: Steps of a turn.
    """
    steps = {name: _Steps(runner, warm_steps + rounds * round_steps) for name, runner in runners.items()}
    found: dict[str, list[float]] = {name: [] for name in runners}
    failed: dict[str, str] = {}
    for turn in range(1 + rounds):
        for name in [n for n in runners if n not in failed]:
            try:
                seconds = steps[name].take(round_steps if turn else warm_steps) / round_steps
            except (NeurotomeError, RuntimeError) as error:
                failed[name] = " ".join(str(error).split())
                steps.pop(name)
            else:
                found[name] += [seconds] if turn else []
    return {name: seconds for name, seconds in found.items() if name not in failed}, failed


def pace(seconds: list[float]) -> float:
    """Return the mean over rounds: kinds of steps differ in cost, and each counts by its share."""
    return statistics.fmean(seconds)


def spread(steps: int) -> list[int]:
    """Return the steps of a schedule in an order whose every stretch is spread evenly over it."""
    stride = next(s for s in range(max(1, round(0.618 * steps)), steps + 1) if math.gcd(s, steps) == 1 or steps == 1)
    return [k * stride % steps for k in range(steps)]


class _Steps:
    """Optimiser steps of one method, as :func:`neurotome.training.fit` takes them, without logs and files."""

    def __init__(self, runner: Runner, max_steps: int) -> None:
        self.runner = runner
        self.method = runner.method.to(runner.device).train()
        self.method.max_steps = max_steps
        self.order = spread(max_steps)
        self.optimizer: Any = self.method.configure_optimizers()

    def take(self, steps: int) -> float:
        """Take steps and return their seconds."""
        start = self._clock()
        for _ in range(steps):
            self._take_one()
        return self._clock() - start

    def _take_one(self) -> None:
        method = self.method
        batch = method.transfer_batch_to_device(self.runner.batches[self.order[method.step]], self.runner.device, 0)
        method.set_rates(self.optimizer)
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
        torch.accelerator.synchronize(self.runner.device)
        return time.perf_counter()
