"""The one way in which images pass through a tokenizer's network: for every verb, evaluation and export.

The network sees images of one shape in batches of one size, filled up where images are missing, so that the result of
an image does not depend on what it was computed with: one by one, in pairs or in a folder of thousands.

A code is what a file of it holds, no more: its floats have the bits that the network counts for them, and a latent that
its codes stand for is looked up from them, here as after the file was read. Both decode to the same bytes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from neurotome.errors import InputError
from neurotome.nn.exported import is_finite
from neurotome.nn.nd import channels_last
from neurotome.nn.slabs.computing import SlabChoice, computing
from neurotome.tokenizers.base import Encoded, Tokenizer
from neurotome.training.device import Precision, check_precision

# On a CPU two small images take hardly longer than one, four take twice as long as two; large images fill it alone.
SMALL_VOXELS = 2**20
T = TypeVar("T")


class Codec:
    """A tokenizer's network, and how it computes.

    Args:
        network: Put into evaluation mode.
        shape: Usual spatial shape of the images; others are computed on their own.
        precision: "bf16" runs the network in mixed precision.
        slabs: Planes of a volume that the network computes at a time (:func:`neurotome.nn.slabs.computing.computing`).

    Raises:
        UsageError: There is no such precision.
    """

    def __init__(
        self, network: Tokenizer, shape: Sequence[int], precision: Precision = "fp32", slabs: SlabChoice = "auto"
    ) -> None:
        check_precision(precision)
        self.network = network.eval()
        channels_last(network)  # convolutions on a CPU take a quarter less time
        self.precision = precision
        self.slabs = slabs
        self.batch = batch_size(shape)

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    def encode(self, images: Sequence[np.ndarray[Any, Any]], modalities: Sequence[str]) -> list[Encoded]:
        """Return one code of batch size 1 per image ``(c, x, y, z)`` as the network takes it, on the CPU."""
        codes: dict[int, Encoded] = {}
        groups: dict[Any, list[int]] = {}
        for place, (one, _) in enumerate(zip(images, modalities, strict=True)):
            groups.setdefault(one.shape, []).append(place)
        for (_, *shape), group in groups.items():
            compute = self.compute(shape)
            for part in _full(group, batch_size(shape)):
                image = torch.from_numpy(np.stack([images[place] for place in part]))  # (b, c, x, y, z)
                ids = self._ids([modalities[place] for place in part])
                with torch.inference_mode(), self._autocast():
                    encoded = compute(self.network.encode, image.to(self.device), ids)
                    if self.from_codes:
                        encoded = self._looked_up(encoded)
                codes |= {place: self._counted(encoded.single(index)) for index, place in enumerate(part)}
        return [codes[place] for place in range(len(images))]

    def decode(self, codes: Sequence[Encoded], modalities: Sequence[str]) -> list[Tensor]:
        """Return the images ``(c, x, y, z)`` of codes of batch size 1, single precision, on the CPU."""
        images: dict[int, Tensor] = {}
        groups: dict[Any, list[int]] = {}
        for place, code in enumerate(codes):
            groups.setdefault(code.kind, []).append(place)
        for group in groups.values():
            shape = codes[group[0]].shape
            compute = self.compute(shape)
            for part in _full(group, batch_size(shape)):
                encoded = Encoded.joined([codes[place] for place in part]).mapped(_plain).to(self.device)
                ids = self._ids([modalities[place] for place in part])
                with torch.inference_mode(), self._autocast():
                    if not encoded.latent.shape[1]:
                        encoded = self._looked_up(encoded)
                    decoded = compute(self.network.decode, encoded, ids)
                images |= dict(zip(part, decoded.float().cpu(), strict=True))
        return [images[place] for place in range(len(codes))]

    def check(self, encoded: Encoded) -> None:
        """Refuse a code of batch size 1 that is none of this network: sizes, names, or numbers beyond a codebook.

        Raises:
            InputError: It is none.
        """
        if encoded.latent.shape[1]:
            expected = (1, self.network.latent_channels, *self.network.latent_shape(encoded.shape))
            if tuple(encoded.latent.shape) != expected:
                raise InputError(f"the latent has shape {tuple(encoded.latent.shape)}, admissible is {expected}")
            return
        if not self.from_codes:
            raise InputError("it holds codes alone, but a latent of this model is not that of its codes")
        shapes, sizes = self.network.code_shapes(encoded.shape), self.network.codebook_sizes
        if encoded.codes.keys() != shapes.keys():
            raise InputError(f"it holds the codes {', '.join(encoded.codes)}, admissible are {', '.join(shapes)}")
        for name, codes in encoded.codes.items():
            shape, largest = tuple(codes.shape), int(codes.max())
            if shape != (1, *shapes[name]) or largest >= sizes[name]:
                raise InputError(
                    f"its codes {name} have shape {shape[1:]} and reach {largest}, admissible are {shapes[name]} and "
                    f"less than {sizes[name]}"
                )

    @property
    def from_codes(self) -> bool:
        """Whether the codes alone stand for an image; before a codebook has started they do not."""
        return self.network.from_codes and not self.network.unready()

    def _looked_up(self, encoded: Encoded) -> Encoded:
        """Return a code with the latent that its code maps stand for."""
        latent = self.network.lookup(encoded.codes, encoded.shape).float()
        return replace(encoded, latent=_plain("latent", latent))

    def _counted(self, code: Encoded) -> Encoded:
        """Return a code whose floats have the bits that the network counts for them."""
        if self.network.float_bits == 32:
            return code

        def half(name: str, tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point() or (name == "latent" and self.from_codes):
                return tensor
            rounded = tensor.half().to(tensor.dtype)
            return rounded if is_finite(rounded) else tensor  # beyond half precision: stored in single precision

        return code.mapped(half)

    def compute(self, shape: Sequence[int]) -> Callable[..., Any]:
        """Return what computes a function of the network on volumes of a shape."""
        return computing(self.slabs, shape)

    def _ids(self, names: Sequence[str]) -> Tensor:
        return torch.tensor([self.network.modality_id(name) for name in names], device=self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def _plain(_: str, tensor: Tensor) -> Tensor:
    """Return a tensor whose axes lie in their order: kernels round otherwise where they do not."""
    return tensor.clone(memory_format=torch.contiguous_format)


def batch_size(shape: Sequence[int]) -> int:
    """Return how many images of a spatial shape the network sees at once."""
    return 2 if math.prod(shape) <= SMALL_VOXELS else 1


def _full(items: Sequence[T], size: int) -> list[list[T]]:
    """Return batches of exactly ``size``; the last item fills up the last one."""
    padded = [*items, *[items[-1]] * (-len(items) % size)] if items else []
    return [padded[at : at + size] for at in range(0, len(padded), size)]
