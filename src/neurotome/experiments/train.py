"""Training from Python and from the command line: check, fit, export.

    neurotome.train("neuroquant-demo", "store", "runs/a", seed=1, overrides={"trainer.max_steps": 100})

The same call again resumes. Everything that can be wrong is said before anything is written.
"""

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from neurotome.data.stores.base import Reader
from neurotome.data.stores.loaders import TrainingModule
from neurotome.errors import UsageError, printable
from neurotome.experiments.arguments import check_number, check_path
from neurotome.experiments.config import load_config
from neurotome.experiments.experiment import Experiment, check_experiment
from neurotome.experiments.outlook import check_budget
from neurotome.files.atomic import HIDDEN, remove_folder, write_atomically
from neurotome.files.progress import Progress
from neurotome.files.yaml_text import parse_yaml
from neurotome.models.starting_model import StartingModel, start_from
from neurotome.scans.export import export
from neurotome.training.base import Method
from neurotome.training.device import Precision, chosen_device, trainer_precision
from neurotome.training.fit import FitResult, TrainerConfig, fit
from neurotome.training.run_folder import LOCK, RunFolder, environment, flat

MOST_PROCESSES = 1024
STEPS = "trainer.max_steps"
log = logging.getLogger("neurotome")
# what a run writes, and what says how good it is; the last one makes a folder a run, and is therefore removed last
OWN_FILES = (
    "checkpoints", "model", "events", "data.json", "environment.json", "metrics.jsonl", "status.json",
    "metrics.json", "panels.safetensors", "report.html", "worst_batch.safetensors", "origin.json", "config.yaml",
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What a training left.

    Args:
        run: The run folder.
        model: The model folder in it.
        step: Finished steps.
        seconds: Training time, that of earlier starts included.
        already_finished: Whether there was nothing left to do.
        message: One sentence for people.
        unready: Why the model must not be used yet, and what to do; empty where it may.
        validation: The last validation's ``val/…`` values.
    """

    run: Path
    model: Path
    step: int
    seconds: float
    already_finished: bool
    message: str
    unready: str = ""
    validation: Mapping[str, float] = field(default_factory=dict)


def train(
    config: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    seed: int | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    threads: int | None = None,
    workers: int = 0,
    init_from: str | Path | None = None,
    extend_to: int | None = None,
    overwrite: bool = False,
    quiet: bool = True,
) -> Trained:
    """Train a config into a run folder and write its model folder; the same call resumes.

    Args:
        config: Name of a shipped config, or a YAML file.
        data: Folder that the config's ``data`` block reads: a store, or shards of latents.
        out: The run folder.
        overrides: Values by dotted key, ``{"optimizer.lr": 1e-3}``.
        seed: Of every draw, at least 0; None for the config's.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``fp32`` or ``bf16``; None for the config's.
        threads: CPU threads, at least 1; None for all.
        workers: Loader processes.
        init_from: Model folder whose weights the product starts from, or a run folder that holds it.
        extend_to: Steps of the whole run, more than the run in ``out`` has: it goes on to them.
        overwrite: Remove a run that is there.
        quiet: Show no progress.

    Raises:
        UsageError: A key, value, path or flag is not admissible; the data do not fit; ``out`` holds something else.
        InputError: Data or model folder are damaged.
        Interrupted: A signal came; the same call resumes.
        Diverged: A loss or gradient is not finite.
        OutputError: The disk is full, or ``out`` cannot be written to.
    """
    for name, path in (("config", config), ("data", data), ("out", out)):
        check_path(name, path)
    check_number("workers", workers, 0, MOST_PROCESSES)
    if threads is not None:
        check_number("threads", threads, 1, MOST_PROCESSES)
    check_out(Path(out))
    texts = _texts({} if overrides is None else overrides)
    if seed is not None:
        check_number("seed", seed, 0)
        texts.append(_agreed(texts, "seed", seed, "seed"))
    if extend_to is not None:
        texts.append(extension(extend_to, texts, overwrite=overwrite))
    training = Training.prepare(config, data, texts, device, precision, threads, init_from, quiet=quiet)
    return training.run(Path(out), workers=workers, overwrite=overwrite, extend=extend_to is not None)


def extension(steps: int, overrides: Iterable[tuple[str, str]], *, overwrite: bool) -> tuple[str, str]:
    """Return the override by which a run goes on to so many steps.

    Args:
        steps: Of the whole run.
        overrides: The others; they may still name the fewer steps that the run was begun with.
        overwrite: Whether the run shall be removed first.

    Raises:
        UsageError: Not a number of steps, the overrides ask for more, or the run shall be removed first.
    """
    check_number("extend_to", steps, 1, 10**9)
    if overwrite:
        raise UsageError("--extend-to continues the run that --overwrite would remove; give one of them")
    for asked in _stated(overrides, STEPS):
        if not isinstance(asked, int) or asked > steps:
            raise _contradiction("--extend-to", steps, STEPS, asked)
    return STEPS, str(steps)


def _stated(overrides: Iterable[tuple[str, str]], key: str) -> list[Any]:
    """Return the values that overrides give a key, by its own name or within a block."""
    trees = [flat({name: parse_yaml(text, f"--{name}")}) for name, text in overrides]
    return [tree[key] for tree in trees if key in tree]


def _agreed(overrides: Iterable[tuple[str, str]], key: str, value: Any, flag: str) -> tuple[str, str]:
    """Return what a flag sets as an override.

    Raises:
        UsageError: The overrides set something else.
    """
    for other in _stated(overrides, key):
        if other != value:
            raise _contradiction(flag, value, key, other)
    return key, str(value)


def _contradiction(flag: str, value: Any, key: str, other: Any) -> UsageError:
    return UsageError(f"{flag} {value} and {key} {printable(str(other))} contradict each other; give one of them")


def _texts(overrides: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return overrides as the command line has them; JSON is YAML."""
    if not isinstance(overrides, Mapping):
        raise UsageError(f'overrides are {type(overrides).__name__}; give a mapping, {{"optimizer.lr": 1e-3}}')
    texts = []
    for key, value in overrides.items():
        if not isinstance(key, str):
            raise UsageError(f"overrides: key {key!r} is not text; give a dotted key, optimizer.lr")
        try:
            texts.append((key, json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)))
        except (TypeError, ValueError, RecursionError) as error:
            reason = f"{printable(repr(value))[:80]} is no value of a config ({error})"
            raise UsageError(f"overrides: {printable(key)}: {reason}; give numbers, text, lists or mappings") from error
    return texts


def _plain(value: Any) -> Any:
    """Return what JSON lacks as what it has: paths as text, numbers of numpy and torch as numbers."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if callable(item := getattr(value, "item", None)):
        return item()
    raise TypeError(f"a {type(value).__name__}")


def check_out(out: Path) -> None:
    """Refuse a folder with other things in it.

    Raises:
        UsageError: OUT is a file, or a folder that holds something but no run.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{printable(out)}: is a file; --out names a folder")
    if out.is_dir() and not (out / "config.yaml").exists() and not all(map(_is_leftover, out.iterdir())):
        raise UsageError(f"{printable(out)}: is not empty and holds no run; choose another --out")


def _is_leftover(part: Path) -> bool:
    """Return whether a start that was stopped before it wrote its config has left this."""
    return part.name in (LOCK, "origin.json") or part.name.startswith(HIDDEN)


def check_apart(out: Path, sources: Iterable[Path]) -> None:
    """Refuse to remove a run whose own files the new one would be made from.

    Raises:
        UsageError: A source is the run in ``out``, which stands for its model, or lies in what would be removed.
    """
    run = out.resolve()
    removed = {run, *(run / name for name in OWN_FILES if not (run / name).is_symlink())}
    for source in sources:
        if {path := source.resolve(), *(parent for parent in path.parents if parent != run)} & removed:
            raise UsageError(
                f"{printable(source)}: lies in the run that --overwrite would remove; give another --out, or copy it "
                "out of the run first"
            )


def remove_run(out: Path) -> None:
    """Remove the run in a folder, and nothing else; where that is stopped half-way, it is still a run."""
    for name in OWN_FILES:
        part = out / name
        if part.is_dir() and not part.is_symlink():
            remove_folder(part)
        else:
            part.unlink(missing_ok=True)


@dataclass(frozen=True)
class Training:
    """A training that has been checked.

    Args:
        experiment: The checked config.
        reader: What it reads.
        method: With freshly drawn weights, or those of a model folder.
        settings: How long and on what.
        origin: What the weights start from; None for freshly drawn ones.
        sources: Files and folders that all this was read from.
    """

    experiment: Experiment
    reader: Reader
    method: Method
    settings: TrainerConfig
    origin: StartingModel | None = None
    sources: tuple[Path, ...] = ()

    @classmethod
    def prepare(
        cls,
        config: str | Path,
        data: str | Path,
        overrides: list[tuple[str, str]],
        device: str = "auto",
        precision: Precision | None = None,
        threads: int | None = None,
        init_from: str | Path | None = None,
        *,
        quiet: bool = False,
    ) -> Self:
        """Check everything and build the method; arguments as those of :func:`train`.

        Raises:
            UsageError, InputError: As :func:`train`.
        """
        more = []
        if precision is not None:
            more = [_agreed(overrides, "trainer.precision", trainer_precision(precision), "--precision")]
        tree = load_config(str(config), [*overrides, *more])
        reader = check_experiment(tree).data.build().open(Path(data))
        experiment = check_experiment(tree, reader.modalities)
        settings = experiment.trainer.build(
            seed=experiment.seed, device=chosen_device(device), threads=threads, quiet=quiet
        )
        method = experiment.method_for(reader)
        origin = None if init_from is None else start_from(method.product(), Path(init_from))
        check_budget(method, settings.max_steps)
        named = [text for text in flat(parse_yaml(experiment.resolved(), "config")).values() if isinstance(text, str)]
        sources = [Path(name) for name in (data, init_from, *named) if name and "\0" not in str(name)]
        return cls(experiment, reader, method, settings, origin, tuple(sources))

    def run(self, out: Path, *, workers: int = 0, overwrite: bool = False, extend: bool = False) -> Trained:
        """Fit and export; arguments and errors as those of :func:`train`."""
        with RunFolder(out, extend=extend).alone():
            if overwrite:  # only now: a call that cannot work costs no run
                check_apart(out, self.sources)
                remove_run(out)
            return self._run(out, workers, extend)

    def _run(self, out: Path, workers: int, extend: bool) -> Trained:
        text, product, started_from = self.experiment.resolved(), self.method.product(), self._origin(out)
        learns = any(True for _ in product.parameters())
        if learns:
            steps, seed = self.settings.max_steps, self.experiment.seed
            module = TrainingModule(self.reader, steps, seed, workers, modalities=product.modalities)
            origin = None if self.origin is None else self.origin.to_json()
            result = fit(self.method, module, out, self.settings, text, origin, extend=extend)
        else:
            result = self._without_a_step(out, text, extend)
        exported = RunFolder(out).read_json("status.json").get("exported", result.step)
        if not (result.already_finished and exported == result.step and (out / "model" / "config.json").exists()):
            self._export(out, result, started_from)
            RunFolder(out).exported(result.step)
        if unready := product.unready():
            log.warning(
                "after %d steps %s. No command will use the model. Go on with --extend-to and more steps than %d",
                result.step, unready, result.step,
            )  # fmt: skip
            RunFolder(out).status("finished", result.step, self.method.max_steps, result.seconds, unready)
        message = result.message if learns else f"{type(product).__name__} has no parameters: nothing to train"
        return Trained(
            out,
            out / "model",
            result.step,
            result.seconds,
            result.already_finished,
            message,
            unready,
            result.validation,
        )

    def _without_a_step(self, out: Path, text: str, extend: bool) -> FitResult:
        """Return the result of a method without parameters, and make its run folder.

        Raises:
            UsageError: The folder holds the model of other data.
        """
        folder = RunFolder(out)
        folder.check(text, extend=extend)
        done = (out / "model" / "config.json").exists()
        if done and folder.read_json("data.json") != json.loads(json.dumps(self.reader.describe())):
            raise UsageError(
                f"{printable(out)} was made from other data: give the same store, another --out, or --overwrite"
            )
        folder.claim(text, extend=extend)
        folder.start(environment(self.experiment.seed, torch.get_num_threads(), "cpu"))
        folder.status("finished", 0, 0, 0.0)
        return FitResult(out, 0, 0.0, None, already_finished=done)

    def _export(self, out: Path, result: FitResult, origin: StartingModel | None) -> None:
        """Write the model folder, with the averaged weights."""
        start, name = time.monotonic(), self.experiment.name
        facts = {
            "Config": name if "/" not in name else Path(name).name,
            "Steps": result.step,
            "Seed": self.experiment.seed,
            **{f"Last {key}": f"{value:.4g}" for key, value in result.validation.items()},
            **self.method.facts(),
        }
        write_atomically(out / "data.json", [json.dumps(self.reader.describe(), indent=2).encode() + b"\n"])
        product = self.method.product()
        with result.averaged():
            sessions = self.reader.sessions("train", product.modalities)
            self.method.finish(sessions[i] for i in range(len(sessions)))
            with Progress("encoded for the statistics", self.settings.quiet) as progress:
                folder, frozen = out / "model", self.method.frozen()
                export(
                    product, self.reader, folder, facts=facts, frozen=frozen, origin=origin,
                    overwrite=True, progress=progress,
                )  # fmt: skip
        seconds = time.monotonic() - start
        log.info("wrote %s (%.0f s for statistics over the training subjects)", out / "model", seconds)

    def _origin(self, out: Path) -> StartingModel | None:
        """Return what the run starts from or has started from; a resume need not name it again.

        Raises:
            InputError: The file of the run that says so is damaged.
        """
        if self.origin is not None or not (out / "config.yaml").exists():
            return self.origin
        found = RunFolder(out).origin()
        return None if found is None else StartingModel.from_json(found, out / "origin.json")
