r"""How a session was prepared, in numbers that undo it.

    restored(i) = low + (prepared(A^-1 i) + 1) / 2 * (high - low)        A: prepared voxel to source voxel

Orientation, resampling, crop, motion and intensities are undone. What was clipped, what lies outside brain and grid,
and a bias field are lost.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped

from neurotome.data.imaging.geometry import Affine, Geometry
from neurotome.data.imaging.volume import Provenance, Stored, Volume
from neurotome.data.preparation.brain_box import between
from neurotome.data.preparation.intensity import restored
from neurotome.data.preparation.resample import Shape3, inside, nearest, resample, tidy


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
        motion: World mm of the session's first view to the world mm of this one, ``(4, 4)``; None where not registered.
        bias_field: How a bias field was divided out, which is not undone; None where it was not.
    """

    geometry: Geometry
    grid_to_source: Affine
    shape: Shape3
    low: float
    high: float
    background: float
    motion: Affine | None = None
    bias_field: str | None = None

    @property
    def affine(self) -> Affine:
        """Prepared voxel index to world mm, RAS+, of this view's own scan."""
        return self.geometry.affine @ self.grid_to_source

    def restore(self, image: Float[np.ndarray, "x y z"], mask: Bool[np.ndarray, "x y z"] | None = None) -> Volume:
        """Return a prepared image on the source grid, in source intensities (of the scan without its bias field).

        Args:
            image: On the prepared grid; the range of the preparation.
            mask: On the prepared grid; outside it the source's background is restored.

        Raises:
            ValueError: ``image`` is not on the prepared grid.
        """
        if image.shape != self.shape:
            raise ValueError(f"the image has shape {image.shape}, the prepared grid {self.shape}")
        to_grid = tidy(np.linalg.inv(self.grid_to_source), self.geometry.shape)
        values = restored(resample(image, to_grid, self.geometry.shape), self.low, self.high)
        known = inside(self.shape, to_grid, self.geometry.shape)
        if mask is not None:
            known &= resample(mask, to_grid, self.geometry.shape) >= 0.5
        values[~known] = self.background
        return Volume(values, self.geometry, Provenance(dtype="float32"))

    def restore_labels(self, labels: Integer[np.ndarray, "x y z"]) -> Volume:
        """Return a label map of the prepared grid on the source grid: nearest neighbour, type kept, 0 outside.

        Raises:
            ValueError: ``labels`` is not on the prepared grid.
        """
        if labels.shape != self.shape:
            raise ValueError(f"the label map has shape {labels.shape}, the prepared grid {self.shape}")
        to_grid = tidy(np.linalg.inv(self.grid_to_source), self.geometry.shape)
        found = nearest(labels, self.affine, to_grid, self.geometry.shape)
        return Volume(found, self.geometry, Provenance(dtype=found.dtype.name), Stored(found, 1.0, 0.0))

    def to_json(self) -> dict[str, Any]:
        """Return a mapping of JSON values; what was not done is left out."""
        value = {
            "geometry": self.geometry.to_json(),
            "grid_to_source": self.grid_to_source.tolist(),
            "shape": list(self.shape),
            "low": self.low,
            "high": self.high,
            "background": self.background,
        }
        if self.motion is not None:
            value["motion"] = self.motion.tolist()
        if self.bias_field is not None:
            value["bias_field"] = self.bias_field
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Undo :meth:`to_json`."""
        x, y, z = value["shape"]
        motion, bias_field = value.get("motion"), value.get("bias_field")
        return cls(
            geometry=Geometry.from_json(value["geometry"]),
            grid_to_source=np.asarray(value["grid_to_source"], dtype=np.float64),
            shape=(x, y, z),
            low=float(value["low"]),
            high=float(value["high"]),
            background=float(value["background"]),
            motion=None if motion is None else np.asarray(motion, dtype=np.float64).reshape(4, 4),
            bias_field=None if bias_field is None else str(bias_field),
        )


@dataclass(frozen=True, eq=False)
class Prepared:
    """The views of one session on one grid.

    Args:
        image: The preparation's background outside the brain, ``(v, x, y, z)``.
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
        """Prepared voxel index to world mm, RAS+, of the first view."""
        return self.records[self.modalities[0]].affine

    def labels(self, volume: Volume) -> Shaped[np.ndarray, "x y z"]:
        """Return a label map on the prepared grid (nearest neighbour, type kept).

        It lies in the world of the view whose grid it shares, else of the first.
        """
        x, y, z = self.mask.shape
        moved = [r for r in self.records.values() if r.motion is not None and r.geometry.same_grid(volume.geometry)]
        affine = moved[0].affine if moved else self.affine
        own = volume.geometry.affine
        return nearest(volume.array, own, between(affine, own, (x, y, z)), (x, y, z))
