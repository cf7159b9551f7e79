r"""Code maps on disk in the bits they need.

    b        = bits of the largest code                              at most ceil(log2 K)
    packed   = bit 0, 1, ..., b - 1 of each cell's code, cell after cell with z fastest; in bytes, bit 0 first

A map that is 0 wherever the cells under it are 0 in a ``tissue`` map holds the other cells alone.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

TISSUE = "tissue"  # names of maps that say which cells are coded begin so
MAX_BITS = 31
Array = np.ndarray[Any, Any]


def pack_codes(maps: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the packed maps, ``(bytes,)`` of 8 bits each, and the layout that :func:`unpack_codes` needs.

    Args:
        maps: Whole numbers from 0, by name.

    Raises:
        ValueError: A code is negative or needs more than 31 bits.
    """
    packed, layout = {}, {}
    tissues = {name: cells for name, cells in maps.items() if name.startswith(TISSUE)}
    for name, codes in maps.items():
        bits = int(codes.max()).bit_length() if codes.size else 0
        if (codes < 0).any() or bits > MAX_BITS:
            raise ValueError(f"codes of {name} lie between {codes.min()} and {codes.max()}; give 0 to 2^{MAX_BITS} - 1")
        entry: dict[str, Any] = {"shape": list(codes.shape), "bits": bits}
        cells = codes.reshape(-1)
        for tissue, inside in tissues.items():
            coded = _coded(inside, codes.shape)
            if name not in tissues and coded is not None and not cells[~coded].any():
                entry["where"], cells = tissue, cells[coded]
                break
        planes = (cells[:, None] >> np.arange(bits, dtype=cells.dtype)) & 1
        packed[name] = np.packbits(planes.astype(np.uint8).reshape(-1), bitorder="little")
        layout[name] = entry
    return packed, layout


def unpack_codes(packed: Mapping[str, Array], layout: Mapping[str, Any]) -> dict[str, Array]:
    """Undo :func:`pack_codes`: int32 maps by name.

    Raises:
        ValueError: The layout does not describe the packed maps.
    """
    found: dict[str, Array] = {}
    if packed.keys() != layout.keys():
        raise ValueError(f"the codes are {', '.join(packed)}, described are {', '.join(layout)}")
    for name in sorted(layout, key=lambda name: "where" in layout[name]):  # what the others refer to comes first
        entry, data = layout[name], packed[name]
        shape, bits, where = tuple(int(n) for n in entry["shape"]), int(entry["bits"]), entry.get("where")
        if min(shape, default=0) < 1 or not 0 <= bits <= MAX_BITS or data.dtype != np.uint8 or data.ndim != 1:
            raise ValueError(f"the codes {name} are {data.dtype} {data.shape}, described as {bits} bits {shape}")
        coded = None if where is None or where not in found else _coded(found[where], shape)
        if where is not None and coded is None:
            raise ValueError(f"the codes {name} lie in {where}, which is no map that covers theirs")
        count = math.prod(shape) if coded is None else int(coded.sum())
        if data.size != math.ceil(count * bits / 8):
            raise ValueError(f"the codes {name} are {data.size} bytes, not {count} times {bits} bits")
        planes = np.unpackbits(data, count=count * bits, bitorder="little").reshape(count, bits).astype(np.int32)
        codes = (planes << np.arange(bits, dtype=np.int32)).sum(axis=1, dtype=np.int32)
        if coded is not None:
            whole = np.zeros(len(coded), np.int32)
            whole[coded] = codes
            codes = whole
        found[name] = codes.reshape(shape)
    return {name: found[name] for name in layout}


def _coded(tissue: Array, shape: tuple[int, ...]) -> Array | None:
    """Return which cells of a map have a code, flat; None where the map of tissue is coarser or of other axes."""
    if len(shape) != tissue.ndim or any(n > m for n, m in zip(shape, tissue.shape, strict=True)):
        return None
    if shape == tissue.shape:
        return tissue.reshape(-1) > 0
    cells = torch.from_numpy(tissue.astype(np.float32)).reshape(-1, *tissue.shape[-3:])
    return F.adaptive_max_pool3d(cells, shape[-3:]).reshape(-1).numpy() > 0
