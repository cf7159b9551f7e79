r"""Individual shape: an affine map and the flow of a stationary velocity field.

    x_template = phi(c + A (x - c)),      phi = exp(v) = (id + v / 2^7) o ... o (id + v / 2^7)

A point of the subject is pulled back to the template. ``A`` is larger than one on average because the MNI brain is
larger than people. ``v`` is smooth noise of three scales plus a flow around the ventricles' wall that makes them larger
or smaller. Halving the velocity seven times keeps every Jacobian determinant positive.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from neurotome.data.imaging.geometry import rotation
from neurotome.data.phantom.template import TEMPLATE_SPACING_MM, load_template

GRID_MM = 5.0
SQUARINGS = 7
CENTRE_MM = np.array([0.0, -17.0, 4.0])
# The MNI brain over the mean brain, narrower and taller heads included: 1.075 in each direction by volume.
MEAN_SCALE = np.array([1.105, 1.085, 1.04])
# Standard deviation of the kernel and of the velocity, in mm; measured to look like people (see the docs page).
SCALES = ((30.0, 2.6), (14.0, 1.7), (7.0, 0.8))
VENTRICLE_RANGE_MM = 14.0
VENTRICLE_LIMIT_MM = (-4.0, 8.0)

Points = Float[np.ndarray, "n 3"]
Velocity = Float[np.ndarray, "x y z 3"]


@dataclass(frozen=True, eq=False)
class Shape:
    """A subject's shape.

    Args:
        matrix: ``A`` without translation, ``(3, 3)``.
        displacement: ``phi(y) - y`` in mm on the coarse grid, ``(x, y, z, 3)``.
    """

    matrix: Float[np.ndarray, "3 3"]
    displacement: Velocity

    def pull_back(self, points: Points) -> Points:
        """Return the template's points, in RAS+ MNI mm, that belong to a subject's points in RAS+ mm."""
        y = (points - CENTRE_MM) @ self.matrix.T + CENTRE_MM
        return y + sample(self.displacement, (y - load_template().affine[:3, 3]) / GRID_MM)

    def jacobian(self) -> Float[np.ndarray, "x y z"]:
        """Return the determinant of the pull-back's derivative on the coarse grid (below 1 where the subject grew)."""
        derivative = np.stack(np.gradient(self.displacement, GRID_MM, axis=(0, 1, 2)), axis=-1) + np.eye(3)
        return np.linalg.det(derivative) * np.linalg.det(self.matrix)


def draw_shape(
    rng: np.random.Generator,
    scale: float,
    ventricle_mm: float,
    mean_scale: Float[np.ndarray, " 3"] = MEAN_SCALE,
    strength: float = 1.0,
) -> Shape:
    """Return a random shape.

    Args:
        rng: For the affine map and the flow.
        scale: Linear size of the head relative to the mean head.
        ventricle_mm: Velocity at the ventricles' wall, outward; limited to ``VENTRICLE_LIMIT_MM``.
        mean_scale: Size of the source along x, y, z relative to a mean head.
        strength: Factor on the amplitudes of the random flow.
    """
    stretch = np.exp(0.012 * np.clip(rng.standard_normal(3), -2, 2))
    turn = rotation(0.03 * np.clip(rng.standard_normal(3), -2, 2))
    matrix = turn @ np.diag(mean_scale / scale * stretch)
    shape = _grid_shape()
    velocity = np.zeros((*shape, 3), dtype=np.float32)
    for sigma, amplitude in SCALES:
        velocity += np.moveaxis(strength * amplitude * smooth_noise(rng, (3, *shape), sigma / GRID_MM), 0, -1)
    wall = float(np.clip(ventricle_mm, *VENTRICLE_LIMIT_MM))
    return Shape(matrix, exponential(velocity + np.float32(wall) * _ventricle_flow(), GRID_MM))


def identity() -> Shape:
    """Return the shape that moves nothing."""
    return Shape(np.eye(3), np.zeros((*_grid_shape(), 3)))


def exponential(velocity: Velocity, spacing: float) -> Velocity:
    """Return the displacement of the flow of a stationary velocity after unit time, by scaling and squaring."""
    size = velocity.shape[:3]
    index = np.indices(size).reshape(3, -1).T
    moved = velocity.reshape(-1, 3) / 2**SQUARINGS
    for _ in range(SQUARINGS):
        moved = moved + sample(moved.reshape(velocity.shape), index + moved / spacing)
    return moved.reshape(velocity.shape)


def sample(fields: Float[np.ndarray, "x y z c"], index: Points) -> Float[np.ndarray, "n c"]:
    """Return fields at voxel indices by trilinear interpolation; outside, the nearest border value.

    All channels share one set of weights, which makes it several times faster than one field after the other.
    """
    size = fields.shape[:3]
    low, shares = np.empty((3, len(index)), dtype=np.intp), []
    for axis, n in enumerate(size):
        inside = np.clip(index[:, axis], 0, n - 1)
        low[axis] = np.minimum(inside.astype(np.intp), n - 2)
        shares.append((inside - low[axis]).astype(fields.dtype)[:, None])
    rows = fields.reshape(-1, fields.shape[3])
    corner = (low[0] * size[1] + low[1]) * size[2] + low[2]

    def along(axis: int, offset: int) -> Float[np.ndarray, "n c"]:
        if axis == 3:
            return rows.take(corner + offset, axis=0)
        here = along(axis + 1, offset)
        there = along(axis + 1, offset + (size[1] * size[2], size[2], 1)[axis])
        there -= here
        there *= shares[axis]
        there += here
        return there

    return along(0, 0)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Float[np.ndarray, "*shape"]:
    """Return Gaussian noise of unit variance, smoothed along the last three axes with ``sigma`` voxels.

    The variance is the kernel's own, not the sample's, so that the scale of a draw stays random.
    """
    kernel = (0.0,) * (len(shape) - 3) + (sigma,) * 3
    white = rng.standard_normal(shape, dtype=np.float32)
    gain = (2.0 * np.sqrt(np.pi) * sigma) ** 1.5 if sigma > 0.4 else 1.0
    return ndimage.gaussian_filter(white, kernel, mode="wrap", truncate=3.0) * np.float32(gain)


def _grid_shape() -> tuple[int, int, int]:
    """Return the coarse grid's size: the template's box."""
    nx, ny, nz = (int(np.ceil((n - 1) * TEMPLATE_SPACING_MM / GRID_MM)) + 1 for n in load_template().depth.shape)
    return nx, ny, nz


@lru_cache(maxsize=1)
def _ventricle_flow() -> Velocity:
    """Return the unit velocity that pulls template points toward the ventricles, 1 at the wall."""
    template = load_template()
    signed = ndimage.gaussian_filter(template.ventricle_distance, 1.0)
    fade = np.exp(-((signed / VENTRICLE_RANGE_MM) ** 2))
    flow = [ndimage.gaussian_filter(-g * fade, 1.0) for g in np.gradient(signed, TEMPLATE_SPACING_MM)]
    size = _grid_shape()
    index = np.indices(size).reshape(3, -1).T * (GRID_MM / TEMPLATE_SPACING_MM)
    return sample(np.stack(flow, axis=-1), index).reshape(*size, 3)
