"""Training a method into a run folder: start, stop, resume, finish.

    fit(method, datamodule, "runs/a", TrainerConfig(max_steps=6000, ema_decay=0.999))

The same call again resumes from the newest good checkpoint; on one CPU the result is bit-identical to that of a run
that was never stopped. One Lightning epoch is the whole run. Validation, checkpoints and logging are ours
(:mod:`neurotome.training.callbacks`), so that their order within a step is known.
"""

import logging
import os
import re
import signal
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden

from neurotome.errors import Interrupted, NeurotomeError, OutputError
from neurotome.files.pool import WorkerKilled
from neurotome.files.progress import Progress
from neurotome.files.yaml_text import yaml_text
from neurotome.ranges import Decay, PositiveCount, Range, Ranged
from neurotome.training.averages import EMA
from neurotome.training.base import Method
from neurotome.training.callbacks import Intervals, RunCallback, StopFlag, validate
from neurotome.training.checkpoint import CheckpointFolder, random_state, set_random_state, step_of
from neurotome.training.run_folder import RunFolder, environment, origin_digest
from neurotome.types import Batch

_LIGHTNING_LOGS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
# what torch's loader says of a process that ended or does not answer
_LOADER_GONE = re.compile(r"DataLoader (worker \(pid|timed out)")
log = logging.getLogger("neurotome")


@dataclass(frozen=True)
class TrainerConfig(Ranged):
    """How long and on what a method is trained; plain fields, the schema of a config's ``trainer`` block.

    Args:
        max_steps: Optimiser steps of the whole run, > 0.
        precision: ``32-true``, or ``bf16-mixed``: weights stay in single precision, matrix products run in bfloat16.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        seed: Of every draw in training, >= 0.
        threads: CPU threads, > 0; None leaves torch's choice. A resume uses those of the first start.
        val_every_steps: Steps between validations, > 0; None for no validation. The last step is always validated.
        log_every_steps: Steps between rows of metrics, > 0.
        checkpoint_every_steps: Steps between checkpoints, > 0. The last step is always saved.
        keep: How many checkpoints stay, > 0.
        ema_decay: Share of the averaged weights that survives a step, in [0, 1); None for no average.
        deterministic: Whether only deterministic algorithms are admitted (accelerators; the CPU path is anyway).
        quiet: Whether to show no progress.

    Raises:
        UsageError: A value is outside its range.
    """

    max_steps: PositiveCount
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    seed: Annotated[int, Range("[0, inf)")] = 0
    threads: PositiveCount | None = None
    val_every_steps: PositiveCount | None = None
    log_every_steps: PositiveCount = 50
    checkpoint_every_steps: PositiveCount = 500
    keep: PositiveCount = 2
    ema_decay: Decay | None = None
    deterministic: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class FitResult:
    """How a call of :func:`fit` ended; the method holds the last weights, on the CPU.

    Args:
        run_dir: The run folder.
        step: Finished steps, = max_steps.
        seconds: Training time, that of earlier starts included.
        resumed_from: The step this call resumed from, or None.
        already_finished: Whether there was nothing left to do.
        validation: The last validation's ``val/…`` values.
        averages: The averaged weights, or None.
    """

    run_dir: Path
    step: int
    seconds: float
    resumed_from: int | None
    already_finished: bool
    validation: Mapping[str, float] = field(default_factory=dict)
    averages: EMA | None = None

    @property
    def message(self) -> str:
        """One sentence for the user."""
        if self.already_finished:
            return f"{self.run_dir} was already finished at step {self.step}: nothing to train"
        resumed = f", resumed from step {self.resumed_from}" if self.resumed_from is not None else ""
        return f"trained {self.step} steps in {self.seconds:.0f} s{resumed}"

    def averaged(self) -> AbstractContextManager[None]:
        """Within the context the method holds the averaged weights, where there are some."""
        return self.averages.averaged() if self.averages else nullcontext()


class _Stream:
    """The run's batches from the finished step on; as long as the whole run, which is how Lightning counts."""

    def __init__(self, datamodule: Any, method: Method) -> None:
        self.datamodule = datamodule
        self.method = method

    def __len__(self) -> int:
        return self.method.max_steps

    def __iter__(self) -> Iterator[Batch]:
        step = self.datamodule.position = self.method.step
        generators = random_state()
        batches = iter(self.datamodule.train_dataloader())
        set_random_state(generators)  # a loader draws a seed when it starts, once more after a resume
        while (batch := self._next(batches)) is not None:
            yield batch
            step += 1
        if step < self.method.max_steps:
            raise RuntimeError(f"the data ended after {step} of {self.method.max_steps} steps; it must last for all")

    def _next(self, batches: Any) -> Batch | None:
        """Return the next batch, None after the last.

        Raises:
            NeurotomeError: What making the batch raised.
        """
        try:
            batch = next(batches, None)
        except RuntimeError:
            # a stopped process would not obey the loader, which ends its workers itself; killed by us, they would be
            # reported by torch's signal handler wherever this process then happens to be
            for worker in getattr(batches, "_workers", ()):
                if worker.is_alive():
                    os.kill(worker.pid, signal.SIGCONT)
            raise
        if isinstance(batch, NeurotomeError):
            raise batch
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position is the step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`state_dict`."""


def _loader_gone(error: BaseException | None, datamodule: Any, step: int) -> WorkerKilled | None:
    """Return what to say where a loader process was killed or does not answer; None for other errors.

    Torch raises it in a signal handler, so wherever this process happens to be.
    """
    while error is not None and not (isinstance(error, RuntimeError) and _LOADER_GONE.search(str(error))):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    named = ", ".join(getattr(datamodule, "subjects", lambda step: ())(step))
    late = "timed out" in str(error)
    what, why = (
        ("made no batch in time", "Look for a stopped process, or a network drive that hangs")
        if late
        else ("was killed", "Most often memory had run out")
    )
    return WorkerKilled(
        f"a loader process {what}; the next batch is that of step {step + 1}"
        f"{f' (subjects {named})' if named else ''}. {why}. Remedy: run the same command again, which resumes "
        "from the last checkpoint, with fewer --workers if it recurs."
    )


@contextmanager
def _hushed() -> Iterator[None]:
    """Silence Lightning's advertisements, its notes on hardware, and warnings on what is done on purpose here."""
    loggers = [logging.getLogger(name) for name in _LIGHTNING_LOGS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # loaders without workers, modules in evaluation mode because they are frozen, no Lightning validation
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def num_threads(number: int | None) -> Iterator[None]:
    """Give torch a number of threads for a while; None leaves it its own."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit(
    method: Method,
    datamodule: LightningDataModule,
    run_dir: str | Path,
    config: TrainerConfig,
    config_text: str | None = None,
    origin: Mapping[str, Any] | None = None,
    *,
    extend: bool = False,
) -> FitResult:
    """Train ``method`` into ``run_dir``, from where an earlier call stopped.

    Args:
        method: What is trained; afterwards it holds the last weights.
        datamodule: Has ``position`` (finished steps); its ``train_dataloader()`` gives the batches from there on, and
            ``val_dataloader()`` those of the validation split.
        run_dir: The run folder; made if it is not there.
        config: How long and on what.
        config_text: The whole resolved configuration as YAML; ``config`` alone if None.
        origin: What the method's weights start from, with its digest as ``model``; None for freshly drawn ones.
        extend: Whether a run of fewer steps may go on to ``max_steps``: its next step is the one that a run of so many
            steps would take there (rates, kinds of batches), with the weights that it has.

    Raises:
        Interrupted: A signal came; all is saved, the same call resumes.
        UsageError: The folder holds a run with another configuration, other first weights or other data, or one that
            is running; there is no run to extend.
        InputError: Every checkpoint, or what says where the first weights came from, is damaged.
        OutputError: The disk is full, or the folder cannot be written to.
        Diverged: A loss or gradient is not finite.
    """
    folder = RunFolder(Path(run_dir), extend=extend)
    text = config_text if config_text is not None else yaml_text({"trainer": asdict(config)})
    method.step, method.max_steps, method.log_every_steps = 0, config.max_steps, config.log_every_steps
    method.seed = config.seed
    with folder.alone(), StopFlag() as stop, num_threads(config.threads), _hushed():
        folder.check(text, origin, extend=extend)
        checkpoints = CheckpointFolder(folder.root / "checkpoints", config.keep)
        checkpoints.sweep()
        callback = _callback(method, datamodule, config, folder, checkpoints, stop)
        newest = checkpoints.newest_good()
        if newest is not None:
            callback.check(checkpoints.read_state(newest)["callbacks"][callback.state_key])
        folder.claim(text, origin, extend=extend)  # only now: a call that cannot work changes nothing
        callback.origin = origin_digest(folder.origin())
        try:
            if newest is not None and step_of(newest) == config.max_steps:
                return _finished(method, callback, newest)
            return _train(method, callback, config, newest)
        except BaseException as raised:
            error = _loader_gone(raised, datamodule, method.step) or raised
            state = "interrupted" if isinstance(error, Interrupted) else "failed"
            message = str(error) if isinstance(error, NeurotomeError) else f"{type(error).__name__}: {error}"
            if callback.begun or newest is None:  # else the status of the start before says how far the run is
                with suppress(OutputError):
                    folder.status(state, method.step, method.max_steps, callback.seconds, message)
            if error is not raised:
                raise error from raised
            raise
        finally:
            callback.progress.close()
            callback.journal.close()


def _callback(
    method: Method,
    datamodule: Any,
    config: TrainerConfig,
    folder: RunFolder,
    checkpoints: CheckpointFolder,
    stop: StopFlag,
) -> RunCallback:
    validates = config.val_every_steps is not None and (
        is_overridden("validate", method, Method) or is_overridden("finish_validation", method, Method)
    )
    averages = EMA(method.averaged_modules(), config.ema_decay) if config.ema_decay is not None else None

    def batches() -> Iterable[Batch]:
        return datamodule.val_dataloader()

    def autocast() -> AbstractContextManager[Any]:
        if config.precision == "32-true":
            return nullcontext()
        return torch.autocast(method.device.type, dtype=torch.bfloat16)

    return RunCallback(
        folder=folder,
        checkpoints=checkpoints,
        intervals=Intervals(config.log_every_steps, config.val_every_steps, config.checkpoint_every_steps),
        averages=averages,
        stop=stop,
        progress=Progress("trained", config.quiet),
        batches=batches if validates else None,
        autocast=autocast,
        datamodule=datamodule,
        seed=config.seed,
    )


def _train(method: Method, callback: RunCallback, config: TrainerConfig, newest: Path | None) -> FitResult:
    """Run the steps that are left."""
    trainer = Trainer(
        accelerator={"cuda": "gpu"}.get(config.device, config.device),
        devices=1,
        precision=config.precision,
        max_steps=config.max_steps,
        deterministic=config.deterministic,
        callbacks=[callback],
        plugins=[callback.checkpoints, LightningEnvironment()],  # one process, whatever SLURM_NTASKS says
        default_root_dir=callback.folder.root,
        # all of this is done by the callback
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_autolog_hparams=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    start = None if newest is None else step_of(newest)
    callback.folder.rewind(start or 0)
    callback.folder.start(environment(config.seed, torch.get_num_threads(), str(trainer.strategy.root_device)))
    method.train()
    callback.datamodule.prepare_data()
    callback.datamodule.setup("fit")
    callback.datamodule.trainer = trainer
    trainer.fit(method, train_dataloaders=_Stream(callback.datamodule, method), ckpt_path=newest, weights_only=False)
    if callback.averages:
        callback.averages.follow()
    return _result(method, callback, start, already=False)


def _finished(method: Method, callback: RunCallback, newest: Path) -> FitResult:
    """Load the last checkpoint of a run that has no step left; validate it if a signal had cut that short."""
    state = callback.checkpoints.load_checkpoint(newest)
    method.load_state_dict(state["state_dict"])
    method.step = state["global_step"]
    callback.load_state_dict(state["callbacks"][callback.state_key])
    callback.restart_clock()
    if callback.state.validation_due and callback.batches is not None:
        callback.datamodule.setup("fit")
        means = validate(method, callback.batches(), callback.averages, callback.seed, callback.autocast)
        callback.state.validation = means or {}
        callback.journal.write(method.step, callback.seconds, callback.state.validation)
    return _result(method, callback, method.step, already=True)


def _result(method: Method, callback: RunCallback, start: int | None, *, already: bool) -> FitResult:
    seconds = callback.seconds
    callback.folder.status("finished", method.step, method.max_steps, seconds)
    result = FitResult(
        callback.folder.root, method.step, seconds, start, already, callback.state.validation, callback.averages
    )
    log.info(result.message)
    return result
