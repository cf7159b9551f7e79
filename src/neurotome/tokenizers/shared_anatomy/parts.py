"""What tokenizers with a shared anatomy are made of: sizes, stages, encoder, decoder, and the gain field."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from neurotome.nn.attention import MultiAxisAttention
from neurotome.nn.modulation import FiLM, Modulation, modulate
from neurotome.nn.nd import Conv, Flat, Triple, depth_to_space, flat_axes, per_axis, space_to_depth, upsample
from neurotome.nn.residual import ResidualBlock, activated, normalisation, run_stage
from neurotome.ranges import MAY_BE_EMPTY, Finite, Ranged, Size, SizeOrNone
from neurotome.types import Image, ModalityIds, Style


@dataclass(frozen=True)
class Trunk(Ranged):
    """Sizes of the encoder and, mirrored, of the decoder; the defaults are NeuroQuant's published ones.

    Args:
        channels: Width of each encoder stage; the decoder mirrors it.
        num_res_blocks: Residual blocks per stage.
        decoder_res_blocks: Residual blocks per decoder stage; None for ``num_res_blocks``.
        attention_levels: Which stages end in multi-axis attention (and the decoder's mirror).
        mid_blocks: Whether residual block, attention, residual block follow the coarsest stage.
        num_heads: Attention heads.
        downsample: Which stages halve the resolution; None means all.
        stem_factor: Voxels per axis moved into channels before the first convolution and back after the last.
        norm_groups: Groups of the normalisations; 0 removes them (crops and whole volumes then see the same network).
        factored: Whether convolutions in residual blocks are factored into plane and depth.
        skip_depth: Whether a slice along x goes around the depth convolutions, and is halved by interpolation in place
            of the strided convolutions (released code); else it sees the central slice of their kernels.

    Raises:
        ValueError: The lists have not one entry per level.
    """

    channels: Sequence[Size] = (64, 128, 256, 256)
    num_res_blocks: Size = 2
    decoder_res_blocks: Size | None = None
    attention_levels: Sequence[bool] = (False, False, True, True)
    mid_blocks: bool = True
    num_heads: Size = 8
    downsample: Sequence[bool] | None = None
    stem_factor: Size = 1
    norm_groups: SizeOrNone = 32
    factored: bool = True
    skip_depth: bool = False

    def __post_init__(self) -> None:
        """Refuse lists of different lengths."""
        super().__post_init__()
        if not len(self.channels) == len(self.attention_levels) == len(self.halved):
            raise ValueError(
                f"channels has {len(self.channels)} levels, attention_levels {len(self.attention_levels)}, downsample "
                f"{len(self.halved)}; give one entry per level"
            )

    @property
    def halved(self) -> tuple[bool, ...]:
        """Which stages halve the resolution."""
        return (True,) * len(self.channels) if self.downsample is None else tuple(self.downsample)

    @property
    def factor(self) -> int:
        """Voxels per latent cell and axis."""
        return self.stem_factor * 2 ** sum(self.halved)


@dataclass(frozen=True)
class Appearance(Ranged):
    """Sizes of the appearance stream and of the FiLM networks; the defaults are NeuroQuant's published ones.

    Args:
        channels: C_m, length of the appearance vector.
        stages: Widths of further strided stages between trunk and appearance head, so that style sees wider.
        foreground_above: Only voxels brighter than this enter GAP(z_mod); None pools over the whole box (paper).
        embedding_channels: C_s, length of the contrast's embedding s_m.
        film_hidden: Width of the FiLM networks.
        film_layers: Hidden layers of the decoder's FiLM network.
        film_sites: "stage" modulates after the middle and after each stage (paper), "block" inside each residual block;
            "none" builds no appearance stream, so that the decoder is not given the contrast (the base of the paper's
            ablation).
        gain_factor: Latent cells per axis and cell of the gain field g, which multiplies the brightness of the image:
            the appearance that a vector cannot hold, such as a coil's bias field; 0 for none (paper).

    Raises:
        ValueError: There is a gain but no appearance stream.
    """

    channels: Size = 32
    stages: Annotated[Sequence[Size], MAY_BE_EMPTY] = ()
    foreground_above: Finite | None = None
    embedding_channels: Size = 32
    film_hidden: Size = 256
    film_layers: Size = 2
    film_sites: Literal["stage", "block", "none"] = "stage"
    gain_factor: SizeOrNone = 0

    def __post_init__(self) -> None:
        """Refuse a gain without an appearance stream."""
        super().__post_init__()
        if self.gain_factor and self.film_sites == "none":
            raise ValueError(
                f"gain_factor is {self.gain_factor} with film_sites none; the gain is part of the appearance"
            )


@dataclass(frozen=True)
class Parts:
    """The blocks of one network."""

    spatial_dims: int
    trunk: Trunk

    @property
    def stem(self) -> Triple:
        """Voxels per axis moved into channels."""
        return per_axis(self.trunk.stem_factor, self.spatial_dims)

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> Conv:
        """Return a whole convolution."""
        return Conv(self.spatial_dims, in_channels, out_channels, kernel_size, stride)

    def residual(self, in_channels: int, out_channels: int) -> ResidualBlock:
        """Return a residual block."""
        return ResidualBlock(self.spatial_dims, in_channels, out_channels, self.trunk.norm_groups, self.trunk.factored)

    def attention(self, channels: int) -> MultiAxisAttention:
        """Return attention along every axis."""
        return MultiAxisAttention(self.spatial_dims, channels, self.trunk.num_heads, self.trunk.norm_groups)

    def skips_depth(self, flat: Flat) -> bool:
        """Return whether an image with these flat axes goes around what the depth has."""
        return self.trunk.skip_depth and flat[0]

    def strided(self, widths: Sequence[int]) -> list[nn.Module]:
        """Return stages that halve the resolution, from each width to the next."""
        return [nn.Sequential(self.conv(a, b, stride=2), self.residual(b, b)) for a, b in pairwise(widths)]


class Middle(nn.ModuleList):
    """Residual block, attention, residual block at the coarsest resolution, or nothing."""

    def __init__(self, parts: Parts, channels: int) -> None:
        super().__init__()
        self.parts = parts
        if parts.trunk.mid_blocks:
            self.extend(
                [parts.residual(channels, channels), parts.attention(channels), parts.residual(channels, channels)]
            )

    def forward(self, x: Tensor, flat: Flat) -> Tensor:
        """Map ``(b, c, x, y, z)`` to the same shape; ``flat`` says along which axes the image is a slice."""
        for block in self:
            attends = isinstance(block, MultiAxisAttention)
            x = block(x, flat) if attends else block(x, skip_depth=self.parts.skips_depth(flat))
        return x


class AnatomyStage(nn.Module):
    """Residual blocks and attention at one resolution, after going up to it or before going down from it."""

    def __init__(
        self,
        parts: Parts,
        in_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention: bool,
        resize: Literal["down", "up", "none"],
    ) -> None:
        super().__init__()
        widths, self.parts = (in_channels, *(out_channels,) * num_res_blocks), parts
        self.up: nn.Module = parts.conv(in_channels, in_channels) if resize == "up" else nn.Identity()
        self.blocks = nn.ModuleList(parts.residual(a, b) for a, b in pairwise(widths))
        self.attention = parts.attention(out_channels) if attention else None
        self.down: nn.Module = parts.conv(out_channels, out_channels, stride=2) if resize == "down" else nn.Identity()

    def forward(self, x: Tensor, flat: Flat, films: Sequence[Modulation] = (), size: Sequence[int] = ()) -> Tensor:
        """Map ``(b, c, x, y, z)`` to the next resolution.

        Args:
            x: Features.
            flat: Axes along which the image is a slice.
            films: One modulation per block, or none.
            size: The resolution to go up to, if any.
        """
        skip_depth = self.parts.skips_depth(flat)
        if size and tuple(size) != tuple(x.shape[2:]):
            x = self.up(upsample(x, size))
        for i, block in enumerate(self.blocks):
            x = block(x, films[i] if films else None, skip_depth)
        if self.attention is not None:
            x = self.attention(x, flat)
        if skip_depth and isinstance(self.down, Conv):
            return upsample(x, [max(n // s, 1) for n, s in zip(x.shape[2:], self.down.stride, strict=True)])
        return self.down(x)


class AnatomyEncoder(nn.Module):
    """Image to the features that both streams start from.

    With ``contrasts`` it has a stem for each, and FiLM by an embedding of the contrast in its blocks: a patch of white
    matter in T1w resembles a ventricle in T2w, and only who knows the contrast can tell them apart.

    Args:
        parts: Of the network.
        in_channels: Image channels.
        contrasts: Number of contrasts known to the encoder; 0 for none.
        appearance: Sizes of embedding and FiLM.
    """

    def __init__(self, parts: Parts, in_channels: int, contrasts: int, appearance: Appearance) -> None:
        super().__init__()
        trunk, channels = parts.trunk, parts.trunk.channels
        self.stem, self.contrasts, self.recompute = parts.stem, contrasts, False
        self.num_res_blocks = trunk.num_res_blocks
        self.conv_in = parts.conv(in_channels * math.prod(self.stem), channels[0] * max(contrasts, 1))
        self.stages = nn.ModuleList(
            AnatomyStage(parts, a, b, trunk.num_res_blocks, attention, "down" if halved else "none")
            for (a, b), attention, halved in zip(
                pairwise((channels[0], *channels)), trunk.attention_levels, trunk.halved, strict=True
            )
        )
        self.mid = Middle(parts, channels[-1])
        self.norm = normalisation(channels[-1], trunk.norm_groups)
        if contrasts:
            sites = [c for c in channels for _ in range(trunk.num_res_blocks)]
            self.film = FiLM(appearance.embedding_channels, appearance.film_hidden, sites, 1)
            self.embedding = nn.Embedding(contrasts, appearance.embedding_channels)

    def forward(self, image: Image, modality: ModalityIds) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, c', x/f, y/f, z/f)``."""
        h, flat = self._enter(space_to_depth(image, self.stem), modality), flat_axes(image.shape)
        films: list[Modulation] = self.film(self.embedding(modality)) if self.contrasts else []
        for i, stage in enumerate(self.stages):
            of_stage = films[i * self.num_res_blocks : (i + 1) * self.num_res_blocks]
            h = run_stage(stage, self.recompute, h, flat, of_stage)
        return activated(self.norm(self.mid(h, flat)))

    def _enter(self, x: Tensor, modality: ModalityIds) -> Tensor:
        """Return what the stem of every image's contrast makes of it."""
        if not self.contrasts:
            return self.conv_in(x)
        if torch.is_grad_enabled():
            h = self.conv_in(x).unflatten(1, (self.contrasts, -1))
            return h[torch.arange(len(h), device=h.device), modality]
        # only the stems that are asked for, each for all images: no image's bits depend on the contrasts beside it
        parts: dict[int, Tensor] = {}
        for one in sorted(set(modality.tolist())):
            own = {name: p.chunk(self.contrasts)[one] for name, p in self.conv_in.named_parameters()}
            parts[one] = functional_call(self.conv_in, own, (x,))
        h, *others = parts.values()
        for one, other in zip(list(parts)[1:], others, strict=True):
            h = torch.where((modality == one)[:, None, None, None, None], other, h)
        return h


class AnatomyDecoder(nn.Module):
    """Latent and modulations to the image.

    Args:
        parts: Of the network.
        latent_channels: Channels of the latent.
        out_channels: Image channels.
        film_sites: See :class:`Appearance`.

    Attributes:
        sites: Channels of each modulated feature map.
    """

    def __init__(
        self, parts: Parts, latent_channels: int, out_channels: int, film_sites: Literal["stage", "block", "none"]
    ) -> None:
        super().__init__()
        trunk, channels = parts.trunk, parts.trunk.channels[::-1]
        num_res_blocks = trunk.num_res_blocks if trunk.decoder_res_blocks is None else trunk.decoder_res_blocks
        self.stem, self.film_sites, self.doubled, self.recompute = parts.stem, film_sites, trunk.halved[::-1], False
        self.conv_in = parts.conv(latent_channels, channels[0])
        self.mid = Middle(parts, channels[0])
        self.stages = nn.ModuleList(
            AnatomyStage(parts, a, b, num_res_blocks, attention, "up" if doubled else "none")
            for (a, b), attention, doubled in zip(
                pairwise((channels[0], *channels)), trunk.attention_levels[::-1], self.doubled, strict=True
            )
        )
        self.norm = normalisation(channels[-1], trunk.norm_groups)
        self.act = nn.SiLU()
        self.conv_out = parts.conv(channels[-1], out_channels * math.prod(self.stem))
        self.sites = {
            "stage": [channels[0], *channels],
            "block": [c for c in channels for _ in range(num_res_blocks)],
            "none": [],
        }[film_sites]

    def forward(self, latent: Tensor, films: Sequence[Modulation], shape: Sequence[int]) -> Tensor:
        """Map ``(b, d, x/f, y/f, z/f)`` to an image of spatial ``shape``."""
        return depth_to_space(self.conv_out(self.features(latent, films, shape)), self.stem, shape)

    def features(self, latent: Tensor, films: Sequence[Modulation], shape: Sequence[int]) -> Tensor:
        """Return what the last convolution reads, ``(b, c, x/s, y/s, z/s)`` with s the stem's factor."""
        flat, sizes = flat_axes(shape), self._sizes(shape)
        h = self.mid(self.conv_in(latent), flat)
        if self.film_sites == "stage":
            h = modulate(h, films[0])
            for stage, size, film in zip(self.stages, sizes, films[1:], strict=True):
                h = modulate(run_stage(stage, self.recompute, h, flat, (), size), film)
        else:
            n = len(films) // len(self.stages)
            for i, (stage, size) in enumerate(zip(self.stages, sizes, strict=True)):
                h = run_stage(stage, self.recompute, h, flat, films[i * n : (i + 1) * n], size)
        return self.act(self.norm(h))

    def _sizes(self, shape: Sequence[int]) -> list[Triple]:
        """Return the resolution of each stage, coarse to fine; an axis of length 1 stays so."""
        x, y, z = (1 if s == 1 else s // f for s, f in zip(shape, self.stem, strict=True))
        sizes: list[Triple] = []
        for doubled in reversed(self.doubled):
            sizes.append((x, y, z))
            if doubled:
                x, y, z = max(x // 2, 1), max(y // 2, 1), max(z // 2, 1)
        return sizes[::-1]


class GainField(nn.Module):
    r"""A scan's own smooth brightness, from the appearance features h and the share of brain w in each cell.

        g = limit * tanh(pool(w h_g) / pool(w)),   g <- g - mean_w(g)

    Its mean is the style vector's business; so is what no brain lies under.

    Args:
        parts: Of the network.
        channels: Of the features.
        factor: Latent cells per axis and cell of the field.
        limit: Largest absolute value before the mean is taken off.
    """

    def __init__(self, parts: Parts, channels: int, factor: int, limit: float = 0.7) -> None:
        super().__init__()
        self.factor, self.limit, self.spatial_dims = factor, limit, parts.spatial_dims
        self.head = parts.conv(channels, 1, 1)

    def cells(self, latent: Sequence[int]) -> Triple:
        """Return the field's shape for a latent's."""
        x, y, z = (-(-n // self.factor) for n in latent)
        return x, y, z

    def forward(self, features: Tensor, weight: Tensor, latent: Sequence[int]) -> Tensor:
        """Map ``(b, c, x, y, z)`` and ``(b, 1, x, y, z)`` to the log gain ``(b, 1, x', y', z')``."""
        cells = self.cells(latent)
        brain = F.adaptive_avg_pool3d(weight, cells)
        mean = F.adaptive_avg_pool3d(self.head(features).float() * weight, cells) / brain.clamp(min=1e-3)
        g = self.limit * torch.tanh(mean)
        return g - (g * brain).sum((2, 3, 4), keepdim=True) / brain.sum((2, 3, 4), keepdim=True).clamp(min=1e-3)


def foreground_share(image: Image, size: Sequence[int], above: float | None) -> Tensor:
    """Return the share of voxels brighter than ``above`` in each cell of a coarser grid, ``(b, 1, x, y, z)``.

    Without a level it is the share brighter than the darkest value there is, -1.
    """
    x, y, z = size
    return F.adaptive_avg_pool3d((image[:, :1] > (-1.0 if above is None else above)).float(), (x, y, z))


def pooled(z: Tensor, image: Image, above: float | None) -> Style:
    """Return GAP(z), ``(b, c)``, in single precision; over the foreground where a level is given."""
    z = z.float()
    if above is None:
        return z.mean(dim=(2, 3, 4))
    weight = foreground_share(image, z.shape[2:], above)
    return (z * weight).sum(dim=(2, 3, 4)) / weight.sum(dim=(2, 3, 4)).clamp(min=1e-3)
