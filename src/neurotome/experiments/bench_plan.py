"""The file of a bench: which tokenizers, on which seeds, and on how much training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from neurotome.errors import UsageError, did_you_mean, printable
from neurotome.files.yaml_text import parse_yaml, yaml_text
from neurotome.ranges import Positive, PositiveCount, Range, Ranged
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
class BenchPlan(Ranged):
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
    seeds: tuple[Annotated[int, Range("[0, 4294967295]")], ...]
    seconds: Positive | None = None
    steps: PositiveCount | None = None
    about: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [run.name for run in self.runs]
        if (self.seconds is None) == (self.steps is None):
            raise UsageError("a bench has one budget: give `seconds` (on a CPU: of CPU time) or `steps`")
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
    tree = parse_yaml(text, name)
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
        plain = {key: yaml_text(value, flow=True) for key, value in overrides.items()}
        runs.append(
            BenchRun(str(one.get("name") or one["config"]), one["config"], plain, str(one.get("against") or ""))
        )
    seeds = tree.get("seeds", [0, 1, 2])
    if not isinstance(seeds, list) or not all(isinstance(s, int) and not isinstance(s, bool) for s in seeds):
        raise UsageError(f"{printable(name)}: seeds are whole numbers, for example [0, 1, 2]")
    for key, kind, words in (("seconds", int | float, "a number"), ("steps", int, "a whole number")):
        if tree.get(key) is not None and (isinstance(tree[key], bool) or not isinstance(tree[key], kind)):
            raise UsageError(f"{printable(name)}: {key} is {printable(str(tree[key]))}; give {words}")
    return BenchPlan(
        tuple(runs),
        tuple(seeds),
        tree.get("seconds"),
        tree.get("steps"),
        str(tree.get("about") or ""),
    )


def _known(tree: Mapping[str, Any], keys: set[str], name: str) -> None:
    unknown = sorted(str(key) for key in tree if key not in keys)
    if unknown:
        raise UsageError(
            f"{printable(name)}: there is no key {printable(unknown[0])!r}{did_you_mean(unknown[0], keys)}; "
            f"keys are {', '.join(sorted(keys))}"
        )
