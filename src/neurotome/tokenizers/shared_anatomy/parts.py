"""What NeuroQuant is made of: stages, encoder, decoder, and the gain field; the whole stands in ``neuroquant.py``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from neurotome.nn.attention import MultiAxisAttention
from neurotome.nn.modulation import FiLM, Modulation, modulate
from neurotome.nn.nd import Conv, Triple, depth_to_space, space_to_depth, upsample
from neurotome.nn.residual import ResidualBlock, activated, normalisation, run_stage
from neurotome.types import Image, ModalityIds, Style


@dataclass(frozen=True)
class Parts:
    """What every block of one network shares."""

    spatial_dims: int
    num_heads: int
    norm_groups: int
    factored: bool

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> Conv:
        """Return a whole convolution."""
        return Conv(self.spatial_dims, in_channels, out_channels, kernel_size, stride)

    def residual(self, in_channels: int, out_channels: int) -> ResidualBlock:
        """Return a residual block."""
        return ResidualBlock(self.spatial_dims, in_channels, out_channels, self.norm_groups, self.factored)

    def attention(self, channels: int) -> MultiAxisAttention:
        """Return attention along every axis."""
        return MultiAxisAttention(self.spatial_dims, channels, self.num_heads, self.norm_groups)

    def middle(self, channels: int, build: bool) -> nn.Module:
        """Return residual block, attention, residual block, or nothing."""
        if not build:
            return nn.Identity()
        return nn.Sequential(
            self.residual(channels, channels), self.attention(channels), self.residual(channels, channels)
        )


class Stage(nn.Module):
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
        widths = (in_channels, *(out_channels,) * num_res_blocks)
        self.up: nn.Module = parts.conv(in_channels, in_channels) if resize == "up" else nn.Identity()
        self.blocks = nn.ModuleList(parts.residual(a, b) for a, b in pairwise(widths))
        self.attention: nn.Module = parts.attention(out_channels) if attention else nn.Identity()
        self.down: nn.Module = parts.conv(out_channels, out_channels, stride=2) if resize == "down" else nn.Identity()

    def forward(self, x: Tensor, films: Sequence[Modulation] = (), size: Sequence[int] = ()) -> Tensor:
        """Map ``(b, c, x, y, z)``; ``films`` holds one modulation per block, ``size`` the resolution to go up to."""
        if size and tuple(size) != tuple(x.shape[2:]):
            x = self.up(upsample(x, size))
        for i, block in enumerate(self.blocks):
            x = block(x, films[i] if films else None)
        return self.down(self.attention(x))


class Encoder(nn.Module):
    """Image to the features that both streams start from.

    With ``told`` contrasts it has a stem for each, and FiLM by an embedding of the contrast in its blocks: a patch of
    white matter in T1w looks like a ventricle in T2w, and only who knows the contrast can tell them apart.
    """

    def __init__(
        self,
        parts: Parts,
        in_channels: int,
        channels: Sequence[int],
        num_res_blocks: int,
        attention_levels: Sequence[bool],
        downsample: Sequence[bool],
        mid_blocks: bool,
        stem: Triple,
        told: int,
        embedding_channels: int,
        film_hidden: int,
    ) -> None:
        super().__init__()
        self.stem, self.told, self.num_res_blocks, self.recompute = stem, told, num_res_blocks, False
        self.conv_in = parts.conv(in_channels * math.prod(stem), channels[0] * max(told, 1))
        self.stages = nn.ModuleList(
            Stage(parts, a, b, num_res_blocks, attention, "down" if halved else "none")
            for (a, b), attention, halved in zip(
                pairwise((channels[0], *channels)), attention_levels, downsample, strict=True
            )
        )
        self.mid = parts.middle(channels[-1], mid_blocks)
        self.norm = normalisation(channels[-1], parts.norm_groups)
        if told:
            self.film = FiLM(embedding_channels, film_hidden, [c for c in channels for _ in range(num_res_blocks)], 1)
            self.embedding = nn.Embedding(told, embedding_channels)

    def forward(self, image: Image, modality: ModalityIds) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, c', x/f, y/f, z/f)``."""
        h = self._enter(space_to_depth(image, self.stem), modality)
        films: list[Modulation] = self.film(self.embedding(modality)) if self.told else []
        for i, stage in enumerate(self.stages):
            of_stage = films[i * self.num_res_blocks : (i + 1) * self.num_res_blocks]
            h = run_stage(stage, self.recompute, h, of_stage)
        return activated(self.norm(self.mid(h)))

    def _enter(self, x: Tensor, modality: ModalityIds) -> Tensor:
        """Return what the stem of every image's contrast makes of it."""
        if not self.told:
            return self.conv_in(x)
        if torch.is_grad_enabled():
            h = self.conv_in(x).unflatten(1, (self.told, -1))
            return h[torch.arange(len(h), device=h.device), modality]
        # only the stems that are asked for, each for all images: no image's bits depend on the contrasts beside it
        parts: dict[int, Tensor] = {}
        for one in sorted(set(modality.tolist())):
            own = {name: p.chunk(self.told)[one] for name, p in self.conv_in.named_parameters()}
            parts[one] = functional_call(self.conv_in, own, (x,))
        h, *others = parts.values()
        for one, other in zip(list(parts)[1:], others, strict=True):
            h = torch.where((modality == one)[:, None, None, None, None], other, h)
        return h


class Decoder(nn.Module):
    """Latent and modulations to the image."""

    def __init__(
        self,
        parts: Parts,
        latent_channels: int,
        out_channels: int,
        channels: Sequence[int],
        num_res_blocks: int,
        attention_levels: Sequence[bool],
        upsample: Sequence[bool],
        mid_blocks: bool,
        stem: Triple,
        film_sites: Literal["stage", "block", "none"],
    ) -> None:
        super().__init__()
        self.stem, self.film_sites, self.doubled, self.recompute = stem, film_sites, tuple(upsample), False
        self.conv_in = parts.conv(latent_channels, channels[0])
        self.mid = parts.middle(channels[0], mid_blocks)
        self.stages = nn.ModuleList(
            Stage(parts, a, b, num_res_blocks, attention, "up" if doubled else "none")
            for (a, b), attention, doubled in zip(
                pairwise((channels[0], *channels)), attention_levels, upsample, strict=True
            )
        )
        self.norm = normalisation(channels[-1], parts.norm_groups)
        self.act = nn.SiLU()
        self.conv_out = parts.conv(channels[-1], out_channels * math.prod(stem))
        #: channels of each modulated feature map
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
        h, sizes = self.mid(self.conv_in(latent)), self._sizes(shape)
        if self.film_sites == "stage":
            h = modulate(h, films[0])
            for stage, size, film in zip(self.stages, sizes, films[1:], strict=True):
                h = modulate(run_stage(stage, self.recompute, h, (), size), film)
        else:
            n = len(films) // len(self.stages)
            for i, (stage, size) in enumerate(zip(self.stages, sizes, strict=True)):
                h = run_stage(stage, self.recompute, h, films[i * n : (i + 1) * n], size)
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

    def forward(self, looks: Tensor, weight: Tensor, latent: Sequence[int]) -> Tensor:
        """Map ``(b, c, x, y, z)`` and ``(b, 1, x, y, z)`` to the log gain ``(b, 1, x', y', z')``."""
        cells = self.cells(latent)
        brain = F.adaptive_avg_pool3d(weight, cells)
        mean = F.adaptive_avg_pool3d(self.head(looks).float() * weight, cells) / brain.clamp(min=1e-3)
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
