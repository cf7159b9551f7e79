"""Residual blocks, with or without normalisation, one code path for slices and volumes."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neurotome.nn.modulation import Modulation, modulate
from neurotome.nn.nd import BatchNorm, Conv, FactoredConv


def normalisation(channels: int, groups: int) -> nn.Module:
    """Return group normalisation, or the identity for ``groups=0``.

    Raises:
        ValueError: ``channels`` is not a multiple of ``groups``.
    """
    if groups == 0:
        return nn.Identity()
    if channels % groups:
        raise ValueError(f"channels is {channels}; give a multiple of norm_groups, {groups}, or norm_groups=0")
    return nn.GroupNorm(groups, channels, eps=1e-6)


def activated(h: Tensor) -> Tensor:
    """Return ``silu(h)`` of a tensor that nobody else needs: in its own memory where no gradient asks for it later."""
    return F.silu(h, inplace=not torch.is_grad_enabled())


def convolution(spatial_dims: int, in_channels: int, out_channels: int, factored: bool) -> nn.Module:
    """Return a convolution of width 3, whole or factored into plane and depth."""
    if factored:
        return FactoredConv(spatial_dims, in_channels, out_channels)
    return Conv(spatial_dims, in_channels, out_channels)


class ResidualBlock(nn.Module):
    """``skip(x) + conv(silu(norm(film(conv(silu(norm(x)))))))``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels in.
        out_channels: Channels out; a 1x1x1 convolution carries the skip where they differ.
        norm_groups: Groups of the normalisation; 0 for none, and the second convolution then starts at zero, which
            keeps activations bounded without it (Zhang et al., 2019, Fixup).
        factored: Whether convolutions are factored into plane and depth.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, norm_groups: int = 32, factored: bool = False
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = normalisation(in_channels, norm_groups), normalisation(out_channels, norm_groups)
        self.conv1 = convolution(spatial_dims, in_channels, out_channels, factored)
        self.conv2 = convolution(spatial_dims, out_channels, out_channels, factored)
        self.act = nn.SiLU()
        same = in_channels == out_channels
        self.skip: nn.Module = nn.Identity() if same else Conv(spatial_dims, in_channels, out_channels, 1)
        if norm_groups == 0 and isinstance(self.conv1, Conv) and isinstance(self.conv2, Conv):
            nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
            nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, film: Modulation | None = None, skip_depth: bool = False) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, out, x, y, z)``.

        Args:
            x: Features.
            film: Modulates between the two convolutions.
            skip_depth: Leave the depth convolutions out; those of a factored block.
        """
        around = {"skip_depth": True} if skip_depth and isinstance(self.conv1, FactoredConv) else {}
        h = self.conv1(self.act(self.norm1(x)), **around)
        if film is not None:
            h = modulate(h, film)
        h, kept = self.conv2(activated(self.norm2(h)), **around), self.skip(x)
        # where no gradient asks for it later, the sum takes the memory of what came last
        return kept + h if torch.is_grad_enabled() or h.dtype != kept.dtype else h.add_(kept)


def run_stage(stage: nn.Module, again: bool, *inputs: Any) -> Tensor:
    """Run a stage; with ``again`` its activations are not kept in training but computed again in the backward pass."""
    if again and stage.training and torch.is_grad_enabled():
        context = lambda: (nullcontext(), _still_statistics(stage))  # noqa: E731  # first and second time
        return checkpoint(stage, *inputs, use_reentrant=False, context_fn=context)
    return stage(*inputs)


@contextmanager
def _still_statistics(stage: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch normalisation: they have seen this batch the first time."""
    norms = [(module, module.momentum) for module in stage.modules() if isinstance(module, BatchNorm)]
    for module, _ in norms:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in norms:
            module.momentum = momentum
