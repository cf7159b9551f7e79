r"""Brain lesions with a known truth: where they may lie, how large they are, and their fuzzy parts.

    core     |x - c| (1 + 0.12 n(x)) < d / 2
    necrosis the same within d / 2 - rim,  where d > 10 mm
    oedema   |x - c| < d / 2 + e min(1, max(0, 0.6 + 0.4 n(x)))  outside the core, in white matter only
    log d ~ N(log 12 mm, 0.55), clipped to 5-38 mm;  0.2 d < e < 14 mm

``n`` is smooth noise of a lesion's own. Measurable by RANO-BM are lesions of 10 mm and more.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32
from scipy import ndimage

from neurotome.data.phantom.shape import smooth_noise

MEDIAN_MM, LOG_SD, LIMITS_MM = 12.0, 0.55, (5.0, 38.0)
RING_FROM_MM = 10.0
OEDEMA_MM = 14.0
CLEARANCE_MM = 2.0  # between a lesion's core and a deep nucleus

Map = Float[np.ndarray, "x y z"]


@dataclass(frozen=True)
class Lesion:
    """One lesion's truth.

    Args:
        centre_mm: RAS+ mm in the subject.
        diameter_mm: Of the core (rim and necrosis) before its surface is roughened.
        kind: "ring" (necrotic centre) or "solid".
        oedema_mm: Reach of the oedema beyond the core.
        rim_mm: Thickness of the enhancing rim.
        seed: Of the lesion's own noise.
    """

    centre_mm: tuple[float, float, float]
    diameter_mm: float
    kind: str
    oedema_mm: float
    rim_mm: float
    seed: int


def draw_lesions(
    rng: np.random.Generator, white: Map, nuclei: Map, outside: Map, affine: Float[np.ndarray, "4 4"]
) -> tuple[Lesion, ...]:
    """Return one to four lesions in the white matter.

    Args:
        rng: For number, places and sizes.
        white: Share of white matter on a coarse grid in the subject's space.
        nuclei: Share of deep grey matter.
        outside: Share of what is neither grey nor white matter (CSF, ventricles, background).
        affine: Voxel index to RAS+ mm of that grid.
    """
    spacing = float(affine[0, 0])
    to_nuclei = ndimage.distance_transform_edt(nuclei < 0.3) * spacing
    to_outside = ndimage.distance_transform_edt(outside < 0.5) * spacing
    found: list[Lesion] = []
    for _ in range(1 + min(int(rng.poisson(0.8)), 3)):
        diameter = float(np.clip(np.exp(np.log(MEDIAN_MM) + LOG_SD * rng.standard_normal()), *LIMITS_MM))
        while diameter >= LIMITS_MM[0]:
            radius = diameter / 2
            fits = (white > 0.6) & (to_nuclei > 1.2 * radius + CLEARANCE_MM + spacing) & (to_outside > 0.8 * radius)
            for other in found:
                gap = np.linalg.norm(_offsets(white.shape, affine, other.centre_mm), axis=0)
                fits &= gap > radius + other.diameter_mm / 2 + 4
            places = np.argwhere(fits)
            if len(places):
                place = places[rng.integers(len(places))] + rng.uniform(-0.5, 0.5, 3)
                centre = affine[:3, :3] @ place + affine[:3, 3]
                found.append(_lesion(rng, centre, diameter))
                break
            diameter *= 0.8  # the brain has no room for it: a smaller one
    return tuple(found)


def lesion_parts(
    lesions: tuple[Lesion, ...], white: Map, brain: Map, affine: Float[np.ndarray, "4 4"]
) -> Float32[np.ndarray, "3 x y z"]:
    """Return the share of necrosis, oedema and rim in every voxel, partial volume kept.

    Args:
        lesions: Truth.
        white: Share of white matter on the image's grid.
        brain: 1 inside the brain.
        affine: Voxel index to RAS+ mm, diagonal.
    """
    parts = np.zeros((3, *white.shape), dtype=np.float32)
    spacing = float(affine[0, 0])
    for lesion in lesions:
        far = 0.8 * lesion.diameter_mm + lesion.oedema_mm + 2 * spacing
        box = _box(white.shape, affine, lesion.centre_mm, far)
        offset = _offsets(white.shape, affine, lesion.centre_mm, box)
        distance = np.linalg.norm(offset, axis=0)
        noise = _own_noise(lesion, offset)
        core = _inside(distance * (1 + 0.12 * noise), lesion.diameter_mm / 2, spacing) * brain[box]
        radius = lesion.diameter_mm / 2 - lesion.rim_mm
        centre = _inside(distance * (1 + 0.12 * noise), radius, spacing) * core if lesion.kind == "ring" else 0 * core
        reach = lesion.oedema_mm * np.clip(0.6 + 0.4 * noise, 0, 1)
        oedema = _inside(distance - reach, lesion.diameter_mm / 2, spacing + 2)
        oedema = oedema * np.clip(1.6 * white[box] - 0.3, 0, 1) * (1 - core)
        new = np.stack([centre, oedema, core - centre])
        parts[(slice(None), *box)] = parts[(slice(None), *box)] * (1 - new.sum(axis=0)) + new
    return parts


def _lesion(rng: np.random.Generator, centre: Float[np.ndarray, " 3"], diameter: float) -> Lesion:
    """Return a lesion with its drawn details."""
    x, y, z = (float(c) for c in centre)
    return Lesion(
        centre_mm=(x, y, z),
        diameter_mm=diameter,
        kind="ring" if diameter > RING_FROM_MM else "solid",
        oedema_mm=float(min(rng.uniform(0.2, 0.8) * diameter, OEDEMA_MM)),
        rim_mm=float(rng.uniform(2.0, 3.0)) if diameter > RING_FROM_MM else diameter / 2,
        seed=int(rng.integers(2**31)),
    )


def _inside(distance: Map, radius: float, edge: float) -> Map:
    """Return 1 inside and 0 outside of a radius, linear over an edge of the given width in mm.

    The mean of (r + u)^3 over the edge, u uniform in +-edge/2, is r^3 + r edge^2 / 4: the radius is taken smaller by
    so much that the soft ball has the volume of the hard one.
    """
    roots = np.roots([1.0, 0.0, edge**2 / 4, -(max(radius, 0.0) ** 3)])
    hard = float(roots[np.argmin(np.abs(roots.imag))].real)
    return np.clip(0.5 + (hard - distance) / edge, 0, 1)


def _own_noise(lesion: Lesion, offset: Float[np.ndarray, "3 x y z"]) -> Map:
    """Return smooth noise about the centre, the same in mm on every grid; it varies over half a lesion."""
    size = 24
    lattice = smooth_noise(np.random.Generator(np.random.PCG64(lesion.seed)), (size,) * 3, 1.2)
    step = max(lesion.diameter_mm / 5, 2.0)
    index = offset.reshape(3, -1) / step + size / 2
    noise = ndimage.map_coordinates(lattice, index, order=1, mode="grid-wrap")
    return np.clip(noise, -2, 2).reshape(offset.shape[1:])


def _box(
    shape: tuple[int, ...], affine: Float[np.ndarray, "4 4"], centre: tuple[float, float, float], reach: float
) -> tuple[slice, slice, slice]:
    """Return the voxels within ``reach`` mm of a centre along each axis."""
    index = (np.asarray(centre) - affine[:3, 3]) / np.diag(affine)[:3]
    half = reach / np.diag(affine)[:3]
    low = np.clip(np.floor(index - half), 0, None).astype(int)
    high = np.minimum(np.ceil(index + half).astype(int) + 1, shape)
    x, y, z = (slice(int(a), int(max(a, b))) for a, b in zip(low, high, strict=True))
    return x, y, z


def _offsets(
    shape: tuple[int, ...],
    affine: Float[np.ndarray, "4 4"],
    centre: tuple[float, float, float],
    box: tuple[slice, ...] = (slice(None),) * 3,
) -> Float[np.ndarray, "3 x y z"]:
    """Return the offsets in mm of voxels from a centre on a grid with a diagonal affine."""
    axes = [
        affine[i, 3] + affine[i, i] * np.arange(n)[s] - centre[i]
        for i, (n, s) in enumerate(zip(shape, box, strict=True))
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"))
