r"""From the bytes behind a header to voxel values: one volume read, scaled and checked.

    value = slope * raw + inter                 slope 0 or NaN: value = raw
    place of volume k:  k * x * y * z voxels    behind the first

Every size is checked before anything is allocated. Scaled values are single precision where that tells neighbouring raw
numbers apart, else double; a scaling that leaves the range of numbers is an error, not infinity.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from neurotome.data.imaging.geometry import Voxels
from neurotome.data.imaging.xform import Xform
from neurotome.errors import InputError
from neurotome.files.verified import VerifiedStream

# 800^3: larger than any MRI of a head, small enough for a workstation
MAX_VOXELS = 800**3
REWRITE = "write the file anew with the tool that made it"

NonFinite = Literal["refuse", "zero", "keep"]


@dataclass(frozen=True)
class Layout:
    """What a header promises: how the voxels lie in the file and in the head.

    Args:
        sizes: Three or more; those from the fourth on count volumes.
        dtype: Type and byte order of a voxel in the file.
        slope: Of the scaling.
        inter: Of the scaling.
        xform: Where the voxels lie.
        notes: What was decided on the way.
    """

    sizes: tuple[int, ...]
    dtype: np.dtype[Any]
    slope: float
    inter: float
    xform: Xform
    notes: tuple[str, ...] = ()


def which_volume(sizes: tuple[int, ...], volume: int | None) -> tuple[int, tuple[str, ...]]:
    """Return the index of the volume to read, and a note where that was a choice.

    The choice is one among the volumes of a series: a file of one volume is read whatever it says.

    Raises:
        InputError: A series and no choice, or a volume that is not there.
    """
    count = math.prod(sizes[3:])
    if count == 1:
        return 0, (("a 4-D file with one volume, read as 3-D",) if len(sizes) > 3 else ())
    series = f"a series of {count} volumes (sizes {' x '.join(map(str, sizes))})"
    if volume is None:
        remedy = f"choose one with --volume K (0 to {count - 1}), or save one as a file of its own"
        raise InputError(series, remedy=remedy)
    if not 0 <= volume < count:
        raise InputError(f"{series}; there is no volume {volume}", remedy=f"choose --volume K from 0 to {count - 1}")
    return volume, (f"volume {volume} of {count}",)


def read_raw(stream: VerifiedStream, layout: Layout, index: int, max_voxels: int) -> Voxels:
    """Return the raw voxels of one volume, read-only; the others are passed over.

    Raises:
        InputError: More voxels than admitted, than the file can hold, or than memory holds; or the stream is damaged.
    """
    shape = layout.sizes[:3]
    count = math.prod(shape)
    if count > max_voxels:
        raise InputError(
            f"an image of {' x '.join(map(str, shape))} voxels; at most {max_voxels} are read",
            remedy="crop or resample it; if the size is right, raise max_voxels",
        )
    num_bytes = count * layout.dtype.itemsize
    num_volumes = math.prod(layout.sizes[3:])
    stream.check_promise(num_bytes * num_volumes)
    try:
        buffer = np.empty(num_bytes, dtype=np.uint8)
    except MemoryError as error:
        raise InputError(f"its {num_bytes} bytes of voxels do not fit into memory", remedy="free memory") from error
    stream.skip(index * num_bytes)
    stream.read_into(buffer.data)
    stream.skip((num_volumes - 1 - index) * num_bytes)
    raw = buffer.view(layout.dtype).reshape(shape, order="F")
    raw.setflags(write=False)
    return raw


def scaled(raw: Voxels, slope: float, inter: float) -> tuple[Voxels, tuple[str, ...]]:
    """Return the values; unscaled voxels keep their type, in native byte order.

    Raises:
        InputError: A finite voxel becomes infinite.
    """
    if (slope, inter) == (1.0, 0.0):
        return raw.astype(raw.dtype.newbyteorder("="), copy=False), ()
    with np.errstate(over="ignore", invalid="ignore"):
        if _single_is_enough(raw.dtype, slope, inter):
            array = raw.astype(np.float32) * np.float32(slope) + np.float32(inter)
        else:
            array = raw.astype(np.float64) * slope + inter
    if not np.isfinite(array).all() and (raw.dtype.kind != "f" or not np.isfinite(array[np.isfinite(raw)]).all()):
        raise InputError(f"scl_slope {slope:g} and scl_inter {inter:g} scale voxels to infinity", remedy=REWRITE)
    return array, (f"scaled by {slope:g} with offset {inter:g}",)


def _single_is_enough(dtype: np.dtype[Any], slope: float, inter: float) -> bool:
    """Return whether single precision tells the values of neighbouring raw numbers well apart."""
    if dtype.kind not in "iu" or dtype.itemsize > 2:
        return False
    limits = np.iinfo(dtype)
    largest = max(abs(slope * float(limit) + inter) for limit in (limits.min, limits.max))
    single = np.finfo(np.float32)
    # a denormal slope would lose its digits in single precision
    precise = abs(slope) > float(single.tiny) / float(single.eps)
    return precise and largest < float(single.max) and largest * float(single.eps) < abs(slope) / 16


def check_finite(array: Voxels, policy: NonFinite) -> tuple[Voxels, tuple[str, ...]]:
    """Return the values by the policy for NaN and infinity, and a note where there were any.

    Raises:
        InputError: There are some, and they are refused.
    """
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
