r"""Where the voxels of an image lie in the head.

    w = affine (i, j, k, 1)^T         voxel index to world position in mm, RAS+

A geometry is immutable and holds every field of the source header that a written image needs to lie on the same grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Shaped

from neurotome.errors import InputError

Affine = Float[np.ndarray, "4 4"]
Voxels = Shaped[np.ndarray, "x y z"]

_MAX_OFFSET_MM = 1e5


@dataclass(frozen=True)
class HeaderFields:
    """The fields of a NIfTI header that say where voxels lie, as stored.

    Args:
        version: 1 or 2.
        dim: Eight sizes; ``dim[0]`` is the number of axes.
        pixdim: Eight spacings; ``pixdim[0]`` is the handedness of the quaternion.
        qform_code: 0 where the quaternion is not used.
        sform_code: 0 where the matrix is not used.
        quatern: Quaternion b, c, d.
        qoffset: Offset of the quaternion, three numbers in ``units``.
        srow: The matrix, three rows of four.
        units: ``xyzt_units``.
    """

    version: int
    dim: tuple[int, ...]
    pixdim: tuple[float, ...]
    qform_code: int
    sform_code: int
    quatern: tuple[float, ...]
    qoffset: tuple[float, ...]
    srow: tuple[float, ...]
    units: int

    def to_json(self) -> dict[str, Any]:
        """Return a mapping of JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Undo :meth:`to_json`."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return cls(**values)


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the voxels of a volume lie.

    Args:
        shape: Voxels along each axis.
        affine: Voxel index to world position in mm, RAS+, ``(4, 4)``; kept read-only.
        header: The header fields to write back; made from the affine when absent.

    Raises:
        InputError: The affine is not finite or singular, or the shape not positive.
    """

    shape: tuple[int, int, int]
    affine: Affine
    header: HeaderFields | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise InputError(f"a volume needs three positive sizes, got {tuple(self.shape)}")
        affine = np.asarray(self.affine, dtype=np.float64)
        check_affine(affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        # a view of immutable bytes cannot be made writeable again
        object.__setattr__(self, "affine", np.frombuffer(affine.tobytes(), dtype=np.float64).reshape(4, 4))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each axis, in mm."""
        x, y, z = (float(d) for d in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    def corners_mm(self) -> Float[np.ndarray, "8 3"]:
        """Return the eight outer corners of the field of view in world mm."""
        ends = [(-0.5, n - 0.5) for n in self.shape]
        index = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(8, 3)
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]

    def same_grid(self, other: "Geometry", tolerance_voxels: float = 0.05) -> bool:
        """Return whether both grids put every voxel at the same place, up to a share of a voxel."""
        if self.shape != other.shape:
            return False
        gap = np.linalg.norm(self.corners_mm() - other.corners_mm(), axis=1).max()
        return bool(gap <= tolerance_voxels * min(self.spacing_mm))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Geometry) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes(), self.header))

    def to_json(self) -> dict[str, Any]:
        """Return a mapping of JSON values."""
        header = None if self.header is None else self.header.to_json()
        return {"shape": list(self.shape), "affine": self.affine.tolist(), "header": header}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Undo :meth:`to_json`."""
        header = None if value["header"] is None else HeaderFields.from_json(value["header"])
        x, y, z = value["shape"]
        return cls((x, y, z), np.asarray(value["affine"], dtype=np.float64), header)


@np.errstate(over="ignore", invalid="ignore")
def check_affine(affine: Affine) -> None:
    """Check that a matrix places voxels in space.

    Raises:
        InputError: Not ``(4, 4)``, not finite, singular, voxels below 1 micrometre or above 1 metre, or farther than
            100 m from the origin, where the single precision of a header ends at 0.01 mm.
    """
    if affine.shape != (4, 4):
        raise InputError(f"an affine has shape (4, 4), got {affine.shape}")
    if not np.isfinite(affine).all():
        raise InputError("the affine holds NaN or infinity")
    if affine[3].tolist() != [0.0, 0.0, 0.0, 1.0]:
        raise InputError(f"the last row of an affine is 0 0 0 1, got {affine[3].tolist()}")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < 1e-3 or spacing.max() > 1e3:
        raise InputError(f"voxels of {' x '.join(f'{d:.3g}' for d in spacing)} mm are no image of a head")
    if np.abs(affine[:3, 3]).max() > _MAX_OFFSET_MM:
        raise InputError(f"the first voxel lies {np.abs(affine[:3, 3]).max():.3g} mm from the origin")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        raise InputError("the affine is singular: its voxel axes do not span space")


def rotation(angles: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    """Return the rotation about x, then y, then z, angles in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
