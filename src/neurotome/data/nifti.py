r"""Reading scans without trusting them: NIfTI-1, NIfTI-2 (``.nii``, ``.nii.gz``) and FreeSurfer ``.mgz``.

    value = slope * raw + inter                 slope 0 or NaN: value = raw
    bytes of a file = vox_offset + voxels       no fewer, no more

Every size is checked before anything is allocated, a compressed stream is read to its verified end, and a header that
could mean two things is refused with the remedy. Python's image library nibabel interprets header fields; it never
touches a file.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.freesurfer.mghformat import header_dtype as mgh_head
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from neurotome.data.stream import VerifiedStream
from neurotome.data.volume import Geometry, HeaderFields, Provenance, Stored, Volume, Voxels
from neurotome.data.xform import Xform, choose_xform
from neurotome.errors import InputError

READABLE_SUFFIXES = (".nii", ".nii.gz", ".mgz")
# 800^3: larger than any MRI of a head, small enough for a workstation
MAX_VOXELS = 800**3
# header extensions hold text; more than this is not a header
MAX_EXTENSION_BYTES = 16 << 20
# FreeSurfer appends acquisition parameters and a history of commands
MAX_MGH_FOOTER_BYTES = 1 << 20
_MGH_DATA_OFFSET = 284
_REWRITE = "write the file anew with the tool that made it"

_DTYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_REFUSED_DTYPES = {
    0: "of unknown type", 1: "single bits", 32: "complex64", 128: "RGB24 colours", 1536: "float128",
    1792: "complex128", 2048: "complex256", 2304: "RGBA32 colours",
}  # fmt: skip

# nibabel's headers carry no types
HEADERS: dict[int, Any] = {1: Nifti1Header, 2: Nifti2Header}
_MGH: Any = MGHHeader

NonFinite = Literal["refuse", "zero", "keep"]


@dataclass(frozen=True)
class _Layout:
    """What a header promises: how the voxels lie in the file and in the head."""

    sizes: tuple[int, ...]
    dtype: np.dtype[Any]
    skip: int
    slope: float
    inter: float
    xform: Xform
    fields: HeaderFields | None
    notes: tuple[str, ...]


def read_volume(
    path: str | os.PathLike[str],
    *,
    volume: int | None = None,
    use_qform: bool = False,
    nonfinite: NonFinite = "refuse",
    max_voxels: int = MAX_VOXELS,
) -> Volume:
    """Read one volume from a file.

    Args:
        path: A ``.nii``, ``.nii.gz`` or ``.mgz`` file.
        volume: Which volume of a 4-D series, from 0.
        use_qform: Take the quaternion where quaternion and matrix disagree.
        nonfinite: What to do with NaN and infinite voxels: refuse the file, set them to zero, or keep them.
        max_voxels: Larger images are refused before they are decoded.

    Raises:
        InputError: The file is damaged, ambiguous or of an unsupported kind; it names file, reason and remedy.
    """
    name = Path(path)
    suffix = _suffix(name)
    try:
        with VerifiedStream(name, compressed=suffix != ".nii") as stream:
            layout = _mgh_layout(stream) if suffix == ".mgz" else _nifti_layout(stream, use_qform)
            index, notes = _which_volume(layout.sizes, volume)
            raw = _read_raw(stream, layout, max_voxels)
            if suffix == ".mgz":
                stream.read_rest(MAX_MGH_FOOTER_BYTES)
            stream.expect_end()
            sha256 = stream.sha256
        raw = raw.reshape(*layout.sizes[:3], -1, order="F")[..., index]
        array, scaling_note = _scale(raw, layout.slope, layout.inter)
        array, count_note = _check_finite(array, nonfinite)
        geometry = Geometry(raw.shape, layout.xform.affine, _single(layout.fields))
    except InputError as error:
        raise InputError(error.reason, file=name, remedy=error.remedy) from error
    notes = (*layout.notes, *layout.xform.notes, *notes, *scaling_note, *count_note)
    stored = Stored(raw, layout.slope, layout.inter) if not count_note or nonfinite == "keep" else None
    return Volume(array, geometry, Provenance(str(name), sha256, layout.dtype.name, notes), stored)


def _suffix(path: Path) -> str:
    lower = path.name.lower()
    for suffix in (".nii.gz", ".mgz", ".nii"):
        if lower.endswith(suffix):
            return suffix
    raise InputError(
        f"files of this kind are not read; admissible are {', '.join(READABLE_SUFFIXES)}",
        file=path,
        remedy="convert it, for example DICOM with dcm2niix",
    )


def _nifti_layout(stream: VerifiedStream, use_qform: bool) -> _Layout:
    header, version = _nifti_header(stream)
    fields = _fields(header, version)
    sizes = _sizes(fields.dim)
    dtype = _dtype(header)
    slope, inter, notes = _scaling(header)
    offset = float(header["vox_offset"])
    header_bytes = {1: 348, 2: 540}[version]
    if not (math.isfinite(offset) and offset == int(offset) and offset >= header_bytes + 4):
        raise InputError(f"vox_offset is {offset:g}; it must be at least {header_bytes + 4}", remedy=_REWRITE)
    extension_bytes = int(offset) - header_bytes - 4
    if extension_bytes > MAX_EXTENSION_BYTES:
        raise InputError(
            f"header extensions of {extension_bytes} bytes; at most {MAX_EXTENSION_BYTES} are read",
            remedy="remove the extensions",
        )
    xform = choose_xform(fields, use_qform=use_qform)
    has_extension = stream.read(4)[0] != 0
    if has_extension:
        _check_extensions(stream.read(extension_bytes))
        notes = (*notes, f"{extension_bytes} bytes of header extensions are not carried on")
    elif extension_bytes:
        stream.read(extension_bytes)
    return _Layout(sizes, dtype, 0, slope, inter, xform, fields, notes)


def _nifti_header(stream: VerifiedStream) -> tuple[Any, int]:
    """Return the header and its version; byte order and version follow from the header's own size field."""
    start = stream.read(348)
    orders = {int.from_bytes(start[:4], "little"): "<", int.from_bytes(start[:4], "big"): ">"}
    if 348 in orders:
        header, version = HEADERS[1](start, endianness=orders[348], check=False), 1
    elif 540 in orders:
        header, version = HEADERS[2](start + stream.read(540 - 348), endianness=orders[540], check=False), 2
    else:
        raise InputError("not a NIfTI file: the header size is neither 348 nor 540", remedy=_REWRITE)
    magic = bytes(header["magic"])[:3]
    if magic in (b"ni1", b"ni2") or not any(magic):
        raise InputError("a header of an .hdr/.img pair", remedy="convert it to one .nii.gz file")
    if magic != {1: b"n+1", 2: b"n+2"}[version]:
        raise InputError(f"not a NIfTI file: its magic is {magic!r}", remedy=_REWRITE)
    return header, version


def _fields(header: Any, version: int) -> HeaderFields:
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
        raise InputError(f"dim[0] is {dim[0]}; a NIfTI image has 1 to 7 axes", remedy=_REWRITE)
    if dim[0] < 3:
        raise InputError(
            f"a {dim[0]}-D image; volumes with three axes are read",
            remedy="stack the slices to one volume; a single slice needs dim 3 x y 1",
        )
    for axis, size in enumerate(dim[1 : dim[0] + 1], start=1):
        if size < 1:
            raise InputError(f"dim[{axis}] is {size}; sizes are positive", remedy=_REWRITE)
    return dim[1 : dim[0] + 1]


def _dtype(header: Any) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code not in _DTYPES:
        kind = _REFUSED_DTYPES.get(code, f"of unknown datatype {code}")
        raise InputError(
            f"the voxels are {kind}; integers and floats up to 64 bit are read",
            remedy="export a magnitude image with one number per voxel",
        )
    dtype = np.dtype(_DTYPES[code]).newbyteorder(header.endianness)
    if int(header["bitpix"]) != dtype.itemsize * 8:
        raise InputError(
            f"bitpix is {int(header['bitpix'])} but {dtype.name} has {dtype.itemsize * 8} bits", remedy=_REWRITE
        )
    return dtype


def _scaling(header: Any) -> tuple[float, float, tuple[str, ...]]:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isinf(slope):
        raise InputError("scl_slope is infinite", remedy=_REWRITE)
    if math.isnan(slope) or slope == 0:
        return 1.0, 0.0, (f"scl_slope is {slope:g}: voxels are used unscaled",)
    if not math.isfinite(inter):
        raise InputError(f"scl_inter is {inter:g} although scl_slope is {slope:g}", remedy=_REWRITE)
    return slope, inter, ()


def _check_extensions(block: bytes) -> None:
    """Check that the chain of extensions stays inside its block; their content is never used."""
    at = 0
    while at + 8 <= len(block):
        size = min(
            (int.from_bytes(block[at : at + 4], order) for order in ("little", "big")),
            key=lambda n: n if n >= 8 else 1 << 32,
        )
        if size == 0 and not any(block[at:]):
            return
        if size < 8 or at + size > len(block):
            raise InputError(
                f"a header extension claims {size} bytes where {len(block) - at} are left",
                remedy="remove the extensions",
            )
        at += size


def _mgh_layout(stream: VerifiedStream) -> _Layout:
    block = stream.read(_MGH_DATA_OFFSET)
    # nibabel's type is the head and the footer in one; the footer's acquisition parameters are not used
    head_bytes = mgh_head.itemsize
    header = _MGH(block[:head_bytes] + bytes(_MGH.template_dtype.itemsize - head_bytes), check=False)
    if int(header["version"]) != 1:
        raise InputError(f"not an .mgz file: its version is {int(header['version'])}", remedy=_REWRITE)
    sizes = tuple(int(n) for n in header["dims"])
    if min(sizes) < 1:
        raise InputError(f"sizes {sizes}; they must be positive", remedy=_REWRITE)
    kinds = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2"}
    if int(header["type"]) not in kinds:
        raise InputError(f"voxels of type {int(header['type'])}; admissible are {sorted(kinds)}", remedy=_REWRITE)
    if int(header["goodRASFlag"]) != 1:
        raise InputError("the header says that its orientation is unknown", remedy="give it one with mri_convert")
    xform = Xform(np.asarray(header.get_affine(), dtype=np.float64), ())
    return _Layout(sizes, np.dtype(kinds[int(header["type"])]), 0, 1.0, 0.0, xform, None, ())


def _which_volume(sizes: tuple[int, ...], volume: int | None) -> tuple[int, tuple[str, ...]]:
    count = math.prod(sizes[3:])
    if volume is None:
        if count > 1:
            raise InputError(
                f"a series of {count} volumes (sizes {' x '.join(map(str, sizes))})",
                remedy=f"choose one with --volume K, K from 0 to {count - 1}",
            )
        return 0, (("a 4-D file with one volume, read as 3-D",) if len(sizes) > 3 and sizes[3:] else ())
    if not 0 <= volume < count:
        raise InputError(f"there is no volume {volume}", remedy=f"choose K from 0 to {count - 1}")
    return volume, ((f"volume {volume} of {count}",) if count > 1 else ())


def _read_raw(stream: VerifiedStream, layout: _Layout, max_voxels: int) -> Shaped[np.ndarray, " n"]:
    """Return the voxels of the whole file, one after another, read-only."""
    count = math.prod(layout.sizes)
    if count > max_voxels:
        raise InputError(
            f"an image of {' x '.join(map(str, layout.sizes))} voxels; at most {max_voxels} are read",
            remedy="crop or resample it; if the size is right, raise max_voxels",
        )
    num_bytes = count * layout.dtype.itemsize
    if not stream.can_hold(num_bytes):
        raise InputError(
            f"the header promises {num_bytes} bytes of voxels, more than a file of {stream.file_bytes} bytes can hold",
            remedy="copy the file again from its source",
        )
    buffer = np.empty(num_bytes, dtype=np.uint8)
    stream.read_into(buffer.data)
    raw = buffer.view(layout.dtype)
    raw.setflags(write=False)
    return raw


def _scale(raw: Voxels, slope: float, inter: float) -> tuple[Voxels, tuple[str, ...]]:
    """Return the values; unscaled voxels keep their type, in native byte order."""
    if (slope, inter) == (1.0, 0.0):
        array = raw.astype(raw.dtype.newbyteorder("="), copy=False)
        return array, ()
    # products of 16-bit integers and a scale are exact enough in single precision, wider types are not
    narrow = raw.dtype.kind in "iu" and raw.dtype.itemsize <= 2
    with np.errstate(over="ignore", invalid="ignore"):
        array = (raw.astype(np.float64) * slope + inter).astype(np.float32 if narrow else np.float64)
    return array, (f"scaled by {slope:g} with offset {inter:g}",)


def _check_finite(array: Voxels, policy: NonFinite) -> tuple[Voxels, tuple[str, ...]]:
    if array.dtype.kind != "f":
        return array, ()
    finite = np.isfinite(array)
    count = int(array.size - np.count_nonzero(finite))
    if not count:
        return array, ()
    if policy == "refuse":
        raise InputError(
            f"{count} of {array.size} voxels are NaN or infinite", remedy="replace them, or read with nonfinite='zero'"
        )
    if policy == "zero":
        return np.where(finite, array, array.dtype.type(0)), (f"{count} NaN or infinite voxels set to zero",)
    return array, (f"{count} NaN or infinite voxels kept",)


def _single(fields: HeaderFields | None) -> HeaderFields | None:
    """Return the header fields of the volume that was read: a series becomes 3-D, a 4-D file of one stays 4-D."""
    if fields is None or math.prod(fields.dim[4 : fields.dim[0] + 1]) == 1:
        return fields
    dim = (3, *fields.dim[1:4], 1, 1, 1, 1)
    return HeaderFields(**{**vars(fields), "dim": dim})
