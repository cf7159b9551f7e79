r"""Resampling that learns residuals on voxels moved into channels (Chen et al., 2025, DC-AE, arXiv:2410.10733).

    down:  fold(conv(x)) + mean(fold(x))            fold: blocks of f voxels become f times the channels
    up:    unfold(conv(x)) + unfold(repeat(x))      unfold: the inverse

The second term has no weights: it averages groups of neighbouring channels, or repeats each channel. With convolutions
that give zero the network is a fixed, lossy average; what is learned is what is missing in it. Which voxels of a block
are neighbouring channels, and so averaged with each other, is a choice: the order of the axes in the fold.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neurotome.nn.nd import XYZ, BatchNorm, Conv, Triple, depth_to_space, space_to_depth


def average_channels(x: Tensor, channels: int) -> Tensor:
    """Average groups of neighbouring channels, ``(b, c, x, y, z)`` to ``(b, channels, x, y, z)``.

    Raises:
        ValueError: ``channels`` does not divide the channels of ``x``.
    """
    if x.shape[1] % channels:
        raise ValueError(f"{x.shape[1]} channels cannot be averaged to {channels}; give a divisor")
    return torch.unflatten(x, 1, (channels, -1)).mean(dim=2)


def repeat_channels(x: Tensor, channels: int) -> Tensor:
    """Repeat every channel, ``(b, c, x, y, z)`` to ``(b, channels, x, y, z)``; :func:`average_channels` undoes it.

    Raises:
        ValueError: ``channels`` is not a multiple of the channels of ``x``.
    """
    if channels % x.shape[1]:
        raise ValueError(f"{x.shape[1]} channels cannot be repeated to {channels}; give a multiple")
    return x.repeat_interleave(channels // x.shape[1], dim=1)


class ShortcutDownsample(nn.Module):
    """``fold(conv(x))``, plus the averaged fold of ``x`` as a shortcut.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels in.
        out_channels: Channels out, a multiple of the voxels of a block.
        factor: Voxels of a block along x, y, z.
        shortcut: Whether the averaged fold is added.
        order: Axes of a block in its channels, the last one changing fastest.

    Raises:
        ValueError: The channels do not fit the block.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        factor: Triple,
        shortcut: bool = True,
        order: Triple = XYZ,
    ) -> None:
        super().__init__()
        block = math.prod(factor)
        if out_channels % block:
            raise ValueError(f"channels go to {out_channels} in blocks of {factor}; give a multiple of {block}")
        if shortcut and in_channels * block % out_channels:
            raise ValueError(f"{in_channels} channels in blocks of {factor} cannot be averaged to {out_channels}")
        self.out_channels, self.factor, self.shortcut, self.order = out_channels, factor, shortcut, order
        self.conv = Conv(spatial_dims, in_channels, out_channels // block)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, out, x/f, y/f, z/f)``; an axis of length 1 stays."""
        y = space_to_depth(self.conv(x), self.factor, self.order)
        if self.shortcut:
            y = y + average_channels(space_to_depth(x, self.factor, self.order), self.out_channels)
        return y


class ShortcutUpsample(nn.Module):
    """``unfold(conv(x))``, plus the unfolded repetition of ``x`` as a shortcut.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels in.
        out_channels: Channels out.
        factor: Voxels of a block along x, y, z.
        shortcut: Whether the repetition is added.
        order: Axes of a block in its channels, the last one changing fastest.

    Raises:
        ValueError: The channels do not fit the block.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        factor: Triple,
        shortcut: bool = True,
        order: Triple = XYZ,
    ) -> None:
        super().__init__()
        self.folded = out_channels * math.prod(factor)
        if shortcut and self.folded % in_channels:
            raise ValueError(f"{in_channels} channels cannot be repeated to {out_channels} in blocks of {factor}")
        self.factor, self.shortcut, self.order = factor, shortcut, order
        self.conv = Conv(spatial_dims, in_channels, self.folded)

    def forward(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Map ``(b, c, x/f, y/f, z/f)`` to ``(b, out, x, y, z)``; ``shape`` is ``(x, y, z)``."""
        y = self.conv(x)
        if self.shortcut:
            y = y + repeat_channels(x, self.folded)
        return depth_to_space(y, self.factor, shape, self.order)


class ChannelNorm(nn.Module):
    """``x / rms(x) * weight + bias``, the root mean square over the channels of each voxel.

    Args:
        channels: Channels.
        eps: Added to the mean square.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, x, y, z)`` to the same shape; the mean square is taken in single precision."""
        scale = torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + self.eps).to(x.dtype)
        return x * scale * self.weight.view(-1, 1, 1, 1) + self.bias.view(-1, 1, 1, 1)


class PostNormBlock(nn.Module):
    """``x + norm(conv(act(conv(x))))``, the residual block of DC-AE.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels in and out.
        batch_norm: Whether batch normalisation and ReLU take the place of the norm over channels and SiLU.
    """

    def __init__(self, spatial_dims: int, channels: int, batch_norm: bool = False) -> None:
        super().__init__()
        self.conv1 = Conv(spatial_dims, channels, channels)
        self.act: nn.Module = nn.ReLU() if batch_norm else nn.SiLU()
        self.conv2 = Conv(spatial_dims, channels, channels, bias=False)
        self.norm: nn.Module = BatchNorm(channels) if batch_norm else ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, x, y, z)`` to the same shape."""
        return x + self.norm(self.conv2(self.act(self.conv1(x))))
