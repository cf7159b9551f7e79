r"""VQVAE2: codes at several resolutions (Razavi et al., 2019, arXiv:1906.00446), as multiview-crl has it for ADNI.

    h_0 = E_0(x),  h_l = E_l(h_{l-1})                                     fine (0) to coarse (L-1)
    q_l = Q_l(W_l [h_l, resize(g_{l+1}, h_l)]),   no g above the coarsest
    g_l = D_l([q_l, u(q_{l+1}), ..., u^{L-1-l}(q_{L-1})]),   x_hat = resize(g_0, x)

``u`` is a learned up-scaler per codebook followed by a trilinear resize to the next finer map, so that any size is
admissible: 91x109x91 has maps of 22x27x22, 11x13x11 and 5x6x5 (strided convolutions of width 4 round down) and a raw
output of 88x108x88. The defaults have the seed's 2 935 149 parameters.

``Encoded.latent`` is what D_0 receives: the codes of every level, up-scaled to the finest map and concatenated, the
finest first. ``codes`` holds every level, coarsest first; ``aux`` holds the encoder's maps ``level0``, ``level1``, ...

The published codebook starts its sums at random codes and its counts at 0: the first update divides by nearly nothing
and flings every unvisited code out to norms of 1e5, 3 of 512 codes stay in use, for about ln(1/eps)/ln(1/decay) = 1146
steps. Here counts start with the data (:mod:`neurotome.nn.quantize.ema`); a test shows both.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from neurotome.nn.nd import BatchNorm, Conv, Flat, Triple, flat_axes, per_axis, upsample
from neurotome.nn.quantize.base import Coding
from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.nn.rescale import Slicewise, TransposedConv
from neurotome.ranges import Dims, Finite, Share, Size
from neurotome.tokenizers.base import Encoded, Tokenizer
from neurotome.tokenizers.tissue import (
    TISSUE,
    bits_with_tissue,
    cell_bits,
    coarser,
    on_background,
    only_tissue,
    tissue_cells,
    tissue_of,
)
from neurotome.types import Codes, Image, Latent, ModalityIds

Norm = Literal["batch", "group", "none"]


def norm_of(kind: Norm, channels: int) -> nn.Module:
    """Return a normalisation; group normalisation has at most 8 groups of channels."""
    if kind == "none":
        return nn.Identity()
    return BatchNorm(channels) if kind == "batch" else nn.GroupNorm(math.gcd(8, channels), channels)


class ReZero(nn.Module):
    """``x + alpha relu(norm(conv(relu(norm(conv(x))))))`` with alpha = 0 at the start (Bachlechner et al., 2021).

    Args:
        spatial_dims: 2 or 3.
        channels: Channels in and out.
        hidden: Channels between the convolutions.
        norm: Normalisation.
    """

    def __init__(self, spatial_dims: int, channels: int, hidden: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Conv(spatial_dims, channels, hidden, bias=False), norm_of(norm, hidden), nn.ReLU(),
            Conv(spatial_dims, hidden, channels, bias=False), norm_of(norm, channels), nn.ReLU(),
        )  # fmt: skip
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, x, y, z)`` to the same shape."""
        return x + self.alpha * self.body(x)


class LevelEncoder(nn.Module):
    """The next coarser map: halvings, a convolution, ReZero blocks."""

    def __init__(
        self, spatial_dims: int, in_channels: int, channels: int, hidden: int, blocks: int, halvings: int, norm: Norm
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        a, b = in_channels, channels // 2
        for _ in range(halvings):
            layers += [Conv(spatial_dims, a, b, kernel_size=4, stride=2), norm_of(norm, b), nn.ReLU()]
            a, b = b, channels
        layers += [Conv(spatial_dims, a, channels), norm_of(norm, channels)]
        self.layers = nn.Sequential(*layers, *(ReZero(spatial_dims, channels, hidden, norm) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, channels, x/f, y/f, z/f)``."""
        return self.layers(x)


class UpStep(nn.Module):
    """Transposed convolution, normalisation, ReLU."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.up = TransposedConv(spatial_dims, in_channels, out_channels)
        self.norm = norm_of(norm, out_channels)

    def forward(self, x: Tensor, flat: Flat) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, out, 2x, 2y, 2z)``; flat axes stay."""
        return torch.relu(self.norm(self.up(x, flat)))


class LevelDecoder(nn.Module):
    """Codes of a level and of all coarser ones to what the next finer level (or the image) starts from.

    The output has no activation. As published it passes a batch normalisation, that of the image too; group
    normalisation would fix every image's mean and spread, and is left out there.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: int,
        hidden: int,
        blocks: int,
        doublings: int,
        norm: Norm,
        norm_out: Norm,
    ) -> None:
        super().__init__()
        self.conv_in = Conv(spatial_dims, in_channels, channels)
        self.blocks = nn.Sequential(*(ReZero(spatial_dims, channels, hidden, norm) for _ in range(blocks)))
        self.up = nn.ModuleList()
        a, b = channels, channels // 2
        for _ in range(doublings):
            self.up.append(UpStep(spatial_dims, a, b, norm))
            a, b = b, out_channels
        self.conv_out, self.norm = Conv(spatial_dims, a, out_channels), norm_of(norm_out, out_channels)

    def forward(self, x: Tensor, flat: Flat) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, out, f x, f y, f z)``; flat axes stay."""
        h = self.blocks(self.conv_in(x))
        for up in self.up:
            h = up(h, flat)
        return self.norm(self.conv_out(h))


class UpScaler(nn.Module):
    """The way of one level's codes to every finer map: one stage per map."""

    def __init__(self, spatial_dims: int, dim: int, doublings: Sequence[int], norm: Norm) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleList(UpStep(spatial_dims, dim, dim, norm) for _ in range(n)) for n in doublings
        )

    def forward(self, x: Tensor, stage: int, size: Sequence[int], flat: Flat) -> Tensor:
        """Map ``(b, d, x, y, z)`` one map finer, to exactly ``size``."""
        for step in self.stages[stage]:  # type: ignore[attr-defined]  # a list of lists
            x = step(x, flat)
        return resized(x, size)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return ``x`` at exactly ``size``, interpolated linearly where it differs."""
    return x if tuple(x.shape[2:]) == tuple(size) else upsample(x, size)


class VQVAE2(Tokenizer):
    """Hierarchical VQ-VAE with any number of levels; the contrast is ignored; any shape is admissible.

    Args:
        spatial_dims: 2 or 3; a two-dimensional network takes a volume slice by slice along z.
        in_channels: Image channels.
        modalities: Contrasts; their order gives the ids.
        scaling_rates: Factor of each level, fine to coarse, powers of 2.
        channels: Width of every level.
        res_channels: Width inside the ReZero blocks.
        num_res_blocks: ReZero blocks per encoder and decoder of a level.
        quantizers: One per level, fine to coarse, all with codes of one length; None for 512 codes of 32 numbers each.
        norm: "batch" (published), "group", or "none". Batch statistics of a few volumes carry contrast from one view to
            another; "group" is the safe choice for new trainings.
        hide_prob: Share of the training images whose finer codes are hidden from the image's decoder, up to a level
            drawn for each, so that every coarser level must say what it can (ours, after the quantizer dropout of
            Zeghidour et al., 2022, arXiv:2107.03312); 0 never (published).
        tissue_above: Cells whose brightest voxel is at most this are background: they take one bit on the finest map,
            have no code, and are decoded to -1 (ours, see :mod:`neurotome.tokenizers.tissue`); None codes every cell
            (published).

    Raises:
        ValueError: A rate is not a power of 2, there is not one quantizer per level, their codes differ in length, or
            ``hide_prob`` is no probability.
    """

    from_codes = True

    def __init__(
        self,
        spatial_dims: Dims = 3,
        in_channels: Size = 1,
        modalities: Sequence[str] = ("T1w", "T2w"),
        scaling_rates: Sequence[Size] = (4, 2, 2),
        channels: Size = 64,
        res_channels: Size = 32,
        num_res_blocks: Size = 2,
        quantizers: Sequence[EMAQuantizer] | None = None,
        norm: Norm = "batch",
        hide_prob: Share = 0.0,
        tissue_above: Finite | None = None,
    ) -> None:
        super().__init__()
        levels = len(scaling_rates)
        quantizers = [EMAQuantizer(512, 32) for _ in range(levels)] if quantizers is None else list(quantizers)
        if any(rate < 2 or rate & (rate - 1) for rate in scaling_rates):
            raise ValueError(f"scaling_rates is {tuple(scaling_rates)}; give a power of 2, at least 2, per level")
        dims = [quantizer.dim for quantizer in quantizers]
        if len(dims) != levels or len(set(dims)) > 1:
            raise ValueError(
                f"quantizers have the dims {dims} for {levels} levels; give one quantizer per level, all with one dim"
            )
        if hide_prob and levels < 2:
            raise ValueError(f"hide_prob is {hide_prob} with one level; give 0")
        d = dims[0]
        self.modalities, self.latent_channels = tuple(modalities), sum(dims)
        self.code_channels, self.hide_prob = d, hide_prob
        self.codebook_sizes = {f"level{i}": quantizers[i].num_codes for i in reversed(range(levels))}
        self.tissue_above = tissue_above
        if tissue_above is not None:
            self.codebook_sizes[TISSUE] = 2
        self.rates = [per_axis(rate, spatial_dims) for rate in scaling_rates]
        self.factor, self.slices = self.rates[0], Slicewise(spatial_dims)
        halvings = [rate.bit_length() - 1 for rate in scaling_rates]
        inner = (res_channels, num_res_blocks)
        self.encoders = nn.ModuleList(
            LevelEncoder(spatial_dims, channels if i else in_channels, channels, *inner, n, norm)
            for i, n in enumerate(halvings)
        )
        top = levels - 1
        self.to_code = nn.ModuleList(Conv(spatial_dims, channels + (d if i < top else 0), d, 1) for i in range(levels))
        for quantizer in quantizers:
            quantizer.draw()
        self.quantizers = nn.ModuleList(quantizers)
        self.decoders = nn.ModuleList(
            LevelDecoder(
                spatial_dims,
                d * (levels - i),
                d if i else in_channels,
                channels,
                *inner,
                n,
                norm,
                norm if i or norm == "batch" else "none",
            )
            for i, n in enumerate(halvings)
        )
        # the codes of level i pass the maps i - 1, ..., 0
        self.scalers = nn.ModuleList(
            UpScaler(spatial_dims, d, [halvings[j] for j in range(i, 0, -1)], norm) for i in range(1, levels)
        )

    def encode(self, image: Image, modality: ModalityIds) -> Encoded:
        """See :class:`Tokenizer`; ``commitment`` is the sum over the levels, ``aux`` has each one beside the maps."""
        self.check_input(image, modality)
        self.slices.check(image.shape[2:])
        b, x = len(image), self.slices.fold(image)
        flat, maps, seen = flat_axes(x.shape), [], x
        for encoder in self.encoders:
            x = encoder(x)
            maps.append(x)
        tissue, above = self._tissue(seen, maps[0].shape[2:]), None
        latents: list[Tensor] = []  # codes at the current map, this level's first, then the coarser ones'
        codes: dict[str, Codes] = {}
        aux = {f"level{i}": self.slices.unfold(h, b) for i, h in enumerate(maps)}
        for i in reversed(range(len(maps))):
            size = maps[i].shape[2:]
            h = maps[i] if above is None else torch.cat([maps[i], resized(above, size).to(maps[i].dtype)], dim=1)
            where = None if tissue is None else coarser(tissue, size)
            found: Coding = self.quantizers[i](self.to_code[i](h).float(), where=where)
            latents = [found.vectors, *self._scaled(latents, i, size, flat)]
            codes[f"level{i}"] = self.slices.unfold(found.codes[0][:, None], b)[:, 0]
            aux[f"commitment_level{i}"] = found.terms["commitment"]
            if i:
                above = self.decoders[i](torch.cat(latents, dim=1), flat)
        commitment = torch.stack([aux[f"commitment_level{i}"] for i in range(len(maps))]).sum()
        latent = self._hidden(self.slices.unfold(torch.cat(latents, dim=1).float(), b))
        if tissue is not None:
            inside = self.slices.unfold(tissue[:, None], b)
            codes[TISSUE], latent = inside[:, 0].long(), latent * inside
        nx, ny, nz = image.shape[2:]
        return Encoded(latent, codes, None, {"commitment": commitment}, (nx, ny, nz), aux)

    def decode(self, encoded: Encoded, modality: ModalityIds) -> Image:
        """See :class:`Tokenizer`; needs the latent alone. The image is clamped to [-1, 1] in evaluation."""
        self.check_code(encoded, modality)
        latent = self.slices.fold(encoded.latent)
        shape = (*encoded.shape[:2], 1) if self.slices.alone else encoded.shape
        image = resized(self.decoders[0](latent, flat_axes(shape)).float(), shape)
        image = self.slices.unfold(image, len(encoded.latent))
        image = image if self.tissue_above is None else on_background(image, tissue_of(encoded))
        return image if self.training else image.clamp(-1, 1)

    def lookup(self, codes: Mapping[str, Tensor], shape: Sequence[int]) -> Latent:
        """See :class:`Tokenizer`; every map is needed."""
        latents: list[Tensor] = []
        flat = flat_axes((*shape[:2], 1) if self.slices.alone else shape)
        tissue = self.slices.fold(codes[TISSUE][:, None])[:, 0].bool() if TISSUE in codes else None
        for i in reversed(range(len(self.quantizers))):  # coarsest first
            quantizer: EMAQuantizer = self.quantizers[i]  # type: ignore[assignment]  # a list of them
            vectors = self.slices.fold(quantizer.lookup([codes[f"level{i}"]]))
            if tissue is not None:
                vectors = vectors * coarser(tissue, vectors.shape[2:])[:, None]
            latents = [vectors, *self._scaled(latents, i, vectors.shape[2:], flat)]
        latent = self.slices.unfold(torch.cat(latents, dim=1).float(), len(next(iter(codes.values()))))
        return only_tissue(latent, codes)

    def code_shapes(self, shape: Sequence[int]) -> dict[str, Triple]:
        """See :class:`Tokenizer`: each level has its own; the map of tissue has that of the finest."""
        finest, *coarse = self.map_shapes(shape)
        return dict(zip(self.codebook_sizes, (*reversed(coarse), finest, finest), strict=False))

    def latent_shape(self, shape: Sequence[int]) -> Triple:
        """Return the finest map's spatial shape; every shape is admissible, lengths are rounded down."""
        return self.map_shapes(shape)[0]

    def map_shapes(self, shape: Sequence[int]) -> list[Triple]:
        """Return the spatial shape of each level's map, fine to coarse."""
        found: list[Triple] = []
        x, y, z = shape
        for rate in self.rates:
            x, y, z = (max(s // f, 1) for s, f in zip((x, y, z), rate, strict=True))
            found.append((x, y, z))
        return found

    def bits(self, shape: Sequence[int]) -> float:
        """See :class:`Tokenizer`; the codebooks of all levels; with background left out, the most an image can take."""
        cells = [math.prod(size) for size in self.map_shapes(shape)]
        bits = cell_bits(self.codebook_sizes).values()  # coarse to fine
        which = 0 if self.tissue_above is None else cells[0]
        return float(which + sum(k * n for k, n in zip(bits, reversed(cells), strict=True)))

    def bits_used(self, encoded: Encoded) -> Tensor:
        """See :class:`Tokenizer`; codes where there is tissue, and a bit per finest cell that says where."""
        if self.tissue_above is None:
            return super().bits_used(encoded)
        return bits_with_tissue(encoded.codes, cell_bits(self.codebook_sizes))

    def _tissue(self, image: Tensor, cells: Sequence[int]) -> Tensor | None:
        """Return which cells of the finest map hold tissue; None where every cell is coded."""
        return None if self.tissue_above is None else tissue_cells(image, cells, self.tissue_above)

    def _hidden(self, latent: Latent) -> Latent:
        """Return the latent with the finer codes of some training images at zero."""
        if not (self.training and self.hide_prob):
            return latent
        b, levels = len(latent), len(self.quantizers)
        first = torch.randint(1, levels, (b,), device=latent.device)  # the finest level that is left
        first = torch.where(torch.rand(b, device=latent.device) < self.hide_prob, first, 0)
        level = torch.arange(latent.shape[1], device=latent.device) // self.code_channels
        return latent * (level[None] >= first[:, None])[:, :, None, None, None]

    def _scaled(self, latents: Sequence[Tensor], level: int, size: Sequence[int], flat: Flat) -> list[Tensor]:
        """Return the codes of the levels above ``level``, now at its map; they come in the order level + 1, ..."""
        return [self.scalers[level + k](q, k, size, flat) for k, q in enumerate(latents)]
