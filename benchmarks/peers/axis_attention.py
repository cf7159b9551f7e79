"""Axis attention as the equation says it: softmax(Q K^T / sqrt(d)) V with explicit scores, one axis after the other."""

import math

import torch
from torch import Tensor, nn


class PlainAxisAttention(nn.Module):
    """Self-attention along one axis; queries, keys and values from three 1x1x1 convolutions."""

    def __init__(self, channels: int, num_heads: int, axis: int, norm_groups: int) -> None:
        super().__init__()
        self.num_heads, self.axis = num_heads, axis
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.query, self.key, self.value, self.out = (nn.Conv3d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        query, key, value = (self.lines(f(h)) for f in (self.query, self.key, self.value))  # (lines, heads, length, d)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        y = torch.softmax(scores, dim=-1) @ value
        b, c, *size = x.shape
        others = [s for a, s in enumerate(size) if a != self.axis]
        y = y.transpose(1, 2).reshape(b, *others, size[self.axis], c)
        return x + self.out(y.movedim(-2, 1 + self.axis).movedim(-1, 1))

    def lines(self, x: Tensor) -> Tensor:
        """Cut ``(b, c, x, y, z)`` into the lines along the axis."""
        c = x.shape[1]
        x = x.movedim(1, -1).movedim(1 + self.axis, -2)  # (b, p, q, length, c)
        return x.reshape(-1, x.shape[-2], self.num_heads, c // self.num_heads).transpose(1, 2)
