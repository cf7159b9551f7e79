r"""The phantom's renderer on label maps of real brains, in the numbers of FreeSurfer and SynthSeg.

    labels -> tissues (table below) -> shares by averaging blocks -> holes filled -> p_k smooth at the borders

Any orientation, spacing and type of storage is brought to RAS+ and centred in the phantom's field of view. What lies
outside the brain (skull, skin, 5xx of SynthSeg) is dropped. Where the plexus was left unlabelled inside a ventricle
there is CSF. Maps without any sulcal CSF get it from closing the brain's surface.
"""

import itertools
import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from scipy import ndimage

from neurotome.data.imaging.reader import read_volume
from neurotome.data.phantom.anatomy import (
    FIELD_CENTRE_MM,
    FIELD_MM,
    REGIONAL,
    Anatomy,
    Factors,
    Field,
    UndeformedBrain,
    assemble,
    iron_effect,
    texture,
)
from neurotome.data.phantom.shape import draw_shape, identity
from neurotome.data.phantom.template import CORTEX, DEEP_GREY, SULCAL_CSF, VENTRICLE, WHITE, load_template
from neurotome.errors import InputError, UsageError
from neurotome.files.endings import stem

SUFFIXES = (".nii", ".nii.gz", ".mgz")
OEDEMA = 6  # place in TISSUE_NAMES
MAX_UNKNOWN = 0.005  # share of labelled voxels
MIDDLE_AGE = 0.5  # the age of a label map's person is unknown
CLOSING_MM = 8.0
BELOW_CEREBELLUM_MM = 8.0

# FreeSurferColorLUT numbers; 136, 137, 163, 164 are SynthSeg's plexus inside the ventricles.
_IDS: dict[int, tuple[int, ...]] = {
    SULCAL_CSF: (24, 30, 62, 122, 221),
    VENTRICLE: (4, 5, 14, 15, 31, 43, 44, 63, 72, 75, 76, 136, 137, 163, 164, 213),
    CORTEX: (3, 8, 17, 18, 19, 20, 42, 47, 53, 54, 55, 56, 80, 81, 82, 96, 97, 193, 220),
    DEEP_GREY: (9, 10, 11, 12, 13, 26, 27, 28, 48, 49, 50, 51, 52, 58, 59, 60),
    WHITE: (
        *(2, 7, 16, 41, 46, 69, 71, 77, 78, 79, 85, 155, 156, 157, 158, 192, 219),
        *(*range(170, 179), *range(250, 256), 5001, 5002),
    ),
    OEDEMA: (25, 57),  # lesions of white matter
}
_RANGES: tuple[tuple[int, int, int], ...] = (
    (1000, 1035, CORTEX),
    (2000, 2035, CORTEX),
    (3000, 3035, WHITE),
    (4000, 4035, WHITE),
    (11100, 11175, CORTEX),
    (12100, 12175, CORTEX),
    (13100, 13175, WHITE),
    (14100, 14175, WHITE),
)
_OUTSIDE = (0, 1, 6, 29, 40, 45, 61, 165, 257, 258, 259, *range(500, 600))
_IRON: dict[int, float] = {13: 1.0, 52: 1.0, 12: 0.45, 51: 0.45, 11: 0.4, 50: 0.4, 26: 0.3, 58: 0.3, 28: 0.4, 60: 0.4}
_CEREBELLUM = (7, 8, 46, 47)
_NONE, _UNKNOWN = 255, 254

Map = Float32[np.ndarray, "x y z"]
Shares = Float32[np.ndarray, "7 x y z"]


def find_labelmaps(folder: str) -> tuple[Path, ...]:
    """Return the label maps of a folder by name: files that end in ``dseg`` or, without those, every image.

    Raises:
        UsageError: There is no such folder.
        InputError: There is no image in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"{root}: there is no such folder; give one with label maps")
    files = sorted(p for p in root.rglob("*") if p.name.lower().endswith(SUFFIXES) and p.is_file())
    found = tuple(p for p in files if stem(p).endswith("dseg")) or tuple(files)
    if not found:
        raise InputError(
            "no label map in this folder", file=root, remedy=f"give a folder with {', '.join(SUFFIXES)} files"
        )
    return found


def labelmap_factors(drawn: Factors, path: Path, *, warped: bool) -> Factors:
    """Return the causes of a subject whose brain is a label map: only site and lesions are simulated."""
    return replace(
        drawn,
        age=math.nan,
        sex="n/a",
        atrophy=math.nan,
        head_scale=drawn.head_scale if warped else 1.0,
        ventricle_mm=0.0,
        grey_mm=0.0,
        source=path.name,
    )


def draw_labelmap_anatomy(
    path: Path, factors: Factors, rng: np.random.Generator, spacing_mm: float, *, warped: bool
) -> Anatomy:
    """Return the anatomy of a label map on the phantom's grid.

    Args:
        path: Label map.
        factors: Causes, of which head size and lesions are used.
        rng: For texture, lesions and deformation.
        spacing_mm: Spacing of the grid.
        warped: Whether to deform the brain a little.

    Raises:
        InputError: The file cannot be read or is no label map of a brain.
    """
    shape_rng, texture_rng, lesion_rng, tissue_rng = rng.spawn(4)
    state = path.stat()
    brain, classes, iron, affine = _shares(path, state.st_mtime_ns, state.st_size, spacing_mm)
    template = load_template()
    shape = draw_shape(shape_rng, factors.head_scale, 0.0, np.ones(3), 0.6) if warped else identity()
    regions = Field(np.moveaxis(template.regional, 0, -1).copy(), template.affine, np.diag(REGIONAL))
    irons = Field(iron[..., None], affine, iron_effect(MIDDLE_AGE))
    source = UndeformedBrain(brain, classes, affine, (regions, irons, *texture(texture_rng)))
    return assemble(source, shape, factors.has_lesions, lesion_rng, tissue_rng, spacing_mm)


def tissues_of(labels: Int[np.ndarray, "x y z"], path: Path) -> UInt8[np.ndarray, "x y z"]:
    """Return the place in ``TISSUE_NAMES`` of every voxel, 255 outside the brain.

    Raises:
        InputError: More than 0.5 % of the labelled voxels have a number that is not in the table, or none has one.
    """
    table = np.full(max(int(labels.max()), 20000) + 1, _UNKNOWN, dtype=np.uint8)
    table[list(_OUTSIDE)] = _NONE
    for first, last, tissue in _RANGES:
        table[first : last + 1] = tissue
    for tissue, numbers in _IDS.items():
        table[list(numbers)] = tissue
    tissues = table[labels]
    unknown = tissues == _UNKNOWN
    if unknown.sum() > MAX_UNKNOWN * max((labels > 0).sum(), 1):
        strange = ", ".join(str(n) for n in np.unique(labels[unknown])[:12])
        raise InputError(
            f"labels {strange} are not in FreeSurfer's table",
            file=path,
            remedy="give FreeSurfer or SynthSeg label maps",
        )
    tissues[unknown] = _NONE
    if (tissues == WHITE).sum() < 100 or (tissues == CORTEX).sum() < 100:
        raise InputError("this is no label map of a brain: no cortex or no white matter", file=path)
    return tissues


@lru_cache(maxsize=2)
def _shares(
    path: Path, _modified: int, _size: int, spacing_mm: float
) -> tuple[Map, Float32[np.ndarray, "x y z 7"], Map, Float[np.ndarray, "4 4"]]:
    """Return brain, tissue shares, iron and affine of a label map, coarse enough for the spacing."""
    labels, affine = _canonical(path)
    tissues = tissues_of(labels, path)
    _cut_cord(labels, tissues, abs(affine[2, 2]))
    where = np.nonzero(tissues != _NONE)
    voxel = float(np.mean(np.linalg.norm(affine[:3, :3], axis=0)))
    factor = max(1, round(0.67 * spacing_mm / voxel))
    margin = int(np.ceil(2 * CLOSING_MM / (voxel * factor)))
    low = [int(w.min()) for w in where]
    box = tuple(slice(a, int(w.max()) + 1) for a, w in zip(low, where, strict=True))
    extent = np.array([s.stop - s.start for s in box]) * np.linalg.norm(affine[:3, :3], axis=0)
    if (extent > np.array(FIELD_MM)).any():
        raise InputError(f"the brain measures {extent.round()} mm, more than the field of view {FIELD_MM}", file=path)
    labels, tissues = labels[box], tissues[box]
    shares = np.stack([_blocks(tissues == k, factor, margin) for k in range(OEDEMA + 1)])
    iron = np.zeros(shares.shape[1:], dtype=np.float32)
    for number, content in _IRON.items():
        iron += content * _blocks(labels == number, factor, margin)
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3] @ (np.array(low) + (factor - 1) / 2 - factor * margin)
    affine[:3, :3] *= factor
    middle = affine[:3, :3] @ ((np.array(shares.shape[1:]) - 1) / 2) + affine[:3, 3]
    affine[:3, 3] += np.array(FIELD_CENTRE_MM) - middle
    brain, classes = _completed(shares, voxel * factor)
    return brain, np.ascontiguousarray(np.moveaxis(classes, 0, -1)), iron, affine


def _canonical(path: Path) -> tuple[Int[np.ndarray, "x y z"], Float[np.ndarray, "4 4"]]:
    """Return integer labels and affine with axes nearest to RAS+."""
    volume = read_volume(path)
    if not np.array_equal(volume.array, np.rint(volume.array)) or volume.array.min() < 0 or volume.array.max() > 2**20:
        raise InputError("a label map holds whole numbers from 0; this file holds others", file=path)
    affine = np.asarray(volume.geometry.affine)
    order = _nearest_axes(affine)
    labels = volume.array.astype(np.int32).transpose(order)
    turned = affine.copy()
    turned[:, :3] = affine[:, order]
    for axis in range(3):
        if turned[axis, axis] < 0:
            labels = np.flip(labels, axis)
            turned[:3, 3] += turned[:3, axis] * (labels.shape[axis] - 1)
            turned[:3, axis] *= -1
    return labels, turned


def _nearest_axes(affine: Float[np.ndarray, "4 4"]) -> list[int]:
    """Return the stored axes that run most along x, y and z."""
    share = np.abs(affine[:3, :3]) / np.linalg.norm(affine[:3, :3], axis=0)
    choices = list(itertools.permutations(range(3)))
    return list(max(choices, key=lambda order: sum(share[i, axis] for i, axis in enumerate(order))))


def _cut_cord(labels: Int[np.ndarray, "x y z"], tissues: UInt8[np.ndarray, "x y z"], slice_mm: float) -> None:
    """Drop, in place, what reaches further down than the cerebellum: the cord and its canal."""
    levels = np.flatnonzero(np.isin(labels, _CEREBELLUM).any(axis=(0, 1)))
    if len(levels):
        tissues[:, :, : max(0, int(levels[0] - BELOW_CEREBELLUM_MM / slice_mm))] = _NONE


def _blocks(inside: np.ndarray, factor: int, margin: int) -> Float32[np.ndarray, "x y z"]:
    """Return the mean over cubes of ``factor`` voxels, with a margin of empty cubes."""
    padded = np.pad(inside, [(0, -n % factor) for n in inside.shape])
    nx, ny, nz = (n // factor for n in padded.shape)
    means = padded.reshape(nx, factor, ny, factor, nz, factor).mean(axis=(1, 3, 5), dtype=np.float32)
    return np.pad(means, margin)


def _completed(shares: Shares, voxel_mm: float) -> tuple[Map, Shares]:
    """Return the brain and its shares without holes and with soft borders."""
    labelled = shares.sum(axis=0)
    if shares[SULCAL_CSF].sum() < 0.03 * labelled.sum():
        steps = max(1, round(CLOSING_MM / voxel_mm))
        hull = ndimage.binary_fill_holes(ndimage.binary_closing(labelled > 0.5, iterations=steps))
        shares[SULCAL_CSF] += np.where(hull, np.clip(1 - labelled, 0, 1), 0)
        labelled = shares.sum(axis=0)
    hull = _largest(ndimage.binary_fill_holes(ndimage.binary_closing(labelled > 0.5)))
    holes = hull & (labelled < 0.9)
    near = np.stack([ndimage.gaussian_filter(s, 2.5 / voxel_mm) for s in shares])[:, holes]
    # A hole that a ventricle surrounds is its plexus; others are what surrounds them.
    plexus = near[VENTRICLE] > 0.25 * near.sum(axis=0)
    near = near / np.maximum(near.sum(axis=0), 1e-6)
    near[:, plexus] = np.eye(len(shares), dtype=np.float32)[VENTRICLE][:, None]
    shares[:, holes] += np.clip(1 - labelled[holes], 0, 1) * near
    shares *= hull
    soft = np.stack([ndimage.gaussian_filter(s, 0.5) for s in shares])
    return ndimage.gaussian_filter(hull.astype(np.float32), 0.5), soft


def _largest(inside: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Return the largest connected part."""
    parts, _ = ndimage.label(inside)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()
