r"""FreeSurfer's image format: ``.mgh``, and ``.mgz``, which is the same in gzip. Big-endian throughout.

    w = M D (i - n / 2) + c        M direction cosines, one column per axis; D spacings; n sizes; c centre, RAS+ mm

Behind a header of 284 bytes lie the voxels, and behind them acquisition parameters and a history of commands, which
are read and verified but not copied to a written image.
"""

import struct

import numpy as np

from neurotome.data.imaging.voxel_layout import REWRITE, Layout
from neurotome.data.imaging.xform import Xform
from neurotome.errors import InputError
from neurotome.files.verified import VerifiedStream

# acquisition parameters and a history of commands
MAX_FOOTER_BYTES = 1 << 20
_DATA_OFFSET = 284
# version, four sizes, type, degrees of freedom, whether the orientation is good; spacings, cosines, centre
_HEAD = struct.Struct(">7ih15f")
# intents: an image, a label map; the others hold values of a surface or vectors
_IMAGES = (0, 1)
_OTHERS = {2: "the shape of a surface", 3: "a warp", 4: "an inverse warp"}
_DTYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}


def mgh_layout(stream: VerifiedStream) -> Layout:
    """Return what the header promises.

    Raises:
        InputError: Not such a file, of an unknown voxel type, or of unknown orientation.
    """
    version, *rest = _HEAD.unpack_from(stream.read(_DATA_OFFSET))
    # FreeSurfer 8 writes what the voxels are into the second byte of the version
    intent = version >> 8
    if version & 0xFF != 1 or not 0 <= intent <= 0xFF:
        raise InputError(f"not an .mgz file: its version is {version}", remedy=REWRITE)
    if intent not in _IMAGES:
        held = _OTHERS.get(intent, f"something else (intent {intent})")
        raise InputError(
            f"an .mgz file that holds {held}, no image",
            remedy="give the image or the label map itself, as mri_convert writes it",
        )
    sizes, kind, good_orientation = tuple(rest[:4]), rest[4], rest[6]
    if min(sizes) < 1:
        raise InputError(f"sizes {sizes}; they must be positive", remedy=REWRITE)
    if kind not in _DTYPES:
        raise InputError(f"voxels of type {kind}; admissible are {sorted(_DTYPES)}", remedy="convert with mri_convert")
    if good_orientation != 1:
        raise InputError("the header says that its orientation is unknown", remedy="give it one with mri_convert")
    numbers = np.array(rest[7:], dtype=np.float64)
    spacing, centre = numbers[:3], numbers[12:]
    affine = np.eye(4)
    affine[:3, :3] = numbers[3:12].reshape(3, 3).T * spacing
    with np.errstate(invalid="ignore"):  # NaN and infinity are named by the check of the geometry
        affine[:3, 3] = centre - affine[:3, :3] @ (np.array(sizes[:3]) / 2.0)
    # the format always counts volumes
    sizes = sizes if sizes[3] > 1 else sizes[:3]
    return Layout(sizes, np.dtype(_DTYPES[kind]), 1.0, 0.0, Xform(affine, ()))
