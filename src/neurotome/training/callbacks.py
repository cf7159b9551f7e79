"""What happens around a step: averaging, the journal, validation, checkpoints, signals.

The order at the end of a step is fixed, and a checkpoint is always last, so that a resumed run continues exactly there:

    step + 1 -> on_step() -> averages -> journal -> validation -> checkpoint -> stop if a signal has come
"""

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, Self

import safetensors.torch
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from neurotome.errors import Interrupted, UsageError
from neurotome.files.progress import Progress, clock
from neurotome.training.averages import EMA
from neurotome.training.base import Method
from neurotome.training.checkpoint import CheckpointFolder, random_state, seed_generators, set_random_state
from neurotome.training.cost import peak_rss_mb
from neurotome.training.journal import BEGUN, Journal
from neurotome.training.run_folder import RunFolder, flat
from neurotome.types import Batch

_TIMED_STEPS, _TIMED_SECONDS = 5, 20.0  # after how many steps, or seconds, the first estimate is said
log = logging.getLogger("neurotome")


class StopFlag:
    """Within the context SIGINT and SIGTERM only set a flag; the step that runs is finished and saved."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def install(self) -> None:
        """Take the signals over; again after another library has taken them."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.signal(number, self._set)
                self._before.setdefault(number, before)

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def validate(
    method: Method,
    batches: Iterable[Batch],
    averages: EMA | None,
    seed: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    stop: Callable[[], object] = bool,
) -> dict[str, float] | None:
    """Return the means of ``method.validate`` over sessions, or None where ``stop`` was true between two batches.

    Validation leaves no trace: generators, training modes and buffers are afterwards as they were, so that how often a
    run is validated does not change what it learns.
    """
    generators = random_state()
    modes = [(module, module.training) for module in method.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in method.buffers()]
    totals: dict[str, float] = {}
    weights: dict[str, int] = {}
    seed_generators(seed)
    method.eval()
    try:
        with torch.no_grad(), averages.averaged() if averages else nullcontext(), autocast():
            method.start_validation()
            for batch in batches:
                if stop():
                    return None
                moved = method.transfer_batch_to_device(batch, method.device, 0)
                for name, value in method.validate(moved).items():
                    totals[name] = totals.get(name, 0.0) + len(batch.subject) * float(value)
                    weights[name] = weights.get(name, 0) + len(batch.subject)
            summary = {name: float(value) for name, value in method.finish_validation().items()}
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, saved in buffers:
                buffer.copy_(saved)
        set_random_state(generators)
    return {f"val/{name}": value for name, value in ({n: totals[n] / weights[n] for n in totals} | summary).items()}


@dataclass
class Intervals:
    """After how many steps something happens; None for never.

    Args:
        log: Rows of metrics.
        val: Validations; one more follows the last step.
        checkpoint: Checkpoints; one more follows the last step.
    """

    log: int
    val: int | None
    checkpoint: int


@dataclass
class RunState:
    """What a checkpoint keeps beside weights, optimiser and Lightning's counters."""

    seconds: float = 0.0
    validation: dict[str, float] = field(default_factory=dict)
    validation_due: bool = False
    generators: dict[str, Any] | None = None


class RunCallback(Callback):
    """Does all that surrounds a step, in the order stated above.

    Args:
        folder: The run folder.
        checkpoints: Its checkpoints.
        intervals: When to log, validate, save.
        averages: The moving average, or None.
        stop: Set by a signal.
        progress: Shows how far the run is.
        batches: Returns the validation batches; None for no validation.
        autocast: Returns the precision context of validation.
        datamodule: Its ``position`` follows the step; its ``fingerprint``, where it has one, must stay.
        seed: Of every draw.
    """

    def __init__(
        self,
        folder: RunFolder,
        checkpoints: CheckpointFolder,
        intervals: Intervals,
        averages: EMA | None,
        stop: StopFlag,
        progress: Progress,
        batches: Callable[[], Iterable[Batch]] | None,
        autocast: Callable[[], AbstractContextManager[Any]],
        datamodule: Any,
        seed: int,
    ) -> None:
        self.folder, self.checkpoints, self.intervals, self.averages = folder, checkpoints, intervals, averages
        self.stop, self.progress, self.batches, self.autocast = stop, progress, batches, autocast
        self.datamodule, self.seed = datamodule, seed
        self.journal = Journal(folder)
        self.state = RunState()
        self.origin: str | None = None  # digest of what the weights start from
        self.begun = False  # whether this start has taken up where the run is
        self._begin = time.perf_counter()
        self._status_at = float("-inf")
        self._timed: tuple[int, float] | None = None  # the step from which a step's seconds are measured, and when
        self._estimated = False

    def restart_clock(self) -> None:
        """Start the clock again from what a loaded state says."""
        self.begun = True
        self._begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Training time in seconds, that of earlier starts included."""
        return self.state.seconds + time.perf_counter() - self._begin

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        """Put generators where they were, or seed them; nothing random happens between here and the first step."""
        method = _method(method)
        self.stop.install()
        if not trainer.global_step == method.step == self.datamodule.position:
            raise RuntimeError(
                f"the trainer is at step {trainer.global_step}, the method at {method.step} and the data at "
                f"{self.datamodule.position}: the checkpoint is inconsistent; delete it to resume from the one before"
            )
        if self.averages:
            self.averages.follow()
        self.restart_clock()
        self.folder.status("running", method.step, method.max_steps, self.seconds)
        if self.state.validation_due:
            self.validation(method)
            if self.state.validation_due:  # stopped again: the checkpoint still says that it is due
                raise self._interrupted(method)
        if self.state.generators is None:
            seed_generators(self.seed)
        else:
            set_random_state(self.state.generators)
        self.journal.open(method.step)
        self.journal.lap(method.step)

    def on_train_batch_end(
        self, trainer: Trainer, method: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Finish the step."""
        method = _method(method)
        method.step = trainer.global_step
        last = method.step == method.max_steps
        method.on_step()
        self._note(method)
        if self.averages:
            self.averages.update()
        self.journal.add(outputs)
        if method.gradient_norm is not None:
            self.journal.add({"grad_norm": method.gradient_norm})
        if last or method.step % self.intervals.log == 0:
            self._log(method)
        self._estimate(method)
        if last or self.progress.due():
            words = f"loss {float(outputs['loss']):.4f}, lr {method.learning_rates()['lr']:.1e}"
            rate = f", {self.progress.rate:.1f} steps/s" if self.progress.rate else ""
            self.progress(method.step, method.max_steps, words + rate)
        every = self.intervals.val
        self.state.validation_due = every is not None and (last or method.step % every == 0)
        if self.state.validation_due:
            self.validation(method)
        stopping = bool(self.stop)
        if stopping or last or method.step % self.intervals.checkpoint == 0:
            self.save(trainer, method)
        if stopping and (not last or self.state.validation_due):
            raise self._interrupted(method)

    def _interrupted(self, method: Method) -> Interrupted:
        name = signal.Signals(self.stop.signal or signal.SIGTERM).name
        return Interrupted(
            f"{name} stopped the training after step {method.step} of {method.max_steps}; "
            f"all is saved in {self.folder.root}: run the same command again to resume"
        )

    def _estimate(self, method: Method) -> None:
        """Say once what time and memory the run takes, from the steps after the first, which prepares much."""
        now = time.perf_counter()
        if self._estimated or self._timed is None:
            self._timed = self._timed or (method.step, now)
            return
        steps, seconds = method.step - self._timed[0], now - self._timed[1]
        if steps < _TIMED_STEPS and seconds < _TIMED_SECONDS:
            return
        self._estimated = True
        if left := method.max_steps - method.step:
            self.progress.say(
                f"{seconds / steps:.3g} s a step: about {clock(left * seconds / steps)} for the {left} steps that are "
                f"left, validation not counted; memory so far {_memory(method.device)}"
            )

    def _note(self, method: Method) -> None:
        """Say and record what has begun in this step."""
        for name, words in method.begun().items():
            log.info("step %d: %s", method.step, words)
            self.progress.say(f"step {method.step}: {words}")
            self.journal.write(method.step, self.seconds, {f"{BEGUN}{name}": 1.0})

    def validation(self, method: Method) -> None:
        """Validate now; a signal ends it early, and then it is repeated at the next start."""
        if self.batches is None:
            self.state.validation_due = False
            return
        with self.journal.pause():
            means = validate(method, self.batches(), self.averages, self.seed, self.autocast, lambda: self.stop)
        if means is None:
            return
        self.state.validation_due = False
        self.state.validation = means
        if means:
            self.journal.write(method.step, self.seconds, means)

    def save(self, trainer: Trainer, method: Method) -> None:
        """Write a checkpoint of this step; the generators go on from what it holds, as they will after a resume."""
        with self.journal.pause():
            method.check_finite(self._kept(trainer))
            self.state.generators = random_state()
            self.datamodule.position = method.step
            trainer.save_checkpoint(self.checkpoints.path(method.step), weights_only=False)
            if (panels := method.panels()) is not None:
                images, entries = panels
                content = safetensors.torch.save(dict(images), {"entries": json.dumps(list(entries))})
                self.folder.write("worst_batch.safetensors", content)
            set_random_state(self.state.generators)

    def _kept(self, trainer: Trainer) -> dict[str, torch.Tensor]:
        """Return the tensors that a checkpoint keeps beside the method's own: moments and averaged weights."""
        kept = {
            f"{name} of the optimiser ({number})": value
            for optimizer in trainer.optimizers
            for number, moments in enumerate(optimizer.state.values())
            for name, value in moments.items()
            if isinstance(value, torch.Tensor)
        }
        averages = {} if self.averages is None else self.averages.state_dict()
        return kept | {f"the average of {name}": v for name, v in flat(averages).items() if isinstance(v, torch.Tensor)}

    def _log(self, method: Method) -> None:
        values = self.journal.means() | method.learning_rates()
        self.journal.write(method.step, self.seconds, values | {"steps_per_s": round(self.journal.lap(method.step), 3)})
        if time.perf_counter() - self._status_at > 2.0:
            self._status_at = time.perf_counter()
            self.folder.status("running", method.step, method.max_steps, self.seconds)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this."""
        return {
            "seconds": self.seconds,
            "validation": self.state.validation,
            "validation_due": self.state.validation_due,
            "generators": self.state.generators,
            "averages": self.averages.state_dict() if self.averages else None,
            "journal": {"sums": self.journal.sums, "counts": self.journal.counts},
            "threads": torch.get_num_threads(),
            "datamodule": self.datamodule.state_dict(),
            "fingerprint": getattr(self.datamodule, "fingerprint", None),
            "origin": self.origin,
        }

    def check(self, state_dict: Mapping[str, Any]) -> None:
        """Refuse to go on from a state with other data, or where what the run started from is no longer known.

        Raises:
            UsageError: The data is not that of the run.
            InputError: ``origin.json`` is missing, damaged or another.
        """
        fingerprint = getattr(self.datamodule, "fingerprint", None)
        if state_dict["fingerprint"] != fingerprint:
            raise UsageError(
                f"{self.folder.root} was trained on other data (fingerprint {state_dict['fingerprint']}, now "
                f"{fingerprint}): give the same store to resume it, or another --out to start a new run"
            )
        if "origin" in state_dict:  # checkpoints of before do not say
            self.folder.check_origin(state_dict["origin"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state."""
        self.state = RunState(
            state_dict["seconds"], state_dict["validation"], state_dict["validation_due"], state_dict["generators"]
        )
        if self.averages and state_dict["averages"] is not None:
            self.averages.load_state_dict(state_dict["averages"])
        self.journal.sums, self.journal.counts = state_dict["journal"]["sums"], state_dict["journal"]["counts"]
        torch.set_num_threads(state_dict["threads"])
        self.datamodule.load_state_dict(state_dict["datamodule"])


def _memory(device: torch.device) -> str:
    """Return the largest memory of the process so far, and of its CUDA device, in words."""
    words = f"{peak_rss_mb():,.0f} MB"
    if device.type != "cuda":
        return words
    return f"{words}, on the device {torch.cuda.max_memory_allocated(device) / 2**20:,.0f} MB"


def _method(module: LightningModule) -> Method:
    if not isinstance(module, Method):
        raise TypeError(f"{type(module).__name__} is not a neurotome.training.Method")
    return module
