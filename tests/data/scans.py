"""Small scans for the tests of the data path."""

import gzip
from pathlib import Path

import nibabel
import numpy as np

SPACING = 3.0


def affine_of(spacing=(SPACING,) * 3, rotation=None, origin=(0.0, 0.0, 0.0)):
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) * np.asarray(spacing, dtype=float)
    affine[:3, 3] = origin
    return affine


def rotation_of(degrees):
    """Rotation by three angles about x, y and z."""
    out = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        c, s = np.cos(angle), np.sin(angle)
        one = np.eye(3)
        i, j = [a for a in range(3) if a != axis]
        one[i, i], one[i, j], one[j, i], one[j, j] = c, -s, s, c
        out = one @ out
    return out


def brain_array(shape=(20, 24, 18), seed=0, scale=100.0):
    """An ellipsoid with random texture on a background of zero."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    inside = (grid**2).sum(axis=0) < 0.7**2
    return np.where(inside, scale * (0.2 + rng.random(shape)), 0.0).astype(np.float32)


def write_nifti(path, array, affine=None, *, code=1, **fields):
    """Write with nibabel: an implementation that is not ours."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine_of() if affine is None else affine)
    image.header.set_sform(image.affine, code=code)
    image.header.set_qform(image.affine, code=code)
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def write_bids(root, subjects, modalities=("T1w", "T2w"), sites=("a", "b"), shape=(20, 24, 18)):
    """A small BIDS dataset with sites in participants.tsv."""
    root = Path(root)
    lines = ["participant_id\tsite"]
    for number, subject in enumerate(subjects):
        for view, modality in enumerate(modalities):
            name = f"sub-{subject}/anat/sub-{subject}_{modality}.nii.gz"
            write_nifti(root / name, brain_array(shape, seed=number * 10 + view, scale=100.0 * (view + 1)))
        lines.append(f"sub-{subject}\t{sites[number % len(sites)]}")
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")
    (root / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.10.0"}')
    return root


def header_bytes(array, affine=None, **fields):
    """The bytes of an uncompressed NIfTI-1 file, fields set after all checks of nibabel."""
    image = nibabel.Nifti1Image(array, affine_of() if affine is None else affine, dtype=array.dtype)
    image.header.set_qform(image.affine, code=1)
    image.header.set_sform(image.affine, code=1)
    block = bytearray(image.to_bytes())
    dtype = image.header.template_dtype.newbyteorder(image.header.endianness)
    view = np.frombuffer(block, dtype=dtype, count=1)
    for name, value in fields.items():
        view[name] = value
    return bytes(block)


def write_gzip(path, data):
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        file.write(data)
    return path
