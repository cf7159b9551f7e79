"""The contract of a tokenizer: voxels in, an ``Encoded`` in the middle, voxels out.

A tokenizer knows tensors only. Scans, geometry and files are met in :mod:`neurotome.scans`.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from neurotome.nn.exported import Exportable
from neurotome.nn.nd import per_axis
from neurotome.nn.quantize.reservoir import Reservoir
from neurotome.nn.rescale import Slicewise
from neurotome.tokenizers.encoded import Encoded
from neurotome.types import Image, Latent, ModalityIds, Source

__all__ = ["Encoded", "Tokenizer"]


class Tokenizer(Exportable):
    """Encoder, bottleneck and decoder behind one face.

    Attributes:
        factor: Voxels per latent cell and axis.
        latent_channels: Channels of ``Encoded.latent``.
        codebook_sizes: Number of codes behind each code map; a map that is missing has an unknown number.
        window: Range of what the decoder makes; None where it has no bounds.
        from_codes: Whether the latent is :meth:`lookup` of the codes, so that the codes alone can be stored.
        float_bits: Bits of each stored float, 16 or 32.
    """

    family = "tokenizer"
    factor: tuple[int, int, int]
    latent_channels: int
    codebook_sizes: Mapping[str, int] = MappingProxyType({})
    window: tuple[float, float] | None = (-1.0, 1.0)
    from_codes: bool = False
    float_bits: Literal[16, 32] = 16

    @abstractmethod
    def encode(self, image: Image, modality: ModalityIds) -> Encoded:
        """Return the code of ``image`` in [-1, 1]; ``modality`` holds one id per image."""

    @abstractmethod
    def decode(self, encoded: Encoded, modality: ModalityIds) -> Image:
        """Return the image of ``encoded`` in the contrast ``modality``, of the source's spatial shape."""

    @abstractmethod
    def bits(self, shape: Sequence[int]) -> float:
        """Return the bits one image of this spatial shape takes: ceil(log2 K) per code, ``float_bits`` per float."""

    def bits_used(self, encoded: Encoded) -> Tensor:
        """Return the bits each image of ``encoded`` takes, ``(b,)``: :meth:`bits`, unless cells are left out."""
        return torch.full((len(encoded.latent),), self.bits(encoded.shape), dtype=torch.float64)

    def lookup(self, codes: Mapping[str, Tensor], shape: Sequence[int]) -> Latent:
        """Return the latent of code maps; a map that is missing contributes zeros.

        Args:
            codes: By name, ``(b, x, y, z)`` each.
            shape: Spatial shape of the images.

        Raises:
            ValueError: The latent of this network is not that of its codes.
        """
        raise ValueError(f"a latent of {type(self).__name__} is not that of its codes; store it")

    def code_shapes(self, shape: Sequence[int]) -> dict[str, tuple[int, int, int]]:
        """Return the shape of each code map of an image of spatial ``shape``."""
        return dict.fromkeys(self.codebook_sizes, self.latent_shape(shape))

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return the latent's spatial shape.

        Raises:
            ValueError: An axis longer than 1 is not a multiple of the factor; the next admissible shape is named.
        """
        bad = [s for s, f in zip(shape, self.factor, strict=True) if s != 1 and s % f]
        if bad:
            admissible = tuple(s if s == 1 else math.ceil(s / f) * f for s, f in zip(shape, self.factor, strict=True))
            raise ValueError(
                f"shape {tuple(shape)} is not a multiple of {self.factor}: pad to {admissible} "
                "(`neurotome prepare --shape` does it and records it)"
            )
        x, y, z = (1 if s == 1 else s // f for s, f in zip(shape, self.factor, strict=True))
        return x, y, z

    def bits_per_voxel(self, shape: Sequence[int]) -> float:
        """Return :meth:`bits` divided by the number of voxels."""
        return self.bits(shape) / math.prod(shape)

    def check_window(self, window: tuple[float, float] | None) -> None:
        """Refuse images that the decoder cannot make.

        Args:
            window: The range no voxel of the images leaves; None where they have no bounds.

        Raises:
            ValueError: It reaches beyond the decoder's own.
        """
        if self.window is None or (window is not None and self.window[0] <= window[0] <= window[1] <= self.window[1]):
            return
        given = "images without bounds (z-scores without a clip)" if window is None else f"images in {list(window)}"
        raise ValueError(
            f"{type(self).__name__} decodes to values in {list(self.window)}, it cannot learn {given}: prepare with "
            "--intensity percentile, or with --intensity zscore --clip 5"
        )

    def check(self, source: Source) -> None:
        """See :class:`Exportable`: a grid, a crop, a range or channels that the tokenizer cannot take."""
        self.latent_shape(source.grid)
        self.check_window(source.window)
        if source.crop is not None:
            self._check_crop(source.crop)
        for slices in (part for part in self.children() if isinstance(part, Slicewise)):
            for shape in (source.grid, source.crop or source.grid):
                slices.check(shape)
        if (channels := self.in_channels) != source.channels:
            raise ValueError(
                f"the tokenizer's in_channels is {channels}, but the images of a store have {source.channels} channel"
                f"{'s' * (source.channels != 1)}; leave in_channels out, or train on label maps, one channel each: "
                f"`data: {{class_path: Masks, init_args: {{channels: {channels}}}}}`"
            )

    def _check_crop(self, crop: tuple[int, int, int]) -> None:
        try:
            self.latent_shape(crop)
        except ValueError as error:
            nearest = [c if c == 1 else math.ceil(c / f) * f for c, f in zip(crop, self.factor, strict=True)]
            raise ValueError(
                f"the crop {list(crop)} is not a multiple of {list(self.factor)}, the voxels of a latent cell; the "
                f'next admissible is --data.crop "{nearest}"'
            ) from error

    def check_input(self, image: Tensor, modality: Tensor) -> None:
        """Refuse what the network was not built for.

        Raises:
            ValueError: Wrong rank, channel count, shape or modality id.
        """
        if image.ndim != 5:
            raise ValueError(f"image has shape {tuple(image.shape)}; give (b, c, x, y, z), a slice has z = 1")
        if "in_channels" in self.arguments and image.shape[1] != self.in_channels:
            raise ValueError(
                f"image has {image.shape[1]} channels, this {type(self).__name__} takes {self.in_channels}; give "
                "images like those it was trained on"
            )
        self.latent_shape(image.shape[2:])
        self._check_modality(modality, len(image))

    def check_code(self, encoded: Encoded, modality: Tensor) -> None:
        """Refuse a code that does not fit its own image shape, or a contrast that the network does not know.

        Raises:
            ValueError: The latent's shape is not that of an image of ``encoded.shape``; the ids are not one integer per
                image, or one lies outside ``modalities``.
        """
        shape = self.latent_shape(encoded.shape)
        if tuple(encoded.latent.shape[2:]) != shape:
            raise ValueError(
                f"the latent has shape {tuple(encoded.latent.shape[2:])}, that of an image of {tuple(encoded.shape)} "
                f"has {shape}; give the shape of the image that was encoded"
            )
        self._check_modality(modality, len(encoded.latent))

    def _check_modality(self, modality: Tensor, images: int) -> None:
        if modality.shape != (images,) or modality.is_floating_point():
            raise ValueError(
                f"modality has shape {tuple(modality.shape)} and type {modality.dtype}; give one integer id per image, "
                f"({images},)"
            )
        # reading ids back would stall an accelerator; there the embedding's own check must do, where there is one
        if modality.device.type == "cpu" and bool(((modality < 0) | (modality >= len(self.modalities))).any()):
            raise ValueError(f"modality ids lie in [0, {len(self.modalities) - 1}] for {self.modalities}")

    def shared(self, encoded: Encoded) -> Encoded:
        """Return the code without what is private to the source's contrast; here there is nothing private."""
        return encoded

    def anatomy(self, encoded: Encoded) -> Latent:
        """Return the part of the latent that all contrasts share, ``(b, d, x, y, z)``; here all of it."""
        return encoded.latent

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return int(self.arguments.get("in_channels", 1))

    def example(self) -> dict[str, Tensor]:
        """See :class:`Exportable`: one image per contrast, two latent cells or at least eight voxels a side."""
        seen = per_axis(2, self.arguments.get("spatial_dims", 3))  # 1 for an axis that the network does not see
        side = [f * max(2, -(-8 // f)) if two > 1 else 1 for f, two in zip(self.factor, seen, strict=True)]
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(len(self.modalities), self.in_channels, *side, generator=generator) * 2 - 1
        return {"image": image, "modality": torch.arange(len(self.modalities))}

    def respond(self, example: Mapping[str, Tensor]) -> Tensor:
        """See :class:`Exportable`: the reconstruction."""
        image, modality = example["image"], example["modality"]
        return self.decode(self.encode(image, modality), modality)

    def capabilities(self, grid: Sequence[int]) -> dict[str, object]:
        """See :class:`Exportable`."""
        latent = [self.latent_channels, *self.latent_shape(grid)]
        bits = self.bits_per_voxel(grid)
        return {**super().capabilities(grid), "grid": list(grid), "latent": latent, "bits_per_voxel": bits}

    def usage(self) -> list[str]:
        """See :class:`Exportable`."""
        return [
            "```python",
            "from neurotome import Tokenizer, read_volume",
            'tokenizer = Tokenizer.from_pretrained("path/to/this/folder")',
            f'code = tokenizer.encode(read_volume("scan.nii.gz"), modality="{self.modalities[0]}")',
            "```",
        ]

    def describe(self, grid: Sequence[int]) -> list[str]:
        """See :class:`Exportable`."""
        return [f"Bits per voxel of the grid: at most {self.bits_per_voxel(grid):.3f}."]

    def limits(self) -> str:
        """See :class:`Exportable`."""
        return "Reconstructed and translated scans are synthetic: a structure may be missing, moved or invented."

    def unready(self) -> str:
        """See :class:`Exportable`: why the codes mean nothing yet."""
        waiting = [m for m in self.modules() if isinstance(m, Reservoir) and not m.started]
        if not waiting:
            return ""
        passes, tokens = max(m.start_after for m in waiting), max(m.size for m in waiting)
        return (
            "the codebook has not started, so that its codes are noise; train for more steps: a codebook starts after "
            f"{passes} of them (start_after) and once it has collected {tokens} latent cells (reservoir)"
        )
