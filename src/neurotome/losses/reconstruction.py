r"""How far a reconstruction is from its image.

    L_rec = a1 |x - y|_1 + a2 |x - y|_2^2 + ag mean_axes |D_axis (x - y)|_1 + as (1 - SSIM_3D(x, y))

The paper (Li et al., 2026, eq. 12) has a1 = 1, as = lambda_SSIM = 0.5 and nothing else; its released code weights
bright voxels. D is the finite difference, which asks for edges in the right place. All terms are for images in [-1, 1].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from neurotome.metrics.reconstruction import ssim
from neurotome.types import Image


def weighted_mean(error: Tensor, weight: Tensor | None) -> Tensor:
    """Return the mean of ``(b, c, x, y, z)`` over everything, voxels or images weighted where asked."""
    return error.mean() if weight is None else (error * weight).mean()


@dataclass(frozen=True)
class ReconstructionLoss:
    """The weights of the terms.

    Args:
        l1_weight: a1, mean absolute error.
        l2_weight: a2, mean squared error.
        gradient_weight: ag, mean absolute error of finite differences.
        ssim_weight: as, one minus structural similarity.
        ssim_size: Window length of the similarity in voxels.
        foreground_weight: Weight of voxels brighter than ``foreground_above`` in the L1 term, renormalised to mean 1
            (released code: 5).
        foreground_above: Threshold of the foreground in [-1, 1].

    Raises:
        ValueError: A weight is negative.
    """

    l1_weight: float = 1.0
    l2_weight: float = 0.0
    gradient_weight: float = 0.0
    ssim_weight: float = 0.5
    ssim_size: int = 7
    foreground_weight: float = 1.0
    foreground_above: float = -0.9

    def __post_init__(self) -> None:
        """Refuse negative weights."""
        for name in ("l1_weight", "l2_weight", "gradient_weight", "ssim_weight", "foreground_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; weights are at least 0")

    def __call__(self, y: Image, x: Image) -> dict[str, Tensor]:
        """Return ``loss`` and its terms for a reconstruction ``y`` of ``x``."""
        error = y - x
        terms: dict[str, Tensor] = {"l1": weighted_mean(error.abs(), self._weight(x))}
        loss = self.l1_weight * terms["l1"]
        if self.l2_weight:
            terms["l2"] = error.square().mean()
            loss = loss + self.l2_weight * terms["l2"]
        if self.gradient_weight:
            steps = [error.diff(dim=d).abs().mean() for d in (2, 3, 4) if error.shape[d] > 1]
            terms["gradient"] = torch.stack(steps).mean()
            loss = loss + self.gradient_weight * terms["gradient"]
        if self.ssim_weight:
            terms["ssim"] = ssim(y, x, size=self.ssim_size).mean()
            loss = loss + self.ssim_weight * (1 - terms["ssim"])
        return {"loss": loss, **terms}

    def _weight(self, x: Image) -> Tensor | None:
        """Return the voxel weights of mean 1, or None where all count alike."""
        if self.foreground_weight == 1:
            return None
        weight = torch.where(x > self.foreground_above, self.foreground_weight, 1.0)
        return weight / weight.mean()
