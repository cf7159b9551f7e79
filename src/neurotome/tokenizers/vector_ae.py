r"""VectorAE: one vector per scan, half of it content and half style (multiview-crl on ADNI, its "VAE" branch).

    z = mean over space of E(x) in R^512,    content = z[0:256],  style = z[256:512],    x_hat = resize(D(z), x)

There is no KL: the network is a plain autoencoder, the contrastive objective alone makes its two halves differ.
``Encoded.latent`` is the vector as a map of one cell, ``(b, d, 1, 1, 1)``; ``CONTENT`` and ``STYLE`` are slices of its
channels at the default width, ``tokenizer.content`` and ``tokenizer.style`` those of any. No shape is refused.

The seed's report gives about 15.5 M parameters for the encoder and 27.8 M for the decoder. Its text followed literally
(two convolutions per residual block, a residual block after every stage) has 23 565 888 and 48 941 841, and so had
every released version; one convolution per block would give 14.13 M and 39.50 M. The report also names GroupNorm for
stability, which only its residual blocks have; ``norm="group"`` puts it everywhere.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from neurotome.nn.nd import BatchNorm, Conv, Flat, Triple, flat_axes, per_axis, upsample
from neurotome.nn.rescale import MaxPool, Slicewise, TransposedConv
from neurotome.ranges import Dims, Size, SizeOrNone
from neurotome.tokenizers.base import Encoded, Tokenizer
from neurotome.types import Image, ModalityIds

CONTENT, STYLE = slice(0, 256), slice(256, 512)
GROUPS = 16
FIRST_EDGE = 2  # voxels per axis of the first map of the decoder


class VectorStage(nn.Module):
    """Convolution, normalisation, activation, and a residual block ``x + relu(gn(conv(relu(gn(conv(x))))))``.

    Args:
        spatial_dims: 2 or 3.
        conv: The convolution, whole or transposed, to ``channels``.
        channels: Channels out.
        norm: Normalisation after the convolution; the residual block always has groups.
        slope: Of the activation below 0.
    """

    def __init__(
        self, spatial_dims: int, conv: nn.Module, channels: int, norm: Literal["batch", "group"], slope: float
    ) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm_of(norm, channels)
        self.act = nn.LeakyReLU(slope)
        self.block = nn.Sequential(
            Conv(spatial_dims, channels, channels), norm_of("group", channels), nn.ReLU(),
            Conv(spatial_dims, channels, channels), norm_of("group", channels), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor, flat: Flat | None = None) -> Tensor:
        """Map ``(b, c, x, y, z)``; ``flat`` is what a transposed convolution asks for."""
        h = self.act(self.norm(self.conv(x) if flat is None else self.conv(x, flat)))
        return h + self.block(h)


def norm_of(kind: Literal["batch", "group"], channels: int) -> nn.Module:
    """Return a normalisation; groups are 16, or as many as divide fewer channels."""
    return BatchNorm(channels) if kind == "batch" else nn.GroupNorm(math.gcd(GROUPS, channels), channels)


class VectorEncoder(nn.Module):
    """Image to vector: stages and pooling, then the mean over space."""

    def __init__(
        self, spatial_dims: int, in_channels: int, channels: Sequence[int], norm: Literal["batch", "group"]
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            VectorStage(spatial_dims, Conv(spatial_dims, a, b), b, norm, slope=0.0)
            for a, b in pairwise((in_channels, *channels))
        )
        self.pool = MaxPool(spatial_dims)

    def maps(self, image: Image) -> Tensor:
        """Return the last map, ``(b, d, x/f, y/f, z/f)``, sizes rounded up."""
        h = image
        for stage in self.stages:
            h = self.pool(stage(h))
        return h

    def forward(self, image: Image) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, d)``."""
        return self.maps(image).float().mean(dim=(2, 3, 4))


class VectorDecoder(nn.Module):
    """Vector to image: a small map, stages that double it, three convolutions that refine, a resize."""

    def __init__(
        self,
        spatial_dims: int,
        dim: int,
        out_channels: int,
        channels: Sequence[int],
        norm: Literal["batch", "group"],
    ) -> None:
        super().__init__()
        self.edges, self.first = per_axis(FIRST_EDGE, spatial_dims), channels[0]
        self.project = nn.Linear(dim, channels[0] * math.prod(self.edges))
        self.stages = nn.ModuleList(
            VectorStage(spatial_dims, TransposedConv(spatial_dims, a, b), b, norm, slope=0.2)
            for a, b in pairwise((channels[0], *channels))
        )
        a, b = channels[-1], max(channels[-1] // 2, 1)
        self.refine = nn.Sequential(
            Conv(spatial_dims, a, a), norm_of(norm, a), nn.LeakyReLU(0.2),
            Conv(spatial_dims, a, b), norm_of(norm, b), nn.LeakyReLU(0.2),
            Conv(spatial_dims, b, out_channels),
        )  # fmt: skip

    def forward(self, z: Tensor, shape: Sequence[int]) -> Tensor:
        """Map ``(b, d)`` to an image of spatial ``shape``."""
        flat = flat_axes(shape)
        h = torch.relu(self.project(z)).view(-1, self.first, *self.edges)  # (b, c, 2, 2, 2)
        for axis, is_flat in enumerate(flat):
            h = h.mean(dim=2 + axis, keepdim=True) if is_flat else h
        for stage in self.stages:
            h = stage(h, flat)
        return upsample(self.refine(h).float(), shape)


class VectorAE(Tokenizer):
    """Autoencoder with a vector for a latent; the contrast is ignored; any shape is admissible.

    The weights start as torch's layers draw them. This differs from the seed, whose code draws every parameter from
    U(-1/sqrt(n), 1/sqrt(n)), n the length of its first axis: n counts a layer's outputs where the spread depends on its
    inputs, and the scales of the normalisations are drawn too, around 0, half of them negative.

    Args:
        spatial_dims: 2 or 3; a two-dimensional network takes a volume slice by slice along z, a vector for each.
        in_channels: Image channels.
        modalities: Contrasts; their order gives the ids.
        channels: Width of each encoder stage; the last is the length of the vector.
        decoder_channels: Width of each decoder stage; the first map has 2 voxels per axis, every stage doubles them.
        content_channels: Leading channels that are content; None for half.
        norm: "batch" (as the seed's code) or "group" (as its report says).

    Attributes:
        content: The content's channels of ``Encoded.latent``.
        style: The style's channels.

    Raises:
        ValueError: ``content_channels`` is not between 0 and the vector's length.
    """

    def __init__(
        self,
        spatial_dims: Dims = 3,
        in_channels: Size = 1,
        modalities: Sequence[str] = ("T1w", "T2w"),
        channels: Sequence[Size] = (32, 64, 128, 256, 512),
        decoder_channels: Sequence[Size] = (512, 256, 128, 64, 32, 16),
        content_channels: SizeOrNone | None = None,
        norm: Literal["batch", "group"] = "batch",
    ) -> None:
        super().__init__()
        dim = channels[-1]
        content = dim // 2 if content_channels is None else content_channels
        if content > dim:
            raise ValueError(f"content_channels is {content} of {dim}; give at most {dim}")
        self.modalities, self.latent_channels = tuple(modalities), dim
        self.content, self.style = slice(0, content), slice(content, dim)
        self.factor, self.slices = per_axis(2 ** len(channels), spatial_dims), Slicewise(spatial_dims)
        self.encoder = VectorEncoder(spatial_dims, in_channels, channels, norm)
        self.decoder = VectorDecoder(spatial_dims, dim, in_channels, decoder_channels, norm)

    def encode(self, image: Image, modality: ModalityIds) -> Encoded:
        """See :class:`Tokenizer`; ``aux`` holds the halves, ``content`` and ``style``, ``(b, d, 1, 1, 1)`` each."""
        self.check_input(image, modality)
        self.slices.check(image.shape[2:])
        z = self.encoder(self.slices.fold(image))[:, :, None, None, None]
        latent = self.slices.unfold(z, len(image))
        x, y, z_ = image.shape[2:]
        aux = {"content": latent[:, self.content], "style": latent[:, self.style]}
        return Encoded(latent, {}, None, {}, (x, y, z_), aux)

    def decode(self, encoded: Encoded, modality: ModalityIds) -> Image:
        """See :class:`Tokenizer`; the image is clamped to [-1, 1] in evaluation."""
        self.check_code(encoded, modality)
        z = self.slices.fold(encoded.latent).flatten(1)
        shape = (*encoded.shape[:2], 1) if self.slices.alone else encoded.shape
        image = self.slices.unfold(self.decoder(z, shape), len(encoded.latent))
        return image if self.training else image.clamp(-1, 1)

    def latent_shape(self, shape: Sequence[int]) -> Triple:
        """Return ``(1, 1, 1)``, or one cell per slice for a two-dimensional network; every shape is admissible."""
        return 1, 1, shape[2] if self.slices.alone else 1

    def bits(self, shape: Sequence[int]) -> float:
        """See :class:`Tokenizer`."""
        return float(self.float_bits * self.latent_channels * math.prod(self.latent_shape(shape)))
