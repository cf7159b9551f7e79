"""Latents made discrete; the public names are those of configs and model folders."""

from neurotome.nn.quantize.base import Coding, Quantizer
from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.nn.quantize.library import (
    BinarySphericalQuantizer,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    ResidualQuantizer,
)

__all__ = [
    "BinarySphericalQuantizer",
    "Coding",
    "EMAQuantizer",
    "FiniteScalarQuantizer",
    "LookupFreeQuantizer",
    "Quantizer",
    "ResidualQuantizer",
]
