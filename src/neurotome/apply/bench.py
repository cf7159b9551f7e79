r"""Tokenizers side by side: same store, same budget, same held-out subjects.

    cell = (name, seed)      train within the budget ──▶ bench.json ──▶ evaluate ──▶ metrics.json
    row  = mean over seeds within a subject, then over subjects, with an interval over subjects
    step = row - row before it, subject by subject; real where its interval excludes zero

A cell is trained once: ``bench.json`` says so. It is evaluated again where the protocol of its ``metrics.json`` differs
from what is asked for now: another segmenter or table of factors, or measures of an earlier version of this package.

A budget is a number of optimiser steps, or CPU seconds: then the steps follow from the seconds one step takes, measured
once per config and kept, so that a resumed bench trains every seed for as long.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from neurotome.errors import InputError, UsageError, printable
from neurotome.metrics.statistics import Interval, bootstrap_interval, paired_interval

Tree = Mapping[str, Any]
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
class BenchPlan:
    """What is compared, and on how much training.

    Args:
        runs: In the order of the table.
        seeds: Of weights, order and augmentation.
        seconds: CPU seconds of training per cell; None where ``steps`` counts.
        steps: Optimiser steps per cell; None where ``seconds`` counts.
        about: A sentence for the table's head.

    Raises:
        UsageError: Not exactly one budget; no run, no seed; a name twice, or not fit for a folder; an unknown rival.
    """

    runs: tuple[BenchRun, ...]
    seeds: tuple[int, ...]
    seconds: float | None = None
    steps: int | None = None
    about: str = ""

    def __post_init__(self) -> None:
        names = [run.name for run in self.runs]
        if (self.seconds is None) == (self.steps is None):
            raise UsageError("a bench has one budget: give `seconds` (of CPU time) or `steps`")
        if not (self.seconds is None or self.seconds > 0) or not (self.steps is None or self.steps > 0):
            raise UsageError(f"the budget is {self.seconds or self.steps}; give a number above 0")
        if not names or not self.seeds or min(self.seeds) < 0:
            raise UsageError("a bench needs at least one run, and seeds of at least 0")
        for name in names:
            if names.count(name) > 1 or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
                raise UsageError(f"run {printable(name)!r}: names are unique, of letters, digits, '-', '_' and '.'")
        for run in self.runs:
            if run.against and run.against not in names:
                raise UsageError(f"run {run.name!r} is compared with {printable(run.against)!r}, which is no run")

    @property
    def budget(self) -> str:
        """The budget in words."""
        return f"{self.seconds:g} CPU seconds" if self.seconds is not None else f"{self.steps} steps"


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


def _known(tree: Tree, keys: set[str], name: str) -> None:
    unknown = sorted(str(key) for key in tree if key not in keys)
    if unknown:
        raise UsageError(
            f"{printable(name)}: there is no key {printable(unknown[0])!r}; keys are {', '.join(sorted(keys))}"
        )


@dataclass(frozen=True)
class Cell:
    """What one training gave.

    Args:
        seed: Its seed.
        metrics: Its metrics.json; empty where it has not been evaluated.
        status: Its status.json.
        parameters: Of the exported network.
    """

    seed: int
    metrics: Tree
    status: Tree
    parameters: int

    def answers(self, request: Tree) -> bool:
        """Return whether it was evaluated as asked; see :func:`neurotome.apply.scores.evaluation_request`."""
        protocol = self.metrics.get("protocol")
        return isinstance(protocol, Mapping) and {key: protocol.get(key) for key in request} == dict(request)


def read_cell(folder: Path, run: BenchRun, seed: int) -> Cell | None:
    """Return a trained cell, evaluated or not; None where its training is not finished.

    Raises:
        InputError: A file of a trained cell cannot be read, or it was trained with another config or other overrides.
    """
    if not (folder / "bench.json").exists():
        return None
    found: dict[str, dict[str, Any]] = {"metrics.json": {}}
    for name in ("bench.json", "status.json", "metrics.json"):
        if name == "metrics.json" and not (folder / name).exists():
            continue
        try:
            found[name] = dict(json.loads((folder / name).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                "cannot be read", file=folder / name, remedy="remove the cell's folder and run again"
            ) from error
    made = found["bench.json"]
    if (made.get("config"), made.get("overrides")) != (run.config, dict(run.overrides)):
        raise InputError(
            f"holds a training of {printable(str(made.get('config')))} with other settings than {run.name}'s",
            file=folder,
            remedy="remove the folder and run again, or choose another --out",
        )
    return Cell(seed, found["metrics.json"], found["status.json"], int(made.get("parameters") or 0))


# measure: section of metrics.json and its key there, with a value per subject for each contrast or pair
SUBJECT_MEASURES = {
    "psnr_db": ("reconstruction", "psnr_db"),
    "ssim": ("reconstruction", "ssim"),
    "ms_ssim": ("reconstruction", "ms_ssim"),
    "structure_dice": ("reconstruction", "structure_dice"),
    "structure_dice_truth": ("reconstruction", "structure_dice_truth"),
    "structure_volume_error": ("reconstruction", "structure_volume_error"),
    "high_frequency_ratio": ("reconstruction", "high_frequency_ratio"),
    "translation_psnr_db": ("translation", "psnr_db"),
}
# measure: path of one number in metrics.json; "*" is the mean over all that stands there, the contrasts
SCALARS = {
    "bits_per_voxel": ("bits", "own_per_voxel"),
    "codebook_use": ("codebook", "utilisation"),
    "perplexity": ("codebook", "perplexity"),
    "token_probe": ("audit", "probes", "token_vector"),
    "pooled_probe": ("audit", "probes", "pooled_mean"),
    "probe_chance": ("audit", "probes", "chance"),
    "code_gap": ("audit", "code_gap"),
    "sex_probe": ("factors", "sex", "*", "anatomy"),
    "sex_chance": ("factors", "sex", "*", "chance"),
    "age_r2": ("factors", "age", "*", "anatomy_r2"),
    "site_probe": ("factors", "site", "*", "anatomy"),
    "site_chance": ("factors", "site", "*", "chance"),
    "probed_scans": ("audit", "probes", "samples", "pooled_mean", "test"),
    "encode_volumes_per_s": ("speed", "encode_volumes_per_s"),
    "decode_volumes_per_s": ("speed", "decode_volumes_per_s"),
}


def at(tree: Any, *path: str) -> Any:
    """Return what stands at a path; the mean where an interval stands there; None where nothing does."""
    for i, key in enumerate(path):
        if key == "*":
            found = [at(entry, *path[i + 1 :]) for entry in tree.values()] if isinstance(tree, Mapping) else []
            numbers = [v for v in found if isinstance(v, int | float) and not isinstance(v, bool)]
            return statistics.fmean(numbers) if numbers else None
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree.get("mean", tree) if isinstance(tree, Mapping) and "ci95" in tree else tree


def subject_values(cells: Sequence[Cell], measure: str) -> dict[str, dict[str, float]]:
    """Return task -> subject -> mean over seeds, for a measure that has a value per subject."""
    section, key = SUBJECT_MEASURES[measure]
    found: dict[str, dict[str, list[float]]] = {}
    for cell in cells:
        for task, entry in (cell.metrics.get(section) or {}).items():
            values = (entry.get(key) or {}).get("values") if isinstance(entry, Mapping) else None
            for subject, value in (values or {}).items():
                if value is not None and math.isfinite(value):
                    found.setdefault(task, {}).setdefault(subject, []).append(value)
    return {task: {s: statistics.fmean(v) for s, v in rows.items()} for task, rows in found.items()}


def paired_steps(cells: Sequence[Cell], rival: Sequence[Cell], measure: str) -> dict[str, Interval]:
    """Return task -> mean difference to a rival over subjects, from the seeds that both have."""
    shared = {c.seed for c in cells} & {c.seed for c in rival}
    ours, theirs = (subject_values([c for c in side if c.seed in shared], measure) for side in (cells, rival))
    return {
        task: paired_interval(list(subjects.values()), [theirs[task][s] for s in subjects])
        for task, subjects in ours.items()
        if subjects.keys() == theirs.get(task, {}).keys()
    }


def row(run: BenchRun, cells: Sequence[Cell], rival: Sequence[Cell] = ()) -> dict[str, Any]:
    """Return a row of the table: intervals over subjects, scalars over seeds, and the paired step against a rival."""
    tasks: dict[str, dict[str, Any]] = {}
    for measure in SUBJECT_MEASURES:
        steps = paired_steps(cells, rival, measure)
        for task, subjects in subject_values(cells, measure).items():
            entry = bootstrap_interval(list(subjects.values())).to_json()
            step = {"step": {**steps[task].to_json(), "real": is_real(steps[task])}} if task in steps else {}
            tasks.setdefault(measure, {})[task] = {**entry, **step}
    scalars = {}
    for name, path in SCALARS.items():
        found = [v for c in cells if isinstance(v := at(c.metrics, *path), int | float) and not isinstance(v, bool)]
        scalars[name] = {"mean": statistics.fmean(found), "seeds": found} if found else None
    return {
        "name": run.name,
        "config": run.config,
        "overrides": dict(run.overrides),
        "against": run.against or None,
        "seeds": [c.seed for c in cells],
        "num_seeds": len(cells),
        "parameters": cells[0].parameters if cells else None,
        "steps": [c.status.get("step") for c in cells],
        "training_seconds": [c.status.get("seconds") for c in cells],
        "peak_rss_mb": max((c.status.get("peak_rss_mb") or 0.0 for c in cells), default=None),
        "structure_ceiling": _ceilings(cells),
        **tasks,
        **scalars,
    }


def _ceilings(cells: Sequence[Cell]) -> dict[str, float] | None:
    """Return by contrast how far the segmentation of the scans themselves agrees with the label maps."""
    for cell in cells:  # it is the same for every tokenizer
        rows = cell.metrics.get("structures") or {}
        found = {task: v for task, row in rows.items() if (v := at(row, "ceiling", "mean")) is not None}
        if found:
            return found
    return None


def is_real(step: Interval) -> bool:
    """Return whether the interval of a difference excludes zero."""
    return step.low > 0 or step.high < 0


def table(plan: BenchPlan, cells: Mapping[str, Sequence[Cell]]) -> list[dict[str, Any]]:
    """Return the rows of all runs that have a finished cell, in the plan's order."""
    return [
        row(run, cells[run.name], cells.get(run.against, ()) if run.against else ())
        for run in plan.runs
        if cells.get(run.name)
    ]
