r"""How a codebook is used.

    p_k = n_k / sum n        utilisation = share of codes with n_k > 0
    H = -sum p_k log p_k     perplexity = exp H, the number of codes that equal use would need; bits = H / log 2

Counts are taken over a whole split, not over a batch. Most of a box is background, which takes few codes: a perplexity
over the box measures the background, so it is stated inside the brain.
"""

from collections.abc import Sequence

import torch
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
            f"codes lie in [{int(chosen.min())}, {int(chosen.max())}], the book has [0, {num_codes - 1}]: "
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
    """Return which latent cells are at least half brain.

    Args:
        mask: Brain mask ``(b, 1, x, y, z)``.
        cells: Shape of the latent grid; every axis of the mask is a multiple of it.

    Raises:
        ValueError: The mask is not a multiple of the grid.
    """
    shape = mask.shape[2:]
    if any(s % c for s, c in zip(shape, cells, strict=True)):
        raise ValueError(f"a mask of shape {tuple(shape)} does not divide into {tuple(cells)} cells")
    blocks = [n for s, c in zip(shape, cells, strict=True) for n in (c, s // c)]
    share = mask[:, 0].float().reshape(len(mask), *blocks).mean((2, 4, 6))
    return share >= 0.5
