r"""Label maps: whole numbers, one per voxel, that are never interpolated.

    prepared(p) = labels([A p])        [.] nearest voxel, of two the one to R, A, S; A prepared voxel to source voxel
    restored(i) = prepared([A^-1 i])

Ids are those of the file (FreeSurfer's reach 14175); a map whose ids all fit is kept in 8 bits, others in 32.
"""

from dataclasses import replace

import numpy as np

from neurotome.data.imaging.volume import Stored, Volume
from neurotome.errors import InputError

MAX_LABEL = 2**31 - 1


def whole_labels(volume: Volume) -> Volume:
    """Return a label map as whole numbers, uint8 where all are at most 255, else int32.

    Args:
        volume: Whole numbers from 0 on, of any type.

    Raises:
        InputError: Fractions, as interpolation leaves them, or numbers out of range; with their count.
    """
    array = volume.array
    file = volume.provenance.path
    if array.dtype.kind == "f":
        fractions = array != np.round(array)
        if count := int(np.count_nonzero(fractions)):
            raise InputError(
                f"{count} of {array.size} labels are not whole numbers, the first is {array[fractions][0]:g}",
                file=file,
                remedy="resample label maps with the nearest neighbour, never linearly",
            )
    low, high = array.min(), array.max()
    if low < 0 or high > MAX_LABEL:
        raise InputError(
            f"labels from {low:g} to {high:g}; whole numbers from 0 to {MAX_LABEL} are admissible",
            file=file,
            remedy="map the labels to numbers from 0 on",
        )
    labels = array.astype(np.uint8 if high <= np.iinfo(np.uint8).max else np.int32)
    origin = replace(volume.provenance, dtype=labels.dtype.name)
    # as stored voxels they are written back as whole numbers, not as float32
    return Volume(labels, volume.geometry, origin, Stored(labels, 1.0, 0.0))
