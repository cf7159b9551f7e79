r"""Reading scans without trusting them: NIfTI-1, NIfTI-2 (``.nii``, ``.nii.gz``), FreeSurfer (``.mgz``, ``.mgh``).

    bytes of a file = header + extensions + voxels       no fewer, no more

Every size is checked before anything is allocated, a compressed stream is read to its verified end, and a header that
could mean two things is refused with the remedy.
"""

import math
import os
from dataclasses import replace
from pathlib import Path

from neurotome.data.imaging.geometry import Geometry, HeaderFields
from neurotome.data.imaging.mgh import MAX_FOOTER_BYTES, mgh_layout
from neurotome.data.imaging.nifti import nifti_layout
from neurotome.data.imaging.other_formats import other_format
from neurotome.data.imaging.volume import Provenance, Stored, Volume
from neurotome.data.imaging.voxel_layout import (
    MAX_VOXELS,
    REWRITE,
    NonFinite,
    check_finite,
    read_raw,
    scaled,
    which_volume,
)
from neurotome.errors import InputError
from neurotome.files.endings import READABLE_ENDINGS
from neurotome.files.verified import VerifiedStream


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
        path: A ``.nii``, ``.nii.gz``, ``.mgz`` or ``.mgh`` file.
        volume: Which volume of a 4-D series, from 0; None refuses a series. A file of one volume is read in any case.
        use_qform: Take the quaternion where quaternion and matrix disagree.
        nonfinite: What to do with NaN and infinite voxels: refuse the file, set them to zero, or keep them.
        max_voxels: Larger volumes are refused before they are decoded.

    Raises:
        InputError: The file is damaged, ambiguous or of an unsupported kind; it names file, reason and remedy.
    """
    name = Path(path)
    suffix = readable_suffix(name)
    is_nifti = suffix.startswith(".nii")
    try:
        with VerifiedStream(name, compressed=suffix in (".nii.gz", ".mgz")) as stream:
            layout = nifti_layout(stream, use_qform) if is_nifti else mgh_layout(stream)
            index, notes = which_volume(layout.sizes, volume)
            raw = read_raw(stream, layout, index, max_voxels)
            if not is_nifti:
                stream.read_rest(MAX_FOOTER_BYTES)
            stream.expect_end()
            sha256 = stream.sha256
        array, scaling_note = scaled(raw, layout.slope, layout.inter)
        array, count_note = check_finite(array, nonfinite)
        geometry = Geometry(raw.shape, layout.xform.affine, of_one_volume(layout.xform.fields))
    except InputError as error:
        raise InputError(error.reason, file=name, remedy=error.remedy or REWRITE) from error
    notes = (*layout.notes, *layout.xform.notes, *notes, *scaling_note, *count_note)
    stored = Stored(raw, layout.slope, layout.inter) if not count_note or nonfinite == "keep" else None
    return Volume(array, geometry, Provenance(str(name), sha256, layout.dtype.name, notes), stored)


def readable_suffix(path: Path) -> str:
    """Return which of the readable suffixes a name ends with.

    Raises:
        InputError: None of them; the remedy is that for the kind of file the name ends with.
    """
    lower = path.name.lower()
    for suffix in READABLE_ENDINGS:
        if lower.endswith(suffix):
            return suffix
    known = other_format(lower)
    raise InputError(
        f"files of this kind are not read; admissible are {', '.join(READABLE_ENDINGS)}",
        file=path,
        remedy=known[1] if known else "convert it, for example DICOM with dcm2niix",
    )


def of_one_volume(fields: HeaderFields | None) -> HeaderFields | None:
    """Return the header fields of the volume that was read: a series becomes 3-D, a 4-D file of one stays 4-D."""
    if fields is None or math.prod(fields.dim[4 : fields.dim[0] + 1]) == 1:
        return fields
    dim = (3, *fields.dim[1:4], 1, 1, 1, 1)
    return replace(fields, dim=dim)
