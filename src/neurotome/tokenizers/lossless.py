r"""Tokenizers without parameters: what a latent model can be trained on without a trained tokenizer.

    Identity        z = x
    SpaceToDepth    z = blocks of f voxels as channels
    HaarWavelet     z = H x,   H^T H = 1              energies are equal, so is what noise does to them
    MaskCodec       z = one plane of -1 and 1 per voxel of a block         for binary masks, 1 bit per voxel

All but the codec keep an image to the last bit or, the wavelet, to rounding; the codec keeps the sign of each voxel.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from neurotome.nn.nd import XYZ, checked_order, depth_to_space, flat_axes, per_axis, space_to_depth
from neurotome.ranges import Axis, Dims, Positive, Size
from neurotome.tokenizers.base import Encoded, Tokenizer
from neurotome.types import Image, ModalityIds

BLOCKS = {"f32": 32, "f64": 64, "f128": 128, "k8x8": 8}
"""Edge in the plane of a block of each published format: a mask of 256x256 becomes 8x8, 4x4, 2x2 or 32x32 cells."""


class _Lossless(Tokenizer):
    """What all have in common: one latent, no bottleneck, contrast-blind."""

    window = None
    float_bits = 32

    def _encoded(self, latent: Tensor, image: Image) -> Encoded:
        x, y, z = image.shape[2:]
        return Encoded(latent, {}, None, {}, (x, y, z))

    def bits(self, shape: Sequence[int]) -> float:
        """Return 32 bits per stored float: what a scan holds to the last bit takes no fewer."""
        return 32.0 * self.latent_channels * math.prod(self.latent_shape(shape))


class Identity(_Lossless):
    """The image is its own latent.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        modalities: Contrasts it is used for.
    """

    def __init__(
        self, spatial_dims: Dims = 3, in_channels: Size = 1, modalities: Sequence[str] = ("T1w", "T2w")
    ) -> None:
        super().__init__()
        self.modalities, self.latent_channels = tuple(modalities), in_channels
        self.factor = per_axis(1, spatial_dims)

    def encode(self, image: Image, modality: ModalityIds) -> Encoded:
        """See :class:`~neurotome.tokenizers.base.Tokenizer`."""
        self.check_input(image, modality)
        return self._encoded(image, image)

    def decode(self, encoded: Encoded, modality: ModalityIds) -> Image:
        """See :class:`~neurotome.tokenizers.base.Tokenizer`."""
        self.check_code(encoded, modality)
        return encoded.latent


class SpaceToDepth(_Lossless):
    """Blocks of voxels become channels; nothing is computed.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        modalities: Contrasts it is used for.
        block: Voxels of a block along each axis.

    Raises:
        ValueError: ``block`` is below 1.
    """

    def __init__(
        self,
        spatial_dims: Dims = 3,
        in_channels: Size = 1,
        modalities: Sequence[str] = ("T1w", "T2w"),
        block: Size = 2,
    ) -> None:
        super().__init__()
        self.modalities, self.factor = tuple(modalities), per_axis(block, spatial_dims)
        self.latent_channels = in_channels * math.prod(self.factor)

    def encode(self, image: Image, modality: ModalityIds) -> Encoded:
        """See :class:`~neurotome.tokenizers.base.Tokenizer`."""
        self.check_input(image, modality)
        return self._encoded(space_to_depth(image, self.factor), image)

    def decode(self, encoded: Encoded, modality: ModalityIds) -> Image:
        """See :class:`~neurotome.tokenizers.base.Tokenizer`."""
        self.check_code(encoded, modality)
        return depth_to_space(encoded.latent, self.factor, encoded.shape)


class HaarWavelet(_Lossless):
    """One level of the orthonormal Haar wavelet: 8 bands of a volume, 4 of a slice.

    Along each axis two neighbours a, b become (a + b) / sqrt(2) and (a - b) / sqrt(2). Bands are counted in binary with
    the first axis of ``axis_order`` in front: LLL, LLH, LHL, LHH, HLL, HLH, HHL, HHH; band after band, each with all
    channels of the image. An axis of length 1 has no neighbours: its low band is the voxel, its high band is zero.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        modalities: Contrasts it is used for.
        low_divisor: What the lowest band is divided by, and multiplied with when decoding; 3 in wavelet diffusion
            (Friedrich et al., 2024, WDM), which brings it near the range of the image but costs orthonormality.
        axis_order: Order of the axes (0 is x) in a band's number. MedGen's code has (2, 1, 0): its arrays are z, x, y,
            and it counts z in front, then y, then x, where its text says z, x, y.

    Raises:
        ValueError: ``low_divisor`` is not positive, or ``axis_order`` is no order of the axes.
    """

    def __init__(
        self,
        spatial_dims: Dims = 3,
        in_channels: Size = 1,
        modalities: Sequence[str] = ("T1w", "T2w"),
        low_divisor: Positive = 1.0,
        axis_order: Sequence[Axis] = XYZ,
    ) -> None:
        super().__init__()
        self.modalities, self.factor = tuple(modalities), per_axis(2, spatial_dims)
        self.low_divisor, self.order = low_divisor, checked_order(axis_order)
        self.latent_channels = in_channels * math.prod(self.factor)

    def encode(self, image: Image, modality: ModalityIds) -> Encoded:
        """See :class:`~neurotome.tokenizers.base.Tokenizer`."""
        self.check_input(image, modality)
        bands = image[:, None]  # (b, band, c, x, y, z)
        flat = flat_axes(image.shape)
        for axis in (a for a in self.order if self.factor[a] == 2):
            if flat[axis]:
                low, high = bands, torch.zeros_like(bands)
            else:
                a, b = torch.unflatten(bands, 3 + axis, (-1, 2)).unbind(4 + axis)
                low, high = (a + b) * math.sqrt(0.5), (a - b) * math.sqrt(0.5)
            bands = torch.stack([low, high], dim=2).flatten(1, 2)
        return self._encoded(torch.cat([bands[:, :1] / self.low_divisor, bands[:, 1:]], dim=1).flatten(1, 2), image)

    def decode(self, encoded: Encoded, modality: ModalityIds) -> Image:
        """See :class:`~neurotome.tokenizers.base.Tokenizer`."""
        self.check_code(encoded, modality)
        bands = torch.unflatten(encoded.latent, 1, (-1, self.in_channels))
        bands = torch.cat([bands[:, :1] * self.low_divisor, bands[:, 1:]], dim=1)
        flat = [s == 1 for s in encoded.shape]
        for axis in (a for a in reversed(self.order) if self.factor[a] == 2):
            low, high = torch.unflatten(bands, 1, (-1, 2)).unbind(2)
            if flat[axis]:
                bands = low
            else:
                pair = torch.stack([low + high, low - high], dim=4 + axis) * math.sqrt(0.5)
                bands = pair.flatten(3 + axis, 4 + axis)
        return bands[:, 0]


class MaskCodec(_Lossless):
    """A binary mask as bit planes, one channel per voxel of a block, -1 outside and 1 inside.

    Networks get the planes. On disk they are bits, as every latent of signs alone
    (:mod:`neurotome.files.bit_planes`).

    Args:
        spatial_dims: 2 or 3; a volume is coded slice by slice unless ``depth`` is more than 1.
        in_channels: Masks per image.
        modalities: Contrasts it is used for; a mask has none, the ids are checked and ignored.
        layout: Edge of a block in the plane: "f32", "f64", "f128" are 32, 64, 128 voxels, "k8x8" is 8.
        depth: Voxels of a block along z; without meaning for ``spatial_dims=2``.

    Raises:
        ValueError: Another layout, or ``depth`` below 1.
    """

    def __init__(
        self,
        spatial_dims: Dims = 3,
        in_channels: Size = 1,
        modalities: Sequence[str] = ("T1w", "T2w"),
        layout: Literal["f32", "f64", "f128", "k8x8"] = "f32",
        depth: Size = 1,
    ) -> None:
        super().__init__()
        x, y, _ = per_axis(BLOCKS[layout], spatial_dims)
        self.modalities, self.factor = tuple(modalities), (x, y, per_axis(depth, spatial_dims)[2])
        self.latent_channels = in_channels * math.prod(self.factor)

    def encode(self, image: Image, modality: ModalityIds) -> Encoded:
        """Return the planes of ``image > 0``."""
        self.check_input(image, modality)
        return self._encoded(space_to_depth(torch.where(image > 0, 1.0, -1.0).to(image.dtype), self.factor), image)

    def decode(self, encoded: Encoded, modality: ModalityIds) -> Image:
        """Return the mask, -1 outside and 1 inside; planes are read by their sign, so a network need not be exact."""
        self.check_code(encoded, modality)
        planes = depth_to_space(encoded.latent, self.factor, encoded.shape)
        return torch.where(planes > 0, 1.0, -1.0).to(planes.dtype)

    def bits(self, shape: Sequence[int]) -> float:
        """Return one bit per stored sign."""
        return float(self.latent_channels * math.prod(self.latent_shape(shape)))
