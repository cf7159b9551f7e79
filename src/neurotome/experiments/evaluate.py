"""Evaluation from Python and from the command line: folders in, metrics.json out.

neurotome.evaluate("runs/a/model", "store", "runs/a", truth="factors.tsv")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurotome.data.datasets.text_files import read_table
from neurotome.data.stores.store import Store
from neurotome.errors import InputError, UsageError, printable
from neurotome.evaluation.evaluate import evaluate as measure
from neurotome.evaluation.regions import RegionVolumes, VolumeTable
from neurotome.experiments.arguments import check_number, check_path
from neurotome.files.atomic import check_writable
from neurotome.files.progress import Report
from neurotome.scans.segmenter import ScanSegmenter
from neurotome.scans.tokenizer import ScanTokenizer
from neurotome.training.device import Precision, chosen_device

UNKNOWN = frozenset({"", "n/a", "na", "nan", "none"})


def evaluate(
    model: str | Path | ScanTokenizer,
    store: str | Path | Store,
    out: str | Path | None = None,
    *,
    split: str = "test",
    truth: str | Path | None = None,
    segmenter: str | Path | None = None,
    regions: Sequence[str | Path] | None = None,
    allow_train: bool = False,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    overwrite: bool = False,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Return the metrics of a model on a split it was not trained on, and write them to a folder.

    Args:
        model: A model folder, or a tokenizer that was read from one.
        store: The prepared scans; its training split fits baselines and probes.
        out: Folder for ``metrics.json`` and panels; None writes nothing.
        split: "train", "val" or "test".
        truth: Table of known factors, one row per subject: participant_id, numbers, classes as text.
        segmenter: Model folder of a segmenter, which adds Dice of structures.
        regions: Two tables of region volumes in mm3, of the scans and of their reconstructions.
        allow_train: Evaluate subjects the model was trained on.
        seed: Of noise, sampling, probes and intervals, at least 0.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``; does not count for a model that was read already.
        precision: ``fp32`` or ``bf16``; does not count for a model that was read already.
        overwrite: Replace a ``metrics.json`` that is there.
        progress: Called after every session.

    Raises:
        UsageError: A path is missing, the split is unknown or empty, or ``out`` holds metrics already.
        InputError: A file is damaged, model or segmenter were trained on a subject of the split, or the store was
            prepared otherwise.
        OutputError: The folder cannot be written to.
    """
    check_number("seed", seed, 0)
    if regions is not None and (isinstance(regions, str | Path) or len(regions) != 2):
        raise UsageError("regions are two tables, of the scans and of their reconstructions; give a list of both")
    if out is not None:
        check_path("out", out)
        if (Path(out) / "metrics.json").exists() and not overwrite:
            name = printable(Path(out) / "metrics.json")
            raise UsageError(f"{name}: is there already; give --overwrite or another --out")
        check_writable(Path(out))
    for what, path in (("table", truth), ("segmenter folder", segmenter), *(("table", path) for path in regions or ())):
        if path is not None and not Path(path).exists():
            raise UsageError(f"{printable(path)}: there is no such {what}; check the path")
    place = chosen_device(device)
    return measure(
        model if isinstance(model, ScanTokenizer) else ScanTokenizer.from_pretrained(model, place, precision),
        store if isinstance(store, Store) else Store.open(store),
        split,
        out,
        allow_train=allow_train,
        seed=seed,
        truth=None if truth is None else read_truth(Path(truth)),
        progress=progress,
        segmenter=None if segmenter is None else ScanSegmenter.from_pretrained(segmenter, place),
        regions=None if regions is None else RegionVolumes(*(VolumeTable.read(Path(path)) for path in regions)),
    )


def read_truth(path: Path) -> dict[str, dict[str, float | str]]:
    """Return the known factors of a table by subject: numbers, and text of columns that hold no number.

    What is empty or ``n/a`` is unknown, and so is text in a column of numbers.

    Raises:
        InputError: It cannot be read, or has no column participant_id.
    """
    header, rows = read_table(path)
    if "participant_id" not in header:
        raise InputError(f"no column participant_id; the columns are {', '.join(header)}", file=path)
    numbers = {(line, name): value for line, row in rows for name, cell in row.items() if (value := _number(cell))}
    numeric = {name for _, name in numbers}
    found: dict[str, dict[str, float | str]] = {}
    for line, row in rows:
        known = found.setdefault(row["participant_id"].removeprefix("sub-"), {})
        for name, cell in row.items():
            if name == "participant_id" or cell.strip().lower() in UNKNOWN:
                continue
            if name not in numeric:
                known[name] = cell.strip()
            elif (line, name) in numbers:
                known[name] = numbers[line, name][0]
    return found


def _number(cell: str) -> tuple[float] | None:
    try:
        return (float(cell),)
    except ValueError:
        return None
