"""Search among codes, k-means, and the gradient past the search; memory is O(n + K), never n x K."""

from typing import Any

import torch
from torch import Tensor

from neurotome.types import Scalar, Vectors

# numbers held at a time where an array as large as the input is not needed
CHUNK = 1 << 20


class _Straight(torch.autograd.Function):
    """z_q with its gradient handed on to z, and the mean squared distance of the two; no third array of their size."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, quantised: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(vectors, quantised)
        rows = max(1, CHUNK // vectors.shape[1])
        buffer = torch.empty_like(vectors[:rows], memory_format=torch.contiguous_format)
        total = vectors.new_zeros(())
        for start in range(0, len(vectors), rows):
            part = vectors[start : start + rows]
            error = torch.sub(part, quantised[start : start + rows], out=buffer[: len(part)]).flatten()
            total += error.dot(error)
        return quantised.view_as(quantised), total / max(vectors.numel(), 1)

    @staticmethod
    def backward(ctx: Any, straight: Tensor, commitment: Tensor) -> tuple[Tensor, None]:
        vectors, quantised = ctx.saved_tensors
        return torch.sub(vectors, quantised).mul_(2 * commitment / max(vectors.numel(), 1)).add_(straight), None


def straight_through(vectors: Vectors, quantised: Vectors) -> tuple[Vectors, Scalar]:
    """Return z_q with its gradient handed on to z, and the commitment; both arguments are ``(n, d)``."""
    straight, commitment = _Straight.apply(vectors, quantised)  # type: ignore[no-untyped-call]  # untyped in torch
    return straight, commitment


def nearest_codes(vectors: Vectors, codebook: Tensor, offset: Tensor | None = None, distances: int = CHUNK) -> Tensor:
    """Return the index of the nearest code of each vector, ``(n,)``.

    Memory is O(n + K): at most ``distances`` are held at a time, and |z|^2, the same for every code, is left out.

    Args:
        vectors: ``(n, d)``.
        codebook: ``(K, d)``.
        offset: Added to the squared distance, ``(K,)`` for all vectors or ``(n, K)``.
        distances: Distances held at a time.
    """
    chunk = max(1, distances // len(codebook))
    norms = codebook.square().sum(1)
    shared = offset is None or offset.ndim == 1
    bias = norms if offset is None or not shared else norms + offset
    transposed = codebook.t()
    found = torch.empty(len(vectors), dtype=torch.long, device=vectors.device)
    buffer = torch.empty(min(chunk, len(vectors)), len(codebook), dtype=vectors.dtype, device=vectors.device)
    for start in range(0, len(vectors), chunk):
        rows = vectors[start : start + chunk]
        distance = torch.addmm(bias, rows, transposed, alpha=-2, out=buffer[: len(rows)])
        if not shared and offset is not None:
            distance += offset[start : start + chunk]
        torch.argmin(distance, dim=1, out=found[start : start + chunk])
    return found


def kmeans(vectors: Vectors, num_codes: int, rounds: int = 8) -> tuple[Tensor, Tensor]:
    """Return centres ``(K, d)`` and their counts ``(K,)`` after Lloyd's iterations; empty cells move to random vectors.

    Raises:
        ValueError: There are fewer vectors than codes.
    """
    if len(vectors) < num_codes:
        raise ValueError(f"{len(vectors)} vectors cannot start {num_codes} codes; collect more or ask for fewer codes")
    centres = vectors[torch.randperm(len(vectors), device=vectors.device)[:num_codes]].clone()
    counts = torch.ones(num_codes, device=vectors.device)
    for _ in range(rounds):
        codes = nearest_codes(vectors, centres)
        counts = torch.bincount(codes, minlength=num_codes).to(vectors.dtype)
        sums = torch.zeros_like(centres).index_add_(0, codes, vectors)
        random = vectors[torch.randint(len(vectors), (num_codes,), device=vectors.device)]
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], random)
    return centres, counts
