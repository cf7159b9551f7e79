r"""Whether two contrasts of one session lie on each other, and the rigid motion that lays them there.

    T(p) = R(a) (p - c) + c + t              world mm of the reference -> world mm of the moving scan
    NMI  = (H(u) + H(v(T))) / H(u, v(T))     Shannon entropies of the joint histogram (Studholme et al., 1999)

u: the reference at up to 20 000 points of and around the brain on a 2 mm grid; v: the moving scan there; c, r: centre
and radius of gyration of the points. :func:`estimate` climbs in NMI from the headers' own alignment, one of six motions
at a time (three shifts, three rotations by arc length at r), with steps of 8, 4, 2, 1 and 0.5 mm. Its result is a
measure: the mean distance over the points. On 24 pairs of real scans of two cohorts (glioma, multiple sclerosis; half
of them thinned to slices of 3 and 4 mm) it gave 0 to 1.3 mm where they are aligned, 1.7 to 2.5 mm after motions of
2 mm, 2.5 to 3.4 mm after 3 mm: hence ``MAX_DISPLACEMENT_MM``. Motions of 1 mm are too small for it. A ball can be
turned without a change of NMI, so motions that gain little are ignored (``MIN_GAIN``; those of 2 mm gained 11 % and
more).

:func:`register` refines it with SimpleITK (Mattes mutual information, Euler angles, two resolutions), with one thread,
a fixed seed and six decimals, so that equal inputs give equal matrices.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from neurotome.data.imaging.geometry import Affine, Voxels, rotation
from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation.brain_box import Brain
from neurotome.data.preparation.extras import one_thread, simpleitk
from neurotome.data.preparation.resample import Shape3, resample

MAX_DISPLACEMENT_MM = 1.5
MIN_GAIN = 0.05
# on 12 of the pairs the refined motion lay 0 to 0.7 mm (median 0.3) from the truth, from wherever it started (0, 3 or
# 30 mm away): less is within its error, and the scan is left where it is, not interpolated
MIN_MOTION_MM = 0.7
# with less of the brain in view two scans cannot be compared
MIN_OVERLAP = 0.5
_GRID_MM = 2.0
# around the brain: the edge of the head or of the brain says most about where it lies
_MARGIN_MM = 6.0
_MAX_POINTS = 20_000
_BINS = 32
_STEPS_MM = (8.0, 4.0, 2.0, 1.0, 0.5)
_MAX_SWEEPS = 8
# a climb of less is noise of the histogram
_LEAST_GAIN = 1e-5
_SEED = 20


@dataclass(frozen=True, eq=False)
class Motion:
    """A rigid motion between two scans.

    Args:
        matrix: World mm of the reference to world mm of the moving scan, ``(4, 4)``.
        displacement_mm: Mean distance by which it moves the brain.
        overlap: Share of the brain that the moving scan's field of view holds, before the motion.
        gain: Share by which the motion raises NMI - 1.
    """

    matrix: Affine
    displacement_mm: float
    overlap: float
    gain: float

    @property
    def is_displaced(self) -> bool:
        """Whether the scans do not lie on each other: far apart, and not by chance."""
        return self.displacement_mm > MAX_DISPLACEMENT_MM and self.gain >= MIN_GAIN


def estimate(reference: Volume, brain: Brain, moving: Volume) -> Motion:
    """Return by what rigid motion ``moving`` shares most information with ``reference``, to about a millimetre.

    Args:
        reference: The scan that stays.
        brain: In the reference's world.
        moving: The other scan.
    """
    return _Pair(reference, brain, moving).climb()


def register(reference: Volume, brain: Brain, moving: Volume) -> Motion:
    """Return the rigid motion that lays ``moving`` on ``reference``; the identity where it is there already.

    Args:
        reference: The scan that stays.
        brain: In the reference's world.
        moving: The other scan.

    Raises:
        UsageError: SimpleITK is not installed.
    """
    sitk = simpleitk("registration")
    pair = _Pair(reference, brain, moving)
    first = pair.climb()
    matrix = _refine(sitk, pair, first.matrix)
    # the refinement is trusted only where it shares no less information than what it started from
    if pair.information(matrix) < pair.information(first.matrix) - _LEAST_GAIN:
        matrix = first.matrix
    moved = pair.displacement(matrix)
    if moved < MIN_MOTION_MM:
        return Motion(np.eye(4), 0.0, first.overlap, 0.0)
    return Motion(matrix, moved, first.overlap, pair.gain(matrix))


class _Pair:
    """Both scans on grids along the world's axes, and the points at which they are compared."""

    def __init__(self, reference: Volume, brain: Brain, moving: Volume) -> None:
        self.fixed_affine, region = _region(brain)
        to_reference = np.linalg.inv(reference.geometry.affine) @ self.fixed_affine
        x, y, z = region.shape
        self.fixed = resample(reference.array, to_reference, (x, y, z))
        self.region = region
        self.moving_affine, shape = _world_grid(moving.geometry.corners_mm())
        self.moving = resample(moving.array, np.linalg.inv(moving.geometry.affine) @ self.moving_affine, shape)
        index = np.argwhere(region)
        if len(index) > _MAX_POINTS:
            index = index[np.sort(np.random.default_rng(_SEED).permutation(len(index))[:_MAX_POINTS])]
        self.points = index @ self.fixed_affine[:3, :3].T + self.fixed_affine[:3, 3]  # (n, 3), mm
        self.centre = self.points.mean(axis=0)
        self.radius = max(float(np.sqrt(((self.points - self.centre) ** 2).sum(axis=1).mean())), _GRID_MM)
        self.u: Int[np.ndarray, " n"] = _levels(self.fixed[tuple(index.T)]).astype(np.intp)
        self.v = _levels(self.moving)
        self.to_moving = np.linalg.inv(self.moving_affine)

    def matrix(self, motion: Float[np.ndarray, " 6"]) -> Affine:
        """Return the matrix of three shifts in mm and three rotations in mm of arc at the radius."""
        matrix = np.eye(4)
        matrix[:3, :3] = rotation(motion[3:] / self.radius)
        matrix[:3, 3] = self.centre + motion[:3] - matrix[:3, :3] @ self.centre
        return matrix

    def displacement(self, matrix: Affine) -> float:
        """Return the mean distance by which a matrix moves the points, in mm."""
        moved = self.points @ matrix[:3, :3].T + matrix[:3, 3]
        return float(np.linalg.norm(moved - self.points, axis=1).mean())

    def places(self, matrix: Affine) -> tuple[Float[np.ndarray, "n 3"], Bool[np.ndarray, " n"]]:
        """Return where the points lie on the moving grid, and which of them lie in it."""
        to_moving = self.to_moving @ matrix
        places = self.points @ to_moving[:3, :3].T + to_moving[:3, 3]
        return places, ((places > -0.5) & (places < np.array(self.v.shape) - 0.5)).all(axis=1)

    def information(self, matrix: Affine) -> float:
        """Return the normalised mutual information, 0 where less than half of the points are seen."""
        places, seen = self.places(matrix)
        if seen.mean() < MIN_OVERLAP:
            return 0.0
        v = ndimage.map_coordinates(self.v, places[seen].T, order=1, mode="nearest", prefilter=False)
        low = np.floor(v).astype(np.intp)
        share = v - low
        row = self.u[seen] * _BINS
        counts = np.bincount(row + low, 1.0 - share, _BINS * _BINS)
        counts += np.bincount(row + np.minimum(low + 1, _BINS - 1), share, _BINS * _BINS)
        joint = (counts / counts.sum()).reshape(_BINS, _BINS)
        both = _entropy(joint.ravel())
        return 1.0 if both == 0.0 else (_entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1))) / both

    def climb(self) -> Motion:
        """Return the motion at the top reached from the identity, or from the centres where there is no overlap."""
        overlap = float(self.places(np.eye(4))[1].mean())
        motion = np.zeros(6)
        if overlap < MIN_OVERLAP:
            middle = self.moving_affine @ [*ndimage.center_of_mass(self.v), 1.0]
            motion[:3] = middle[:3] - self.centre
        best = self.information(self.matrix(motion))
        for step in _STEPS_MM:
            for _ in range(_MAX_SWEEPS):
                motion, best, moved = self._sweep(motion, best, step)
                if not moved:
                    break
        matrix = self.matrix(motion)
        return Motion(matrix, self.displacement(matrix), overlap, self.gain(matrix))

    def gain(self, matrix: Affine) -> float:
        """Return the share by which a matrix raises NMI - 1 over the identity's."""
        before = max(self.information(np.eye(4)) - 1.0, 1e-9)
        return (self.information(matrix) - 1.0) / before - 1.0

    def _sweep(
        self, motion: Float[np.ndarray, " 6"], best: float, step: float
    ) -> tuple[Float[np.ndarray, " 6"], float, bool]:
        """Try each of the six motions by one step to either side and keep what gains."""
        moved = False
        for axis in range(6):
            for sign in (1.0, -1.0):
                tried = motion.copy()
                tried[axis] += sign * step
                found = self.information(self.matrix(tried))
                if found > best + _LEAST_GAIN:
                    motion, best, moved = tried, found, True
                    break
        return motion, best, moved


def _region(brain: Brain) -> tuple[Affine, Bool[np.ndarray, "x y z"]]:
    """Return the brain and its surroundings on a grid along the world's axes."""
    places = np.argwhere(brain.mask)[:, :, None] + np.array([-0.5, 0.5])
    ends = np.stack([places.min(axis=(0, 2)), places.max(axis=(0, 2))])
    corners = np.stack(np.meshgrid(*ends.T, indexing="ij"), axis=-1).reshape(8, 3)
    world = corners @ brain.affine[:3, :3].T + brain.affine[:3, 3]
    affine, shape = _world_grid(np.stack([world.min(axis=0) - _MARGIN_MM, world.max(axis=0) + _MARGIN_MM]))
    mask = resample(brain.mask, np.linalg.inv(brain.affine) @ affine, shape) >= 0.5
    return affine, ndimage.binary_dilation(mask, iterations=round(_MARGIN_MM / _GRID_MM))


def _world_grid(corners: Float[np.ndarray, "n 3"]) -> tuple[Affine, Shape3]:
    low, high = corners.min(axis=0), corners.max(axis=0)
    x, y, z = (max(int(n), 1) for n in np.ceil((high - low) / _GRID_MM))
    affine = np.diag([_GRID_MM] * 3 + [1.0])
    affine[:3, 3] = (low + high) / 2.0 - _GRID_MM * (np.array([x, y, z]) - 1.0) / 2.0
    return affine, (x, y, z)


def _levels(values: Voxels | Float[np.ndarray, " n"]) -> Float[np.ndarray, "*any"]:
    """Return intensities as places among the histogram's bins; the outer percents share the outer bins."""
    low, high = np.percentile(values, [1.0, 99.0])
    scale = _BINS / max(float(high - low), 1e-12)
    return np.clip((values.astype(np.float64) - low) * scale, 0.0, _BINS - 1e-3)


def _entropy(p: Float[np.ndarray, " n"]) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def _refine(sitk: Any, pair: _Pair, start: Affine) -> Affine:
    """Return the matrix that SimpleITK finds from ``start``.

    World coordinates are handed over as they are (RAS): both images lie on grids along the world's axes, so that no
    direction matrix, which could not hold a shear, is needed.
    """
    fixed, moving = _image(sitk, pair.fixed, pair.fixed_affine), _image(sitk, pair.moving, pair.moving_affine)
    mask = _image(sitk, pair.region.astype(np.uint8), pair.fixed_affine)
    transform = sitk.Euler3DTransform()
    transform.SetCenter(pair.centre.tolist())
    transform.SetMatrix(start[:3, :3].ravel().tolist())
    transform.SetTranslation((start[:3, 3] + start[:3, :3] @ pair.centre - pair.centre).tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=_BINS)
    method.SetMetricFixedMask(mask)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.25, _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-3, numberOfIterations=100, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([_GRID_MM, 0.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    try:
        with one_thread(sitk):
            method.Execute(fixed, moving)
    except RuntimeError:  # too few samples overlap: the start is the best there is
        return start
    # its last digit varies from call to call; the sixth is far below a micrometre
    transform.SetParameters([round(value, 6) for value in transform.GetParameters()])
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = np.array(transform.GetTranslation()) + pair.centre - matrix[:3, :3] @ pair.centre
    return matrix


def _image(sitk: Any, array: Voxels, affine: Affine) -> Any:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing([_GRID_MM] * 3)
    image.SetOrigin(affine[:3, 3].tolist())
    return image
