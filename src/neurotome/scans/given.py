"""What a caller may give as a scan: a path, a volume in memory, or an image of nibabel."""

import os
import sys
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from neurotome.data.imaging.geometry import Geometry
from neurotome.data.imaging.headers import read_header
from neurotome.data.imaging.nifti import header_fields
from neurotome.data.imaging.reader import of_one_volume, read_volume
from neurotome.data.imaging.volume import Provenance, Volume
from neurotome.data.imaging.voxel_layout import check_finite
from neurotome.data.imaging.xform import choose_xform
from neurotome.errors import InputError

# a path, a volume, or an image of nibabel, which is not imported for its type alone
GivenScan: TypeAlias = str | os.PathLike[str] | Volume | Any
NEW_AFFINE = "make an image with the affine of the scan it belongs to, in mm: nib.Nifti1Image(array, affine)"


def as_volume(given: Any, what: str = "volume") -> Volume:
    """Return a scan as a volume.

    Args:
        given: A path, read by :func:`neurotome.read_volume`; a :class:`Volume`; or an image of nibabel, whose voxels
            are taken as they are in memory, and whose header is held to the rules for files: nibabel makes up an
            affine where a header has none.
        what: What an error calls it.

    Raises:
        TypeError: It is none of these.
        InputError: A file is refused; an image holds several volumes, no numbers, or NaN, or does not say where its
            voxels lie.
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
        geometry, notes = _geometry(image, array.shape)
        return Volume(array, geometry, Provenance(file, None, array.dtype.name, notes))
    except InputError as error:
        name = None if file is None else Path(file)
        raise InputError(error.reason, file=name, remedy=error.remedy or NEW_AFFINE) from error


def _geometry(image: Any, shape: tuple[int, int, int]) -> tuple[Geometry, tuple[str, ...]]:
    """Return where the voxels of an image lie, and what was decided about it."""
    from nibabel.analyze import AnalyzeImage
    from nibabel.freesurfer.mghformat import MGHImage
    from nibabel.nifti1 import Nifti1Pair
    from nibabel.nifti2 import Nifti2Header

    if image.affine is None:
        raise InputError("it has no affine, so that nobody knows where its voxels lie", remedy=NEW_AFFINE)
    header: Any
    if isinstance(image, Nifti1Pair):
        # a new image has the header that would be written, of this shape and with the affine as it is now
        header = type(image)(image.dataobj, image.affine, image.header).header
        xform = choose_xform(header_fields(header, 2 if isinstance(header, Nifti2Header) else 1))
        return Geometry(shape, xform.affine, of_one_volume(xform.fields)), xform.notes
    header = image.header
    if isinstance(image, AnalyzeImage) and np.array_equal(image.affine, header.get_best_affine()):
        raise InputError("the orientation is unknown: an Analyze header has none", remedy=NEW_AFFINE)
    if isinstance(image, MGHImage) and (file := image.get_filename()) is not None and Path(file).exists():
        read_header(file)  # nibabel forgets that a header says its orientation is unknown
    return Geometry(shape, image.affine), ()
