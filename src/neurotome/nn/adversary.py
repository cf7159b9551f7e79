r"""Gradient reversal and the modality adversary (Ganin et al., 2016; Li et al., 2026, eq. 15).

forward: y = x        backward: dL/dx = -alpha dL/dy
alpha(p) = 2 / (1 + exp(-10 p)) - 1,   p in [0, 1] the progress since the adversary's start
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from neurotome.nn.nd import Conv
from neurotome.nn.residual import normalisation


class _Reverse(torch.autograd.Function):
    """Identity whose gradient is multiplied by -alpha."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        ctx.alpha = alpha
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.alpha * grads[0], None


def reverse_gradient(x: Tensor, alpha: float) -> Tensor:
    """Return ``x``; its gradient comes back reversed and scaled by ``alpha``."""
    reversed_: Tensor = _Reverse.apply(x, alpha)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return reversed_


def reversal_ramp(progress: float) -> float:
    """Return alpha in [0, 1] for ``progress`` in [0, 1] (values outside are clipped)."""
    return 2 / (1 + math.exp(-10 * min(max(progress, 0.0), 1.0))) - 1


class ModalityAdversary(nn.Module):
    """Predicts the contrast from the anatomy latent.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels of the latent.
        num_modalities: Classes.
        hidden: Width.
        norm_groups: Groups of the normalisation; 0 for none.
    """

    def __init__(
        self, spatial_dims: int, channels: int, num_modalities: int, hidden: int = 128, norm_groups: int = 32
    ) -> None:
        super().__init__()
        self.conv = Conv(spatial_dims, channels, hidden, 1)
        self.norm = normalisation(hidden, norm_groups)
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, num_modalities))
        self.act = nn.SiLU()

    def forward(self, z: Tensor, alpha: float) -> Tensor:
        """Map the latent ``(b, d, x, y, z)`` to logits ``(b, modalities)``; the gradient into ``z`` is reversed."""
        h = self.act(self.norm(self.conv(reverse_gradient(z, alpha))))
        return self.head(h.mean(dim=(2, 3, 4)))
