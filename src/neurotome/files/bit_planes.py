r"""Latents of nothing but signs on disk: 32 planes of -1 and 1 in the bits of one whole number.

    word_w = sum_i [plane_(32 w + i) > 0] 2^i          planes (d, x, y, z), words (d / 32, x, y, z), 32 bits each

The order of bits is MedGen's, which reads the words as floats, some of them NaN. Here they stay whole numbers, which
code that expects a latent refuses.
"""

from typing import Any

import numpy as np

WORD = 32
Array = np.ndarray[Any, Any]


def are_signs(latent: Array) -> bool:
    """Return whether a latent ``(..., d, x, y, z)`` holds -1 and 1 alone, in a number of channels that fills words."""
    return latent.shape[-4] % WORD == 0 and bool((np.abs(latent) == 1).all())


def pack_bits(planes: Array) -> Array:
    """Return the words ``(..., d / 32, x, y, z)`` of planes ``(..., d, x, y, z)``, read by their sign.

    Raises:
        ValueError: The number of channels is not a multiple of 32.
    """
    if planes.shape[-4] % WORD:
        raise ValueError(f"{planes.shape[-4]} planes; give a multiple of {WORD}")
    last = np.ascontiguousarray(np.moveaxis(planes > 0, -4, -1))  # (..., x, y, z, d)
    words = np.packbits(last, axis=-1, bitorder="little").view("<i4")
    return np.ascontiguousarray(np.moveaxis(words, -1, -4))


def unpack_bits(words: Array) -> Array:
    """Undo :func:`pack_bits`: planes of -1 and 1, float32.

    Raises:
        ValueError: Not 32-bit whole numbers.
    """
    if words.dtype != np.dtype("<i4"):
        raise ValueError(f"packed planes are int32, not {words.dtype}")
    last = np.ascontiguousarray(np.moveaxis(words, -4, -1)).view(np.uint8)
    bits = np.unpackbits(last, axis=-1, bitorder="little")
    return np.ascontiguousarray(np.moveaxis(bits, -1, -4)).astype(np.float32) * 2 - 1
