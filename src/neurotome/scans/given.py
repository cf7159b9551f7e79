"""What a caller may give as a scan: a path, a volume in memory, or an image of nibabel."""

import os
import sys
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from neurotome.data.imaging.geometry import Geometry
from neurotome.data.imaging.reader import read_volume
from neurotome.data.imaging.volume import Provenance, Volume
from neurotome.data.imaging.voxel_layout import check_finite
from neurotome.errors import InputError

# a path, a volume, or an image of nibabel, which is not imported for its type alone
GivenScan: TypeAlias = str | os.PathLike[str] | Volume | Any


def as_volume(given: Any, what: str = "volume") -> Volume:
    """Return a scan as a volume.

    Args:
        given: A path, read by :func:`neurotome.read_volume`; a :class:`Volume`; or an image of nibabel, whose voxels
            and affine are taken as they are in memory.
        what: What an error calls it.

    Raises:
        TypeError: It is none of these.
        InputError: A file is refused; an image holds several volumes, no numbers, or NaN.
    """
    if isinstance(given, Volume):
        return given
    if isinstance(given, str | os.PathLike):
        return read_volume(Path(given))
    nibabel = sys.modules.get("nibabel")  # who has an image of it has imported it
    if nibabel is not None and isinstance(given, nibabel.spatialimages.SpatialImage):
        return _of_nibabel(given)
    raise TypeError(f"{what} is a {type(given).__name__}; give a path, a neurotome.Volume or an image of nibabel")


def _of_nibabel(image: Any) -> Volume:
    file = image.get_filename()
    try:
        array = np.asanyarray(image.dataobj)
        if array.dtype.kind not in "fiub":
            raise InputError(f"its voxels are {array.dtype}", remedy="give an image of one number per voxel")
        if array.ndim < 3 or any(n != 1 for n in array.shape[3:]):
            shape = " x ".join(map(str, array.shape))
            raise InputError(f"it has {shape} voxels", remedy="give one volume, such as image.slicer[..., 0]")
        array = array.reshape(array.shape[:3])
        array, _ = check_finite(array.astype(np.uint8) if array.dtype.kind == "b" else array, "refuse")
        x, y, z = array.shape
        return Volume(array, Geometry((x, y, z), image.affine), Provenance(file, None, array.dtype.name))
    except InputError as error:
        raise InputError(error.reason, file=None if file is None else Path(file), remedy=error.remedy) from error
