r"""Deep compression autoencoder (Chen et al., 2025, arXiv:2410.10733; structured latent: arXiv:2508.00413).

    z     = head(E(x)) + mean(E(x))                    the means and repetitions have no weights
    x_hat = D(entry(z) + repeat(z))

    structured:  z_k = head_k(E(x)),  x_hat = D(entry_k(z_k)),   k drawn from k_0, k_0 + s, ..., c in training

``head_k`` and ``entry_k`` are the first k output and input channels of one convolution each; there the means and
repetitions are left out, because they would mix the channels. No bottleneck loss: the network is deterministic.

The defaults are the 3-D sizes of the medical port: 32 voxels per cell in the plane (x, y), 4 along the axis z.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from neurotome.nn.linear_attention import EfficientViTBlock
from neurotome.nn.nd import XYZ, Conv, Triple, checked_order, per_axis
from neurotome.nn.rescale import Slicewise
from neurotome.nn.residual import run_stage
from neurotome.nn.shortcut import (
    ChannelNorm,
    PostNormBlock,
    ShortcutDownsample,
    ShortcutUpsample,
    average_channels,
    repeat_channels,
)
from neurotome.ranges import MAY_BE_EMPTY, Axis, Count, Dims, Range, Size, SizeOrNone
from neurotome.tokenizers.base import Encoded, Tokenizer
from neurotome.types import Image, Latent, ModalityIds

Phase = Literal["full", "latent", "refine"]


@dataclass(frozen=True)
class Sizes:
    """What encoder and decoder share: one entry per level, fine to coarse; ``factors`` lie between the levels."""

    spatial_dims: int
    channels: tuple[int, ...]
    attention_levels: tuple[bool, ...]
    factors: tuple[Triple, ...]
    scales: tuple[int, ...]
    head_channels: int
    order: Triple

    def blocks(self, level: int, number: int, batch_norm: bool = False) -> nn.Sequential:
        """Return the blocks of a level; ``batch_norm`` is for residual ones."""
        width = self.channels[level]
        if self.attention_levels[level]:
            kind = [EfficientViTBlock(self.spatial_dims, width, self.head_channels, self.scales) for _ in range(number)]
            return nn.Sequential(*kind)
        return nn.Sequential(*(PostNormBlock(self.spatial_dims, width, batch_norm) for _ in range(number)))

    def down(self, in_channels: int, level: int, shortcut: bool = True) -> ShortcutDownsample:
        """Return what goes down to a level from the finer one."""
        width, factor = self.channels[level], self.factors[level - 1]
        return ShortcutDownsample(self.spatial_dims, in_channels, width, factor, shortcut, self.order)

    def up(self, level: int, out_channels: int, shortcut: bool = True) -> ShortcutUpsample:
        """Return what goes up from a level to the finer one."""
        width, factor = self.channels[level], self.factors[level - 1]
        return ShortcutUpsample(self.spatial_dims, width, out_channels, factor, shortcut, self.order)

    def shapes(self, shape: Sequence[int]) -> list[Triple]:
        """Return the spatial shape of every level; an axis of length 1 stays so."""
        x, y, z = shape
        found: list[Triple] = [(x, y, z)]
        for factor in self.factors:
            x, y, z = (1 if s == 1 else s // f for s, f in zip(found[-1], factor, strict=True))
            found.append((x, y, z))
        return found


class DeepCompressionEncoder(nn.Module):
    """Image to the features before the latent, fine to coarse; a first level without blocks is skipped by its stem."""

    def __init__(self, sizes: Sizes, in_channels: int, num_blocks: Sequence[int]) -> None:
        super().__init__()
        dims, channels, self.first = sizes.spatial_dims, sizes.channels, int(num_blocks[0] == 0)
        self.stem: nn.Module = Conv(dims, in_channels, channels[0])
        if self.first:
            self.stem = sizes.down(in_channels, 1, shortcut=False)
        levels = range(self.first, len(channels))
        self.stages = nn.ModuleList(sizes.blocks(level, num_blocks[level]) for level in levels)
        self.downs = nn.ModuleList(sizes.down(channels[level], level + 1) for level in levels[:-1])
        self.recompute = False

    def forward(self, image: Image) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, c', x/f, y/f, z/f)``."""
        h = self.stem(image)
        for level, stage in enumerate(self.stages):
            h = run_stage(stage, self.recompute, h)
            if level < len(self.downs):
                h = self.downs[level](h)
        return h


class DeepCompressionDecoder(nn.Module):
    """Features behind the latent to the image, coarse to fine."""

    def __init__(
        self,
        sizes: Sizes,
        out_channels: int,
        num_blocks: Sequence[int],
        batch_norm_levels: int,
        activation: Literal["silu", "relu"],
    ) -> None:
        super().__init__()
        dims, channels, self.sizes = sizes.spatial_dims, sizes.channels, sizes
        self.first = int(num_blocks[0] == 0)
        levels = range(len(channels) - 1, self.first - 1, -1)
        self.stages = nn.ModuleList(sizes.blocks(lv, num_blocks[lv], lv < batch_norm_levels) for lv in levels)
        self.ups = nn.ModuleList(sizes.up(level + 1, channels[level]) for level in levels[1:])
        self.norm, self.act = ChannelNorm(channels[self.first]), nn.ReLU() if activation == "relu" else nn.SiLU()
        self.head: nn.Module = Conv(dims, channels[0], out_channels)
        if self.first:
            self.head = sizes.up(1, out_channels, shortcut=False)
        self.recompute = False

    def forward(self, h: Tensor, shape: Sequence[int]) -> Image:
        """Map ``(b, c', x/f, y/f, z/f)`` to ``(b, c, x, y, z)``; ``shape`` is ``(x, y, z)``."""
        shapes = self.sizes.shapes(shape)
        for index, stage in enumerate(self.stages):
            if index:
                h = self.ups[index - 1](h, shapes[len(shapes) - 1 - index])
            h = run_stage(stage, self.recompute, h)
        h = self.act(self.norm(h))
        image: Image = self.head(h, shapes[0]) if self.first else self.head(h)
        return image


class DCAE(Tokenizer):
    """Deep compression autoencoder, contrast-blind; see the module's text.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        modalities: Contrasts the model is used for; they do not enter the network.
        channels: Channels per level, fine to coarse; each further level halves x and y.
        num_res_blocks: Encoder blocks per level; 0 at the first level replaces it by a strided stem.
        decoder_res_blocks: Decoder blocks per level; None for those of the encoder.
        attention_levels: Levels of linear attention with gated convolutions in place of residual blocks.
        depth_factors: How z shrinks between the levels; without meaning for ``spatial_dims=2``.
        latent_channels: Channels of the latent; divides the coarsest level's channels unless the latent is structured.
        scales: Kernel lengths of the attention's further scales.
        head_channels: Channels of an attention head.
        structured_from: Smallest number of latent channels that training draws; None for an ordinary latent.
        structured_step: From one admissible number of channels to the next.
        recompute: Save memory in training by computing blocks twice.
        output_activation: Before the last convolution: "relu" in DC-AE 1.0, "silu" in 1.5 and in MedGen's volumes.
        batch_norm_levels: How many of the decoder's levels, from the finest on, have batch normalisation and ReLU in
            their residual blocks; 3 in DC-AE 1.0.
        axis_order: Order of the axes (0 is x) in which the voxels of a block become channels; neighbours are averaged
            by the shortcuts. (2, 0, 1) averages in the plane first, as MedGen's volumes do.

    Attributes:
        channel_choices: Numbers of latent channels that can be encoded and decoded, ascending, the last one is all.

    Raises:
        ValueError: Lists of different lengths, no blocks at a level but the first, channels that do not fit, or batch
            normalisation where a level attends.
    """

    window = None  # the output is linear

    def __init__(
        self,
        spatial_dims: Dims = 3,
        in_channels: Size = 1,
        modalities: Sequence[str] = ("T1w", "T2w"),
        channels: Sequence[Size] = (64, 128, 256, 256, 512, 512),
        num_res_blocks: Sequence[SizeOrNone] = (2, 2, 2, 2, 2, 2),
        decoder_res_blocks: Sequence[SizeOrNone] | None = None,
        attention_levels: Sequence[bool] = (False, False, False, False, False, False),
        depth_factors: Sequence[Annotated[int, Range("[1, 2]")]] = (2, 2, 1, 1, 1),
        latent_channels: Size = 32,
        scales: Annotated[Sequence[Size], MAY_BE_EMPTY] = (5,),
        head_channels: Size = 32,
        structured_from: Size | None = None,
        structured_step: Size = 4,
        recompute: bool = False,
        output_activation: Literal["silu", "relu"] = "silu",
        batch_norm_levels: Count = 0,
        axis_order: Sequence[Axis] = XYZ,
    ) -> None:
        super().__init__()
        decoder_blocks = num_res_blocks if decoder_res_blocks is None else decoder_res_blocks
        _check_levels(channels, num_res_blocks, decoder_blocks, attention_levels, depth_factors)
        _check_decoder(output_activation, batch_norm_levels, attention_levels)
        plane = per_axis(2, spatial_dims)[:2]
        factors = tuple((*plane, per_axis(depth, spatial_dims)[2]) for depth in depth_factors)
        sizes = Sizes(
            spatial_dims, tuple(channels), tuple(attention_levels), factors, tuple(scales), head_channels,
            checked_order(axis_order),
        )  # fmt: skip
        self.modalities, self.latent_channels = tuple(modalities), latent_channels
        x, y, z = (math.prod(axis) for axis in zip(*factors, strict=True))
        self.factor, self.slices = (x, y, z), Slicewise(spatial_dims)
        self.structured = structured_from is not None
        self.channel_choices = channel_choices(latent_channels, structured_from, structured_step)
        if not self.structured and channels[-1] % latent_channels:
            raise ValueError(f"latent_channels is {latent_channels}; give a divisor of channels[-1], {channels[-1]}")
        self.encoder = DeepCompressionEncoder(sizes, in_channels, num_res_blocks)
        self.to_latent = Conv(spatial_dims, channels[-1], latent_channels)
        self.from_latent = Conv(spatial_dims, latent_channels, channels[-1])
        self.decoder = DeepCompressionDecoder(
            sizes, in_channels, decoder_blocks, batch_norm_levels, output_activation
        )  # fmt: skip
        self.encoder.recompute = self.decoder.recompute = recompute

    def encode(self, image: Image, modality: ModalityIds, channels: int | None = None) -> Encoded:
        """Return the latent of ``image``.

        Args:
            image: In [-1, 1], ``(b, c, x, y, z)``.
            modality: One id per image; checked, not used.
            channels: Keep so many latent channels; None keeps all, but draws a number in training if the latent is
                structured.

        Raises:
            ValueError: A shape or id that is not admissible, or another number of channels than ``channel_choices``.
        """
        self.check_input(image, modality)
        self.slices.check(image.shape[2:])
        h = self.encoder(image)
        if not self.structured:
            self._check_channels(self.latent_channels if channels is None else channels)
            latent = self.to_latent(h) + average_channels(h, self.latent_channels)
        else:
            kept = self._check_channels(self._drawn_channels() if channels is None else channels)
            first = {name: parameter[:kept] for name, parameter in self.to_latent.named_parameters()}
            latent = functional_call(self.to_latent, first, (h,))
        x, y, z = image.shape[2:]
        return Encoded(latent, {}, None, {}, (x, y, z))

    def decode(self, encoded: Encoded, modality: ModalityIds) -> Image:
        """Return the image; a structured latent may hold the first channels alone."""
        self.check_code(encoded, modality)
        return self.decoder(self._entered(encoded.latent), encoded.shape).float()

    def _entered(self, z: Latent) -> Tensor:
        kept = self._check_channels(z.shape[1])
        if not self.structured:
            return self.from_latent(z) + repeat_channels(z, self.from_latent.weight.shape[0])
        first = {"weight": self.from_latent.weight[:, :kept]}
        entered: Tensor = functional_call(self.from_latent, first, (z,))
        return entered

    def _check_channels(self, number: int) -> int:
        if number not in self.channel_choices:
            shown = ", ".join(map(str, self.channel_choices))
            raise ValueError(f"{number} latent channels; admissible are {shown}")
        return number

    def _drawn_channels(self) -> int:
        if not self.training:
            return self.latent_channels
        return self.channel_choices[int(torch.randint(len(self.channel_choices), ()))]

    def bits(self, shape: Sequence[int]) -> float:
        """See :class:`Tokenizer`; of a latent with all its channels."""
        return float(self.float_bits * self.latent_channels * math.prod(self.latent_shape(shape)))

    def bits_used(self, encoded: Encoded) -> Tensor:
        """See :class:`Tokenizer`; of the channels that are there."""
        return torch.full((len(encoded.latent),), self.float_bits * encoded.latent[0].numel(), dtype=torch.float64)

    def phase_parameters(self, phase: Phase) -> tuple[str, ...]:
        """Return the names of the parameters that a phase of the published training adapts.

        - "full": all, at low resolution, without an adversary;
        - "latent": the middle (coarsest level and both sides of the latent), at full resolution;
        - "refine": normalisation and head of the decoder, with an adversary.

        Raises:
            ValueError: ``phase`` is none of these.
        """
        # the paper says "middle layers" without a list; here they are what works on the latent's grid
        middle = (f"encoder.stages.{len(self.encoder.stages) - 1}.", "to_latent.", "from_latent.", "decoder.stages.0.")
        prefixes = {"full": ("",), "latent": middle, "refine": ("decoder.norm.", "decoder.head.")}
        if phase not in prefixes:
            raise ValueError(f"phase is {phase!r}; admissible are {', '.join(prefixes)}")
        return tuple(name for name, _ in self.named_parameters() if name.startswith(prefixes[phase]))


def channel_choices(channels: int, smallest: int | None, step: int) -> tuple[int, ...]:
    """Return the numbers of channels a structured latent can be cut to: smallest, smallest + step, ..., all.

    Raises:
        ValueError: ``smallest`` is more than ``channels``.
    """
    if smallest is None:
        return (channels,)
    if smallest > channels:
        raise ValueError(f"structured_from is {smallest}; give 1 to latent_channels, {channels}")
    return (*range(smallest, channels, step), channels)


def _check_levels(
    channels: Sequence[int],
    num_res_blocks: Sequence[int],
    decoder_res_blocks: Sequence[int],
    attention_levels: Sequence[bool],
    depth_factors: Sequence[int],
) -> None:
    levels = len(channels)
    if levels < 2:
        raise ValueError(f"channels has {levels} level; give at least 2")
    given = {
        "num_res_blocks": num_res_blocks,
        "decoder_res_blocks": decoder_res_blocks,
        "attention_levels": attention_levels,
    }
    for name, values in given.items():
        if len(values) != levels:
            raise ValueError(f"channels has {levels} levels but {name} has {len(values)}; give one entry per level")
    if len(depth_factors) != levels - 1:
        raise ValueError(f"depth_factors is {tuple(depth_factors)}; give {levels - 1} numbers")
    if any(min(n[1:]) < 1 for n in (num_res_blocks, decoder_res_blocks)):
        raise ValueError("every level needs a block; the first one alone may have 0")


def _check_decoder(activation: str, batch_norm_levels: int, attention_levels: Sequence[bool]) -> None:
    if activation not in ("silu", "relu"):
        raise ValueError(f"output_activation is {activation!r}; admissible are silu and relu")
    plain = next((level for level, attends in enumerate(attention_levels) if attends), len(attention_levels))
    if not 0 <= batch_norm_levels <= plain:
        raise ValueError(
            f"batch_norm_levels is {batch_norm_levels}; give 0 to {plain}, the finest levels without attention"
        )
