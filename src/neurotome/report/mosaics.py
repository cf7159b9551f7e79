"""Pictures of scans: six slices through the brain in one mosaic, as PNG inside the page, with sides and places on it.

Image left is the subject's left (neurological order): columns grow with x (or y in the sagittal plane), rows fall with
z (or y in the axial plane). Places are in mm from the middle of the brain.

    sagittal | coronal | coronal
    ---------+---------+--------
    axial    | axial   | axial
"""

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from markupsafe import Markup

from neurotome.report.figures import element
from neurotome.report.panels import Panel, Scan, brain_box

Picture = UInt8[np.ndarray, "row column"]
Spacing = tuple[float, float, float]

# Shown larger than this a picture gains nothing on a screen and the page grows beyond what mail accepts.
MAX_SIDE = 560
# width of the drawing that lies over a picture, in its own units, so that letters have one size on any grid
MARKS_WIDTH, SCALE_BAR_MM = 320, 50


@dataclass(frozen=True)
class Tile:
    """One slice of a mosaic: its axis and index in the volume, and its box in pixels."""

    axis: int
    index: int
    row: int
    column: int
    height: int
    width: int


def tiles(shape: Sequence[int]) -> tuple[Tile, ...]:
    """Return the slices of a mosaic of a volume; of a slice, that slice alone.

    The sagittal one is a sixteenth off the middle: exactly between the halves there is little to see.
    """
    nx, ny, nz = shape
    if 1 in shape:
        thin = max(range(3), key=lambda a: min(n for b, n in enumerate(shape) if b != a))
        return (Tile(thin, 0, 0, 0, ny if thin == 2 else nz, ny if thin == 0 else nx),)
    first = max(nx, ny)  # width of the first column; what is narrower stands in its middle
    at = (0, first, first + nx)
    top = [Tile(0, nx // 2 + nx // 16, 0, (first - ny) // 2, nz, ny)]
    top += [Tile(1, _part(ny, share), 0, column, nz, nx) for share, column in zip((0.62, 0.36), at[1:], strict=True)]
    places = ((first - nx) // 2, *at[1:])
    return (*top, *(Tile(2, _part(nz, s), nz, c, ny, nx) for s, c in zip((0.36, 0.5, 0.66), places, strict=True)))


def _part(length: int, share: float) -> int:
    return min(int(length * share), length - 1)


def mosaic(scan: Scan, fill: float) -> Float[np.ndarray, "row column"]:
    """Return the slices of a volume on one canvas, what is between them holding ``fill``."""
    found = tiles(scan.shape)
    rows, columns = max(t.row + t.height for t in found), max(t.column + t.width for t in found)
    canvas = np.full((rows, columns), fill, dtype=np.float32)
    for t in found:
        canvas[t.row : t.row + t.height, t.column : t.column + t.width] = scan.take(t.index, axis=t.axis).T[::-1]
    return canvas


def marks(shape: Sequence[int], spacing_mm: Spacing | None) -> Markup:
    """Return the sides and places of a mosaic's slices, to be laid over its picture; without a spacing no mm."""
    found = tiles(shape)
    scale = MARKS_WIDTH / max(t.column + t.width for t in found)
    parts = []
    for t in found:
        left, right, top = ((v * scale) for v in (t.column, t.column + t.width, t.row))
        middle, bottom = top + t.height * scale / 2, top + t.height * scale - 3
        for words, x, anchor in zip(
            ("PA" if t.axis == 0 else "LR"), (left + 2, right - 2), ("start", "end"), strict=True
        ):
            parts.append(element("text", words, x=f"{x:.1f}", y=f"{middle:.1f}", dy="0.35em", text_anchor=anchor))
        if spacing_mm is not None and shape[t.axis] > 1:
            place = round((t.index - (shape[t.axis] - 1) / 2) * spacing_mm[t.axis])
            words = f"{'xyz'[t.axis]} {place:+d} mm".replace("-", "\u2212")
            parts.append(element("text", words, x=f"{left + 2:.1f}", y=f"{bottom:.1f}"))
    if spacing_mm is not None and 1 not in shape:
        end, base = MARKS_WIDTH - 4, max(t.row + t.height for t in found) * scale - 4
        start = end - SCALE_BAR_MM / spacing_mm[0] * scale
        parts.append(element("line", x1=f"{start:.1f}", x2=f"{end:.1f}", y1=f"{base:.1f}", y2=f"{base:.1f}"))
        where = {"x": f"{end:.1f}", "y": f"{base - 3:.1f}", "text_anchor": "end"}
        parts.append(element("text", f"{SCALE_BAR_MM} mm", **where))
    height = max(t.row + t.height for t in found) * scale
    return Markup('<svg class="marks" viewBox="0 0 {:g} {:.1f}" aria-hidden="true">{}</svg>').format(
        MARKS_WIDTH, height, Markup("").join(parts)
    )


def grey(image: Float[np.ndarray, "row column"], low: float = -1.0, high: float = 1.0) -> Picture:
    """Return ``image`` as 8-bit grey, black at ``low`` and white at ``high``."""
    return np.clip((image - low) / (high - low) * 255 + 0.5, 0, 255).astype(np.uint8)


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
    """The pictures of one panel, with its title, size in pixels, and what is laid over each picture."""

    title: str
    note: str
    cells: tuple[PanelCell, ...]
    width: int
    height: int
    marks: Markup
    rank: str = ""


def draw(panel: Panel, limit: float, spacing_mm: Spacing | None = None) -> Figure:
    """Return the pictures of ``panel``; ``limit`` is the end of the difference scale, ``spacing_mm`` of its voxels."""
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
    address = {role: png(grey(mosaic(scan, -1.0))) for role, scan in cut.items()}
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
        canvas = grey(mosaic(difference[box], 0.0), -limit, limit)
        cells.append(PanelCell("Difference", png(canvas, diverging_palette()), kind="difference"))
    first = next(iter(cut.values()))
    rows, columns = mosaic(first, -1.0).shape
    title = f"{panel.source} → {panel.target}" if translated else panel.target
    return Figure(title, panel.note, tuple(cells), columns, rows, marks(first.shape, spacing_mm), panel.rank)
