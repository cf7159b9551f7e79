"""The images that an evaluation keeps for the page: what each one shows, and the range of their differences."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from neurotome.errors import InputError
from neurotome.files.json_text import parse_json
from neurotome.files.tensors import map_tensors, metadata_of

Inside = Bool[np.ndarray, "x y z"]
Scan = Float[np.ndarray, "x y z"]

DIFFERENCE_STEPS = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)
_ROLES = {
    "source": "source", "original": "source", "input": "source", "image": "source",
    "output": "output", "reconstruction": "output", "translation": "output", "translated": "output",
    "truth": "truth", "target": "truth", "true": "truth", "true_target": "truth",
}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """The images of one scan or one translation.

    Args:
        subject: Subject id, as found.
        source: Contrast of the input.
        target: Contrast of the output; equal to ``source`` for a reconstruction.
        images: ``source``, ``output`` and, for a translation, ``truth``: arrays ``(x, y, z)`` in [-1, 1].
        mask: Brain mask on the same grid, or None.
        note: Words to print beside it, such as its PSNR.
        rank: "median" or "worst" among the subjects, or "".
    """

    subject: str
    source: str
    target: str
    images: Mapping[str, np.ndarray]
    mask: np.ndarray | None = None
    note: str = ""
    rank: str = ""

    @property
    def difference(self) -> Scan | None:
        """Return output minus what it should be, or None where one of them is missing."""
        output, truth = self.images.get("output"), self.images.get("truth" if self.source != self.target else "source")
        if output is None or truth is None or output.shape != truth.shape:
            return None
        return output - truth

    @property
    def brain(self) -> Inside:
        """Return the mask, or where the first image is above its background."""
        image = next(iter(self.images.values()))
        return self.mask if self.mask is not None and self.mask.shape == image.shape else image > image.min() + 0.05


def read_panels(path: Path) -> tuple[list[Panel], list[str]]:
    """Return the panels of an evaluation and a note for everything that could not be used.

    The metadata ``entries`` is a JSON list; each entry names tensors by role (``source``, ``output``, ``truth``,
    ``mask``) and says which subject and contrasts they show.
    """
    if not path.is_file():
        return [], []
    try:
        entries = parse_json(metadata_of(path).get("entries", "[]"))
        tensors = map_tensors(path)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        reason = error.reason if isinstance(error, InputError) else error
        return [], [f"{path.name} could not be read and was left out: {reason}."]
    if not isinstance(entries, list) or not entries:
        return [], [f"{path.name} has no list of entries, so its images are not shown."]
    panels = [panel for entry in entries if isinstance(entry, Mapping) and (panel := _panel(entry, tensors))]
    notes = [f"{len(entries) - len(panels)} entries of {path.name} could not be used."]
    return panels, notes if len(panels) < len(entries) else []


def _panel(entry: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Panel | None:
    images = {}
    for key, role in _ROLES.items():
        scan = _scan(tensors.get(str(entry.get(key))))
        if scan is not None and role not in images:
            images[role] = scan
    mask = _scan(tensors.get(str(entry.get("mask"))))
    if len({scan.shape for scan in images.values()}) != 1:
        return None  # none at all, or not on one grid
    source = str(entry.get("from", entry.get("modality", "")))
    target = str(entry.get("to", source))
    note = str(entry.get("note", ""))
    subject, rank = str(entry.get("subject", "")), str(entry.get("rank", ""))
    rank = rank if rank in ("median", "worst") else ""
    return Panel(subject, source, target, images, None if mask is None else mask > 0.5, note, rank)


def _scan(value: np.ndarray | None) -> Scan | None:
    if value is None or value.dtype.kind not in "fiub":
        return None
    value = value.squeeze() if value.ndim > 3 else value
    if value.ndim == 2:
        value = value[:, :, None]
    if value.ndim != 3 or value.size == 0:
        return None
    return np.nan_to_num(value.astype(np.float32), nan=-1.0, posinf=1.0, neginf=-1.0)


def _axes(shape: tuple[int, ...]) -> list[tuple[tuple[int, ...], int]]:
    return [((1, 2), shape[0]), ((0, 2), shape[1]), ((0, 1), shape[2])]


def brain_box(panel: Panel, margin: int = 2) -> tuple[slice, slice, slice]:
    """Return the box of the brain with a margin in voxels, so that little of a picture is empty."""
    shape = next(iter(panel.images.values())).shape
    box = []
    for others, n in _axes(shape):
        found = np.flatnonzero(panel.brain.any(axis=others))
        box.append(slice(max(found[0] - margin, 0), min(found[-1] + margin + 1, n)) if found.size else slice(0, n))
    return box[0], box[1], box[2]


def difference_range(panels: list[Panel]) -> float:
    """Return one range for every difference on the page, so that they can be compared.

    It is the smallest round number that holds 99 % of the differences inside the brain.
    """
    found = []
    for panel in panels:
        difference = panel.difference
        if difference is not None:
            inside = difference[panel.mask] if panel.mask is not None and panel.mask.any() else difference.ravel()
            found.append(np.abs(inside))
    if not found:
        return DIFFERENCE_STEPS[3]
    wanted = float(np.quantile(np.concatenate(found), 0.99))
    return next((step for step in DIFFERENCE_STEPS if step >= wanted), DIFFERENCE_STEPS[-1])
