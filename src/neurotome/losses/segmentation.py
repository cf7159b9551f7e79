r"""How far the reconstruction of a mask is from the mask, for tokenizers whose image is a label map.

    L = w_bce BCE(y, m) + w_dice (1 - Dice) + w_boundary sum e BCE(y, m) / sum e

    Dice = (2 sum s m + 1) / (sum s + sum m + 1)        s = sigmoid(y), per image and channel, smooth by 1
    e    = max_3 m - min_3 m                            1 at voxels beside a border of the mask

``y`` are logits; ``m`` is 0 or 1. MedGen trains mask tokenizers with weights 1, 1 and 0.5.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neurotome.losses.reconstruction import boundaries
from neurotome.ranges import Positive, Ranged, Weight
from neurotome.types import Image

Overlap = Float[Tensor, "b c"]


def dice(probability: Image, target: Image, smooth: float = 1.0) -> Overlap:
    """Return the soft overlap of each image and channel, in (0, 1]; two empty masks overlap fully.

    Args:
        probability: In [0, 1], ``(b, c, x, y, z)``.
        target: 0 or 1, of the same shape.
        smooth: Added to numerator and denominator, > 0.
    """
    both = (probability * target).sum((2, 3, 4))
    return (2 * both + smooth) / (probability.sum((2, 3, 4)) + target.sum((2, 3, 4)) + smooth)


@dataclass(frozen=True)
class SegmentationLoss(Ranged):
    """The weights of the terms.

    Args:
        bce_weight: Binary cross-entropy of every voxel.
        dice_weight: One minus the soft overlap.
        boundary_weight: Binary cross-entropy averaged over the borders of the mask.
        smooth: Added to both sides of the overlap, > 0.

    Raises:
        ValueError: A weight is negative, none is positive, or ``smooth`` is not.
    """

    bce_weight: Weight = 1.0
    dice_weight: Weight = 1.0
    boundary_weight: Weight = 0.5
    smooth: Positive = 1.0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        super().__post_init__()
        if not (self.bce_weight or self.dice_weight or self.boundary_weight):
            raise ValueError("bce_weight, dice_weight and boundary_weight are 0; give one of them a positive weight")

    def __call__(self, y: Image, x: Image) -> dict[str, Tensor]:
        """Return ``loss`` and its terms for logits ``y`` of the mask image ``x`` in {-1, 1}."""
        target, logits = (x > 0).to(torch.float32), y.float()
        voxels = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        border = boundaries(target)
        terms = {
            "bce": voxels.mean(),
            "dice": dice(logits.sigmoid(), target, self.smooth).mean(),
            "boundary": (border * voxels).sum() / border.sum().clamp_min(1.0),
        }
        loss = self.bce_weight * terms["bce"] + self.dice_weight * (1 - terms["dice"])
        return {"loss": loss + self.boundary_weight * terms["boundary"], **terms}
