r"""Sizes of regions and lesions in physical units.

    volume(r) = |det A| * #{voxels of r} / 1000                                ml
    feret(L)  = max |p - q|,   p, q in {A (i +- e_a / 2) : i in L, a in x y z}     mm

``A`` maps voxel index to mm, ``e_a`` is one voxel along axis a: the surface of a lesion runs half-way between the
centres of a voxel inside and one outside. The farthest two of these points are vertices of their convex hull, so the
maximum over hull vertices is exact; one voxel spans a hull with volume, so no lesion is a special case. The points are
those of a surface by marching cubes, so the number is comparable with other packages; as the farthest pair of a rough
surface it is a little long: balls of 10 mm read 10.8 mm on a grid of 1 mm and 12.0 mm on one of 3 mm.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Integer, Shaped
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

MEASURABLE_MM = 10.0
# more ids than this are counted by sorting, not in a table
_MAX_TABLE = 1 << 20
# rows of the table of distances that are held at once
_ROWS = 1024

Affine = Float[np.ndarray, "4 4"]


@dataclass(frozen=True)
class LesionSize:
    """One connected lesion.

    Args:
        number: From 1, largest volume first.
        num_voxels: Its voxels.
        volume_ml: Their volume.
        feret_mm: Its largest diameter in any direction.
        centre_mm: Mean place of its voxels, in mm as the affine gives them.
    """

    number: int
    num_voxels: int
    volume_ml: float
    feret_mm: float
    centre_mm: tuple[float, float, float]

    @property
    def rano_bm(self) -> Literal["measurable", "non-measurable"]:
        """Class by the response criteria for brain metastases: measurable from 10 mm on (Lin et al., 2015)."""
        # differs from the paper: the diameter is that of the whole lesion, not of one axial slice, and slice gaps are
        # not considered, because a mask does not say how it was drawn
        return "measurable" if self.feret_mm >= MEASURABLE_MM else "non-measurable"

    def to_json(self) -> dict[str, Any]:
        """Return a mapping of JSON values."""
        return {**asdict(self), "centre_mm": list(self.centre_mm), "rano_bm": self.rano_bm}


def voxel_ml(affine: Affine) -> float:
    """Return the volume of a voxel in ml.

    Args:
        affine: Voxel index to mm.
    """
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0


def label_volumes(labels: Integer[np.ndarray, "x y z"], affine: Affine, background: int = 0) -> dict[int, float]:
    """Return the volume in ml of every label that occurs, by id.

    Args:
        labels: A label map.
        affine: Voxel index to mm.
        background: The id that is no region.

    Raises:
        ValueError: A negative label.
    """
    if labels.size and int(labels.min()) < 0:
        raise ValueError(f"a label map has ids from 0 on, got {int(labels.min())}")
    if labels.size and int(labels.max()) < _MAX_TABLE:
        counts = np.bincount(labels.ravel(order="K").astype(np.int64, copy=False))
        ids = np.flatnonzero(counts)
        counts = counts[ids]
    else:
        ids, counts = np.unique(labels, return_counts=True)
    unit = voxel_ml(affine)
    return {int(i): int(n) * unit for i, n in zip(ids, counts, strict=True) if i != background}


def lesion_table(
    lesions: Shaped[np.ndarray, "x y z"],
    affine: Affine,
    *,
    connectivity: Literal[6, 18, 26] = 26,
    min_voxels: int = 1,
) -> tuple[LesionSize, ...]:
    """Return every connected lesion, the largest first.

    Args:
        lesions: Voxels above 0 belong to a lesion.
        affine: Voxel index to mm.
        connectivity: Voxels that touch with a face (6), also an edge (18), also a corner (26) are connected.
        min_voxels: Smaller ones are left out.

    Raises:
        ValueError: ``connectivity`` or ``min_voxels`` is not admissible.
    """
    rank = {6: 1, 18: 2, 26: 3}.get(connectivity)
    if rank is None:
        raise ValueError(f"connectivity is {connectivity}; admissible are 6, 18, 26")
    if min_voxels < 1:
        raise ValueError(f"min_voxels is {min_voxels}; give at least 1")
    parts, _ = ndimage.label(lesions > 0, ndimage.generate_binary_structure(3, rank))
    unit, found = voxel_ml(affine), []
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        index = np.argwhere(parts[box] == number) + [s.start for s in box]
        if len(index) < min_voxels:
            continue
        x, y, z = (float(c) for c in affine[:3, :3] @ index.mean(axis=0) + affine[:3, 3])
        found.append(LesionSize(0, len(index), len(index) * unit, feret_mm(index, affine), (x, y, z)))
    # equal sizes are ordered by place, so that a table does not depend on how the image was stored
    found.sort(key=lambda lesion: (-lesion.num_voxels, lesion.centre_mm))
    return tuple(LesionSize(**{**asdict(lesion), "number": n}) for n, lesion in enumerate(found, start=1))


def lesion_summary(table: Sequence[LesionSize]) -> dict[str, float]:
    """Return count, count of measurable lesions, total volume in ml and the largest diameter in mm (0 without any)."""
    return {
        "count": len(table),
        "measurable": sum(lesion.rano_bm == "measurable" for lesion in table),
        "volume_ml": sum(lesion.volume_ml for lesion in table),
        "largest_mm": max((lesion.feret_mm for lesion in table), default=0.0),
    }


def feret_mm(index: Integer[np.ndarray, "n 3"], affine: Affine) -> float:
    """Return the largest diameter of a set of voxels, by the formula above.

    Args:
        index: Voxel indices, at least one.
        affine: Voxel index to mm.

    Raises:
        ValueError: No voxel.
    """
    if not len(index):
        raise ValueError("a diameter needs at least one voxel")
    steps = np.concatenate([np.eye(3), -np.eye(3)]) / 2.0
    points = (_ends(index)[:, None] + steps).reshape(-1, 3) @ affine[:3, :3].T
    corners = points[ConvexHull(points - points.mean(axis=0)).vertices]
    largest = 0.0
    for start in range(0, len(corners), _ROWS):
        largest = max(largest, float(cdist(corners[start : start + _ROWS], corners).max()))
    return largest


def _ends(index: Integer[np.ndarray, "n 3"]) -> Integer[np.ndarray, "m 3"]:
    """Return the first and last voxel of every line along the third axis: the hull has no others."""
    order = np.lexsort(index.T[::-1])
    rows = index[order]
    new = np.ones(len(rows), dtype=bool)
    new[1:] = (rows[1:, :2] != rows[:-1, :2]).any(axis=1)
    return rows[new | np.roll(new, -1)]
