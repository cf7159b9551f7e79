r"""How far two segmentations agree, structure by structure.

    Dice_k   = 2 |A_k and B_k| / (|A_k| + |B_k|)        1 the same voxels, 0 none in common (Dice, 1945)
    volume_k = |A_k| / |B_k| - 1                        0 the same volume, wherever it lies

A structure that neither segmentation holds has no overlap, one that the second does not hold no volume to compare with:
NaN, and it is left out of the mean over structures.
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
    size_a, size_b = _two_sizes(a, b, num_structures)
    both = _sizes(torch.where(a == b, a.long(), 0), num_structures)
    return 2 * both / (size_a + size_b)  # 0 / 0 is NaN


def volume_difference(a: Segmentation, b: Integer[Tensor, "b2 x2 y2 z2"], num_structures: int) -> Float[Tensor, "b k"]:
    """Return by what share of its volume in ``b`` each structure is larger in ``a``; NaN where ``b`` does not hold it.

    Arguments and errors as of :func:`structure_dice`.
    """
    size_a, size_b = _two_sizes(a, b, num_structures)
    return torch.where(size_b > 0, size_a / size_b - 1, torch.nan)


def _two_sizes(a: Tensor, b: Tensor, num_structures: int) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise ValueError(f"overlap needs one grid; the segmentations have shapes {tuple(a.shape)} and {tuple(b.shape)}")
    for labels in (a, b):
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= num_structures:
            found = f"[{int(labels.min())}, {int(labels.max())}]"
            raise ValueError(f"labels lie in {found}; admissible are 0 to {num_structures}")
    return _sizes(a, num_structures), _sizes(b, num_structures)


def _sizes(labels: Tensor, num_structures: int) -> Tensor:
    """Return the voxels of each structure of each image, ``(b, k)``."""
    width = num_structures + 1
    rows = torch.arange(len(labels), device=labels.device).view(-1, 1, 1, 1) * width
    counts = torch.bincount((labels.long() + rows).flatten(), minlength=len(labels) * width)
    return counts.view(len(labels), width)[:, 1:].double()


def mean_dice(overlap: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """Return the mean over the structures that an image has; NaN where it has none."""
    return overlap.nanmean(1)
