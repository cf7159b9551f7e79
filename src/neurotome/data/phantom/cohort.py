r"""A cohort of synthetic brains whose anatomy and style are known.

    subject i = f(seed, i):   factors -> shape phi_i, folding -> p_k(phi_i(x)) -> lesions -> scans at the subject's site

Factors, anatomy and every scan have streams of random numbers of their own, so that a subject depends neither on
the order nor on the process in which it is made, nor on which contrasts are asked for. The anatomy is drawn in
millimetres on fixed lattices: another spacing shows the same brain. Age, sex and site are independent unless
``confound`` says otherwise; sex shifts head size and grey matter (d = 0.8); atrophy follows age; volumes are derived.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from neurotome.data.phantom.anatomy import CONFOUNDABLE, Anatomy, Factors, draw_anatomy, draw_factors
from neurotome.data.phantom.contrast import TISSUE_NAMES, TISSUES, Scan, acquire, sensitivities, signal, site_scan
from neurotome.data.phantom.labelmaps import draw_labelmap_anatomy, find_labelmaps, labelmap_factors
from neurotome.data.phantom.lesions import Lesion
from neurotome.data.phantom.template import VENTRICLE, WHITE
from neurotome.modality import CONTRASTS, canonical

LABELS = ("background", *TISSUE_NAMES)  # values 0 ... 8 of the label map


@dataclass(frozen=True, eq=False)
class Subject:
    """One synthetic person, scanned.

    Args:
        id: ``sub-001`` for subject 0.
        index: Number in the cohort.
        factors: Causes: age, sex, site, atrophy, head scale and the rest.
        volumes_ml: Volume of each tissue, of all lesions, and of the brain with its CSF.
        lesions: Truth of the lesions.
        labels: Most frequent class per voxel, an index of ``LABELS``.
        lesion_map: 0 none, 1 necrosis, 2 oedema, 3 rim.
        mask: The brain with its CSF.
        images: Contrast to image; the brain's 99.5 percentile is 1, exactly 0 outside the mask.
        scans: Contrast to style factors.
        affine: Voxel index to RAS+ mm.
        jacobian_min: Smallest determinant of the pull-back's derivative; positive, so the map is invertible.
    """

    id: str
    index: int
    factors: Factors
    volumes_ml: dict[str, float]
    lesions: tuple[Lesion, ...]
    labels: UInt8[np.ndarray, "x y z"]
    lesion_map: UInt8[np.ndarray, "x y z"]
    mask: Bool[np.ndarray, "x y z"]
    images: dict[str, Float32[np.ndarray, "x y z"]]
    scans: dict[str, Scan]
    affine: Float[np.ndarray, "4 4"]
    jacobian_min: float


@dataclass(frozen=True)
class SyntheticCohort:
    """The cohort; the default one is version 1, frozen by a hash in the tests.

    Args:
        num_subjects: Number of subjects, at least 1.
        spacing_mm: Size of the cubic voxels; the field of view is 183 x 219 x 183 mm.
        modalities: Contrasts of every subject.
        num_sites: Number of sites, at least 1.
        lesion_fraction: Probability of having lesions, in [0, 1].
        seed: Seed of all random numbers.
        confound: Two of age, sex and site, and the correlation of the normal numbers behind them; or None.
        labelmaps: Folder of FreeSurfer-style label maps to render instead of the MNI152 anatomy. The first subjects
            are the maps themselves, in the order of their names; further ones are the same maps, deformed.

    Raises:
        ValueError: An argument is outside its range.
        UsageError: There is no folder ``labelmaps``.
        InputError: It holds no label map.
    """

    num_subjects: int = 48
    spacing_mm: float = 3.0
    modalities: tuple[str, ...] = ("T1w", "T2w")
    num_sites: int = 4
    lesion_fraction: float = 0.25
    seed: int = 0
    confound: tuple[str, str, float] | None = None
    labelmaps: str | None = None

    def __post_init__(self) -> None:
        if self.num_subjects < 1:
            raise ValueError(f"num_subjects is {self.num_subjects}; a cohort has at least one")
        if not 0.5 <= self.spacing_mm <= 12:
            raise ValueError(f"spacing_mm is {self.spacing_mm}; admissible is 0.5 to 12 mm")
        if self.num_sites < 1:
            raise ValueError(f"num_sites is {self.num_sites}; a cohort has at least one")
        if not 0 <= self.lesion_fraction <= 1:
            raise ValueError(f"lesion_fraction is {self.lesion_fraction}; it is a probability in [0, 1]")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; admissible are integers from 0")
        names = tuple(canonical(m) for m in self.modalities)
        if not names or len(set(names)) != len(names):
            raise ValueError(f"modalities are {self.modalities}; give each contrast once, at least one")
        object.__setattr__(self, "modalities", names)
        if self.confound is not None:
            first, second, r = self.confound
            if first == second or not {first, second} <= set(CONFOUNDABLE) or not -1 <= r <= 1:
                raise ValueError(
                    f"confound is {self.confound}; give two different names out of {', '.join(CONFOUNDABLE)} and a "
                    "correlation in [-1, 1]"
                )
            if self.labelmaps is not None:
                raise ValueError("confound and labelmaps exclude each other: age and sex of a label map are unknown")
        if self.labelmaps is not None:
            find_labelmaps(self.labelmaps)

    def __len__(self) -> int:
        return self.num_subjects

    def __iter__(self) -> Iterator[Subject]:
        return (self.subject(i) for i in range(self.num_subjects))

    def factors(self, index: int) -> Factors:
        """Return the causes of subject ``index`` without rendering it."""
        drawn = draw_factors(self._rng(index, 0), index, self.num_sites, self.lesion_fraction, self.confound)
        if self.labelmaps is None:
            return drawn
        maps = find_labelmaps(self.labelmaps)
        return labelmap_factors(drawn, maps[index % len(maps)], warped=index >= len(maps))

    def subject(self, index: int) -> Subject:
        """Return subject ``index`` with every contrast, scanned at its own site."""
        return self.render(index)

    def render(self, index: int, *, site: int | None = None, modalities: tuple[str, ...] | None = None) -> Subject:
        """Return the same brain at another site or in other contrasts: the exact target of a swap.

        Args:
            index: Subject, 0 or more and below ``num_subjects``.
            site: Site; by default the subject's own.
            modalities: Contrasts; by default the cohort's.

        Raises:
            ValueError: No such subject, site or contrast.
        """
        if not 0 <= index < self.num_subjects:
            raise ValueError(f"subject {index} does not exist; admissible are 0 to {self.num_subjects - 1}")
        factors = self.factors(index)
        where = factors.site if site is None else site
        if not 0 <= where < self.num_sites:
            raise ValueError(f"site {where} does not exist; admissible are 0 to {self.num_sites - 1}")
        names = self.modalities if modalities is None else tuple(canonical(m) for m in modalities)
        anatomy = self.anatomy(index)
        images, scans = {}, {}
        for name in names:
            rng = self._rng(index, 2, list(CONTRASTS).index(name), where)
            images[name], scans[name] = scan_anatomy(anatomy, name, where, rng)
        return Subject(
            id=f"sub-{index + 1:03d}",
            index=index,
            factors=factors,
            volumes_ml=anatomy.volumes_ml(),
            lesions=anatomy.lesions,
            labels=anatomy.labels(),
            lesion_map=anatomy.lesion_map(),
            mask=anatomy.stripped,
            images=images,
            scans=scans,
            affine=anatomy.affine,
            jacobian_min=anatomy.jacobian_min,
        )

    def anatomy(self, index: int) -> Anatomy:
        """Return what subject ``index`` is made of, before any scanner."""
        factors, rng = self.factors(index), self._rng(index, 1)
        if self.labelmaps is None:
            return draw_anatomy(factors, rng, self.spacing_mm)
        maps = find_labelmaps(self.labelmaps)
        return draw_labelmap_anatomy(maps[index % len(maps)], factors, rng, self.spacing_mm, warped=index >= len(maps))

    def _rng(self, index: int, *stream: int) -> np.random.Generator:
        """Return the generator of one stream of one subject."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=(index, *stream))))


def scan_anatomy(
    anatomy: Anatomy, modality: str, site: int, rng: np.random.Generator
) -> tuple[Float32[np.ndarray, "x y z"], Scan]:
    """Return one image of an anatomy and the style factors behind it.

    Args:
        anatomy: What is scanned.
        modality: Contrast.
        site: Index of the site.
        rng: For the style and noise of this scan.
    """
    scan = site_scan(modality, site, rng)
    tissue = np.array([TISSUES[name] for name in TISSUE_NAMES])
    tissue[:, :3] *= anatomy.tissue_factors
    signals = signal(scan.sequence, tissue)
    slopes = sensitivities(scan.sequence, tissue)
    slopes[: VENTRICLE + 1] = 0  # fluid has no texture
    shares = anatomy.shares  # (8, n) inside the mask
    inside = signals @ shares + np.einsum("kj,kn,jn->n", slopes, shares, anatomy.deviations, optimize=True)
    volume = np.zeros(anatomy.mask.shape)
    volume[anatomy.mask] = np.maximum(inside, 0.02 * signals[WHITE])
    white = anatomy.spread(shares[WHITE])
    image, noise_sd = acquire(volume, anatomy.mask, anatomy.stripped, white, scan, anatomy.spacing_mm, rng)
    return image, replace(scan, noise_sd=noise_sd)
