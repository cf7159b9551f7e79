"""The content of a scan in one number, whatever its file is called and however its voxels are stored."""

import hashlib

import numpy as np

from neurotome.data.imaging.geometry import Geometry, Voxels
from neurotome.data.preparation.resample import ras_to_index


def content_sha256(array: Voxels, geometry: Geometry) -> str:
    """Return the hash of voxels in RAS+ order as float32: equal for copies in another type or axis order."""
    to_index = ras_to_index(geometry.affine, geometry.shape)[:3, :3]
    axes = np.abs(to_index).argmax(axis=0)
    ordered = array.transpose(axes)[tuple(slice(None, None, int(to_index[a, w])) for w, a in enumerate(axes))]
    with np.errstate(over="ignore", invalid="ignore"):
        # stored images run along the first axis fastest, so that the transpose of one in RAS+ order is not copied
        voxels = np.ascontiguousarray(ordered.T, dtype=np.float32)
    digest = hashlib.sha256(repr(ordered.shape).encode())
    digest.update(voxels.data)
    return digest.hexdigest()
