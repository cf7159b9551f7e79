r"""How far two segmentations agree, structure by structure.

    Dice_k = 2 |A_k and B_k| / (|A_k| + |B_k|)        1 the same voxels, 0 none in common (Dice, 1945)

A structure that neither segmentation holds has no overlap: NaN, and it is left out of the mean over structures.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

Segmentation = Integer[Tensor, "b x y z"]


def structure_dice(a: Segmentation, b: Integer[Tensor, "b2 x2 y2 z2"], num_structures: int) -> Float[Tensor, "b k"]:
    """Return the overlap of each structure of each image; NaN where neither holds it.

    Args:
        a: Labels, 0 for none and k for the k-th structure, counted from 1.
        b: The same on the same grid.
        num_structures: Number of structures.

    Raises:
        ValueError: The shapes differ, or a label lies outside [0, num_structures].
    """
    if a.shape != b.shape:
        raise ValueError(f"overlap needs one grid; the segmentations have shapes {tuple(a.shape)} and {tuple(b.shape)}")
    for labels in (a, b):
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= num_structures:
            found = f"[{int(labels.min())}, {int(labels.max())}]"
            raise ValueError(f"labels lie in {found}; admissible are 0 to {num_structures}")
    width = num_structures + 1
    rows = torch.arange(len(a), device=a.device).view(-1, 1, 1, 1) * width

    def sizes(labels: Tensor) -> Tensor:
        return torch.bincount(labels.flatten(), minlength=len(a) * width).view(len(a), width)[:, 1:].double()

    size_a, size_b = sizes(a.long() + rows), sizes(b.long() + rows)
    both = sizes(torch.where(a == b, a.long(), 0) + rows)
    return 2 * both / (size_a + size_b)  # 0 / 0 is NaN


def mean_dice(overlap: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """Return the mean over the structures that an image has; NaN where it has none."""
    return overlap.nanmean(1)
