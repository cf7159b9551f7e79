"""Tensors of a safetensors file, mapped into memory after a check of every name, place and size."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from neurotome.errors import InputError, printable
from neurotome.files.stream import VerifiedStream

_MAX_HEADER_BYTES = 64 << 20
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I32": np.dtype("<i4"), "U8": np.dtype("u1")}
_AGAIN = "copy the file again from its source, or make it again"


def map_tensors(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Map the tensors of a safetensors file into memory, after a check of every place and size.

    Raises:
        InputError: Not such a file, or a tensor outside it or of another type than float32, int32 and bytes.
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
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"tensor {printable(name)[:80]}: {error}", file=file, remedy=_AGAIN) from error
        arrays[name] = np.asarray(mapped[start + begin : start + end]).view(dtype).reshape(shape)
    return arrays


def read_header(file: Path) -> tuple[dict[str, Any], bytes, int]:
    """Return the header of a safetensors file, its bytes, and where the data begin.

    Raises:
        InputError: Not such a file.
    """
    with VerifiedStream(file, compressed=False) as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > min(_MAX_HEADER_BYTES, stream.file_bytes):
            raise InputError(f"its header claims {size} bytes", file=file, remedy="give a latent file")
        data = stream.read(size)
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError("its header is not JSON", file=file, remedy="give a latent file") from error
    if not isinstance(header, dict):
        raise InputError("its header is not a JSON object", file=file, remedy="give a latent file")
    return header, data, 8 + size


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
