r"""Attention over all voxels at linear cost (Cai et al., 2023, EfficientViT, arXiv:2205.14756).

    out(v) = r(q_v) sum_u r(k_u)^T v_u / (r(q_v) sum_u r(k_u)^T),      r = ReLU

The sums over u are the same for every v, so the cost is O(N d) in place of O(N^2). What a ReLU kernel lacks in locality
comes from depthwise convolutions: of queries, keys and values at several scales, and in the gated layer behind.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neurotome.nn.nd import Conv
from neurotome.nn.shortcut import ChannelNorm


class LinearAttention(nn.Module):
    """Multi-scale linear attention, without its residual connection.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels in and out, a multiple of ``head_channels``.
        head_channels: Channels of a head.
        scales: Odd kernel lengths; each gives as many further heads, on queries, keys and values averaged so wide.

    Raises:
        ValueError: ``channels`` is not a multiple of ``head_channels``, or a length is even.
    """

    def __init__(self, spatial_dims: int, channels: int, head_channels: int = 32, scales: Sequence[int] = (5,)) -> None:
        super().__init__()
        if even := [scale for scale in scales if scale % 2 == 0]:
            raise ValueError(f"scales is {tuple(scales)}; give odd lengths, not {even[0]}")
        if channels % head_channels:
            raise ValueError(f"channels is {channels}; give a multiple of head_channels, {head_channels}")
        self.spatial_dims, self.head_channels = spatial_dims, head_channels
        groups = 3 * channels // head_channels
        self.qkv = Conv(spatial_dims, channels, 3 * channels, 1, bias=False)
        self.scales = nn.ModuleList(
            nn.Sequential(
                Conv(spatial_dims, 3 * channels, 3 * channels, scale, bias=False, groups=3 * channels),
                Conv(spatial_dims, 3 * channels, 3 * channels, 1, bias=False, groups=groups),
            )
            for scale in scales
        )
        self.out = Conv(spatial_dims, channels * (1 + len(scales)), channels, 1, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, x, y, z)`` to the same shape."""
        qkv = self.qkv(x)
        qkv = torch.cat([qkv, *(scale(qkv) for scale in self.scales)], dim=1)
        b, _, *size = qkv.shape
        # a network of slices has one sequence per slice, a network of volumes one for all
        tokens = math.prod(size[: self.spatial_dims])
        heads = qkv.reshape(b, -1, 3, self.head_channels, tokens, math.prod(size) // tokens).movedim(-1, 1)
        query, key, value = heads.unbind(3)  # (b, sequences, heads, d, tokens)
        y = linear_attention(query, key, value).movedim(1, -1).reshape(b, -1, *size)
        return self.norm(self.out(y.to(qkv.dtype)))


def linear_attention(query: Tensor, key: Tensor, value: Tensor, eps: float = 1e-15) -> Tensor:
    """Return ReLU attention of ``(…, d, n)``, in single precision: half cannot hold sums over a volume."""
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = query.float().relu(), key.float().relu(), value.float()
        context = v @ k.transpose(-1, -2)  # (…, d, d)
        weight = k.sum(dim=-1, keepdim=True)  # (…, d, 1)
        return (context @ q) / ((weight * q).sum(dim=-2, keepdim=True) + eps)


class GatedConv(nn.Module):
    """A pointwise layer with a depthwise convolution and a gate in its middle, without its residual connection.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels in and out.
        expansion: Channels of the middle, as a multiple.
    """

    def __init__(self, spatial_dims: int, channels: int, expansion: int = 4) -> None:
        super().__init__()
        middle = channels * expansion
        self.inverted = Conv(spatial_dims, channels, 2 * middle, 1)
        self.act = nn.SiLU()
        self.depthwise = Conv(spatial_dims, 2 * middle, 2 * middle, groups=2 * middle)
        self.point = Conv(spatial_dims, middle, channels, 1, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, x, y, z)`` to the same shape."""
        h, gate = self.depthwise(self.act(self.inverted(x))).chunk(2, dim=1)
        return self.norm(self.point(h * self.act(gate)))


class EfficientViTBlock(nn.Module):
    """``x + attention(x)``, then ``x + gated(x)``.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels in and out, a multiple of ``head_channels``.
        head_channels: Channels of an attention head.
        scales: As in :class:`LinearAttention`.
    """

    def __init__(self, spatial_dims: int, channels: int, head_channels: int = 32, scales: Sequence[int] = (5,)) -> None:
        super().__init__()
        self.attention = LinearAttention(spatial_dims, channels, head_channels, scales)
        self.gated = GatedConv(spatial_dims, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, x, y, z)`` to the same shape."""
        x = x + self.attention(x)
        return x + self.gated(x)
