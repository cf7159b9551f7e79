"""What the header of a scan says, without its voxels: a few hundred bytes are read and checked."""

import os
from dataclasses import dataclass
from pathlib import Path

from neurotome.data.imaging.geometry import Geometry
from neurotome.data.imaging.mgh import mgh_layout
from neurotome.data.imaging.nifti import nifti_layout
from neurotome.data.imaging.reader import of_one_volume, readable_suffix
from neurotome.data.imaging.voxel_layout import which_volume
from neurotome.errors import InputError
from neurotome.files.verified import VerifiedStream


@dataclass(frozen=True)
class Header:
    """What a header says.

    Args:
        geometry: Where the voxels lie.
        dtype: Type of the voxels.
        notes: What the reader decided, one sentence each.
    """

    geometry: Geometry
    dtype: str
    notes: tuple[str, ...]


def read_header(path: str | os.PathLike[str], *, volume: int | None = None, use_qform: bool = False) -> Header:
    """Read the header of a scan; arguments and refusals are those of :func:`read_volume`, voxels aside.

    Raises:
        InputError: The header is damaged, ambiguous or of an unsupported kind.
    """
    name = Path(path)
    suffix = readable_suffix(name)
    try:
        with VerifiedStream(name, compressed=suffix in (".nii.gz", ".mgz")) as stream:
            layout = nifti_layout(stream, use_qform) if suffix.startswith(".nii") else mgh_layout(stream)
        _, notes = which_volume(layout.sizes, volume)
        x, y, z = layout.sizes[:3]
        geometry = Geometry((x, y, z), layout.xform.affine, of_one_volume(layout.xform.fields))
    except InputError as error:
        raise InputError(error.reason, file=name, remedy=error.remedy) from error
    return Header(geometry, layout.dtype.name, (*layout.notes, *layout.xform.notes, *notes))
