r"""KLVAE: a continuous latent near a standard normal (Kingma & Welling, 2014; Rombach et al., 2022, arXiv:2112.10752).

    q(z | x) = N(mu(x), diag sigma^2(x)),     z = mu + sigma eps in training, z = mu in evaluation
    KL = mean_b 1/2 sum_{c,x,y,z} (mu^2 + sigma^2 - 1 - log sigma^2)

The KL is summed over every latent dimension of an image and averaged over the images alone; those of a two-dimensional
network are slices, so that a weight means the same whatever number of them a crop holds. A mean over all dimensions
instead, as a published three-dimensional trainer had it, is weaker by the size of the latent, some 80 000 times for a
volume, and the latent is then no longer held at all.

Blocks and order are those of MONAI's ``AutoencoderKL`` (the same weights give the same image, which a test checks), so
are the parameter counts: 9 674 248 with the defaults (MedGen's volumes), 53.76 M for its slices, 20.945 M for MAISI.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from neurotome.nn.attention import FullAttention
from neurotome.nn.nd import Conv, Triple, depth_to_space, flat_axes, per_axis, space_to_depth
from neurotome.nn.rescale import Downsample, Slicewise, Upsample
from neurotome.nn.residual import ResidualBlock, normalisation, run_stage
from neurotome.ranges import Dims, Finite, Size, SizeOrNone
from neurotome.tokenizers.base import Encoded, Tokenizer
from neurotome.tokenizers.intensity_range import IntensityRange
from neurotome.types import Image, Latent, ModalityIds, Scalar

LOG_VARIANCE = (-30.0, 20.0)  # as in latent diffusion: beyond it exp() is of no use in single precision


def kl_divergence(mean: Latent, log_variance: Latent) -> Scalar:
    """Return KL(N(mean, exp(log_variance)) || N(0, 1)) in nats per image: a sum over the latent."""
    per_dimension = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return per_dimension.flatten(1).sum(1).mean()


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where asked."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention: bool,
        num_heads: int,
        norm_groups: int,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for a, b in pairwise((in_channels, *(out_channels,) * num_res_blocks)):
            blocks.append(ResidualBlock(spatial_dims, a, b, norm_groups))
            if attention:
                blocks.append(FullAttention(out_channels, num_heads, norm_groups))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, out, x, y, z)``."""
        return self.blocks(x)


def middle(spatial_dims: int, channels: int, num_heads: int, norm_groups: int, build: bool) -> nn.Module:
    """Return residual block, attention, residual block, or nothing."""
    if not build:
        return nn.Identity()
    return nn.Sequential(
        ResidualBlock(spatial_dims, channels, channels, norm_groups),
        FullAttention(channels, num_heads, norm_groups),
        ResidualBlock(spatial_dims, channels, channels, norm_groups),
    )


class ResidualEncoder(nn.Module):
    """Image to latent: levels of residual blocks, halved between them.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Image channels.
        out_channels: Latent channels.
        channels: Width of each level, fine to coarse; the resolution is halved between two levels.
        num_res_blocks: Residual blocks per level.
        attention_levels: Which levels attend.
        mid_blocks: Whether residual block, attention, residual block follow the coarsest level.
        num_heads: Attention heads.
        norm_groups: Groups of the normalisations; 0 for none.
        stem: Voxels per axis moved into channels first.
        recompute: Whether training computes activations of a level again in the backward pass.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        num_res_blocks: int,
        attention_levels: Sequence[bool],
        mid_blocks: bool,
        num_heads: int,
        norm_groups: int,
        stem: Triple,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.stem, self.recompute = stem, recompute
        self.conv_in = Conv(spatial_dims, in_channels * math.prod(stem), channels[0])
        self.levels, self.down = nn.ModuleList(), nn.ModuleList()
        for (a, b), attention in zip(pairwise((channels[0], *channels)), attention_levels, strict=True):
            self.levels.append(Level(spatial_dims, a, b, num_res_blocks, attention, num_heads, norm_groups))
            self.down.append(Downsample(spatial_dims, b))
        self.down[-1] = nn.Identity()
        self.mid = middle(spatial_dims, channels[-1], num_heads, norm_groups, mid_blocks)
        self.norm = normalisation(channels[-1], norm_groups)
        self.conv_out = Conv(spatial_dims, channels[-1], out_channels)

    def forward(self, image: Image) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, d, x/f, y/f, z/f)``."""
        h = self.conv_in(space_to_depth(image, self.stem))
        for level, down in zip(self.levels, self.down, strict=True):
            h = down(run_stage(level, self.recompute, h))
        return self.conv_out(self.norm(self.mid(h)))


class ResidualDecoder(nn.Module):
    """Latent to image, the mirror of :class:`ResidualEncoder`; arguments as there, ``channels`` coarse to fine.

    ``upsampling`` is that of :class:`neurotome.nn.rescale.Upsample`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        num_res_blocks: int,
        attention_levels: Sequence[bool],
        mid_blocks: bool,
        num_heads: int,
        norm_groups: int,
        stem: Triple,
        recompute: bool,
        upsampling: Literal["nearest", "trilinear"] = "nearest",
    ) -> None:
        super().__init__()
        self.stem, self.recompute = stem, recompute
        self.conv_in = Conv(spatial_dims, in_channels, channels[0])
        self.mid = middle(spatial_dims, channels[0], num_heads, norm_groups, mid_blocks)
        self.levels, self.up = nn.ModuleList(), nn.ModuleList()
        for (a, b), attention in zip(pairwise((channels[0], *channels)), attention_levels, strict=True):
            self.levels.append(Level(spatial_dims, a, b, num_res_blocks, attention, num_heads, norm_groups))
            self.up.append(Upsample(spatial_dims, b, upsampling))
        del self.up[-1]
        self.norm = normalisation(channels[-1], norm_groups)
        self.conv_out = Conv(spatial_dims, channels[-1], out_channels * math.prod(stem))

    def forward(self, latent: Tensor, shape: Sequence[int]) -> Tensor:
        """Map ``(b, d, x/f, y/f, z/f)`` to an image of spatial ``shape``."""
        h, flat = self.mid(self.conv_in(latent)), flat_axes(shape)
        for i, level in enumerate(self.levels):
            h = run_stage(level, self.recompute, h if i == 0 else self.up[i - 1](h, flat))
        return depth_to_space(self.conv_out(self.norm(h)), self.stem, shape)


class KLVAE(Tokenizer):
    """Autoencoder with a KL-regularised latent; the contrast is ignored.

    Args:
        spatial_dims: 2 or 3; a two-dimensional network takes a volume slice by slice along z.
        in_channels: Image channels.
        modalities: Contrasts; their order gives the ids.
        channels: Width of each level, fine to coarse; the resolution is halved between two levels.
        num_res_blocks: Residual blocks per level.
        decoder_res_blocks: Residual blocks per level of the decoder; None for ``num_res_blocks``.
        attention_levels: Which levels attend (after each of their residual blocks).
        mid_blocks: Whether residual block, attention, residual block stand at the coarsest resolution.
        num_heads: Attention heads.
        latent_channels: d, channels of the latent.
        norm_groups: Groups of the normalisations; 0 removes them (crops and whole volumes then see the same network).
        stem_factor: Voxels per axis moved into channels before the first convolution and back after the last.
        recompute: Whether training computes activations again in the backward pass: less memory for more time.
        upsampling: How the decoder goes up before its convolutions: "nearest" (AutoencoderKL) or "trilinear" (MAISI).
        intensities: The range that the weights see: what -1 and 1 of an image become before the first layer, and back
            behind the last. MAISI's were trained on [0, 1].

    Raises:
        ValueError: There is not one entry of ``attention_levels`` per level, or a width does not fit ``num_heads`` or
            ``norm_groups``; another ``upsampling``; ``intensities`` that do not increase.
    """

    def __init__(
        self,
        spatial_dims: Dims = 3,
        in_channels: Size = 1,
        modalities: Sequence[str] = ("T1w", "T2w"),
        channels: Sequence[Size] = (32, 64, 128, 128),
        num_res_blocks: Size = 2,
        decoder_res_blocks: Size | None = None,
        attention_levels: Sequence[bool] = (False, False, False, False),
        mid_blocks: bool = False,
        num_heads: Size = 1,
        latent_channels: Size = 3,
        norm_groups: SizeOrNone = 32,
        stem_factor: Size = 1,
        recompute: bool = False,
        upsampling: Literal["nearest", "trilinear"] = "nearest",
        intensities: Sequence[Finite] = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        if len(channels) != len(attention_levels):
            raise ValueError(
                f"channels has {len(channels)} levels but attention_levels has {len(attention_levels)}; "
                "give one entry per level"
            )
        self.modalities, self.latent_channels = tuple(modalities), latent_channels
        self.factor = per_axis(stem_factor * 2 ** (len(channels) - 1), spatial_dims)
        self.slices, self.range = Slicewise(spatial_dims), IntensityRange(intensities)
        stem = per_axis(stem_factor, spatial_dims)
        self.encoder = ResidualEncoder(
            spatial_dims, in_channels, latent_channels, channels, num_res_blocks, attention_levels, mid_blocks,
            num_heads, norm_groups, stem, recompute,
        )  # fmt: skip
        self.decoder = ResidualDecoder(
            spatial_dims, latent_channels, in_channels, channels[::-1],
            num_res_blocks if decoder_res_blocks is None else decoder_res_blocks,
            attention_levels[::-1], mid_blocks, num_heads, norm_groups, stem, recompute, upsampling,
        )  # fmt: skip
        self.mean = Conv(spatial_dims, latent_channels, latent_channels, 1)
        self.log_variance = Conv(spatial_dims, latent_channels, latent_channels, 1)
        self.from_latent = Conv(spatial_dims, latent_channels, latent_channels, 1)

    def encode(self, image: Image, modality: ModalityIds) -> Encoded:
        """See :class:`Tokenizer`; ``terms`` holds ``kl``, ``aux`` holds ``mean`` and ``log_variance``."""
        self.check_input(image, modality)
        self.slices.check(image.shape[2:])
        h = self.slices.unfold(self.encoder(self.slices.fold(self.range.enter(image))), len(image))
        mean, log_variance = self.mean(h).float(), self.log_variance(h).float().clamp(*LOG_VARIANCE)
        with torch.autocast(image.device.type, enabled=False):
            kl = kl_divergence(self.slices.fold(mean), self.slices.fold(log_variance))
            latent = mean + (0.5 * log_variance).exp() * torch.randn_like(mean) if self.training else mean
        x, y, z = image.shape[2:]
        return Encoded(latent, {}, None, {"kl": kl}, (x, y, z), {"mean": mean, "log_variance": log_variance})

    def decode(self, encoded: Encoded, modality: ModalityIds) -> Image:
        """See :class:`Tokenizer`; the image is clamped to [-1, 1] in evaluation."""
        self.check_code(encoded, modality)
        h = self.slices.fold(self.from_latent(encoded.latent))
        shape = (*encoded.shape[:2], 1) if self.slices.alone else encoded.shape
        image = self.slices.unfold(self.decoder(h, shape), len(encoded.latent)).float()
        image = self.range.leave(image)
        return image if self.training else image.clamp(-1, 1)

    def bits(self, shape: Sequence[int]) -> float:
        """See :class:`Tokenizer`."""
        return float(self.float_bits * self.latent_channels * math.prod(self.latent_shape(shape)))
