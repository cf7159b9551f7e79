"""J9: prepare two contrasts: read, orient, resample, crop, normalise, write; against nilearn and MONAI at equal output.

Both sides read ``.nii.gz`` (LPS, int16), find the brain (the largest part above 0, filled, both contrasts together),
bring the scans onto the same grid in RAS+, map the percentiles 0.5 and 99.5 of the brain to -1 and 1 and write one
uncompressed file. The peers do it with the functions their users take: nibabel and ``nilearn.image`` where a coarser
grid is wanted (smoothing first), MONAI transforms where voxels are only reordered and cut. Ours is the whole command:
it also looks for the scans, verifies checksums, hashes sources and result, and syncs what it writes.
"""

# isort: off
from benchmarks import base  # before torch: sets the threads

# isort: on
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation
from nilearn.image import resample_img, smooth_img
from scipy import ndimage

from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.build import prepare
from neurotome.data.stores.store import Store

Shape = tuple[int, int, int]
VIEWS = ("T1w", "T2w")
FWHM_PER_SPACING = 3**0.5  # of the smoothing that goes with every second voxel, in voxels: sqrt(2^2 - 1)


def write_session(folder: Path, shape: Shape) -> list[Path]:
    """Write two contrasts of an ellipsoid with folds, stored as the public glioma scans are: LPS, int16, gzip."""
    axes = np.meshgrid(*(np.linspace(-1.3, 1.3, n) for n in shape), indexing="ij")
    inside = sum(a**2 for a in axes) < 1
    folds = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 1.5)
    share = np.clip(0.5 + 0.25 * folds / folds.std(), 0.05, 0.95)
    paths = []
    for name, values in zip(VIEWS, (900 * share, 1500 * (1 - share) ** 2 + 30), strict=True):
        image = nibabel.Nifti1Image(np.where(inside, values, 0).astype(np.int16), np.diag([-1.0, -1.0, 1.0, 1.0]))
        image.header.set_xyzt_units("mm")
        paths.append(folder / "sub-01" / "anat" / f"sub-01_{name}.nii.gz")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(image, paths[-1])
    return paths


def brain_of(arrays: list[np.ndarray]) -> np.ndarray:
    """Return the union over the contrasts of the largest part above 0, filled."""
    union = np.zeros(arrays[0].shape, bool)
    for array in arrays:
        labels, _ = ndimage.label(array > 0)
        union |= ndimage.binary_fill_holes(labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]))
    return union


def scaled(values: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Map the percentiles of the brain to -1 and 1, and what lies outside to -1."""
    low, high = np.percentile(values[brain], (0.5, 99.5))
    return np.where(brain, np.clip((values - low) / (high - low), 0, 1) * 2 - 1, -1).astype(np.float32)


def with_nilearn(paths: list[Path], affine: np.ndarray, shape: Shape, out: Path) -> Path:
    """Smooth and resample with nilearn, linearly."""
    images = [nibabel.load(path) for path in paths]
    brain = nibabel.Nifti1Image(brain_of([np.asarray(i.dataobj) for i in images]).astype(np.float32), images[0].affine)

    def on_grid(image: nibabel.Nifti1Image) -> np.ndarray:
        smooth = smooth_img(image, FWHM_PER_SPACING)
        grid = resample_img(
            smooth, affine, shape, interpolation="linear", copy_header=True, force_resample=True, fill_value=0
        )
        return grid.get_fdata(dtype=np.float32)

    mask = on_grid(brain) >= 0.5
    np.save(out, np.stack([scaled(on_grid(image), mask) for image in images]))
    return out


def with_monai(paths: list[Path], shape: Shape, out: Path) -> Path:
    """Read and orient with MONAI, cut the box of the brain and pad it."""
    read = Compose([LoadImage(image_only=True), EnsureChannelFirst(), Orientation("RAS", labels=None)])
    arrays = [read(path)[0].numpy() for path in paths]
    brain = brain_of(arrays)
    box = np.argwhere(brain)
    start = [
        int(np.floor((a + b + 1) / 2 - (n - 1) / 2))
        for a, b, n in zip(box.min(axis=0), box.max(axis=0), shape, strict=True)
    ]
    place = tuple(slice(max(s, 0), s + n) for s, n in zip(start, shape, strict=True))
    before = [max(-s, 0) for s in start]

    def cut(array: np.ndarray) -> np.ndarray:
        part = array[place]
        return np.pad(part, [(b, n - b - m) for b, n, m in zip(before, shape, part.shape, strict=True)])

    mask = cut(brain)
    np.save(out, np.stack([scaled(cut(array), mask) for array in arrays]))
    return out


def read_back(made: Path, rim: np.ndarray) -> torch.Tensor:
    """Return what a side has written, but for the rim of the brain."""
    if made.is_dir():
        store = Store.open(made)
        image = store.load(store.sessions[0]).image[:, 0]
    else:
        image = np.load(made)
    return torch.from_numpy(np.where(rim, np.float32(0), image))


def case(folder: Path, source: Shape, preparation: Preparation, peer: str, goal: float | None) -> base.Case:
    """Compare one preparation."""
    raw = folder / f"raw-{peer}"
    paths = write_session(raw, source)
    numbers = count()

    def ours() -> Path:
        out = folder / f"store-{peer}-{next(numbers)}"
        prepare(raw, out, preparation=preparation)
        return out

    store = Store.open(ours())
    session = store.load(store.sessions[0])
    affine = session.records["T1w"].affine
    # where a resampled mask is one half, the last digit decides; some dozens of voxels on the surface
    rim = ndimage.binary_dilation(session.mask) & ~ndimage.binary_erosion(session.mask)

    def theirs() -> Path:
        out = folder / f"{peer}-{next(numbers)}.npy"
        if peer == "nilearn":
            return with_nilearn(paths, affine, preparation.shape, out)
        return with_monai(paths, preparation.shape, out)

    sizes = f"{'x'.join(map(str, source))} at 1 mm to {'x'.join(map(str, preparation.shape))} at "
    name = f"2 contrasts, {sizes}{preparation.spacing_mm:g} mm"
    # the peers compute in double precision, and smooth with another order of operations
    return base.Case(name, ours, theirs, peer, goal, 2e-4, compared=lambda made: read_back(made, rim))


def cases(tiny: bool, device: str) -> Iterator[base.Case]:
    """Return a pure cut and a resampling to 2 mm, at the size of the public glioma scans."""
    with tempfile.TemporaryDirectory() as folder:
        source = (40, 40, 32) if tiny else (240, 240, 155)
        cut: Shape = (36, 36, 30) if tiny else (192, 192, 144)
        half: Shape = (20, 20, 16) if tiny else (96, 112, 80)
        goal = None if tiny else 2.0
        yield case(Path(folder), source, Preparation(1.0, cut), "MONAI", goal)
        yield case(Path(folder), source, Preparation(2.0, half), "nilearn", goal)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    return base.main("prepare", cases, argv)


if __name__ == "__main__":
    raise SystemExit(main())
