"""Down and up by two, learned: the blocks that autoencoders change resolution with.

Along an axis of length 1 there is nothing to halve, and going up must leave it: ``flat`` says which axes of the source
are so, because a latent's axis may have length 1 for having been halved often enough.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurotome.nn.nd import Conv, Flat, Triple, flat_axes, per_axis, upsample


def doubled(size: Sequence[int], flat: Flat, step: Triple) -> Triple:
    """Return ``size`` times ``step``, but for flat axes."""
    x, y, z = (n if is_flat else n * s for n, is_flat, s in zip(size, flat, step, strict=True))
    return x, y, z


class Downsample(nn.Module):
    """Strided convolution of width 3 whose window opens at the voxel it halves: ``y_i`` sees ``x_2i, x_2i+1, x_2i+2``.

    Of even sizes every voxel is seen, the end is padded with one zero (as in latent diffusion's autoencoder).

    Args:
        spatial_dims: 2 or 3.
        channels: Channels in and out.
    """

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.conv = Conv(spatial_dims, channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, c, x/2, y/2, z/2)``; lengths are even or 1."""
        halved = [s > 1 and not is_flat for s, is_flat in zip(self.conv.stride, flat_axes(x.shape), strict=True)]
        # two zeros in front shift the convolution's centred windows by one voxel; the first one then sees padding alone
        y = self.conv(F.pad(x, [int(h) for h in reversed(halved) for _ in range(2)]))
        for axis, h in enumerate(halved):
            y = y.narrow(2 + axis, int(h), y.shape[2 + axis] - int(h))
        return y


class Upsample(nn.Module):
    """Repeat every voxel or interpolate between them, then a convolution of width 3.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels in and out.
        upsampling: "nearest" repeats (AutoencoderKL), "trilinear" interpolates (MAISI).

    Raises:
        ValueError: Another ``upsampling``.
    """

    def __init__(
        self, spatial_dims: int, channels: int, upsampling: Literal["nearest", "trilinear"] = "nearest"
    ) -> None:
        super().__init__()
        if upsampling not in ("nearest", "trilinear"):
            raise ValueError(f"upsampling is {upsampling!r}; admissible are nearest and trilinear")
        self.step, self.upsampling = per_axis(2, spatial_dims), upsampling
        self.conv = Conv(spatial_dims, channels, channels)

    def forward(self, x: Tensor, flat: Flat) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, c, 2x, 2y, 2z)``; flat axes stay."""
        size = doubled(x.shape[2:], flat, self.step)
        return self.conv(upsample(x, size) if self.upsampling == "trilinear" else F.interpolate(x, size=size))


class TransposedConv(nn.Module):
    """The transpose of a convolution of width 4 and stride 2, ``2 n`` voxels out.

    Along a flat axis the two voxels it would make are averaged, as :func:`neurotome.nn.nd.depth_to_space` does.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels in.
        out_channels: Channels out.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.kernel, self.stride = per_axis(4, spatial_dims), per_axis(2, spatial_dims)
        self.weight = nn.Parameter(torch.empty(in_channels, out_channels, *self.kernel))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as torch's transposed convolutions do."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, flat: Flat) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, out, 2x, 2y, 2z)``; flat axes stay."""
        weight: Tensor = self.weight
        for axis, (is_flat, k) in enumerate(zip(flat, self.kernel, strict=True)):
            if is_flat and k > 1:
                weight = weight.narrow(2 + axis, 1, 2).mean(2 + axis, keepdim=True)
        stride = tuple(1 if is_flat else s for is_flat, s in zip(flat, self.stride, strict=True))
        padding = tuple(int(k == 4) for k in weight.shape[2:])
        return F.conv_transpose3d(x, weight, self.bias, stride, padding)


class MaxPool(nn.Module):
    """Largest of 3 voxels per axis, stride 2, ``ceil(n / 2)`` voxels out.

    Args:
        spatial_dims: 2 or 3.
    """

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self.kernel, self.stride = per_axis(3, spatial_dims), per_axis(2, spatial_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, c, x/2, y/2, z/2)``."""
        return F.max_pool3d(x, self.kernel, self.stride, tuple(k // 2 for k in self.kernel))


class Slicewise(nn.Module):
    """Whether a network takes a volume as one image or slice by slice along z, and the way there and back.

    A two-dimensional network sees every slice alone: no statistic and no attention reaches over to the next.

    Args:
        spatial_dims: 2 or 3.
    """

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        step = per_axis(2, spatial_dims)
        self.alone = step[2] == 1

    def check(self, shape: Sequence[int]) -> None:
        """Refuse slices along x or y of a two-dimensional network.

        Raises:
            ValueError: One of the first two axes has length 1, the last has not.
        """
        if self.alone and 1 in tuple(shape)[:2] and shape[2] > 1:
            raise ValueError(
                f"shape {tuple(shape)} is a slice along another axis than z; a network with spatial_dims=2 takes "
                "slices (x, y, 1) or volumes: move the flat axis to the end, or use spatial_dims=3"
            )

    def fold(self, x: Tensor) -> Tensor:
        """Return ``(b, c, x, y, z)`` as ``(b z, c, x, y, 1)`` where slices stand alone."""
        return x.movedim(-1, 1).flatten(0, 1).unsqueeze(-1) if self.alone and x.shape[-1] > 1 else x

    def unfold(self, x: Tensor, batch: int) -> Tensor:
        """Undo :meth:`fold` for ``batch`` images."""
        return x.reshape(batch, -1, *x.shape[1:4]).movedim(1, -1) if len(x) != batch else x
