r"""From causes to anatomy: what one synthetic person's brain is made of, before any scanner.

p_k(y)   template classes, sharpened and folded individually (template space)
q_k(x)   = p_k(phi(x)), then lesions take their share          (subject's grid)
d_j(x)   relative deviations of T1, T2, PD: regional + iron + individual texture
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped, UInt8
from scipy import ndimage, stats

from neurotome.data.phantom.contrast import TISSUE_NAMES
from neurotome.data.phantom.lesions import Lesion, draw_lesions, lesion_parts
from neurotome.data.phantom.shape import Shape, draw_shape, sample, smooth_noise
from neurotome.data.phantom.template import (
    CLASSES,
    CORTEX,
    DEEP_GREY,
    SULCAL_CSF,
    TEMPLATE_SPACING_MM,
    WHITE,
    Template,
    load_template,
)

FIELD_MM = (183.0, 219.0, 183.0)
FIELD_CENTRE_MM = (0.0, -17.0, 4.0)
LESION_GRID_MM = 3.0
EFFECT_OF_SEX = 0.8  # Cohen's d of head size and of grey matter
FOLD_HALF_MM = 5.5  # from white matter to the middle of a sulcus, in template mm
REGIONAL = np.array([0.025, 0.04, 0.01])  # deviation of T1, T2, PD between regions
CAPS = np.array([[0.15, 0.30, 0.0]])  # periventricular white matter brightens on T2 and FLAIR until 85
CONFOUNDABLE = ("age", "sex", "site")
STRIP_MM = 9.0  # closes sulci up to twice as wide; what lies further from the brain is stripped with the skull
STRIP_SHARE = 0.5  # of tissue other than sulcal CSF


@dataclass(frozen=True)
class Factors:
    """The causes of one person; NaN and "n/a" where the brain comes from a label map and they are unknown.

    Args:
        age: Years, 20-85.
        sex: "F" or "M".
        site: Index of the site.
        atrophy: About 0 (young) to 1; age explains most of it.
        head_scale: Linear size relative to the mean.
        ventricle_mm: Velocity of the ventricles' wall.
        grey_mm: Individual cortical thickness relative to the mean of this age.
        has_lesions: Whether lesions are drawn.
        source: The anatomy that was deformed: "MNI152" or the file name of a label map.
    """

    age: float
    sex: str
    site: int
    atrophy: float
    head_scale: float
    ventricle_mm: float
    grey_mm: float
    has_lesions: bool
    source: str = "MNI152"


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A brain on a voxel grid.

    Args:
        shares: Tissue shares inside the mask, in the order of ``TISSUE_NAMES``, ``(8, n)``.
        deviations: Relative deviations of T1, T2 and proton density inside the mask, ``(3, n)``.
        mask: The brain with its CSF, all that lies inside the skull.
        tissue_factors: This person's factors on T1, T2, PD of each tissue (2 %), ``(8, 3)``.
        lesions: Truth of the lesions.
        affine: Voxel index to RAS+ mm.
        jacobian_min: Smallest Jacobian determinant of the shape.
    """

    shares: Float32[np.ndarray, "8 n"]
    deviations: Float32[np.ndarray, "3 n"]
    mask: Bool[np.ndarray, "x y z"]
    tissue_factors: Float[np.ndarray, "8 3"]
    lesions: tuple[Lesion, ...]
    affine: Float[np.ndarray, "4 4"]
    jacobian_min: float

    @property
    def spacing_mm(self) -> float:
        """Size of a voxel."""
        return float(self.affine[0, 0])

    @cached_property
    def stripped(self) -> Bool[np.ndarray, "x y z"]:
        """The brain as skull-stripping leaves it: tissue and the sulci within it, without the outer rim of CSF.

        With the whole rim a T2w image would be mostly bright CSF; real stripped scans hold about 1120 to 1640 ml.
        """
        margin = int(np.ceil(STRIP_MM / self.spacing_mm)) + 2
        tissue = np.pad(self.spread(self.shares[SULCAL_CSF]) < 1 - STRIP_SHARE, margin)
        tissue &= np.pad(self.mask, margin)
        near = ndimage.distance_transform_edt(~tissue) * self.spacing_mm <= STRIP_MM
        closed = ndimage.distance_transform_edt(near) * self.spacing_mm > STRIP_MM
        inner = tuple(slice(margin, -margin) for _ in range(3))
        parts, _ = ndimage.label(closed[inner] & self.mask)
        largest = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
        return ndimage.binary_fill_holes(largest)

    def spread(self, values: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, "x y z"]:
        """Return values inside the mask as a volume, 0 outside."""
        volume = np.zeros(self.mask.shape, dtype=values.dtype)
        volume[self.mask] = values
        return volume

    def labels(self) -> UInt8[np.ndarray, "x y z"]:
        """Return the most frequent tissue of each voxel, 1 ... 8, and 0 outside the stripped brain."""
        return self.spread((1 + self.shares.argmax(axis=0)).astype(np.uint8)) * self.stripped.astype(np.uint8)

    def lesion_map(self) -> UInt8[np.ndarray, "x y z"]:
        """Return 1 necrosis, 2 oedema, 3 rim where a lesion's part is the most frequent tissue, else 0."""
        labels = self.labels()
        return np.where(labels > 5, labels - 5, 0).astype(np.uint8)

    def volumes_ml(self) -> dict[str, float]:
        """Return the volume of each tissue from its shares, their sum ``brain``, and ``lesions``."""
        voxel = self.spacing_mm**3 / 1000
        volumes = {n: float(v) * voxel for n, v in zip(TISSUE_NAMES, self.shares.sum(axis=1, dtype=float), strict=True)}
        lesions = sum(volumes[n] for n in TISSUE_NAMES[5:])
        return volumes | {"lesions": lesions, "brain": float(self.mask.sum()) * voxel}


@dataclass(frozen=True, eq=False)
class Field:
    """Something that moves T1, T2 and PD where it is: their relative deviations are values times effect.

    Args:
        values: Channels on a grid of their own.
        affine: Voxel index to RAS+ mm.
        effect: Deviations of T1, T2 and PD where a channel is 1, ``(c, 3)``.
    """

    values: Float32[np.ndarray, "x y z c"]
    affine: Float[np.ndarray, "4 4"]
    effect: Float[np.ndarray, "c 3"]


@dataclass(frozen=True, eq=False)
class UndeformedBrain:
    """A brain before an individual shape is applied to it.

    Args:
        brain: 1 inside the brain, 0 at the border of the grid.
        classes: Shares of the first k tissues of ``TISSUE_NAMES``.
        affine: Voxel index to RAS+ mm of both.
        fields: What moves T1, T2 and PD.
    """

    brain: Float32[np.ndarray, "x y z"]
    classes: Float32[np.ndarray, "x y z k"]
    affine: Float[np.ndarray, "4 4"]
    fields: tuple[Field, ...]


def draw_factors(
    rng: np.random.Generator,
    index: int,
    num_sites: int,
    lesion_fraction: float,
    confound: tuple[str, str, float] | None,
) -> Factors:
    """Return the causes of one person: age, sex and site independent, or one pair correlated as ``confound`` says.

    Each of the three is a monotone function of a normal number; two numbers of a confounded pair are correlated.
    """
    normal = dict(zip(CONFOUNDABLE, rng.standard_normal(3), strict=True))
    if confound:
        first, second, r = confound
        normal[second] = r * normal[first] + np.sqrt(1 - r * r) * normal[second]
    uniform = {name: float(stats.norm.cdf(value)) for name, value in normal.items()}
    age = 20 + 65 * uniform["age"]
    sex = "M" if uniform["sex"] >= 0.5 else "F"
    # Without a confound the sites take turns, so that every split has all of them.
    turns = confound is None or "site" not in confound[:2]
    site = index % num_sites if turns else min(int(uniform["site"] * num_sites), num_sites - 1)
    side = 0.5 if sex == "M" else -0.5
    size, grey, decline, ventricle, coin = *rng.standard_normal(4), rng.random()
    atrophy = float(np.clip(0.85 * ((age - 20) / 65) ** 1.3 + 0.13 * decline, -0.15, 1.2))
    return Factors(
        age=round(age, 1),
        sex=sex,
        site=site,
        atrophy=atrophy,
        head_scale=float(1 + 0.018 * np.clip(size + EFFECT_OF_SEX * side, -2.2, 2.2)),
        ventricle_mm=float(-1.5 + 6.5 * atrophy + 1.8 * ventricle),
        grey_mm=float(0.35 * (grey - EFFECT_OF_SEX * side)),
        has_lesions=bool(coin < lesion_fraction),
    )


def grid(spacing_mm: float) -> tuple[tuple[int, int, int], Float[np.ndarray, "4 4"]]:
    """Return shape and affine of the image grid: axes RAS+, centred on the field of view."""
    nx, ny, nz = (round(f / spacing_mm) for f in FIELD_MM)
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = np.array(FIELD_CENTRE_MM) - spacing_mm * (np.array([nx, ny, nz]) - 1) / 2
    return (nx, ny, nz), affine


def draw_anatomy(factors: Factors, rng: np.random.Generator, spacing_mm: float) -> Anatomy:
    """Return the anatomy that the causes and ``rng`` determine, on a grid of the given spacing."""
    shape_rng, fold_rng, texture_rng, lesion_rng, tissue_rng = rng.spawn(5)
    template = load_template()
    shape = draw_shape(shape_rng, factors.head_scale, factors.ventricle_mm)
    years = (factors.age - 20) / 65
    places = Field(_places(), template.affine, np.concatenate([np.diag(REGIONAL), iron_effect(years), CAPS * years]))
    classes = fold(template, factors, fold_rng)
    brain = (template.depth > 0).astype(np.float32)
    source = UndeformedBrain(brain, classes, template.affine, (places, *texture(texture_rng)))
    return assemble(source, shape, factors.has_lesions, lesion_rng, tissue_rng, spacing_mm)


def assemble(
    source: UndeformedBrain,
    shape: Shape,
    has_lesions: bool,
    lesion_rng: np.random.Generator,
    tissue_rng: np.random.Generator,
    spacing_mm: float,
) -> Anatomy:
    """Return the anatomy of a source under a shape, with lesions where asked for.

    The lesions are placed on a grid of their own, so that they do not depend on the spacing.
    """
    lesions: tuple[Lesion, ...] = ()
    if has_lesions:
        size, affine = grid(LESION_GRID_MM)
        coarse, _, inside = pull(source, shape, size, affine)
        tissue = np.zeros((len(coarse), *size), dtype=np.float32)
        tissue[:, inside] = coarse
        csf = 1 - tissue[CORTEX:].sum(axis=0)
        lesions = draw_lesions(lesion_rng, tissue[WHITE], tissue[DEEP_GREY], csf, affine)
    size, affine = grid(spacing_mm)
    shares, deviations, mask = pull(source, shape, size, affine)
    full = np.zeros((len(TISSUE_NAMES), shares.shape[1]), dtype=np.float32)
    full[: len(shares)] = shares
    if lesions:
        white = np.zeros(size, dtype=np.float32)
        white[mask] = shares[WHITE]
        parts = lesion_parts(lesions, white, mask.astype(np.float32), affine)[:, mask]
        full *= 1 - parts.sum(axis=0)
        full[len(CLASSES) :] += parts
    return Anatomy(
        shares=full,
        deviations=deviations,
        mask=mask,
        tissue_factors=np.exp(0.02 * tissue_rng.standard_normal((len(TISSUE_NAMES), 3))),
        lesions=lesions,
        affine=affine,
        jacobian_min=float(shape.jacobian().min()),
    )


def fold(template: Template, factors: Factors, rng: np.random.Generator) -> Float32[np.ndarray, "x y z 5"]:
    """Return the template's classes with an individual folding.

    Logits times 2.2 undo the blur of the average; noise on the border of white matter and on the depth of the folds
    makes sulci individual; cortex further than its thickness from the white matter becomes sulcal CSF.
    """
    brain, points, logits, hint = _fold_constants()
    lattice, affine = _lattice(rng, 2, 4.0, 1.0)
    noise = _interpolate(lattice, points, affine).T
    logits = logits.copy()
    logits[WHITE] += 0.9 * noise[0]
    weights = np.exp(logits - logits.max(axis=0))
    weights /= weights.sum(axis=0)
    thickness = 4.85 - 1.4 * factors.atrophy + factors.grey_mm
    # Beyond the middle of a buried sulcus the other bank begins: there the depth falls again.
    depth = template.fold_depth[brain] + 0.9 * noise[1]
    buried = np.clip((template.depth[brain] - 6) / 6, 0, 1)
    depth -= 2 * buried * np.maximum(depth - FOLD_HALF_MM, 0)
    outer = 1 / (1 + np.exp((thickness - depth - hint) / 0.5))
    weights[SULCAL_CSF] += weights[CORTEX] * outer
    weights[CORTEX] *= 1 - outer
    classes = np.zeros((*brain.shape, len(weights)), dtype=np.float32)
    classes[brain] = weights.T
    return classes


@lru_cache(maxsize=1)
def _fold_constants() -> tuple[
    Bool[np.ndarray, "x y z"], Float[np.ndarray, "n 3"], Float32[np.ndarray, "5 n"], Float32[np.ndarray, " n"]
]:
    """Return what folding needs of the template: brain, its points in mm, sharpened logits, the hint of a sulcus."""
    template = load_template()
    brain = template.depth > 0
    points = np.argwhere(brain) * TEMPLATE_SPACING_MM + template.affine[:3, 3]
    logits = 2.2 * np.log(template.classes[:, brain] + np.float32(1e-3))
    # A fold of the average shows its sulcus by a trace of CSF: there the cortex ends earlier.
    hint = 0.9 * np.clip(np.log((template.classes[SULCAL_CSF, brain] + np.float32(0.01)) / 0.08), -2, 1.5)
    return brain, points, logits.astype(np.float32), hint.astype(np.float32)


@lru_cache(maxsize=1)
def _places() -> Float32[np.ndarray, "x y z 5"]:
    """Return regional fields of T1, T2 and PD, iron, and the white matter at the ventricles' wall."""
    template = load_template()
    caps = np.exp(-np.maximum(template.ventricle_distance, 0) / 4) * (template.classes[WHITE] > 0.5)
    return np.stack([*template.regional, template.iron, caps], axis=-1).astype(np.float32)


def iron_effect(years: float) -> Float[np.ndarray, "1 3"]:
    """Return what iron does to T1, T2 and PD: it shortens T2, more with age (0 at 20, 1 at 85 years)."""
    return np.array([[-0.10, -0.22 - 0.14 * years, 0.0]])


def texture(rng: np.random.Generator) -> tuple[Field, ...]:
    """Return the individual texture of T1, T2 and PD: 2 % at 4 mm and 1.2 % at 10 mm, independent of each other."""
    scales = ((4.0, 0.02), (10.0, 0.012))
    return tuple(Field(*_lattice(rng, 3, step, 0.8), amplitude * np.eye(3)) for step, amplitude in scales)


def _lattice(
    rng: np.random.Generator, channels: int, step_mm: float, sigma: float
) -> tuple[Float32[np.ndarray, "x y z c"], Float[np.ndarray, "4 4"]]:
    """Return smooth noise on a lattice over the template's box, and the lattice's affine."""
    template = load_template()
    size = tuple(int(np.ceil(n * TEMPLATE_SPACING_MM / step_mm)) + 1 for n in template.depth.shape)
    affine = np.diag([step_mm] * 3 + [1.0])
    affine[:3, 3] = template.affine[:3, 3]
    return np.ascontiguousarray(np.moveaxis(smooth_noise(rng, (channels, *size), sigma), 0, -1)), affine


def pull(
    source: UndeformedBrain, shape: Shape, size: tuple[int, int, int], affine: Float[np.ndarray, "4 4"]
) -> tuple[Float32[np.ndarray, "k n"], Float32[np.ndarray, "3 n"], Bool[np.ndarray, "x y z"]]:
    """Return classes (summing to 1) and deviations inside the brain of a subject's grid, and the brain's mask."""
    points = shape.pull_back(np.indices(size).reshape(3, -1).T * affine[0, 0] + affine[:3, 3])
    inside = _interpolate(source.brain[..., None], points, source.affine)[:, 0] > 0.5
    points = points[inside]
    shares = _interpolate(source.classes, points, source.affine).T
    shares = shares / np.maximum(shares.sum(axis=0), np.float32(1e-6))
    deviations = np.zeros((len(points), 3), dtype=np.float32)
    for part in source.fields:
        deviations += _interpolate(part.values, points, part.affine) @ part.effect.astype(np.float32)
    return shares, deviations.T, inside.reshape(size)


def _interpolate(
    values: Float32[np.ndarray, "x y z c"], points: Float[np.ndarray, "n 3"], affine: Float[np.ndarray, "4 4"]
) -> Float32[np.ndarray, "n c"]:
    """Return channels at points in mm."""
    inverse = np.linalg.inv(affine)
    return sample(values, points @ inverse[:3, :3].T + inverse[:3, 3])
