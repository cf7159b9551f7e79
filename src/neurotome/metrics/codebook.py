r"""How a codebook is used.

    p_k = n_k / sum n        utilisation = share of codes with n_k > 0
    H = -sum p_k log p_k     perplexity = exp H, the number of codes that equal use would need; bits = H / log 2

Counts are taken over a whole split, not over a batch. Most of a box is background, which takes few codes: a perplexity
over the box measures the background, so it is stated inside the brain.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neurotome.types import Mask

Counts = Int[Tensor, " K"]


def code_counts(codes: Int[Tensor, "..."], num_codes: int, mask: Bool[Tensor, "..."] | None = None) -> Counts:
    """Return how often each code occurs, where ``mask`` holds.

    Raises:
        ValueError: A code lies outside [0, num_codes).
    """
    chosen = (codes if mask is None else codes[mask]).flatten()
    counts = torch.bincount(chosen, minlength=num_codes) if chosen.numel() == 0 or chosen.min() >= 0 else None
    if counts is None or len(counts) > num_codes:
        raise ValueError(
            f"codes lie in [{int(chosen.min())}, {int(chosen.max())}], the codebook has [0, {num_codes - 1}]: "
            "the codes are of another tokenizer"
        )
    return counts


def utilisation(counts: Counts) -> float:
    """Return the share of codes that occur at all, in [0, 1]."""
    return float((counts > 0).double().mean())


def entropy_bits(counts: Counts) -> float:
    """Return the order-0 entropy of the codes in bits; NaN when nothing was counted."""
    p: Float[Tensor, " K"] = counts.double() / counts.sum()
    return float(-torch.special.xlogy(p, p).sum() / torch.log(torch.tensor(2.0, dtype=torch.float64)))


def perplexity(counts: Counts) -> float:
    """Return ``2 ** entropy_bits``, in [1, K]."""
    return 2.0 ** entropy_bits(counts)


def brain_cells(mask: Mask, cells: Sequence[int]) -> Bool[Tensor, "b *cells"]:
    """Return which latent cells are at least half brain; the one cell of a grid of one is.

    Where the mask is no multiple of the grid, cells overlap by a voxel, as a network that rounds sizes has them.

    Args:
        mask: Brain mask ``(b, 1, x, y, z)``.
        cells: Shape of the latent grid, along no axis more cells than voxels.

    Raises:
        ValueError: There are more cells than voxels along an axis.
    """
    x, y, z = cells
    if any(c > s for c, s in zip(cells, mask.shape[2:], strict=True)):
        raise ValueError(f"a mask of shape {tuple(mask.shape[2:])} does not divide into {tuple(cells)} cells")
    if x * y * z == 1:
        return torch.ones(len(mask), 1, 1, 1, dtype=torch.bool, device=mask.device)
    return F.adaptive_avg_pool3d(mask.float(), (x, y, z))[:, 0] >= 0.5
