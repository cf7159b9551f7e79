"""The file of a bench: which tokenizers, on which seeds, and on how much training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from neurotome.errors import UsageError, printable
from neurotome.training.device import Precision

KEYS = {"about", "seconds", "steps", "seeds", "runs"}
RUN_KEYS = {"name", "config", "overrides", "against"}


@dataclass(frozen=True)
class BenchRun:
    """One tokenizer of a bench.

    Args:
        name: Of the row and of the folders.
        config: A shipped config or a YAML file.
        overrides: Dotted keys and their values as YAML text.
        against: Name of the row it is compared with, subject by subject; empty for none.
    """

    name: str
    config: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    against: str = ""


@dataclass(frozen=True)
class BenchSettings:
    """How the cells of a bench are computed and evaluated.

    Args:
        store: Folder of the prepared scans.
        split: Held-out subjects, "val" or "test".
        truth: Table of known factors per subject; None for none.
        segmenter: Model folder of a segmenter; None for none.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        threads: CPU threads of a training; None for torch's choice.
        precision: ``fp32`` or ``bf16``; None for the config's.
    """

    store: str
    split: str = "test"
    truth: str | None = None
    segmenter: str | None = None
    device: str = "auto"
    threads: int | None = None
    precision: Precision | None = None

    def flags(self) -> list[str]:
        """Return the flags of a command that computes as this bench does."""
        words = ["--device", self.device]
        words += ["--threads", str(self.threads)] if self.threads else []
        return words + (["--precision", self.precision] if self.precision else [])


@dataclass(frozen=True)
class BenchPlan:
    """What is compared, and on how much training.

    Args:
        runs: In the order of the table.
        seeds: Of weights, order and augmentation.
        seconds: Of training per cell, CPU seconds where a CPU trains; None where ``steps`` counts.
        steps: Optimiser steps per cell; None where ``seconds`` counts.
        about: A sentence for the table's head.

    Raises:
        UsageError: Not exactly one budget; no run, no seed; a seed or a name twice; a name not fit for a folder; an
            unknown rival.
    """

    runs: tuple[BenchRun, ...]
    seeds: tuple[int, ...]
    seconds: float | None = None
    steps: int | None = None
    about: str = ""

    def __post_init__(self) -> None:
        names = [run.name for run in self.runs]
        if (self.seconds is None) == (self.steps is None):
            raise UsageError("a bench has one budget: give `seconds` (on a CPU: of CPU time) or `steps`")
        if not (self.seconds is None or self.seconds > 0) or not (self.steps is None or self.steps > 0):
            raise UsageError(f"the budget is {self.seconds or self.steps}; give a number above 0")
        if not names or not self.seeds or min(self.seeds) < 0:
            raise UsageError("a bench needs at least one run, and seeds of at least 0")
        twice = [seed for i, seed in enumerate(self.seeds) if seed in self.seeds[:i]]
        if twice:
            raise UsageError(f"seed {twice[0]} is given twice; every seed is one training")
        for name in names:
            if names.count(name) > 1 or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
                raise UsageError(f"run {printable(name)!r}: names are unique, of letters, digits, '-', '_' and '.'")
        for run in self.runs:
            if run.against and run.against not in names:
                raise UsageError(f"run {run.name!r} is compared with {printable(run.against)!r}, which is no run")

    def budget(self, device: str) -> str:
        """Return the budget in words; what a second is depends on the device."""
        if self.seconds is None:
            return f"{self.steps} steps"
        return f"{self.seconds:g} {'CPU seconds' if device == 'cpu' else f'seconds on {device}'}"


def read_plan(text: str, name: str) -> BenchPlan:
    """Read a bench file.

    Args:
        text: YAML with ``runs`` (name, config, overrides, against), ``seeds``, ``seconds`` or ``steps``, ``about``.
        name: Of the file, for messages.

    Raises:
        UsageError: Not YAML, an unknown key, a value of another kind.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{printable(name)}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("runs"), list):
        raise UsageError(f"{printable(name)}: a bench file is a mapping with a list `runs`")
    _known(tree, KEYS, name)
    runs = []
    for one in tree["runs"]:
        if not isinstance(one, dict) or not isinstance(one.get("config"), str):
            raise UsageError(f"{printable(name)}: each run is a mapping with a `config`")
        _known(one, RUN_KEYS, name)
        overrides = one.get("overrides") or {}
        if not isinstance(overrides, dict):
            raise UsageError(f"{printable(name)}: overrides of {printable(one['config'])} are dotted keys and values")
        plain = {
            str(k): yaml.safe_dump(v, default_flow_style=True).removesuffix("...\n").strip()
            for k, v in overrides.items()
        }
        runs.append(
            BenchRun(str(one.get("name") or one["config"]), one["config"], plain, str(one.get("against") or ""))
        )
    seeds = tree.get("seeds", [0, 1, 2])
    if not isinstance(seeds, list) or not all(isinstance(s, int) and not isinstance(s, bool) for s in seeds):
        raise UsageError(f"{printable(name)}: seeds are whole numbers, for example [0, 1, 2]")
    for key in ("seconds", "steps"):
        if tree.get(key) is not None and (isinstance(tree[key], bool) or not isinstance(tree[key], int | float)):
            raise UsageError(f"{printable(name)}: {key} is {printable(str(tree[key]))}; give a number")
    steps = tree.get("steps")
    return BenchPlan(
        tuple(runs),
        tuple(seeds),
        tree.get("seconds"),
        None if steps is None else int(steps),
        str(tree.get("about") or ""),
    )


def _known(tree: Mapping[str, Any], keys: set[str], name: str) -> None:
    unknown = sorted(str(key) for key in tree if key not in keys)
    if unknown:
        raise UsageError(
            f"{printable(name)}: there is no key {printable(unknown[0])!r}; keys are {', '.join(sorted(keys))}"
        )
