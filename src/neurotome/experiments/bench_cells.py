"""The cells of a bench: each is trained and evaluated by the commands a user would type, in processes of their own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neurotome.data.stores.store import Store
from neurotome.errors import Interrupted, NeurotomeError, UsageError
from neurotome.experiments.bench import LOG, BenchCell, read_cell
from neurotome.experiments.bench_plan import BenchRun, BenchSettings
from neurotome.experiments.config import load_config
from neurotome.experiments.experiment import Experiment, check_experiment
from neurotome.files.atomic import write_atomically
from neurotome.files.yaml_text import parse_yaml
from neurotome.models.folder import read_folder
from neurotome.nn.exported import Exportable
from neurotome.training.device import chosen_device, trainer_precision


@dataclass(frozen=True)
class Cells:
    """Where the cells of a bench lie, and what they are made of.

    Args:
        settings: How they are computed and evaluated.
        store: The prepared scans.
        out: Folder of the bench.
        experiments: The checked config of every run, by name.
        request: How every cell is evaluated.
        say: Called with a line of progress.
    """

    settings: BenchSettings
    store: Store
    out: Path
    experiments: Mapping[str, Experiment]
    request: Mapping[str, Any]
    say: Callable[[str], None]

    def folder(self, name: str, seed: int) -> Path:
        """Return the folder of a cell."""
        return self.out / "runs" / f"{name}-{seed}"

    def recipe(self, name: str) -> dict[str, Any]:
        """Return all that the weights of a run depend on but the seed and the length, as JSON."""
        tree = parse_yaml(self.experiments[name].resolved(), "config.yaml")
        del tree["seed"], tree["trainer"]["max_steps"]
        return dict(json.loads(json.dumps({"experiment": tree, **machine(self.settings, self.store)})))

    def read(self, name: str, seed: int) -> BenchCell | None:
        """Return a trained cell; None where its training is not finished."""
        return read_cell(self.folder(name, seed), self.recipe(name), seed)

    def make(self, one: BenchRun, seed: int, steps: int) -> str:
        """Train one cell and evaluate it, each unless it is done; return why it failed, or nothing."""
        cell, title = self.read(one.name, seed), f"{one.name}, seed {seed}"
        if cell is not None and cell.answers(self.request):
            self.say(f"{title}: done before")
            return ""
        folder = self.folder(one.name, seed)
        try:
            if cell is None:
                self.say(f"{title}: {steps} steps …")
                self._train(one, seed, steps)
                made = {
                    "config": one.config,
                    "overrides": dict(one.overrides),
                    "recipe": self.recipe(one.name),
                    "parameters": _parameters(folder / "model"),
                }
                write_atomically(folder / "bench.json", [json.dumps(made, indent=1).encode()])
            else:
                again = "trained before, evaluated with other flags or measures" if cell.metrics else "trained before"
                self.say(f"{title}: {again}; evaluating …")
            self._evaluate(folder)
        except NeurotomeError as error:
            if isinstance(error, Interrupted):
                raise
            self.say(f"{title}: failed: {error}")
            return str(error)
        return ""

    def _evaluate(self, folder: Path) -> None:
        its = self.settings
        words = ["evaluate", str(folder / "model"), its.store, "--split", its.split, "--out", str(folder)]
        words += ["--truth", its.truth] if its.truth else []
        words += ["--segmenter", its.segmenter] if its.segmenter else []
        _neurotome([*words, "--overwrite", *its.flags(), "--quiet"])

    def _train(self, one: BenchRun, seed: int, steps: int) -> None:
        folder = self.folder(one.name, seed)
        overrides = [word for key, value in one.overrides.items() for word in (f"--{key}", value)]
        words = ["train", one.config, self.settings.store, "--out", str(folder), "--seed", str(seed), "--quiet"]
        # the last step is validated anyway; validating on the way would be paid by some configs only
        fixed = ["--trainer.max_steps", str(steps), "--trainer.val_every_steps", str(steps)]
        _neurotome([*words, *self.settings.flags(), *overrides, *fixed], folder / LOG)


def machine(settings: BenchSettings, store: Store) -> dict[str, Any]:
    """Return what every cell of a bench shares: the scans, and how it is computed."""
    return {
        "store_sha256": store.fingerprint,
        "device": chosen_device(settings.device),
        "threads": settings.threads or torch.get_num_threads(),
        "precision": settings.precision or "the config's",
    }


def checked_experiments(settings: BenchSettings, runs: tuple[BenchRun, ...], store: Store) -> dict[str, Experiment]:
    """Return the experiment of every run, by name.

    Raises:
        UsageError: A config is not there, or not admissible; the message names its run.
    """
    precision = [("trainer.precision", trainer_precision(settings.precision))] if settings.precision else []
    found = {}
    for one in runs:
        try:
            config = load_config(one.config, [*one.overrides.items(), *precision])
            found[one.name] = check_experiment(config, tuple(store.modalities))
        except UsageError as error:
            raise UsageError(f"run {one.name}: {error}") from error
    return found


def _neurotome(words: list[str], log: Path | None = None) -> None:
    """Run a command of ours in a process of its own.

    Args:
        words: Of the command.
        log: What it says on standard error is appended here, where its folder has become a run; None keeps nothing.

    Raises:
        Interrupted: It was stopped by a signal of the user.
        NeurotomeError: It failed; the message is its own.
    """
    command = [sys.executable, "-m", "neurotome", *words]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        try:
            code = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=stderr, check=False).returncode
        finally:  # also where a signal ends the bench
            stderr.seek(0)
            said = stderr.read()
            if log is not None and said and (log.parent / "config.yaml").exists():
                with log.open("a", encoding="utf-8") as file:
                    file.write(said)
    if code == Interrupted.exit_code:
        raise Interrupted("interrupted; run the same command again to continue")
    if code:
        own = [line for line in said.splitlines() if line.startswith("neurotome: ")]
        raise NeurotomeError(own[-1].removeprefix("neurotome: ") if own else f"it ended with code {code}")


def _parameters(model: Path) -> int:
    network = read_folder(model, Exportable).network  # type: ignore[type-abstract]  # the registry's are concrete
    return sum(p.numel() for p in network.parameters())
