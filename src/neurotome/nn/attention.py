r"""Factorised multi-axis attention (Li et al., 2026, eq. 2-3).

    Attn_a(F) = softmax(Q_a K_a^T / sqrt(d_k)) V_a,   one axis a after the other, each with a residual connection

The cost is O(XYZ (X + Y + Z)) in place of O((XYZ)^2), and the memory O(XYZ), because scores are never stored.
:class:`FullAttention` is the plain one, over all voxels at once, as autoencoders have it at their coarsest level.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import wrap_torch_function

from neurotome.nn.nd import SOLID, Flat
from neurotome.nn.residual import normalisation


@wrap_torch_function(lambda f, x, axis: (x,))
def along_lines(f: Callable[[Tensor], Tensor], x: Tensor, axis: int) -> Tensor:
    """Return ``f(x)`` for an ``f`` that takes every line of voxels along an axis by itself."""
    return f(x)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(Q K^T / sqrt(d_k)) V, scores never stored; on a CPU always in single precision.

    Torch's CPU kernel is slower in bfloat16 than in single precision, several times so for many short lines.
    """
    if query.device.type != "cpu" or query.dtype == torch.float32:
        return F.scaled_dot_product_attention(query, key, value)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float()).to(query.dtype)


class AxisAttention(nn.Module):
    """Self-attention along one spatial axis; every line of voxels is a sequence of its own.

    Args:
        channels: Channels in and out, a multiple of ``num_heads``.
        num_heads: Attention heads.
        axis: 0, 1 or 2 for x, y, z.
        norm_groups: Groups of the normalisation before it; 0 for none.

    Raises:
        ValueError: ``channels`` is not a multiple of ``num_heads``.
    """

    def __init__(self, channels: int, num_heads: int, axis: int, norm_groups: int = 32) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"channels is {channels}; give a multiple of num_heads, {num_heads}")
        self.num_heads, self.axis = num_heads, axis
        self.norm = normalisation(channels, norm_groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, x, y, z)`` to the same shape; along an axis of length 1 every voxel attends to itself."""
        return x + along_lines(self._attend, self.norm(x), self.axis)

    def _attend(self, x: Tensor) -> Tensor:
        lines = x.movedim(1, -1).movedim(1 + self.axis, -2)  # (b, p, q, length, c)
        b, p, q, length, c = lines.shape
        qkv = self.qkv(lines).view(b * p * q, length, 3, self.num_heads, c // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (b p q, heads, length, d_k)
        y = attend(query, key, value)
        y = self.out(y.transpose(1, 2).reshape(b, p, q, length, c))
        return y.movedim(-2, 1 + self.axis).movedim(-1, 1)


class MultiAxisAttention(nn.ModuleList):
    """Attention along x, then y, then z, but for the axes that an image does not have.

    Args:
        spatial_dims: 2 or 3; two-dimensional networks have no attention along z.
        channels: Channels in and out.
        num_heads: Attention heads.
        norm_groups: Groups of the normalisation before each; 0 for none.
    """

    def __init__(self, spatial_dims: int, channels: int, num_heads: int, norm_groups: int = 32) -> None:
        super().__init__(AxisAttention(channels, num_heads, axis, norm_groups) for axis in range(spatial_dims))

    def forward(self, x: Tensor, flat: Flat = SOLID) -> Tensor:
        """Map ``(b, c, x, y, z)`` to the same shape.

        Args:
            x: Features.
            flat: Axes along which the image is a slice; they are left out. An axis of length 1 for having been halved
                often enough is none of them.
        """
        for layer, is_flat in zip(self, flat, strict=False):
            x = x if is_flat else layer(x)
        return x


class FullAttention(nn.Module):
    """Self-attention among all voxels, ``x + W softmax(Q K^T / sqrt(d_k)) V``: O((XYZ)^2) time, for coarse maps.

    Args:
        channels: Channels in and out, a multiple of ``num_heads``.
        num_heads: Attention heads.
        norm_groups: Groups of the normalisation before it; 0 for none.

    Raises:
        ValueError: ``channels`` is not a multiple of ``num_heads``.
    """

    def __init__(self, channels: int, num_heads: int = 1, norm_groups: int = 32) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"channels is {channels}; give a multiple of num_heads, {num_heads}")
        self.num_heads = num_heads
        self.norm = normalisation(channels, norm_groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, x, y, z)`` to the same shape."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (b, n, c)
        b, n, c = tokens.shape
        query, key, value = self.qkv(tokens).view(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        y = attend(query, key, value).transpose(1, 2).reshape(b, n, c)
        return x + self.out(y).transpose(1, 2).view_as(x)
