"""Writing scans on exactly the grid they came from.

Geometry fields (dim, pixdim, qform, sform, codes, units) are written back as they were read. An unmodified volume keeps
its type, byte order, slope and raw voxels; a computed one is float32 with slope 1. No text of the source header is
carried on: ``descrip`` is empty, or says that the image is synthetic. Equal volumes give equal bytes.
"""

import math
import os
from pathlib import Path

import numpy as np

from neurotome.data.imaging.nifti import HEADERS
from neurotome.data.imaging.volume import SYNTHETIC_MARK, Geometry, HeaderFields, Volume, Voxels
from neurotome.errors import OutputError, UsageError
from neurotome.files.stream import gzip_bytes, write_atomically

WRITABLE_SUFFIXES = (".nii", ".nii.gz")


def write_volume(path: str | os.PathLike[str], volume: Volume, *, synthetic: bool = False) -> str:
    """Write a volume and return the SHA-256 of the file.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file; an existing one is replaced.
        volume: What to write.
        synthetic: Whether the voxels were made by a model; said in ``descrip``.

    Raises:
        UsageError: The suffix is not one of NIfTI, or ``path`` is the file the volume was read from.
        OutputError: The file cannot be written; nothing is left behind.
    """
    path = Path(path)
    if not path.name.lower().endswith(WRITABLE_SUFFIXES):
        raise UsageError(f"{path}: images are written as {' or '.join(WRITABLE_SUFFIXES)}")
    source = volume.provenance.path
    if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
        raise UsageError(f"{path}: this is the file the image was read from; choose another name")
    raw, slope, inter = _stored(volume)
    head = _header_bytes(volume.geometry, raw, slope, inter, synthetic)
    # the first axis lies fastest in a file; an array read from one is written without a copy
    parts: list[bytes | memoryview] = [head, np.ascontiguousarray(raw.transpose()).view(np.uint8).reshape(-1).data]
    return write_atomically(path, gzip_bytes(parts) if path.name.lower().endswith(".gz") else parts)


def _stored(volume: Volume) -> tuple[Voxels, float, float]:
    if volume.stored is not None:
        return volume.stored.raw, volume.stored.slope, volume.stored.inter
    with np.errstate(over="ignore"):
        array = volume.array.astype("<f4")
    if not np.isfinite(array).all():
        raise OutputError("the voxels to be written hold NaN, infinity or numbers beyond single precision")
    return array, 1.0, 0.0


def _header_bytes(geometry: Geometry, raw: Voxels, slope: float, inter: float, synthetic: bool) -> bytes:
    """Return the header, its extension flag included."""
    fields = geometry.header or _fields_of(geometry)
    endianness = ">" if raw.dtype.str.startswith(">") else "<"
    header = HEADERS[fields.version](endianness=endianness)
    header.set_data_dtype(raw.dtype)
    header["dim"], header["pixdim"] = fields.dim, fields.pixdim
    header["qform_code"], header["sform_code"] = fields.qform_code, fields.sform_code
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = fields.quatern
    header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = fields.qoffset
    header["srow_x"], header["srow_y"], header["srow_z"] = np.reshape(fields.srow, (3, 4))
    header["xyzt_units"] = fields.units
    header["scl_slope"], header["scl_inter"] = slope, inter
    header["vox_offset"] = header.sizeof_hdr + 4
    header["magic"] = b"n+2" if fields.version == 2 else b"n+1"
    if fields.version == 2:
        header["eol_check"] = (13, 10, 26, 10)
    header["descrip"] = SYNTHETIC_MARK.encode() if synthetic else b""
    return bytes(header.binaryblock) + bytes(4)


def _fields_of(geometry: Geometry) -> HeaderFields:
    """Return header fields for a geometry that did not come from a NIfTI file."""
    version = 1 if max(geometry.shape) <= np.iinfo(np.int16).max else 2
    header = HEADERS[version]()
    header.set_data_shape(geometry.shape)
    header.set_sform(geometry.affine, code=1)
    header.set_qform(geometry.affine, code=1 if _is_rigid(geometry) else 0, strip_shears=True)
    header.set_xyzt_units("mm")
    return HeaderFields(
        version=version,
        dim=tuple(int(n) for n in header["dim"]),
        pixdim=tuple(float(v) for v in header["pixdim"]),
        qform_code=int(header["qform_code"]),
        sform_code=1,
        quatern=tuple(float(header[f"quatern_{axis}"]) for axis in "bcd"),
        qoffset=tuple(float(header[f"qoffset_{axis}"]) for axis in "xyz"),
        srow=tuple(float(v) for axis in "xyz" for v in header[f"srow_{axis}"]),
        units=int(header["xyzt_units"]),
    )


def _is_rigid(geometry: Geometry) -> bool:
    """Return whether the voxel axes are perpendicular, as a quaternion needs them."""
    axes = geometry.affine[:3, :3] / np.asarray(geometry.spacing_mm)
    return math.isclose(abs(float(np.linalg.det(axes))), 1.0, rel_tol=1e-4)
