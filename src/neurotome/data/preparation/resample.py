r"""Values of one grid at the voxels of another: at most one smoothing and one linear interpolation.

    out(p) = (G * a)(A p)          p target voxel, A p its place in source voxels, G a Gaussian, * convolution
    sigma_i = sqrt(max(|A_i|^2 - 1, 0)) / 2.355        |A_i|: source voxels passed per target voxel along source axis i

so that a target voxel averages what it covers, and nothing is smoothed when it covers one source voxel. Where ``A`` is
a permutation with flips and whole shifts, voxels are copied bit for bit; where it is one with scales, the axes
are three small matrix products. Half a voxel beyond the outermost centres belongs to the image, the rest is ``fill``.
"""

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import ndimage

from neurotome.data.imaging.geometry import Affine, Voxels

# entries that move no voxel by more than this share of a voxel are rounding errors of single-precision headers
SNAP_VOXELS = 1e-3
_FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))
Shape3 = tuple[int, int, int]


def ras_to_index(affine: Affine, shape: tuple[int, ...]) -> Affine:
    """Return the map from voxel indices in RAS+ order to those of an image: a permutation with flips.

    The image axis nearest to left-right becomes x, and so on; an oblique image stays oblique.
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    to_index = np.zeros((4, 4))
    to_index[3, 3] = 1.0
    free = [0, 1, 2]
    # the clearest axes are assigned first, so that no world axis is taken twice
    for source in sorted(range(3), key=lambda a: -float(np.abs(axes[:, a]).max())):
        world = max(free, key=lambda w: float(np.abs(axes[w, source])))
        free.remove(world)
        flip = axes[world, source] < 0
        to_index[source, world] = -1.0 if flip else 1.0
        to_index[source, 3] = shape[source] - 1 if flip else 0
    return to_index


def tidy(matrix: Affine, shape: Shape3) -> Affine:
    """Round entries to whole numbers where that moves no voxel of a target of ``shape`` by more than a thousandth."""
    reach = np.array([*(float(n) for n in shape), 1.0])
    whole = np.round(matrix)
    return np.where(np.abs(matrix - whole) * reach < SNAP_VOXELS, whole, matrix)


def resample(
    array: Voxels, matrix: Affine, shape: Shape3, *, fill: float = 0.0, smooth: bool = True
) -> Float[np.ndarray, "p q r"]:
    """Return ``array`` at the voxels of a target grid, float32.

    Args:
        array: ``(x, y, z)``.
        matrix: Target voxel index to source voxel index.
        shape: Target shape.
        fill: Value outside the source.
        smooth: Average what a target voxel covers.
    """
    axes = _separable(matrix)
    if axes is None:
        return _resample_oblique(array, matrix, shape, fill, smooth)
    if _is_copy(matrix):
        return _copy(array, matrix, axes, shape, fill)
    weights = [
        _axis_weights(
            float(matrix[source, target]), float(matrix[source, 3]), array.shape[source], shape[target], smooth
        )
        for target, source in enumerate(axes)
    ]
    out = _weighted(array.transpose(axes), weights)
    if fill:
        out = np.where(inside(array.shape, matrix, shape), out, np.float32(fill))
    return np.ascontiguousarray(out)


def nearest(
    array: Voxels, affine: Affine, matrix: Affine, shape: Shape3, *, fill: int = 0
) -> Shaped[np.ndarray, "p q r"]:
    """Return the nearest voxel of ``array``, for label maps; the type is kept.

    Of two voxels that are equally near (to a thousandth of a voxel) the one further right, anterior or superior is
    taken: a choice by index would move the labels of one head by a voxel from one order of storage to another.

    Args:
        array: ``(x, y, z)``.
        affine: Its voxel index to world mm, RAS+.
        matrix: Target voxel index to source voxel index.
        shape: Target shape.
        fill: Value outside the source.
    """
    up = ras_to_index(affine, array.shape)[:3, :3].sum(axis=1) > 0  # whether an index grows to R, A or S
    axes = _separable(matrix)
    out = np.full(shape, fill, dtype=array.dtype)
    if axes is None:
        index = [_nearest_index(u, bool(to)) for u, to in zip(_places(matrix, shape), up, strict=True)]
        valid = inside(array.shape, matrix, shape)
        clipped = tuple(np.clip(i, 0, n - 1) for i, n in zip(index, array.shape, strict=True))
        np.copyto(out, array[clipped], where=valid)
        return out
    rows, columns = [], []
    for target, source in enumerate(axes):
        place, size = matrix[source, target] * np.arange(shape[target]) + matrix[source, 3], array.shape[source]
        valid = _in_field(place, size)
        rows.append(np.flatnonzero(valid))
        columns.append(np.clip(_nearest_index(place[valid], bool(up[source])), 0, size - 1))
    out[np.ix_(*rows)] = array.transpose(axes)[np.ix_(*columns)]
    return out


def _nearest_index(place: Float[np.ndarray, "*any"], up: bool) -> Int[np.ndarray, "*any"]:
    """Return the index nearest to each place; of two equally near ones the higher if ``up``, else the lower."""
    index = np.floor(place + 0.5 + SNAP_VOXELS) if up else np.ceil(place - 0.5 - SNAP_VOXELS)
    return index.astype(np.intp)


def _in_field(place: Float[np.ndarray, "*any"], size: int) -> Bool[np.ndarray, "*any"]:
    return (place >= -0.5 - SNAP_VOXELS) & (place < size - 0.5 + SNAP_VOXELS)


def inside(source_shape: tuple[int, ...], matrix: Affine, shape: Shape3) -> Bool[np.ndarray, "p q r"]:
    """Return which target voxels lie in the source's field of view."""
    result = np.ones(shape, dtype=bool)
    for place, size in zip(_places(matrix, shape), source_shape, strict=True):
        result &= _in_field(place, size)
    return result


def _places(matrix: Affine, shape: Shape3) -> list[Float[np.ndarray, "..."]]:
    """Return the three source coordinates of every target voxel, each broadcastable to ``shape``."""
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return [
        sum((m * n for m, n in zip(row[:3], (i, j, k), strict=True) if m), start=np.full((1, 1, 1), row[3]))
        for row in matrix[:3]
    ]


def _separable(matrix: Affine) -> tuple[int, int, int] | None:
    """Return, for each target axis, the source axis that alone depends on it; None if the grids are oblique."""
    used = matrix[:3, :3] != 0
    if not ((used.sum(axis=0) == 1).all() and (used.sum(axis=1) == 1).all()):
        return None
    x, y, z = (int(a) for a in used.argmax(axis=0))
    return x, y, z


def _is_copy(matrix: Affine) -> bool:
    return bool((np.abs(matrix[:3, :3]).sum(axis=0) == 1).all() and (matrix == np.round(matrix)).all())


def _copy(
    array: Voxels, matrix: Affine, axes: tuple[int, int, int], shape: Shape3, fill: float
) -> Float[np.ndarray, "p q r"]:
    out = np.full(shape, fill, dtype=np.float32)
    to, of = [], []
    for target, source in enumerate(axes):
        step, start, size = int(matrix[source, target]), int(matrix[source, 3]), array.shape[source]
        first, last = (-start, size - 1 - start) if step > 0 else (start - size + 1, start)
        first, last = max(first, 0), min(last, shape[target] - 1)
        if last < first:
            return out
        to.append(slice(first, last + 1))
        a, b = start + step * first, start + step * last
        of.append(slice(a, b + 1) if step > 0 else slice(a, b - 1 if b else None, -1))
    out[tuple(to)] = array.transpose(axes)[tuple(of)]
    return out


def _weighted(array: Voxels, weights: list[Float[np.ndarray, "_ _"]]) -> Float[np.ndarray, "p q r"]:
    """Return the products along x, y and z, one after the other; voxels that no weight reaches are left out."""
    reached = [np.flatnonzero(w.any(axis=0)) for w in weights]
    place = [slice(int(r[0]), int(r[-1]) + 1) if len(r) else slice(0, 1) for r in reached]
    out = np.asarray(array[tuple(place)], dtype=np.float32)
    for axis, (every, part) in enumerate(zip(weights, place, strict=True)):
        w = every[:, part]
        if axis == 0 and not out.flags.c_contiguous:  # images are stored first axis fastest
            last = np.ascontiguousarray(out.T)
            out = (last.reshape(-1, last.shape[2]) @ w.T).reshape(*last.shape[:2], len(w)).T
        else:
            first = np.ascontiguousarray(np.moveaxis(out, axis, 0))
            product = (w @ first.reshape(len(first), -1)).reshape(len(w), *first.shape[1:])
            out = np.moveaxis(product, 0, axis)
    return out


@lru_cache(maxsize=32)
def _axis_weights(scale: float, shift: float, num_in: int, num_out: int, smooth: bool) -> Float[np.ndarray, "out in"]:
    """Return the matrix that smooths and interpolates along one axis."""
    place = scale * np.arange(num_out) + shift
    low = np.floor(place).astype(np.intp)
    valid = _in_field(place, num_in)
    weights = np.zeros((num_out, num_in))
    rows = np.arange(num_out)
    for index, weight in ((low, 1.0 - (place - low)), (low + 1, place - low)):
        np.add.at(weights, (rows, np.clip(index, 0, num_in - 1)), weight * valid)
    sigma = _sigma(abs(scale)) if smooth else 0.0
    if sigma > 0:
        weights = weights @ ndimage.gaussian_filter1d(np.eye(num_in), sigma, axis=0, mode="nearest")
    found = weights.astype(np.float32)
    found.setflags(write=False)  # the views of a session share it
    return found


def _sigma(step: float) -> float:
    """Return the Gaussian (in source voxels) that widens a source voxel to a step of ``step`` source voxels."""
    return math.sqrt(max(step * step - 1.0, 0.0)) / _FWHM_PER_SIGMA if step > 1.0 + SNAP_VOXELS else 0.0


def _resample_oblique(
    array: Voxels, matrix: Affine, shape: Shape3, fill: float, smooth: bool
) -> Float[np.ndarray, "p q r"]:
    values = array.astype(np.float32, copy=False)
    sigmas = [_sigma(float(step)) for step in np.linalg.norm(matrix[:3, :3], axis=1)]
    if smooth and any(sigmas):
        values = ndimage.gaussian_filter(values, sigmas, mode="nearest")
    out = ndimage.affine_transform(
        values, matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=1, mode="nearest", output=np.float32
    )
    out[~inside(array.shape, matrix, shape)] = fill
    return out
