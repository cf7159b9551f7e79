r"""Preparation: all views of one session on one grid, every step recorded, undone exactly.

    prepared(p) = 2 clip((v(A p) - low) / (high - low), 0, 1) - 1   inside the brain,  -1 outside
    restored(i) = low + (prepared(A^-1 i) + 1) / 2 * (high - low)

``A`` (one per view) maps a prepared voxel to a voxel of the source; it composes reorientation to RAS+, resampling,
crop and padding. The grid follows the first view's axes in RAS+ order and is centred on the brain box of all views, so
that an image of the right spacing is only reordered and cropped.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import ndimage

from neurotome.data.resample import Shape3, inside, nearest, ras_to_index, resample, tidy
from neurotome.data.volume import Affine, Geometry, Provenance, Volume, Voxels
from neurotome.errors import InputError, UsageError

PREPARATION_VERSION = 1
# The largest intracranial volumes are near 2000 ml; the heads among our real scans begin at 2600 ml.
MAX_BRAIN_ML = 2400.0
# A stripped brain leaves the faces of its box nearly empty, noise around a head does not.
MAX_FOREGROUND_ON_FACES = 0.5
# Spacings closer than this are one spacing; over 256 voxels the grid would drift by less than 0.03 voxel.
_SAME_SPACING = 1e-4


@dataclass(frozen=True)
class Record:
    """How one view was prepared: everything needed to undo it.

    Args:
        geometry: Of the source scan.
        grid_to_source: Prepared voxel index to source voxel index, ``(4, 4)``.
        shape: Of the prepared grid.
        low: Source intensity that became -1.
        high: Source intensity that became 1.
        background: Source intensity outside the brain.
    """

    geometry: Geometry
    grid_to_source: Affine
    shape: Shape3
    low: float
    high: float
    background: float

    @property
    def affine(self) -> Affine:
        """Prepared voxel index to world mm, RAS+."""
        return self.geometry.affine @ self.grid_to_source

    def restore(self, image: Float[np.ndarray, "x y z"], mask: Bool[np.ndarray, "x y z"] | None = None) -> Volume:
        """Return a prepared image on the source grid, in source intensities.

        Args:
            image: On the prepared grid, in [-1, 1].
            mask: On the prepared grid; outside it the source's background is restored.

        Raises:
            ValueError: ``image`` is not on the prepared grid.
        """
        if image.shape != self.shape:
            raise ValueError(f"the image has shape {image.shape}, the prepared grid {self.shape}")
        to_grid = tidy(np.linalg.inv(self.grid_to_source), self.geometry.shape)
        values = resample(image, to_grid, self.geometry.shape)
        values += 1.0
        values *= np.float32((self.high - self.low) / 2.0)
        values += np.float32(self.low)
        known = inside(self.shape, to_grid, self.geometry.shape)
        if mask is not None:
            known &= resample(mask, to_grid, self.geometry.shape) >= 0.5
        values[~known] = self.background
        return Volume(values, self.geometry, Provenance(dtype="float32"))

    def to_json(self) -> dict[str, Any]:
        """Return a mapping of JSON values."""
        return {
            "geometry": self.geometry.to_json(),
            "grid_to_source": self.grid_to_source.tolist(),
            "shape": list(self.shape),
            "low": self.low,
            "high": self.high,
            "background": self.background,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Undo :meth:`to_json`."""
        x, y, z = value["shape"]
        return cls(
            geometry=Geometry.from_json(value["geometry"]),
            grid_to_source=np.asarray(value["grid_to_source"], dtype=np.float64),
            shape=(x, y, z),
            low=float(value["low"]),
            high=float(value["high"]),
            background=float(value["background"]),
        )


@dataclass(frozen=True, eq=False)
class Prepared:
    """The views of one session on one grid.

    Args:
        image: In [-1, 1], exactly -1 outside the brain, ``(v, x, y, z)``.
        modalities: Names of the views.
        mask: The brain, ``(x, y, z)``.
        records: How each view was prepared.
    """

    image: Float[np.ndarray, "v x y z"]
    modalities: tuple[str, ...]
    mask: Bool[np.ndarray, "x y z"]
    records: dict[str, Record]

    @property
    def affine(self) -> Affine:
        """Prepared voxel index to world mm, RAS+."""
        return self.records[self.modalities[0]].affine

    def labels(self, volume: Volume) -> Shaped[np.ndarray, "x y z"]:
        """Return a label map on the prepared grid (nearest neighbour, type kept)."""
        x, y, z = self.mask.shape
        return nearest(volume.array, _between(self.affine, volume.geometry.affine, (x, y, z)), (x, y, z))


@dataclass(frozen=True)
class Preparation:
    """A declared preparation.

    Args:
        spacing_mm: Edge of a prepared voxel.
        shape: Voxels of the prepared grid along x, y, z.
        percentiles: Of the brain's intensities; they become -1 and 1.
        mask_threshold: Without a mask, the brain is what lies above this intensity.
        version: Raised only when output bytes change.

    Raises:
        UsageError: A value is out of range.
    """

    spacing_mm: float
    shape: Shape3
    percentiles: tuple[float, float] = (0.5, 99.5)
    mask_threshold: float = 0.0
    version: int = PREPARATION_VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "spacing_mm", float(self.spacing_mm))
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "percentiles", tuple(float(p) for p in self.percentiles))
        if not (math.isfinite(self.spacing_mm) and 0.05 <= self.spacing_mm <= 50):
            raise UsageError(f"spacing_mm is {self.spacing_mm:g}; admissible is 0.05 to 50")
        if len(self.shape) != 3 or min(self.shape) < 1 or math.prod(self.shape) > 1 << 30:
            raise UsageError(f"shape is {self.shape}; give three positive numbers, at most 2^30 voxels")
        if len(self.percentiles) != 2 or not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise UsageError(f"percentiles are {self.percentiles}; give two increasing numbers from 0 to 100")
        if not math.isfinite(self.mask_threshold):
            raise UsageError(f"mask_threshold is {self.mask_threshold}; give a finite intensity")
        if self.version != PREPARATION_VERSION:
            raise UsageError(f"preparation version {self.version}; this release knows {PREPARATION_VERSION}")

    def apply(self, views: Mapping[str, Volume], mask: Volume | None = None, *, allow_head: bool = False) -> Prepared:
        """Return the views of one session on one grid.

        Args:
            views: Modality to scan; the first one's axes give the grid.
            mask: The brain (voxels above 0), on any grid; without it every view must be skull-stripped.
            allow_head: Accept a view that is not skull-stripped.

        Raises:
            InputError: No view, a whole head without a mask, an empty or constant brain, views that do not overlap, or
                a brain box larger than ``shape``.
        """
        if not views:
            raise InputError("a session without views", remedy="give at least one scan")
        if mask is None:
            brains = [self._brain(name, volume, allow_head) for name, volume in views.items()]
        else:
            brains = [_Brain(_given_brain(mask), mask.geometry.affine)]
        reference = next(iter(views.values())).geometry
        to_reference = reference_grid(brains, reference, self.spacing_mm, self.shape)
        world = reference.affine @ to_reference
        inside_brain = np.zeros(self.shape, dtype=bool)
        for brain in brains:
            inside_brain |= resample(brain.mask, _between(world, brain.affine, self.shape), self.shape) >= 0.5
        image = np.full((len(views), *self.shape), -1.0, dtype=np.float32)
        records = {}
        for index, (name, volume) in enumerate(views.items()):
            same = np.array_equal(volume.geometry.affine, reference.affine)
            matrix = to_reference if same else _between(world, volume.geometry.affine, self.shape)
            low, high = self._normalise(name, volume, matrix, inside_brain, image[index])
            background = _background(volume.array, brains[min(index, len(brains) - 1)])
            records[name] = Record(volume.geometry, matrix, self.shape, low, high, background)
        return Prepared(image, tuple(views), inside_brain, records)

    def _brain(self, name: str, volume: Volume, allow_head: bool) -> "_Brain":
        foreground = volume.array > self.mask_threshold
        if not foreground.any():
            raise InputError(
                f"{name} is empty: no voxel lies above {self.mask_threshold:g}", file=volume.provenance.path
            )
        mask = largest_component(foreground)
        volume_ml = float(np.count_nonzero(mask)) * abs(float(np.linalg.det(volume.geometry.affine[:3, :3]))) / 1000.0
        if not allow_head and (share_on_faces(mask) > MAX_FOREGROUND_ON_FACES or volume_ml > MAX_BRAIN_ML):
            raise InputError(
                f"{name} looks like a whole head, not a skull-stripped brain: {volume_ml:.0f} ml lie above "
                f"{self.mask_threshold:g}, {share_on_faces(mask):.0%} of the box's faces among them",
                file=volume.provenance.path,
                remedy="give a brain mask, or strip the skull first",
            )
        return _Brain(mask, volume.geometry.affine)

    def _normalise(
        self,
        name: str,
        volume: Volume,
        matrix: Affine,
        brain: Bool[np.ndarray, "x y z"],
        out: Float[np.ndarray, "x y z"],
    ) -> tuple[float, float]:
        """Write the view into ``out`` and return the two intensities that became -1 and 1."""
        values = resample(volume.array, matrix, self.shape)
        seen = brain & inside(volume.geometry.shape, matrix, self.shape)
        if not seen.any():
            raise InputError(
                f"{name} does not overlap the brain in world space",
                file=volume.provenance.path,
                remedy="register the scans",
            )
        low, high = (float(v) for v in np.percentile(values[seen], self.percentiles))
        if not high > low:
            raise InputError(f"{name} is constant inside the brain ({low:g})", file=volume.provenance.path)
        out[seen] = np.clip((values[seen] - low) / (high - low), 0.0, 1.0) * 2.0 - 1.0
        return low, high

    @property
    def digest(self) -> str:
        """SHA-256 of the declaration."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return a mapping of JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Undo :meth:`to_json`.

        Raises:
            UsageError: An unknown or missing key, or a value out of range.
        """
        try:
            values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
            return cls(**values)
        except TypeError as error:
            raise UsageError(f"not a preparation: {error}") from error


@dataclass(frozen=True, eq=False)
class _Brain:
    mask: Bool[np.ndarray, "x y z"]
    affine: Affine


def reference_grid(brains: Sequence[_Brain], reference: Geometry, spacing_mm: float, shape: Shape3) -> Affine:
    """Return the map from prepared voxels to voxels of the reference view.

    Raises:
        InputError: The brain box does not fit ``shape``; the message names the smallest that does.
    """
    from_ras = ras_to_index(reference.affine, reference.shape)
    ras = reference.affine @ from_ras
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for brain in brains:
        first, last = _box(brain, ras)
        low, high = np.minimum(low, first), np.maximum(high, last)
    ratio = spacing_mm / np.linalg.norm(ras[:3, :3], axis=0)
    ratio = np.where(np.abs(ratio - 1.0) < _SAME_SPACING, 1.0, ratio)
    needed = np.ceil((high - low) / ratio - 1e-3).astype(int)
    if (needed > shape).any():
        raise InputError(
            f"the brain box needs {' x '.join(map(str, needed))} voxels of {spacing_mm:g} mm, more than "
            f"{' x '.join(map(str, shape))}",
            remedy=f"prepare with --shape {' '.join(map(str, np.maximum(needed, shape)))}, or a larger --spacing",
        )
    start = (low + high) / 2.0 - ratio * (np.asarray(shape) - 1.0) / 2.0
    # a whole shift where the spacing is already right, so that voxels are copied, not interpolated
    start = np.where(ratio == 1.0, np.floor(start + 0.5), start)
    to_ras = np.diag([*ratio, 1.0])
    to_ras[:3, 3] = start
    return tidy(from_ras @ to_ras, shape)


def _box(brain: _Brain, ras: Affine) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """Return the outer edges of a brain in voxels of the reference grid (in RAS+ order)."""
    x, y, z = brain.mask.shape
    matrix = _between(brain.affine, ras, (x, y, z))
    corners = np.argwhere(_ends(brain.mask)).astype(np.float64)
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


def _between(from_affine: Affine, to_affine: Affine, shape: Shape3) -> Affine:
    """Return voxel index of one grid to voxel index of another, through world space."""
    return tidy(np.linalg.inv(to_affine) @ from_affine, shape)


def _given_brain(mask: Volume) -> Bool[np.ndarray, "x y z"]:
    brain = mask.array > 0
    if not brain.any():
        raise InputError("the brain mask is empty", file=mask.provenance.path)
    return brain


def largest_component(foreground: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Return the largest connected part with its holes (background that does not reach its box) filled."""
    if not foreground.flags.c_contiguous:  # images are stored first axis fastest, ndimage walks the last
        return largest_component(np.ascontiguousarray(foreground.T)).T
    labels, _ = ndimage.label(foreground)
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    # one voxel of margin joins all background around the part; beyond its box there are no holes
    box = ndimage.find_objects(labels, largest)[largest - 1]
    part = np.pad(labels[box] == largest, 1)
    outside, _ = ndimage.label(~part)
    filled = np.zeros_like(foreground)
    filled[box] = (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return filled


def share_on_faces(mask: Bool[np.ndarray, "x y z"]) -> float:
    """Return which share of the voxels on the six faces of the box belongs to ``mask``."""
    faces = [mask[0], mask[-1], mask[:, 0], mask[:, -1], mask[..., 0], mask[..., -1]]
    return float(np.concatenate([face.ravel() for face in faces]).mean())


def _background(array: Voxels, brain: _Brain) -> float:
    """Return the median intensity outside the brain, 0 where the mask lies on another grid or leaves nothing."""
    if brain.mask.shape != array.shape or brain.mask.all():
        return 0.0
    # a regular subset of at most a million voxels has the same median for every practical purpose
    outside = array[~brain.mask]
    return float(np.median(outside[:: -(-len(outside) // 1_000_000)]))
