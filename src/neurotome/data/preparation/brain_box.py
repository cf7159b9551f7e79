"""Where the brain is, and the grid that is laid around it.

The brain is a given mask, or the largest connected part above a threshold with its holes filled. The prepared grid
follows the reference view's axes in RAS+ order; it is centred on the box of all brains, or on the field of view.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from neurotome.data.imaging.geometry import Affine, Geometry, Voxels
from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation.intensity import MAX_NEGATIVE
from neurotome.data.preparation.resample import Shape3, ras_to_index, tidy
from neurotome.errors import InputError

Crop = Literal["brain", "centre"]
# The largest intracranial volumes are near 2000 ml; the heads among our real scans begin at 2600 ml.
MAX_BRAIN_ML = 2400.0
# A stripped brain leaves the faces of its box nearly empty, noise around a head does not.
MAX_FOREGROUND_ON_FACES = 0.5
# share of equal voxels on the faces of the field of view that makes a background
_BACKGROUND_SHARE = 0.8
# Spacings closer than this are one spacing; over 256 voxels the grid would drift by less than 0.03 voxel.
_SAME_SPACING = 1e-4
# Share of a voxel by which a box may overhang the grid: the rounding of single-precision headers.
_OVERHANG = 1e-3


@dataclass(frozen=True, eq=False)
class Brain:
    """A mask and where its voxels lie.

    Args:
        mask: ``(x, y, z)``, at least one voxel.
        affine: Voxel index to world mm.
    """

    mask: Bool[np.ndarray, "x y z"]
    affine: Affine


class BrainFitError(InputError):
    """A brain that does not fit the grid.

    Args:
        needed: Voxels along x, y, z that it needs.
        reason: As of an input error, like the others.
        file: The scan.
        remedy: What the reader can do.
    """

    def __init__(
        self, needed: Shape3, reason: str, *, file: str | os.PathLike[str] | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(reason, file=file, remedy=remedy)
        self.needed = needed

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the way from a worker process."""
        return partial(BrainFitError, file=self.file, remedy=self.remedy), (self.needed, self.reason)


def find_brain(
    name: str, volume: Volume, threshold: float, *, allow_head: bool = False, signed: bool = False
) -> Bool[np.ndarray, "x y z"]:
    """Return the brain of a scan: the largest part of its foreground, filled.

    Args:
        name: Of the contrast, for messages.
        volume: The scan.
        threshold: The foreground is what lies above it.
        allow_head: Accept a scan that looks like a whole head.
        signed: Of a scan much of which lies below 0, as of z-scores, the foreground is what differs from the
            background; else such a scan is refused.

    Raises:
        InputError: There is no foreground, much of it lies below 0, or it looks like a whole head.
    """
    file = volume.provenance.path
    foreground = volume.array > threshold
    if (below := share_below_zero(volume.array, foreground)) > MAX_NEGATIVE:
        if not signed:
            raise InputError(
                f"{name} seems to be z-scored: {below:.0%} of what differs from its background lie below 0, and what "
                f"lies above {threshold:g} would be taken for the brain",
                file=file,
                remedy="give a brain mask, or prepare with --intensity zscore (with --clip 5 where the network's "
                "output is bounded), which takes all that differs from the background",
            )
        foreground = volume.array != constant_background(volume.array)
    if not foreground.any():
        raise InputError(f"{name} is empty: no voxel lies above {threshold:g}", file=file)
    mask = largest_component(foreground)
    volume_ml = float(np.count_nonzero(mask)) * abs(float(np.linalg.det(volume.geometry.affine[:3, :3]))) / 1000.0
    if not allow_head and is_head(mask, volume_ml):
        raise InputError(
            f"{name} looks like a whole head, not a skull-stripped brain: {volume_ml:.0f} ml lie above "
            f"{threshold:g}, {share_on_faces(mask):.0%} of the box's faces among them",
            file=file,
            remedy="give a brain mask, or strip the skull first; --allow-head takes the scan as it is",
        )
    return mask


def is_head(part: Bool[np.ndarray, "x y z"], volume_ml: float) -> bool:
    """Return whether a part that should be a brain is too large, or lies on too much of the faces of its box."""
    return volume_ml > MAX_BRAIN_ML or share_on_faces(part) > MAX_FOREGROUND_ON_FACES


def share_below_zero(array: Voxels, foreground: Bool[np.ndarray, "x y z"]) -> float:
    """Return which share of what differs from a constant background lies below 0 and is not taken for foreground."""
    if array.min() >= 0 or (background := constant_background(array)) is None:
        return 0.0
    differs = array != background
    return int(np.count_nonzero(differs & (array < 0) & ~foreground)) / max(int(np.count_nonzero(differs)), 1)


def constant_background(array: Voxels) -> float | None:
    """Return the value that most voxels on the faces of the field of view have, None where there is no such value."""
    if min(array.shape) < 3:
        return None
    border = np.concatenate([face.ravel() for face in _faces(array)])
    values, counts = np.unique(border, return_counts=True)
    most = int(counts.argmax())
    return float(values[most]) if counts[most] >= _BACKGROUND_SHARE * border.size else None


def given_brain(mask: Volume) -> Bool[np.ndarray, "x y z"]:
    """Return the voxels of a mask that are above 0.

    Raises:
        InputError: There is none.
    """
    brain = mask.array > 0
    if not brain.any():
        raise InputError("the brain mask is empty", file=mask.provenance.path)
    return brain


def reference_grid(
    brains: Sequence[Brain], reference: Geometry, spacing_mm: tuple[float, float, float], shape: Shape3, crop: Crop
) -> tuple[Affine, Shape3]:
    """Return the map from prepared voxels to voxels of the reference view, and the shape that the brains need.

    Where that shape is larger than the grid's along an axis, a part of a brain lies beyond the grid.

    Args:
        brains: What must lie on the grid.
        reference: Its axes in RAS+ order are the grid's.
        spacing_mm: Of the grid along x, y, z.
        shape: Of the grid.
        crop: "brain" centres the grid on the box of the brains, "centre" on the reference's field of view.
    """
    from_ras = ras_to_index(reference.affine, reference.shape)
    ras = reference.affine @ from_ras
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for brain in brains:
        first, last = _box(brain, ras)
        low, high = np.minimum(low, first), np.maximum(high, last)
    ratio = np.asarray(spacing_mm) / np.linalg.norm(ras[:3, :3], axis=0)
    ratio = np.where(np.abs(ratio - 1.0) < _SAME_SPACING, 1.0, ratio)
    if crop == "brain":
        middle = (low + high) / 2.0
    else:
        middle = (np.abs(from_ras[:3, :3]).T @ np.asarray(reference.shape, dtype=float) - 1.0) / 2.0
    start = middle - ratio * (np.asarray(shape) - 1.0) / 2.0
    # a whole shift where the spacing is already right, so that voxels are copied, not interpolated
    start = np.where(ratio == 1.0, np.floor(start + 0.5), start)
    if crop == "brain":
        needed = np.ceil((high - low) / ratio - _OVERHANG).astype(int)
    else:  # both sides grow alike, so the longer side counts
        cut = np.maximum((start - ratio / 2.0) - low, high - (start + ratio * (np.asarray(shape) - 0.5))) / ratio
        needed = np.asarray(shape) + 2 * np.ceil(cut - _OVERHANG).clip(min=-np.asarray(shape) // 2 + 1).astype(int)
    to_ras = np.diag([*ratio, 1.0])
    to_ras[:3, 3] = start
    x, y, z = (max(int(n), 1) for n in needed)
    return tidy(from_ras @ to_ras, shape), (x, y, z)


def check_fit(needed: Shape3, shape: Shape3, spacing_mm: tuple[float, float, float], crop: Crop) -> None:
    """Check that brains fit a grid.

    Raises:
        BrainFitError: They do not; the message names the smallest shape that holds them.
    """
    if all(n <= s for n, s in zip(needed, shape, strict=True)):
        return
    larger = " ".join(str(max(n, s)) for n, s in zip(needed, shape, strict=True))
    other = ", or centre the grid on the brain with --crop brain" if crop == "centre" else ""
    raise BrainFitError(
        needed,
        f"the brain box needs {' x '.join(map(str, needed))} voxels of {spacing_text(spacing_mm)} mm, more than "
        f"{' x '.join(map(str, shape))}",
        remedy=f"prepare with --shape {larger}, or a larger --spacing{other}",
    )


def spacing_text(spacing_mm: tuple[float, float, float]) -> str:
    """Return ``2``, or ``1 x 1 x 3`` where the axes differ."""
    return f"{spacing_mm[0]:g}" if len(set(spacing_mm)) == 1 else " x ".join(f"{s:g}" for s in spacing_mm)


def refuse_tiny(brains: Sequence[Brain], spacing_mm: tuple[float, float, float], file: str | None) -> None:
    """Refuse brains that are smaller than one voxel of the grid, most often because of wrong units.

    Raises:
        InputError: None of them is as large as a voxel in every direction.
    """
    sizes = []
    for brain in brains:
        sides = [side.stop - side.start for side in box_of(brain.mask)]
        sizes.append(float(np.max(sides * np.linalg.norm(brain.affine[:3, :3], axis=0))))
    if max(sizes) < min(spacing_mm):
        raise InputError(
            f"the brain is {max(sizes):.2g} mm across, less than a voxel of {spacing_text(spacing_mm)} mm",
            file=file,
            remedy="check the units of the header (micron where mm is meant?) and the voxel sizes",
        )


def between(from_affine: Affine, to_affine: Affine, shape: Shape3) -> Affine:
    """Return voxel index of one grid to voxel index of another, through world space."""
    return tidy(np.linalg.inv(to_affine) @ from_affine, shape)


def _box(brain: Brain, ras: Affine) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """Return the outer edges of a brain in voxels of the reference grid (in RAS+ order)."""
    x, y, z = brain.mask.shape
    matrix = between(brain.affine, ras, (x, y, z))
    box = box_of(brain.mask)
    corners = (np.argwhere(_ends(brain.mask[box])) + [side.start for side in box]).astype(np.float64)
    place = corners @ matrix[:3, :3].T + matrix[:3, 3]
    half = np.abs(matrix[:3, :3]).sum(axis=1) / 2.0
    return place.min(axis=0) - half, place.max(axis=0) + half


def _ends(mask: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Return the first and last voxel of every line along z: they hold all extremes of any linear function."""
    ends = np.zeros_like(mask)
    ends[..., 0] = mask[..., 0]
    ends[..., 1:] = mask[..., 1:] & ~mask[..., :-1]
    ends[..., :-1] |= mask[..., :-1] & ~mask[..., 1:]
    ends[..., -1] |= mask[..., -1]
    return ends


def largest_component(foreground: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Return the largest connected part with its holes (background that does not reach its box) filled."""
    if not foreground.flags.c_contiguous:  # images are stored first axis fastest, ndimage walks the last
        return largest_component(np.ascontiguousarray(foreground.T)).T
    around = box_of(foreground)
    labels, number = ndimage.label(foreground[around])
    part = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:])) if number > 1 else labels > 0
    inner = box_of(part)
    # one voxel of margin joins all background around the part; beyond its box there are no holes
    outside, _ = ndimage.label(~np.pad(part[inner], 1))
    filled = np.zeros_like(foreground)
    filled[around][inner] = (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return filled


def box_of(mask: Bool[np.ndarray, "x y z"]) -> tuple[slice, slice, slice]:
    """Return the smallest box that holds all of a mask, which holds at least one voxel."""
    if mask.flags.f_contiguous and not mask.flags.c_contiguous:
        z, y, x = box_of(mask.T)
        return x, y, z
    plane = np.any(mask, axis=2)  # the last axis first: it is the one that lies together in memory
    lines = np.any(plane, axis=1), np.any(plane, axis=0), np.any(mask.reshape(-1, mask.shape[2]), axis=0)
    x, y, z = (slice(int(i[0]), int(i[-1]) + 1) for i in map(np.flatnonzero, lines))
    return x, y, z


def share_on_faces(mask: Bool[np.ndarray, "x y z"]) -> float:
    """Return which share of the voxels on the six faces of the box belongs to ``mask``."""
    return float(np.concatenate([face.ravel() for face in _faces(mask)]).mean())


def _faces(array: Voxels) -> tuple[np.ndarray[Any, Any], ...]:
    return array[0], array[-1], array[:, 0], array[:, -1], array[..., 0], array[..., -1]


def background_of(array: Voxels, mask: Bool[np.ndarray, "p q r"]) -> float:
    """Return the median intensity outside the brain, 0 where the mask lies on another grid or leaves nothing."""
    if mask.shape != array.shape or mask.all() or not ((array != 0) & ~mask).any():
        return 0.0
    # a regular subset of at most a million voxels has the same median for every practical purpose
    outside = array[~mask]
    return float(np.median(outside[:: -(-len(outside) // 1_000_000)]))
