"""The headers of NIfTI-1 and NIfTI-2, read without trusting them.

Every size is checked before it is used, and a header that could mean two things is refused with the remedy. nibabel
takes header fields apart; it never opens a file. NIfTI has no 16-bit floats; its 128-bit ones differ from machine to
machine and are refused.
"""

import math
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from neurotome.data.imaging.geometry import HeaderFields
from neurotome.data.imaging.voxel_layout import REWRITE, Layout
from neurotome.data.imaging.xform import choose_xform
from neurotome.errors import InputError
from neurotome.files.verified import VerifiedStream

# header extensions hold text; more than this is not a header
MAX_EXTENSION_BYTES = 16 << 20

_DTYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_ONE_NUMBER = "export an image with one number per voxel"
_MAGNITUDE = "export the magnitude image"
_REFUSED_DTYPES = {
    0: ("of unknown type", REWRITE),
    1: ("single bits", "save the mask as 8-bit integers"),
    32: ("complex64", _MAGNITUDE),
    128: ("RGB24 colours", _ONE_NUMBER),
    1536: ("float128", "save it in single or double precision"),
    1792: ("complex128", _MAGNITUDE),
    2048: ("complex256", _MAGNITUDE),
    2304: ("RGBA32 colours", _ONE_NUMBER),
}
# what the content begins with, what it then is, and what to do about it
_OTHER_CONTENT = (
    (0, b"\x1f\x8b", "a gzip stream", "end its name with .nii.gz"),
    (128, b"DICM", "a DICOM file", "convert the series with dcm2niix"),
    (0, b"NRRD", "an NRRD file", "convert it to .nii.gz, for example with SimpleITK"),
    (0, b"\x89HDF", "an HDF5 or MINC file", "convert it to .nii.gz, for example with mnc2nii"),
)
# nibabel's headers carry no types
HEADERS: dict[int, Any] = {1: Nifti1Header, 2: Nifti2Header}


def nifti_layout(stream: VerifiedStream, use_qform: bool) -> Layout:
    """Return what the header promises; the stream then stands at the first voxel.

    Raises:
        InputError: Not such a file, or a header that is damaged, ambiguous or of an unsupported kind.
    """
    header, version = _nifti_header(stream)
    fields = header_fields(header, version)
    sizes = _sizes(fields.dim)
    dtype = _dtype(header)
    slope, inter, notes = _scaling(header)
    offset = float(header["vox_offset"])
    header_bytes = {1: 348, 2: 540}[version]
    if not (math.isfinite(offset) and offset == int(offset) and offset >= header_bytes + 4):
        raise InputError(f"vox_offset is {offset:g}; it must be at least {header_bytes + 4}", remedy=REWRITE)
    extension_bytes = int(offset) - header_bytes - 4
    if extension_bytes > MAX_EXTENSION_BYTES:
        raise InputError(
            f"header extensions of {extension_bytes} bytes; at most {MAX_EXTENSION_BYTES} are read",
            remedy="remove the extensions",
        )
    xform = choose_xform(fields, use_qform=use_qform)
    has_extension = stream.read(4)[0] != 0
    if has_extension:
        _check_extensions(stream.read(extension_bytes), header.endianness)
        notes = (*notes, f"{extension_bytes} bytes of header extensions are not carried on")
    elif extension_bytes:
        stream.read(extension_bytes)
    return Layout(sizes, dtype, slope, inter, xform, notes)


def _nifti_header(stream: VerifiedStream) -> tuple[Any, int]:
    """Return the header and its version; byte order and version follow from the header's own size field."""
    start = stream.read(348 if stream.compressed else min(348, stream.file_bytes))
    orders = {int.from_bytes(start[:4], "little"): "<", int.from_bytes(start[:4], "big"): ">"}
    if len(start) < 348 or not {348, 540} & orders.keys():
        raise _not_nifti(start)
    if 348 in orders:
        header, version = HEADERS[1](start, endianness=orders[348], check=False), 1
    else:
        header, version = HEADERS[2](start + stream.read(540 - 348), endianness=orders[540], check=False), 2
    magic = bytes(header["magic"])[:3]
    if magic in (b"ni1", b"ni2") or not any(magic):
        raise InputError("a header of an .hdr/.img pair", remedy="convert it to one .nii.gz file")
    if magic != {1: b"n+1", 2: b"n+2"}[version]:
        raise InputError(f"not a NIfTI file: its magic is {magic!r}", remedy=REWRITE)
    return header, version


def _not_nifti(start: bytes) -> InputError:
    for place, mark, kind, remedy in _OTHER_CONTENT:
        if start[place:].startswith(mark):
            return InputError(f"not a NIfTI file, but {kind}", remedy=remedy)
    if len(start) < 348:
        return InputError(f"not a NIfTI file: {len(start)} bytes are fewer than a header has", remedy=REWRITE)
    return InputError("not a NIfTI file: the header size is neither 348 nor 540", remedy=REWRITE)


def header_fields(header: Any, version: int) -> HeaderFields:
    """Return what a header of nibabel says of where the voxels lie, unchecked."""

    def floats(*names: str) -> tuple[float, ...]:
        return tuple(float(v) for name in names for v in np.atleast_1d(header[name]))

    return HeaderFields(
        version=version,
        dim=tuple(int(n) for n in header["dim"]),
        pixdim=floats("pixdim"),
        qform_code=int(header["qform_code"]),
        sform_code=int(header["sform_code"]),
        quatern=floats("quatern_b", "quatern_c", "quatern_d"),
        qoffset=floats("qoffset_x", "qoffset_y", "qoffset_z"),
        srow=floats("srow_x", "srow_y", "srow_z"),
        units=int(header["xyzt_units"]),
    )


def _sizes(dim: tuple[int, ...]) -> tuple[int, ...]:
    if not 1 <= dim[0] <= 7:
        raise InputError(f"dim[0] is {dim[0]}; a NIfTI image has 1 to 7 axes", remedy=REWRITE)
    if dim[0] < 3:
        raise InputError(
            f"a {dim[0]}-D image; volumes with three axes are read",
            remedy="stack the slices to one volume; a single slice needs dim 3 x y 1",
        )
    for axis, size in enumerate(dim[1 : dim[0] + 1], start=1):
        if size < 1:
            raise InputError(f"dim[{axis}] is {size}; sizes are positive", remedy=REWRITE)
    return dim[1 : dim[0] + 1]


def _dtype(header: Any) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code not in _DTYPES:
        kind, remedy = _REFUSED_DTYPES.get(code, (f"of unknown datatype {code}", REWRITE))
        raise InputError(f"the voxels are {kind}; integers and floats up to 64 bit are read", remedy=remedy)
    dtype = np.dtype(_DTYPES[code]).newbyteorder(header.endianness)
    if int(header["bitpix"]) != dtype.itemsize * 8:
        raise InputError(
            f"bitpix is {int(header['bitpix'])} but {dtype.name} has {dtype.itemsize * 8} bits", remedy=REWRITE
        )
    return dtype


def _scaling(header: Any) -> tuple[float, float, tuple[str, ...]]:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isinf(slope):
        raise InputError("scl_slope is infinite", remedy=REWRITE)
    if math.isnan(slope) or slope == 0:
        return 1.0, 0.0, (f"scl_slope is {slope:g}: voxels are used unscaled",)
    if not math.isfinite(inter):
        raise InputError(f"scl_inter is {inter:g} although scl_slope is {slope:g}", remedy=REWRITE)
    return slope, inter, ()


def _check_extensions(block: bytes, endianness: str) -> None:
    """Check that the chain of extensions, in the header's byte order, stays inside its block; nothing else is used."""
    at = 0
    while at + 8 <= len(block):
        size = int.from_bytes(block[at : at + 4], "big" if endianness == ">" else "little", signed=True)
        if not any(block[at : at + 8]) and not any(block[at:]):  # padding
            return
        if size < 16 or at + size > len(block):
            raise InputError(
                f"a header extension claims {size} bytes where {len(block) - at} are left",
                remedy="remove the extensions",
            )
        at += size
