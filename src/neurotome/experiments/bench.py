r"""Tokenizers side by side: same store, same budget, same held-out subjects.

    cell = (name, seed)      train within the budget ──▶ bench.json ──▶ evaluate ──▶ metrics.json
    row  = mean over seeds within a subject, then over subjects, with an interval over subjects
    step = row - row before it, subject by subject; real where its interval excludes zero and it is not tiny

A cell is trained once: ``bench.json`` says so, and by which recipe; another one is refused. It is evaluated again where
the protocol of its ``metrics.json`` differs from what is asked for now: another segmenter or table of factors, or
measures of an earlier version of this package.

A budget is a number of optimiser steps, or seconds: then the steps follow from the seconds one step takes, measured
once per recipe and kept, so that a resumed bench trains every seed for as long. What a training really took stands in
the row: wall seconds, and CPU seconds with validation and checkpoints.
"""

import math
import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurotome.errors import InputError
from neurotome.experiments.bench_plan import BenchPlan, BenchRun
from neurotome.files.json_text import parse_json
from neurotome.metrics.statistics import Interval, bootstrap_interval, paired_interval
from neurotome.training.run_folder import differences

Tree = Mapping[str, Any]


# a quiet training says nothing on standard error but warnings, with source lines under Python's, and why it failed
WARNING = re.compile(r"(?!neurotome: )\S")
LOG = "train.log"


@dataclass(frozen=True)
class BenchCell:
    """What one training gave.

    Args:
        seed: Its seed.
        metrics: Its metrics.json; empty where it has not been evaluated.
        status: Its status.json.
        parameters: Of the exported network.
        warnings: What its log warns of, each line once.
    """

    seed: int
    metrics: Tree
    status: Tree
    parameters: int
    warnings: tuple[str, ...] = ()

    def answers(self, request: Tree) -> bool:
        """Return whether it was evaluated as asked; see :func:`neurotome.evaluation.results.evaluation_request`."""
        protocol = self.metrics.get("protocol")
        return isinstance(protocol, Mapping) and {key: protocol.get(key) for key in request} == dict(request)


# file of a cell: what to do where it cannot be read
REMEDIES = {
    "bench.json": "remove the file and run again; a training that is finished is not repeated",
    "status.json": "remove it and the bench.json beside it, and run again; what is trained stays",
    "metrics.json": "remove the file and run again; the cell is evaluated again, not trained",
}


def read_cell(folder: Path, recipe: Tree, seed: int) -> BenchCell | None:
    """Return a trained cell, evaluated or not; None where its training is not finished.

    Args:
        folder: Of the cell.
        recipe: What the weights depend on but the seed, as JSON; another one is another training.
        seed: Of the cell.

    Raises:
        InputError: A file of a trained cell cannot be read, or it was trained by another recipe.
    """
    if not (folder / "bench.json").exists():
        return None
    found: dict[str, dict[str, Any]] = {"metrics.json": {}}
    for name, remedy in REMEDIES.items():
        if name != "metrics.json" or (folder / name).exists():
            found[name] = read_object(folder / name, remedy)
    made = found["bench.json"]
    changed = differences(made.get("recipe") or {}, recipe)
    if changed:
        raise InputError(
            f"holds a training by another recipe ({'; '.join(changed[:5])}{'; …' if len(changed) > 5 else ''})",
            file=folder,
            remedy="give the same values and store, or remove the folder and run again, or choose another --out",
        )
    parameters = int(made.get("parameters") or 0)
    return BenchCell(seed, found["metrics.json"], found["status.json"], parameters, alarms(folder / LOG))


def read_object(file: Path, remedy: str) -> dict[str, Any]:
    """Return the JSON object of a file.

    Raises:
        InputError: It cannot be read, or holds something else.
    """
    try:
        value = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({' '.join(str(error).split())})", file=file, remedy=remedy) from error
    if not isinstance(value, dict):
        raise InputError(f"holds a {type(value).__name__}, where an object is expected", file=file, remedy=remedy)
    return value


def alarms(log: Path) -> tuple[str, ...]:
    """Return the warnings of a training's log, each once; none where there is no log."""
    if not log.exists():
        return ()
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return tuple(dict.fromkeys(line.strip() for line in lines if WARNING.match(line)))


# measure: section of metrics.json and its key there, with a value per subject for each contrast or pair
SUBJECT_MEASURES = {
    "psnr_db": ("reconstruction", "psnr_db"),
    "ssim": ("reconstruction", "ssim"),
    "ms_ssim": ("reconstruction", "ms_ssim"),
    "structure_dice": ("reconstruction", "structure_dice"),
    "structure_dice_truth": ("reconstruction", "structure_dice_truth"),
    "structure_volume_error": ("reconstruction", "structure_volume_error"),
    "region_volume_error": ("regions", "relative_error"),
    "high_frequency_ratio": ("reconstruction", "high_frequency_ratio"),
    "translation_psnr_db": ("translation", "psnr_db"),
}
# measure: a step below it is not claimed, whatever its interval: the same config on another seed differs by more
FLOORS = {"psnr_db": 0.05, "translation_psnr_db": 0.05}
# measure: path of one number in metrics.json; "*" is the mean over all that stands there, the contrasts
SCALARS = {
    "bits_per_voxel": ("bits", "own_per_voxel"),
    "bits_per_brain_voxel": ("bits", "own_per_brain_voxel"),
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

# baselines of a translation that need no network, and the end of what they can reach
MONOTONE = ("monotone_map", "monotone_ceiling")
# factor that a table or the scans may tell: its measure
PROBED = {"sex": "sex_probe", "site": "site_probe", "age": "age_r2"}


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


def subject_values(cells: Sequence[BenchCell], measure: str) -> dict[str, dict[str, float]]:
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


def paired_steps(cells: Sequence[BenchCell], rival: Sequence[BenchCell], measure: str) -> dict[str, Interval]:
    """Return task -> mean difference to a rival over subjects, from the seeds that both have."""
    shared = {c.seed for c in cells} & {c.seed for c in rival}
    ours, theirs = (subject_values([c for c in side if c.seed in shared], measure) for side in (cells, rival))
    return {
        task: paired_interval(list(subjects.values()), [theirs[task][s] for s in subjects])
        for task, subjects in ours.items()
        if subjects.keys() == theirs.get(task, {}).keys()
    }


def row(run: BenchRun, cells: Sequence[BenchCell], rival: Sequence[BenchCell] = ()) -> dict[str, Any]:
    """Return a row of the table: intervals over subjects, scalars over seeds, and the paired step against a rival."""
    tasks: dict[str, dict[str, Any]] = {}
    for measure in SUBJECT_MEASURES:
        steps = paired_steps(cells, rival, measure)
        for task, subjects in subject_values(cells, measure).items():
            entry = bootstrap_interval(list(subjects.values())).to_json()
            step = {"step": _step(steps[task], FLOORS.get(measure, 0.0))} if task in steps else {}
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
        "training_cpu_seconds": [c.status.get("cpu_seconds") for c in cells],
        "peak_rss_mb": _largest(cells, "peak_rss_mb"),
        "peak_device_mb": _largest(cells, "peak_device_mb"),
        "warnings": [f"seed {c.seed}: {line}" for c in cells for line in c.warnings],
        "structure_ceiling": _ceilings(cells),
        "monotone_psnr_db": _monotone(cells),
        **tasks,
        **scalars,
    }


def _largest(cells: Sequence[BenchCell], key: str) -> float | None:
    return max((c.status[key] for c in cells if c.status.get(key) is not None), default=None)


def _ceilings(cells: Sequence[BenchCell]) -> dict[str, float] | None:
    """Return by contrast how far the segmentation of the scans themselves agrees with the label maps."""
    for cell in cells:  # it is the same for every tokenizer
        rows = cell.metrics.get("structures") or {}
        found = {task: v for task, row in rows.items() if (v := at(row, "ceiling", "mean")) is not None}
        if found:
            return found
    return None


def _monotone(cells: Sequence[BenchCell]) -> dict[str, dict[str, float]]:
    """Return by direction what curves of the source's intensity reach; they are the same for every tokenizer."""
    found: dict[str, dict[str, float]] = {}
    for cell in cells:
        for task, entry in (cell.metrics.get("translation") or {}).items():
            for name in MONOTONE:
                if (value := at(entry, "baselines", name, "psnr_db")) is not None:
                    found.setdefault(task, {}).setdefault(name, value)
    return found


def _step(step: Interval, floor: float) -> dict[str, Any]:
    return {**step.to_json(), "floor": floor, "real": is_real(step, floor)}


def is_real(step: Interval, floor: float = 0.0) -> bool:
    """Return whether the interval of a difference excludes zero, and its mean is not too small to matter."""
    return (step.low > 0 or step.high < 0) and abs(step.mean) >= floor


def table(plan: BenchPlan, cells: Mapping[str, Sequence[BenchCell]]) -> list[dict[str, Any]]:
    """Return the rows of all runs that have a finished cell, in the plan's order."""
    return [
        row(run, cells[run.name], cells.get(run.against, ()) if run.against else ())
        for run in plan.runs
        if cells.get(run.name)
    ]


def unprobed(rows: Sequence[Tree], known: Collection[str]) -> list[str]:
    """Return the factors that are known of the subjects, but that no run could be probed for."""
    return [name for name, measure in PROBED.items() if name in known and not any(row[measure] for row in rows)]
