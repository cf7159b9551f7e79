"""Pictures of scans: three planes through the middle of the brain, as PNG inside the page.

Image left is the subject's left (neurological order): columns grow with x (or y in the sagittal plane), rows fall with
z (or y in the axial plane).

    sagittal | coronal
    ---------+---------        the fourth quarter is left free for words
             | axial
"""

import base64
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from neurotome.errors import InputError
from neurotome.files.json_text import parse_json
from neurotome.files.tensors import map_tensors, metadata_of

Picture = UInt8[np.ndarray, "row column"]
Inside = Bool[np.ndarray, "x y z"]
Scan = Float[np.ndarray, "x y z"]

# Shown larger than this a picture gains nothing on a screen and the page grows beyond what mail accepts.
MAX_SIDE = 420
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
    """

    subject: str
    source: str
    target: str
    images: Mapping[str, np.ndarray]
    mask: np.ndarray | None = None
    note: str = ""

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
    return Panel(str(entry.get("subject", "")), source, target, images, None if mask is None else mask > 0.5, note)


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


def three_planes(scan: Scan, fill: float) -> Float[np.ndarray, "row column"]:
    """Return the planes through the middle on one canvas, the free quarter holding ``fill``; a slice stays as it is.

    The sagittal plane is a sixteenth off the middle: exactly between the halves there is little to see.
    """
    nx, ny, nz = scan.shape
    x, y, z = nx // 2 + nx // 16, ny // 2, nz // 2
    sagittal, coronal, axial = (plane.T[::-1] for plane in (scan[x], scan[:, y], scan[:, :, z]))
    if 1 in scan.shape:
        return max((sagittal, coronal, axial), key=lambda plane: min(plane.shape))
    rows, columns = coronal.shape[0] + axial.shape[0], sagittal.shape[1] + coronal.shape[1]
    canvas = np.full((rows, columns), fill, dtype=np.float32)
    canvas[: sagittal.shape[0], : sagittal.shape[1]] = sagittal
    canvas[: coronal.shape[0], sagittal.shape[1] :] = coronal
    canvas[coronal.shape[0] :, sagittal.shape[1] :] = axial
    return canvas


def brain_box(panel: Panel, margin: int = 2) -> tuple[slice, slice, slice]:
    """Return the box of the brain with a margin in voxels, so that little of a picture is empty."""
    shape = next(iter(panel.images.values())).shape
    box = []
    for others, n in _axes(shape):
        found = np.flatnonzero(panel.brain.any(axis=others))
        box.append(slice(max(found[0] - margin, 0), min(found[-1] + margin + 1, n)) if found.size else slice(0, n))
    return box[0], box[1], box[2]


def grey(image: Float[np.ndarray, "row column"], low: float = -1.0, high: float = 1.0) -> Picture:
    """Return ``image`` as 8-bit grey, black at ``low`` and white at ``high``."""
    return np.clip((image - low) / (high - low) * 255 + 0.5, 0, 255).astype(np.uint8)


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


def diverging_palette() -> UInt8[np.ndarray, "256 3"]:
    """Return 256 colours from blue (too dark) over near-black (equal) to orange (too bright)."""
    stops = np.array([[150, 205, 255], [40, 110, 200], [13, 15, 18], [205, 100, 30], [255, 205, 150]], dtype=float)
    at = np.linspace(0, 4, 256)
    return np.stack([np.interp(at, range(5), stops[:, c]) for c in range(3)], axis=1).round().astype(np.uint8)


def png(picture: Picture, palette: UInt8[np.ndarray, "256 3"] | None = None) -> str:
    """Return ``picture`` as a PNG data address; large ones are reduced to :data:`MAX_SIDE`.

    The PNG is written here (header, optional palette, rows filtered against the row above) so that the same picture
    gives the same bytes again, whatever imaging library is installed.
    """
    while max(picture.shape) > MAX_SIDE:
        even = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2].astype(np.uint16)
        picture = ((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2] + 2) // 4).astype(np.uint8)
    rows, columns = picture.shape
    above = np.vstack([np.zeros((1, columns), np.uint8), picture[:-1]])
    filtered = np.hstack([np.full((rows, 1), 2, np.uint8), picture - above])  # filter 2: difference to the row above
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0 if palette is None else 3, 0, 0, 0)
    chunks = [(b"IHDR", header)]
    if palette is not None:
        chunks.append((b"PLTE", palette.tobytes()))
    chunks += [(b"IDAT", zlib.compress(filtered.tobytes(), 9)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


@dataclass(frozen=True)
class PanelCell:
    """One picture of a figure.

    Args:
        caption: Words under it.
        address: PNG data address.
        flicker: A second picture shown while the pointer rests on the first, or "".
        flicker_caption: Words under the second picture.
        kind: ``scan`` or ``difference``.
    """

    caption: str
    address: str
    flicker: str = ""
    flicker_caption: str = ""
    kind: str = "scan"


@dataclass(frozen=True)
class Figure:
    """The pictures of one panel, with its title and size in pixels."""

    title: str
    note: str
    cells: tuple[PanelCell, ...]
    width: int
    height: int
    planes: bool


def draw(panel: Panel, limit: float) -> Figure:
    """Return the pictures of ``panel``; ``limit`` is the end of the difference scale."""
    box = brain_box(panel)
    cut = {role: scan[box] for role, scan in panel.images.items()}
    translated = panel.source != panel.target
    names = {
        "source": panel.source if translated else "Original",
        "output": "Reconstruction",
        "truth": f"True {panel.target}",
    }
    if translated:
        names["output"] = f"{panel.target} from {panel.source}"
    address = {role: png(grey(three_planes(scan, -1.0))) for role, scan in cut.items()}
    other = "truth" if translated else "source"
    cells = [
        PanelCell(names[role], address[role], address[other], names[other])
        if role == "output" and other in address
        else PanelCell(names[role], address[role])
        for role in ("source", "output", "truth")
        if role in address
    ]
    difference = panel.difference
    if difference is not None:
        canvas = grey(three_planes(difference[box], 0.0), -limit, limit)
        cells.append(PanelCell("Difference", png(canvas, diverging_palette()), kind="difference"))
    first = next(iter(cut.values()))
    rows, columns = three_planes(first, -1.0).shape
    title = f"{panel.source} → {panel.target}" if translated else panel.target
    return Figure(title, panel.note, tuple(cells), columns, rows, 1 not in first.shape)
