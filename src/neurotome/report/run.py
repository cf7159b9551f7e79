"""What a run folder holds, read file by file; a missing, half-written or broken file is a note, never a failure.

A report must also be possible for a failed run, so nothing here assumes that a run finished.

    config.yaml         the resolved configuration
    environment.json    versions, machine, seed
    status.json         {state, step, max_steps, seconds, peak_rss_mb, message}
    metrics.jsonl       one row per log step: {"step": 10, "seconds": 1.2, "train/loss": ...}
    metrics.json        the evaluation
    panels.safetensors  images of a few test scans
    worst_batch.safetensors   images of the training batch with the highest loss
    timing.json         seconds per phase
    data.json           the cohort
    check.json          what `neurotome check` found, where it was written here
    model/config.json   the digest of the model, which the evaluation must be of
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from neurotome.errors import InputError, UsageError, printable
from neurotome.files.json_text import parse_json
from neurotome.files.yaml_text import parse_yaml
from neurotome.models.model_place import CONFIG, MODEL
from neurotome.models.sealed import opened
from neurotome.report.panels import Panel, read_panels

# A run of a million logged steps is about 200 MB; anything beyond is not one of ours and would only fill the memory.
MAX_BYTES = 512 * 2**20
CONFIG_CHARACTERS = 60_000
BEGUN = "begun/"  # key of a row that marks the step in which something began, as the training's journal writes it


@dataclass(frozen=True)
class Series:
    """One logged quantity over training.

    Args:
        name: The key in ``metrics.jsonl``, such as ``train/loss``.
        step: Optimiser steps, ascending.
        value: Finite values, one per step.
    """

    name: str
    step: np.ndarray
    value: np.ndarray


@dataclass
class Run:
    """Everything a report is made of.

    Args:
        folder: The run folder.
        model: Digest of its model; empty where there is none.
        notes: One sentence per file that is missing, cut short or not understood.
    """

    folder: Path
    model: str = ""
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    check: dict[str, Any] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    panels: list[Panel] = field(default_factory=list)
    worst: list[Panel] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether the run stopped on an error."""
        return str(self.status.get("state", "")).lower() in {"failed", "error", "crashed"}


def read_run(folder: Path) -> Run:
    """Return what ``folder`` holds.

    Raises:
        UsageError: ``folder`` is not a folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{printable(folder)} is not a run folder: give the folder that --out named when training")
    run = Run(folder)
    for name in ("environment", "status", "metrics", "timing", "data", "check"):
        setattr(run, name, _read_json(run, f"{name}.json"))
    _read_config(run)
    run.model = _read_digest(run)
    run.series = _read_series(run)
    run.panels, notes = read_panels(folder / "panels.safetensors")
    run.worst, more = read_panels(folder / "worst_batch.safetensors")
    run.notes.extend([*notes, *more])
    return run


def lookup(tree: Any, *keys: str) -> Any:
    """Return ``tree[k1][k2]…``, or None where a level is missing or is not a mapping."""
    for key in keys:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def number(value: Any) -> float | None:
    """Return ``value`` as a finite float; a mapping stands for its ``mean``; anything else is None."""
    if isinstance(value, Mapping):
        value = value.get("mean")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings as ``("a.b", value)``."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        else:
            yield name, value


def _text(run: Run, name: str) -> str | None:
    path = run.folder / name
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > MAX_BYTES:
            run.notes.append(f"{name} is larger than {MAX_BYTES // 2**20} MB and was not read.")
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        run.notes.append(f"{name} could not be read: {error.strerror}.")
        return None


def _read_json(run: Run, name: str) -> dict[str, Any]:
    text = _text(run, name)
    if text is None:
        return {}
    try:
        value = parse_json(text)
    except ValueError as error:
        run.notes.append(f"{name} is not JSON and was left out: {error}.")
        return {}
    if not isinstance(value, dict):
        run.notes.append(f"{name} does not hold a mapping and was left out.")
        return {}
    return value


def _read_config(run: Run) -> None:
    text = _text(run, "config.yaml")
    if text is None:
        return
    run.config_text = text[:CONFIG_CHARACTERS]
    if len(text) > CONFIG_CHARACTERS:
        run.notes.append(f"config.yaml is shown up to character {CONFIG_CHARACTERS}.")
    try:
        value = parse_yaml(text, "config.yaml")
    except UsageError:
        run.notes.append("config.yaml is not YAML; its text is shown as it is.")
        return
    run.config = value if isinstance(value, dict) else {}


def _read_digest(run: Run) -> str:
    name = f"{MODEL}/{CONFIG}"
    text = _text(run, name)
    if text is None:
        return ""
    try:
        return opened(text.encode(), run.folder / name).digest
    except InputError as error:
        run.notes.append(f"{name} is damaged, so whether the evaluation is of this model is unknown: {error.reason}.")
        return ""


def _read_series(run: Run) -> dict[str, Series]:
    """Collect the numeric columns; a resumed run may log a step twice, and then the later row counts."""
    text = _text(run, "metrics.jsonl")
    columns: dict[str, dict[float, float]] = {}
    broken = 0
    for line in (text or "").splitlines():
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        step = number(row.get("step")) if isinstance(row, dict) else None
        if step is None:
            broken += 1
            continue
        for key, value in row.items():
            finite = number(value)
            if key not in {"step", "epoch"} and finite is not None:
                columns.setdefault(str(key), {})[step] = finite
    if broken:
        run.notes.append(f"metrics.jsonl has {broken} line(s) that could not be read; they were left out.")
    series = {}
    for key, points in columns.items():
        steps = np.array(sorted(points))
        series[key] = Series(key, steps, np.array([points[s] for s in steps]))
    return series
