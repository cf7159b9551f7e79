r"""How far a reconstruction is from its image.

    L_rec = a1 |x - y|_1 + a2 |x - y|_2^2 + ag mean_axes |D_axis (x - y)|_1 + as (1 - SSIM_3D(x, y))
          + ap sum_p mean_b ||y - x + eps||_p                p = 1, 2       pairwise distances, not divided by voxels
          + af mean (|F y| - |F x|)^2                        F the orthonormal Fourier transform over space
          + ab sum e |x - y| / sum e                         e = max_3 x - min_3 x, large at the boundaries of x

The paper (Li et al., 2026, eq. 12) has a1 = 1, as = lambda_SSIM = 0.5 and nothing else; its released code weights
bright voxels, and its similarity has a Gaussian window with zeros outside the image. D is the finite difference; its
term penalises displaced edges. The pairwise distances are the loss of Baur et al. (2019) as multiview-crl trains with
it, at ap = 1e-5: sums over voxels, hence the small weight. All terms are for images in [-1, 1].
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from neurotome.metrics.fidelity import ssim
from neurotome.ranges import Finite, Ranged, Size, Weight
from neurotome.types import Image, Scalar

PAIRWISE_EPS = 1e-6  # what torch's pairwise distance adds to every difference, and the published numbers hold


def weighted_mean(error: Tensor, weight: Tensor | None) -> Tensor:
    """Return the mean of ``(b, c, x, y, z)`` over everything, voxels or images weighted where asked."""
    return error.mean() if weight is None else (error * weight).mean()


def pairwise(y: Image, x: Image) -> Scalar:
    """Return the sum of the L1 and L2 distances of each pair of images, averaged over the batch."""
    difference = (y.float() - x.float()).flatten(1) + PAIRWISE_EPS  # (b, n)
    return difference.abs().sum(1).mean() + torch.linalg.vector_norm(difference, dim=1).mean()


def spectral(y: Image, x: Image) -> Scalar:
    """Return the mean squared difference of the magnitudes of the orthonormal Fourier transforms."""
    magnitudes = [torch.fft.fftn(image.float(), dim=(2, 3, 4), norm="ortho").abs() for image in (y, x)]
    return F.mse_loss(*magnitudes)


def boundaries(x: Image) -> Image:
    """Return the largest minus the smallest value among each voxel's neighbours, 0 where ``x`` is flat."""
    windows = [1 if s == 1 else 3 for s in x.shape[2:]]
    padding = [w // 2 for w in windows]
    highest = F.max_pool3d(x, windows, 1, padding)
    return highest + F.max_pool3d(-x, windows, 1, padding)


def boundary_error(y: Image, x: Image) -> Scalar:
    """Return the mean absolute error, every voxel weighted by how much of a boundary of ``x`` it is; 0 without any."""
    weight = boundaries(x)
    return (weight * (y - x).abs()).sum() / weight.sum().clamp_min(1e-8)


@dataclass(frozen=True)
class ReconstructionLoss(Ranged):
    """The weights of the terms.

    Args:
        l1_weight: a1, mean absolute error.
        l2_weight: a2, mean squared error.
        gradient_weight: ag, mean absolute error of finite differences.
        ssim_weight: as, one minus structural similarity.
        ssim_size: Window length of the similarity in voxels; shorter where an axis is, unless the border is "zero".
        ssim_window: "uniform", or "gaussian" of standard deviation 1.5 (released code of NeuroQuant).
        ssim_border: "valid" takes windows that lie inside the image, "zero" one per voxel with zeros outside (released
            code of NeuroQuant).
        foreground_weight: Weight of voxels brighter than ``foreground_above`` in the L1 term, renormalised to mean 1
            (released code: 5).
        foreground_above: Threshold of the foreground in [-1, 1].
        pairwise_weight: ap, sums of absolute differences plus their norm (multiview-crl: 1e-5).
        spectral_weight: af, magnitudes of the Fourier transform.
        boundary_weight: ab, absolute error at boundaries.

    Raises:
        ValueError: A weight is negative, or none is positive; another window or border.
    """

    l1_weight: Weight = 1.0
    l2_weight: Weight = 0.0
    gradient_weight: Weight = 0.0
    ssim_weight: Weight = 0.5
    ssim_size: Size = 7
    ssim_window: Literal["uniform", "gaussian"] = "uniform"
    ssim_border: Literal["valid", "zero"] = "valid"
    foreground_weight: Weight = 1.0
    foreground_above: Finite = -0.9
    pairwise_weight: Weight = 0.0
    spectral_weight: Weight = 0.0
    boundary_weight: Weight = 0.0

    def __post_init__(self) -> None:
        """Refuse a loss without a term."""
        super().__post_init__()
        if not any(value for name, value in vars(self).items() if name.endswith("_weight") and name[:4] != "fore"):
            raise ValueError("every weight of the reconstruction is 0; give at least one term a positive weight")

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
            inside = [s for s in x.shape[2:] if s > 1 and self.ssim_border == "valid"]
            size = min([self.ssim_size, *inside])
            terms["ssim"] = ssim(y, x, size=size, window=self.ssim_window, border=self.ssim_border).mean()
            loss = loss + self.ssim_weight * (1 - terms["ssim"])
        further = (("pairwise", pairwise), ("spectral", spectral), ("boundary", boundary_error))
        for name, term in further:
            weight = getattr(self, f"{name}_weight")
            if weight:
                terms[name] = term(y, x)
                loss = loss + weight * terms[name]
        return {"loss": loss, **terms}

    def _weight(self, x: Image) -> Tensor | None:
        """Return the voxel weights of mean 1, or None where all count alike."""
        if self.foreground_weight == 1:
            return None
        weight = torch.where(x > self.foreground_above, self.foreground_weight, 1.0)
        return weight / weight.mean()
