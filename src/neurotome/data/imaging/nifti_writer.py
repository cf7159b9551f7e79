"""Writing NIfTI files on exactly the grid the voxels came from.

Geometry fields (dim, pixdim, qform, sform, codes, units) are written back as they were read. No text of the source
header is copied: ``descrip`` is empty, or says that the image is synthetic. Equal voxels on equal grids give equal
bytes.
"""

import math
from pathlib import Path

import numpy as np

from neurotome.data.imaging.geometry import Geometry, HeaderFields, Voxels
from neurotome.data.imaging.nifti import HEADERS
from neurotome.errors import UsageError
from neurotome.files.atomic import write_atomically
from neurotome.files.verified import gzip_bytes

SYNTHETIC_MARK = "synthetic: neurotome"
_WRITABLE_SUFFIXES = (".nii", ".nii.gz")


def write_nifti(path: Path, geometry: Geometry, raw: Voxels, slope: float, inter: float, *, synthetic: bool) -> str:
    """Write voxels as they are to lie in the file and return the SHA-256 of its bytes.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file; an existing one is replaced.
        geometry: Where the voxels lie.
        raw: The voxels before scaling; their type and byte order are the file's.
        slope: Of the scaling.
        inter: Of the scaling.
        synthetic: Whether the voxels were made by a model, which ``descrip`` then says.

    Raises:
        UsageError: The suffix is not one of NIfTI.
        OutputError: The file cannot be written; nothing is left behind.
    """
    if not path.name.lower().endswith(_WRITABLE_SUFFIXES):
        raise UsageError(f"{path}: images are written as {' or '.join(_WRITABLE_SUFFIXES)}")
    head = _header_bytes(geometry, raw, slope, inter, synthetic)
    # the first axis lies fastest in a file; an array read from one is written without a copy
    parts: list[bytes | memoryview] = [head, np.ascontiguousarray(raw.transpose()).view(np.uint8).reshape(-1).data]
    return write_atomically(path, gzip_bytes(parts) if path.name.lower().endswith(".gz") else parts)


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
