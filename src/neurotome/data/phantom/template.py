r"""Five fuzzy tissue classes from the MNI152 maps that nilearn's wheel carries, built once and cached.

    p_k(x) >= 0,   sum_k p_k(x) = 1 inside the brain and 0 outside,   k = 1 ... 5 as in CLASSES

The wheel ships one anatomy (the average of 152 people) as a T1 template and maps of grey and white matter. What they
lack is derived: CSF is what is left of the brain, the ventricles are its central part, the deep nuclei lie in
ellipsoids in MNI millimetres, and the distance from the white matter separates the inner from the outer half of a
cortical fold. Everything is on one 2 mm grid in RAS+ MNI millimetres.

The maps are (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill
University; nothing of them is copied into this repository.
"""

import importlib.util
import os
import uuid
import zipfile
import zlib
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy import ndimage

CLASSES = ("sulcal_csf", "ventricle", "cortex", "deep_grey", "white")
SULCAL_CSF, VENTRICLE, CORTEX, DEEP_GREY, WHITE = range(5)

TEMPLATE_VERSION = 2
TEMPLATE_SPACING_MM = 2.0
# The brain's box in the 1 mm maps (voxels 25-170, 26-209, 0-156) and a margin, in pairs of voxels.
_CROP = (slice(18, 180), slice(18, 218), slice(0, 164))
_PAD_BELOW = 8

Field = Float[np.ndarray, "x y z"]


@dataclass(frozen=True, eq=False)
class Template:
    """The average anatomy on the template grid.

    Args:
        classes: Class probabilities ``p_k``, ``(5, x, y, z)``.
        affine: Voxel index to RAS+ MNI mm, ``(4, 4)``.
        fold_depth: Signed distance to the white matter's surface in mm, faded to 0 in cerebellum and brain stem.
        depth: Distance to the outside of the brain in mm, 0 outside.
        ventricle_distance: Signed distance to the ventricles' wall in mm, negative inside.
        iron: Relative iron content in [0, 1]: pallidum, substantia nigra, red nucleus, dentate nucleus, putamen.
        regional: Fixed smooth deviations of T1, T2 and proton density over the brain, unit variance, ``(3, x, y, z)``.
    """

    classes: Float32[np.ndarray, "5 x y z"]
    affine: Float[np.ndarray, "4 4"]
    fold_depth: Float32[np.ndarray, "x y z"]
    depth: Float32[np.ndarray, "x y z"]
    ventricle_distance: Float32[np.ndarray, "x y z"]
    iron: Float32[np.ndarray, "x y z"]
    regional: Float32[np.ndarray, "3 x y z"]


def cache_folder() -> Path:
    """Return the folder of our caches: ``NEUROTOME_CACHE``, else the XDG cache home."""
    if given := os.environ.get("NEUROTOME_CACHE"):
        return Path(given)
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where a container's user has none
    cache = os.devnull if home == "~" else f"{home}/.cache"  # where nothing can be written, nothing is cached
    return Path(os.environ.get("XDG_CACHE_HOME") or cache) / "neurotome"


@lru_cache(maxsize=1)
def load_template() -> Template:
    """Return the template: from the cache, or built (about 2 s) and cached where the cache can be written."""
    path = cache_folder() / f"phantom-template-{TEMPLATE_VERSION}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return Template(**{f.name: stored[f.name] for f in fields(Template)})
    except (
        OSError,
        EOFError,
        KeyError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ):  # absent, cut short or of another layout: build it
        template = build_template()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.npz")
        np.savez_compressed(part, **{f.name: getattr(template, f.name) for f in fields(Template)})
        part.replace(path)
    except OSError:  # a read-only home only costs the 2 s again
        pass
    return template


def build_template() -> Template:
    """Return the template, built from nilearn's files.

    Raises:
        FileNotFoundError: nilearn is installed without its MNI152 files.
    """
    t1, affine = _read_map("t1")
    grey, white = _read_map("gm")[0] / 255, _read_map("wm")[0] / 255
    x, y, z = _millimetres(t1.shape, affine)
    brain = ndimage.binary_fill_holes(t1 > 36)
    grey, white = grey * brain, white * brain
    csf = np.clip(brain - grey - white, 0, 1)

    ventricles = _ventricles(csf, x, y, z)
    near = ndimage.distance_transform_edt(~ventricles) * TEMPLATE_SPACING_MM
    nuclei = np.maximum(_ellipsoid(np.abs(x) - 17, y + 2, z - 5, (14.5, 27, 16)), _stem(x, y, z))
    # The grey ring around the ventricles is no tissue: it is the mixture of CSF and white matter in the T1 average.
    ring = np.clip(1.6 - near / 4, 0, 1) * (1 - nuclei) * grey * (near < 8)
    grey, white, csf = grey - ring, white + 0.5 * ring, csf + 0.5 * ring
    pallidum = _ellipsoid(np.abs(x) - 19.5, y + 4, z - 0, (5, 9, 6))
    shifted = 0.7 * pallidum * white
    inside = (near < 5) * (1 - np.clip(near / 5, 0, 1) ** 4)

    classes = np.stack(
        [csf * (1 - inside), csf * inside, grey * (1 - nuclei), grey * nuclei + shifted, white - shifted]
    )
    fold = _signed_distance(white > 0.5) * (1 - _below_tentorium(x, y, z)) * (1 - nuclei)
    return Template(
        classes=np.clip(classes, 0, 1).astype(np.float32),
        affine=affine,
        fold_depth=np.clip(fold, -10, 10).astype(np.float32),
        depth=(ndimage.distance_transform_edt(brain) * TEMPLATE_SPACING_MM).astype(np.float32),
        ventricle_distance=_signed_distance(ventricles).astype(np.float32),
        iron=_iron(x, y, z).astype(np.float32),
        regional=_regional(brain, x, y, z),
    )


def _read_map(name: str) -> tuple[Field, Float[np.ndarray, "4 4"]]:
    """Return one map averaged over 2 x 2 x 2 voxels, padded below the brain stem, and its affine."""
    import nibabel

    found = importlib.util.find_spec("nilearn")
    roots = (found.submodule_search_locations if found else None) or [""]
    path = Path(roots[0]) / "datasets" / "data" / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the phantom is made from nilearn's maps; reinstall nilearn>=0.14")
    image: Any = nibabel.load(path)
    fine = np.asarray(image.dataobj[_CROP], dtype=np.float32)
    nx, ny, nz = (n // 2 for n in fine.shape)
    coarse = fine.reshape(nx, 2, ny, 2, nz, 2).mean(axis=(1, 3, 5))
    origin = image.affine[:3, 3] + [s.start + 0.5 for s in _CROP]
    origin[2] -= _PAD_BELOW * TEMPLATE_SPACING_MM
    affine = np.diag([TEMPLATE_SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = origin
    return np.pad(coarse, ((0, 0), (0, 0), (_PAD_BELOW, 0))), affine


def _millimetres(shape: tuple[int, ...], affine: Float[np.ndarray, "4 4"]) -> list[Field]:
    """Return open arrays of the MNI coordinates of a grid with a diagonal affine."""
    axes = [affine[i, 3] + affine[i, i] * np.arange(n) for i, n in enumerate(shape)]
    return list(np.meshgrid(*axes, indexing="ij", sparse=True))


def _ellipsoid(x: Field, y: Field, z: Field, radii: tuple[float, float, float]) -> Field:
    """Return 1 inside an ellipsoid around 0 and 0 outside, with an edge a fifth of a radius wide."""
    a, b, c = radii
    return np.clip((1.1 - np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)) / 0.2, 0, 1)


def _stem(x: Field, y: Field, z: Field) -> Field:
    """Return the region of brain stem and hypothalamus."""
    return np.maximum(_ellipsoid(x, y + 26, z + 34, (19, 17, 36)), _ellipsoid(x, y + 10, z + 6, (10, 14, 12)))


def _below_tentorium(x: Field, y: Field, z: Field) -> Field:
    """Return the region of cerebellum and brain stem, a plane that falls to the back and to the sides."""
    roof = -7 + 0.35 * (y + 45) - 0.3 * np.maximum(np.abs(x) - 15, 0)
    behind = np.clip((-34 - y) / 6, 0, 1)
    return np.maximum(np.clip((roof - z) / 5, 0, 1) * behind, _stem(x, y, z))


def _ventricles(csf: Field, x: Field, y: Field, z: Field) -> Bool[np.ndarray, "x y z"]:
    """Return the lateral, third and fourth ventricles: central CSF without the cisterns and the insula."""
    wide = np.where(y < -20, 36, 26)
    fissure = (np.abs(x) < 9) & (y < -34) | (np.abs(x) < 5) & ((y > 22) | (z > 22))
    lateral = (np.abs(x) < wide) & (y > -62) & (y < 38) & (z > -2) & (z < 34) & ~fissure
    third = (np.abs(x) < 5) & (y > -34) & (y < 6) & (z > -14) & (z < 12)
    fourth = (np.abs(x) < 9) & (y > -50) & (y < -34) & (z > -46) & (z < -20)
    temporal = (np.abs(x) > 22) & (np.abs(x) < 42) & (y > -46) & (y < -4) & (z > -22) & (z < 0)
    parts, _ = ndimage.label((csf > 0.3) & (lateral | third | fourth | temporal))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return (sizes >= 8)[parts]


def _signed_distance(inside: Bool[np.ndarray, "x y z"]) -> Field:
    """Return the distance to a surface in mm, negative inside."""
    outward = ndimage.distance_transform_edt(~inside)
    inward = ndimage.distance_transform_edt(inside)
    return (outward - inward) * TEMPLATE_SPACING_MM


def _iron(x: Field, y: Field, z: Field) -> Field:
    """Return where iron shortens T2, centres in MNI mm from common atlases, contents relative to the pallidum."""
    spots = (
        (19.5, -4, 0, (6, 10, 7), 1.0),  # pallidum
        (27, 2, 1, (6, 15, 9), 0.45),  # putamen
        (13, 12, 9, (5, 12, 9), 0.4),  # caudate
        (10, -18, -12, (6, 6, 4), 0.9),  # substantia nigra
        (5, -20, -8, (3.5, 3.5, 4), 0.9),  # red nucleus
        (14, -56, -34, (7, 7, 5), 0.7),  # dentate nucleus
    )
    parts = [w * _ellipsoid(np.abs(x) - a, y - b, z - c, radii) for a, b, c, radii, w in spots]
    return ndimage.gaussian_filter(np.max(np.broadcast_arrays(*parts), axis=0), 0.6)


def _regional(brain: Bool[np.ndarray, "x y z"], x: Field, y: Field, z: Field) -> Float32[np.ndarray, "3 x y z"]:
    """Return three fixed fields with wavelengths of 45-90 mm: the same regions differ in everybody."""
    waves = np.random.Generator(np.random.PCG64(152))
    out = []
    for _ in range(3):
        field = np.zeros(brain.shape)
        for _ in range(8):
            direction = waves.standard_normal(3)
            kx, ky, kz = direction / np.linalg.norm(direction) * 2 * np.pi / waves.uniform(45, 90)
            field = field + np.cos(kx * np.abs(x) + ky * y + kz * z + waves.uniform(0, 2 * np.pi))
        out.append((field - field[brain].mean()) / field[brain].std())
    return np.stack(out).astype(np.float32)
