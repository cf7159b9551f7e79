r"""VQVAE: a latent of codes (van den Oord et al., 2017, arXiv:1711.00937; Esser et al., 2021, arXiv:2012.09841).

    h = E(x),    q(v) = e_k,  k = argmin_k |h(v) - e_k|^2,    x_hat = D(q)
    plain     [conv 4, stride 2, ReLU, residual units] per level, a transposed convolution back     (MONAI, MedGen)
    residual  the autoencoder of KLVAE: normalised residual blocks, attention where asked           (VQGAN)

The quantizer is an argument (:mod:`neurotome.nn.quantize`). With the defaults the plain network has the parameters of
MONAI's ``VQVAE``, 5 512 069 with its codebook (here a buffer of 2048 numbers), and gives the same image from the same
weights, which a test checks. What makes it a VQGAN is the objective: a discriminator, handed to the trainer.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from neurotome.nn.nd import Conv, flat_axes, per_axis
from neurotome.nn.quantize.base import Quantizer
from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.nn.rescale import Slicewise, TransposedConv
from neurotome.ranges import MAY_BE_EMPTY, Dims, Finite, Size, SizeOrNone
from neurotome.tokenizers.base import Encoded, Tokenizer
from neurotome.tokenizers.intensity_range import IntensityRange
from neurotome.tokenizers.kl_vae import ResidualDecoder, ResidualEncoder
from neurotome.tokenizers.tissue import (
    TISSUE,
    bits_with_tissue,
    cell_bits,
    on_background,
    only_tissue,
    tissue_cells,
    tissue_of,
)
from neurotome.types import Image, Latent, ModalityIds


class ResidualUnit(nn.Module):
    """``relu(x + conv(relu(conv(x))))``.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels in and out.
        hidden: Channels between the convolutions.
    """

    def __init__(self, spatial_dims: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = Conv(spatial_dims, channels, hidden)
        self.conv2 = Conv(spatial_dims, hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, x, y, z)`` to the same shape."""
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class PlainEncoder(nn.Module):
    """Image to latent: a strided convolution and residual units per level.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Image channels.
        out_channels: Latent channels.
        channels: Width of each level; every level halves the resolution.
        res_channels: Width inside the residual units of each level.
        num_res_blocks: Residual units per level.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        res_channels: Sequence[int],
        num_res_blocks: int,
    ) -> None:
        super().__init__()
        levels: list[nn.Module] = []
        for (a, b), hidden in zip(pairwise((in_channels, *channels)), res_channels, strict=True):
            levels += [Conv(spatial_dims, a, b, kernel_size=4, stride=2), nn.ReLU()]
            levels += [ResidualUnit(spatial_dims, b, hidden) for _ in range(num_res_blocks)]
        self.levels = nn.Sequential(*levels)
        self.conv_out = Conv(spatial_dims, channels[-1], out_channels)

    def forward(self, image: Image) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, d, x/f, y/f, z/f)``."""
        return self.conv_out(self.levels(image))


class PlainDecoder(nn.Module):
    """Latent to image, the mirror of :class:`PlainEncoder`; arguments as there, coarse to fine."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        res_channels: Sequence[int],
        num_res_blocks: int,
    ) -> None:
        super().__init__()
        self.conv_in = Conv(spatial_dims, in_channels, channels[0])
        self.units, self.up = nn.ModuleList(), nn.ModuleList()
        for (a, b), hidden in zip(pairwise((*channels, out_channels)), res_channels, strict=True):
            self.units.append(nn.Sequential(*(ResidualUnit(spatial_dims, a, hidden) for _ in range(num_res_blocks))))
            self.up.append(TransposedConv(spatial_dims, a, b))

    def forward(self, latent: Tensor, shape: Sequence[int]) -> Tensor:
        """Map ``(b, d, x/f, y/f, z/f)`` to an image of spatial ``shape``."""
        h, flat = self.conv_in(latent), flat_axes(shape)
        for i, (units, up) in enumerate(zip(self.units, self.up, strict=True)):
            h = up(units(F.relu(h) if i else h), flat)
        return h


class VQVAE(Tokenizer):
    """Autoencoder with a quantised latent; the contrast is ignored.

    Args:
        spatial_dims: 2 or 3; a two-dimensional network takes a volume slice by slice along z.
        in_channels: Image channels.
        modalities: Contrasts; their order gives the ids.
        blocks: "plain" (VQ-VAE) or "residual" (VQGAN), see the module's head.
        channels: Width of each level, fine to coarse; every plain level halves the resolution, of residual ones all but
            the coarsest.
        num_res_blocks: Residual units or blocks per level.
        res_channels: Width inside the residual units; None for ``channels`` (plain blocks).
        attention_levels: Which levels attend; empty for none (residual blocks).
        mid_blocks: Whether residual block, attention, residual block stand at the coarsest level (residual blocks).
        norm_groups: Groups of the normalisations; 0 for none (residual blocks).
        stem_factor: Voxels per axis moved into channels first (residual blocks).
        quantizer: Its ``dim`` is d, the channels of the latent; None for 512 codes of 4 numbers.
        recompute: Whether training computes activations again in the backward pass (residual blocks).
        intensities: The range that the weights see: what -1 and 1 of an image become before the first layer, and back
            behind the last. MAISI's were trained on [0, 1].
        tissue_above: Cells whose brightest voxel is at most this are background: they take one bit, have no code, and
            are decoded to -1 (see :mod:`neurotome.tokenizers.tissue`); None codes every cell.

    Raises:
        ValueError: A list has not one entry per level, or plain blocks are given what only residual ones have.
    """

    from_codes = True

    def __init__(
        self,
        spatial_dims: Dims = 3,
        in_channels: Size = 1,
        modalities: Sequence[str] = ("T1w", "T2w"),
        blocks: Literal["plain", "residual"] = "plain",
        channels: Sequence[Size] = (64, 128),
        num_res_blocks: Size = 2,
        res_channels: Sequence[Size] | None = None,
        attention_levels: Annotated[Sequence[bool], MAY_BE_EMPTY] = (),
        mid_blocks: bool = False,
        norm_groups: SizeOrNone = 32,
        stem_factor: Size = 1,
        quantizer: Quantizer | None = None,
        recompute: bool = False,
        intensities: Sequence[Finite] = (-1.0, 1.0),
        tissue_above: Finite | None = None,
    ) -> None:
        super().__init__()
        inner = tuple(channels) if res_channels is None else tuple(res_channels)
        attention = tuple(attention_levels) or (False,) * len(channels)
        for name, given in (("res_channels", inner), ("attention_levels", attention)):
            if len(given) != len(channels):
                raise ValueError(
                    f"channels has {len(channels)} levels but {name} has {len(given)}; give one entry per level"
                )
        plain = blocks == "plain"
        if plain and (any(attention) or mid_blocks or stem_factor != 1):
            raise ValueError("attention_levels, mid_blocks and stem_factor belong to blocks: residual; leave them out")
        quantizer = quantizer or EMAQuantizer(512, 4)
        latent_channels = quantizer.dim
        self.modalities, self.latent_channels = tuple(modalities), latent_channels
        self.factor = per_axis(2 ** len(channels) if plain else stem_factor * 2 ** (len(channels) - 1), spatial_dims)
        self.slices, self.range = Slicewise(spatial_dims), IntensityRange(intensities)
        self.encoder: nn.Module
        self.decoder: nn.Module
        if plain:
            self.encoder = PlainEncoder(spatial_dims, in_channels, latent_channels, channels, inner, num_res_blocks)
            self.decoder = PlainDecoder(
                spatial_dims, latent_channels, in_channels, channels[::-1], inner[::-1], num_res_blocks
            )
        else:
            stem, rest = per_axis(stem_factor, spatial_dims), (mid_blocks, 1, norm_groups)
            self.encoder = ResidualEncoder(
                spatial_dims, in_channels, latent_channels, channels, num_res_blocks, attention, *rest, stem, recompute
            )
            self.decoder = ResidualDecoder(
                spatial_dims, latent_channels, in_channels, channels[::-1], num_res_blocks, attention[::-1], *rest,
                stem, recompute,
            )  # fmt: skip
        quantizer.draw()
        self.quantizer = quantizer
        names = ("anatomy", *(f"residual{i}" for i in range(1, len(quantizer.sizes))))
        self.codebook_sizes = dict(zip(names, quantizer.sizes, strict=True))
        self.tissue_above = tissue_above
        if tissue_above is not None:
            self.codebook_sizes[TISSUE] = 2

    def encode(self, image: Image, modality: ModalityIds) -> Encoded:
        """See :class:`Tokenizer`; ``aux`` holds ``anatomy``, the latent before quantisation."""
        self.check_input(image, modality)
        self.slices.check(image.shape[2:])
        h = self.slices.unfold(self.encoder(self.slices.fold(self.range.enter(image))), len(image)).float()
        x, y, z = image.shape[2:]
        above, tissue = self.tissue_above, None
        if above is not None:
            tissue = tissue_cells(image, self.latent_shape((x, y, z)), above)
        found = self.quantizer(h, where=tissue)
        codes = dict(zip(self.codebook_sizes, found.codes, strict=False))  # without the map of tissue
        if tissue is not None:
            codes[TISSUE] = tissue.long()
        return Encoded(found.vectors, codes, None, found.terms, (x, y, z), {"anatomy": h})

    def decode(self, encoded: Encoded, modality: ModalityIds) -> Image:
        """See :class:`Tokenizer`; the image is clamped to [-1, 1] in evaluation."""
        self.check_code(encoded, modality)
        shape = (*encoded.shape[:2], 1) if self.slices.alone else encoded.shape
        image = self.slices.unfold(self.decoder(self.slices.fold(encoded.latent), shape), len(encoded.latent)).float()
        image = self.range.leave(image)
        image = image if self.tissue_above is None else on_background(image, tissue_of(encoded))
        return image if self.training else image.clamp(-1, 1)

    def lookup(self, codes: Mapping[str, Tensor], shape: Sequence[int]) -> Latent:
        """See :class:`Tokenizer`; every map is needed."""
        return only_tissue(
            self.quantizer.lookup([codes[name] for name in self.codebook_sizes if name != TISSUE]), codes
        )

    def bits(self, shape: Sequence[int]) -> float:
        """See :class:`Tokenizer`; with background left out, the most an image can take."""
        return float((self.quantizer.bits + (self.tissue_above is not None)) * math.prod(self.latent_shape(shape)))

    def bits_used(self, encoded: Encoded) -> Tensor:
        """See :class:`Tokenizer`; codes where there is tissue, and a bit per cell that says where."""
        if self.tissue_above is None:
            return super().bits_used(encoded)
        return bits_with_tissue(encoded.codes, cell_bits(self.codebook_sizes))
