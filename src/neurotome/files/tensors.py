"""Bounded reading of safetensors files: the header alone, tensors mapped into memory, or whole files as torch tensors.

Every size, name and place that a file claims is checked before it is used.
"""

import math
import os
import re
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurotome.errors import InputError, printable
from neurotome.files.json_text import parse_json
from neurotome.files.verified import VerifiedStream

if TYPE_CHECKING:
    from torch import Tensor

MAX_TENSORS = 100_000
_MAX_HEADER_BYTES = 64 << 20
_NAME = re.compile(r"[A-Za-z0-9_.%/|-]{1,256}")
_DTYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_FLOATS = ("torch.float64", "torch.float32", "torch.float16", "torch.bfloat16")
_AGAIN = "copy the file again from its source, or make it again"


def read_bounded(file: Path, limit: int) -> bytes:
    """Read a regular file of at most ``limit`` bytes; never blocks on a pipe or a device.

    Raises:
        InputError: Not a regular file, unreadable, or larger.
    """
    try:
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", file=file, remedy="check the path and its permissions"
        ) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise InputError("not a regular file", file=file, remedy="give a file")
    with os.fdopen(handle, "rb") as stream:
        if status.st_size > limit:
            reason = f"{status.st_size} bytes, admissible are {limit}"
            raise InputError(reason, file=file, remedy="give a file of the right kind")
        return stream.read(status.st_size)  # a limit of gigabytes would be allocated at once


def read_tensors(data: bytes, file: Path, remedy: str = _AGAIN) -> "dict[str, Tensor]":
    """Return the tensors of safetensors bytes.

    Args:
        data: The bytes.
        file: What an error names.
        remedy: What an error advises.

    Raises:
        InputError: Not safetensors, too many tensors, an odd name, a float type other than :data:`_FLOATS`, NaN or
            infinity.
    """
    import safetensors.torch
    import torch

    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"not a safetensors file ({printable(str(error))})", file=file, remedy=remedy) from error
    _parsed(data[8 : 8 + int.from_bytes(data[:8], "little")], file)  # of two tensors of one name the library takes one
    odd = [name for name in tensors if not _NAME.fullmatch(name)]
    if odd or len(tensors) > MAX_TENSORS:
        what = f"tensor name '{printable(odd[0][:80])}' is" if odd else f"{len(tensors)} tensors are"
        raise InputError(f"{what} not admissible", file=file, remedy=remedy)
    for name, value in tensors.items():
        if value.dtype.is_complex or (value.is_floating_point() and str(value.dtype) not in _FLOATS):
            raise InputError(
                f"tensor {name} is {value.dtype}, admissible are {', '.join(_FLOATS)}", file=file, remedy=remedy
            )
        # one pass, nothing allocated
        if value.is_floating_point() and value.numel() and not all(map(math.isfinite, torch.aminmax(value))):
            raise InputError(f"tensor {name} holds NaN or infinity", file=file, remedy=remedy)
    return tensors


def map_tensors(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Map the tensors of a safetensors file into memory, after a check of every place and size.

    Raises:
        InputError: Not such a file, or a tensor outside it or of a type that is not in :data:`_DTYPES`.
    """
    header, _, start = read_header(file)
    mapped = np.memmap(file, dtype=np.uint8, mode="c")
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, value in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = _DTYPES[value["dtype"]], tuple(int(n) for n in value["shape"])
            begin, end = (int(n) for n in value["data_offsets"])
            if min(shape, default=0) < 0 or end - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{end - begin} bytes for shape {shape}")
            if not 0 <= begin <= end <= len(mapped) - start:
                raise ValueError("lies outside the file")
            arrays[name] = np.asarray(mapped[start + begin : start + end]).view(dtype).reshape(shape)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"tensor {printable(name)[:80]}: {error}", file=file, remedy=_AGAIN) from error
    return arrays


def read_header(file: Path) -> tuple[dict[str, Any], bytes, int]:
    """Return the header of a safetensors file, its bytes, and where the data begin.

    Raises:
        InputError: Not such a file.
    """
    with VerifiedStream(file, compressed=False) as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > min(_MAX_HEADER_BYTES, stream.file_bytes):
            raise InputError(f"its header claims {size} bytes", file=file, remedy=_AGAIN)
        data = stream.read(size)
    return _parsed(data, file), data, 8 + size


def metadata_of(file: Path, data: bytes | None = None) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty where it has none.

    Args:
        file: The file.
        data: Its bytes, where they have been read before.

    Raises:
        InputError: Not such a file.
    """
    header = read_header(file)[0] if data is None else _parsed(data[8 : 8 + int.from_bytes(data[:8], "little")], file)
    found = header.get("__metadata__", {})
    return found if isinstance(found, dict) else {}


def _parsed(header: bytes, file: Path) -> dict[str, Any]:
    try:
        found = parse_json(header, finite=True, unique=True)
    except ValueError as error:
        raise InputError(f"its header is not JSON ({printable(str(error))})", file=file, remedy=_AGAIN) from error
    if not isinstance(found, dict):
        raise InputError("its header is not a JSON object", file=file, remedy=_AGAIN)
    return found


def inflated(data: bytes, limit: int) -> bytes:
    """Return zlib-decompressed bytes.

    Raises:
        ValueError: They are more than ``limit``, or the stream is cut short.
        zlib.error: Not a zlib stream.
    """
    decoder = zlib.decompressobj()
    found = decoder.decompress(data, limit + 1)
    if len(found) > limit or not decoder.eof:
        raise ValueError(f"it holds more than {limit} bytes, or is cut short")
    return found
