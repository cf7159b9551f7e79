r"""Vector quantisation with a codebook that follows the data by moving averages (van den Oord et al., 2017, app. A.1).

    k(z) = argmin_k |z - e_k|^2 + b_k                 z_q = e_k(z),  gradient straight through
    n_k <- g n_k + (1 - g) |{z: k(z) = k}|            counts
    s_k <- g s_k + (1 - g) sum_{z: k(z) = k} z        sums
    e_k  = s_k / n_k                                  commitment: mean (z - sg[z_q])^2

Conventions that keep the book alive: everything is float32 with autocast off; codes start from the data (k-means); a
code whose count falls under a share of the mean is put on a token of the batch with count *and* sum set together
(``s = n z``, so that the next update leaves it where it was put); start, counts, sums and revivals are the same on
every rank, also where some ranks have no coded cell.
``b_k`` is an offset the caller may give per image (see ``tokenizers.neuroquant``); zero in the literature.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from neurotome.types import Codes, Latent, Scalar, Vectors

# numbers held at a time where an array as large as the input is not needed
CHUNK = 1 << 20


def several() -> bool:
    """Return whether training runs on several ranks."""
    return dist.is_available() and dist.is_initialized()


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
    straight, commitment = _Straight.apply(vectors, quantised)  # type: ignore[no-untyped-call]  # torch leaves it bare
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


@dataclass(frozen=True)
class Quantised:
    """What the quantiser returns.

    Args:
        vectors: Quantised latent ``(b, d, x, y, z)``, gradient straight through.
        codes: Code map ``(b, x, y, z)``.
        commitment: Mean squared distance of the latent to its (detached) code.
    """

    vectors: Latent
    codes: Codes
    commitment: Scalar


class Reservoir(nn.Module):
    """Tokens of the first training passes, which books start from.

    Args:
        dim: Length of a token.
        start_after: Training passes before it is time.
        reservoir: Tokens kept.
    """

    tokens: Tensor
    state: Tensor

    def __init__(self, dim: int, start_after: int, reservoir: int) -> None:
        super().__init__()
        self.start_after, self.reservoir = start_after, reservoir
        # scratch that a resumed run needs but an exported model does not
        self.register_buffer("tokens", torch.zeros(reservoir, dim))
        self.register_buffer("state", torch.zeros(3, dtype=torch.long))  # training passes, tokens collected, started

    @property
    def started(self) -> bool:
        """Whether the books have been set from data."""
        return bool(self.state[2])

    def collect(self, vectors: Vectors) -> bool:
        """Keep a random share of the batch's tokens in a ring; return whether it is full and time, on every rank."""
        passes, collected, _ = self.state.tolist()
        take = min(len(vectors), max(256, self.reservoir // 12))
        picked = vectors[torch.randperm(len(vectors), device=vectors.device)[:take]]
        places = torch.arange(collected, collected + take, device=vectors.device) % self.reservoir
        self.tokens[places] = picked
        self.state[0], self.state[1] = passes + 1, collected + take
        full = torch.tensor(int(collected + take >= self.reservoir), device=vectors.device)
        if several():
            dist.all_reduce(full, dist.ReduceOp.MIN)
        return passes + 1 > self.start_after and bool(full)


class EMAQuantizer(Reservoir):
    """Nearest-code quantiser; the codebook is a buffer, no optimiser touches it.

    Until the book starts, training passes the latent through unquantised and collects tokens; it starts with k-means
    after ``start_after`` training passes, when the reservoir is full. Evaluation before that sees random codes.

    Args:
        num_codes: K, size of the codebook.
        dim: d, length of a code.
        decay: g, weight of the past in the moving averages, in [0, 1).
        revive_below: A code is revived when its count is under this share of the mean count; 0 never.
        start_after: Training passes before the codebook starts.
        reservoir: Tokens kept for the start, at least ``num_codes``.
        eps: Smallest count that still moves a code.

    Raises:
        ValueError: An argument is out of range.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    usage: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        decay: float = 0.99,
        revive_below: float = 0.1,
        start_after: int = 0,
        reservoir: int | None = None,
        eps: float = 1e-5,
    ) -> None:
        reservoir = max(8 * num_codes, 8192) if reservoir is None else reservoir
        if num_codes < 2 or dim < 1 or not 0 <= decay < 1 or reservoir < num_codes or start_after < 0:
            raise ValueError(
                f"num_codes={num_codes}, dim={dim}, decay={decay}, reservoir={reservoir}, start_after={start_after}: "
                "give at least 2 codes, 0 <= decay < 1, a reservoir of at least num_codes, start_after >= 0"
            )
        super().__init__(dim, start_after, reservoir)
        self.num_codes, self.dim, self.decay, self.revive_below, self.eps = num_codes, dim, decay, revive_below, eps
        self.register_buffer("codebook", torch.randn(num_codes, dim))
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("sums", self.codebook.clone())
        self.register_buffer("usage", torch.zeros(num_codes, dtype=torch.long))  # codes used since reset_usage

    def forward(self, z: Latent, offset: Tensor | None = None, where: Tensor | None = None) -> Quantised:
        """Quantise a latent.

        Args:
            z: ``(b, d, x, y, z)``.
            offset: Added to each image's squared distances, ``(b, K)``.
            where: Cells that are coded, ``(b, x, y, z)``; None for all. The others get the zero vector and code 0, and
                no code follows them.
        """
        with torch.autocast(z.device.type, enabled=False):
            rows = z.float().movedim(1, -1)  # (b, x, y, z, d)
            vectors = rows.reshape(-1, self.dim) if where is None else rows[where]
            if self.training and not self.started and self.collect(vectors.detach()):
                self._start(*kmeans(self.tokens, self.num_codes))
            if self.training and not self.started:
                flat = torch.zeros(len(vectors), dtype=torch.long, device=z.device)
                straight, commitment = vectors, vectors.new_zeros(())
            else:
                flat = self._nearest(vectors.detach(), offset, z.shape, where)
                quantised = F.embedding(flat, self.codebook)
                if self.training:
                    self._update(vectors.detach(), flat)
                straight, commitment = straight_through(vectors, quantised)
            if where is None:
                return Quantised(straight.view_as(rows).movedim(-1, 1), flat.view(rows.shape[:-1]), commitment)
            found = torch.zeros_like(rows).masked_scatter(where[..., None], straight)
            codes = torch.zeros(where.shape, dtype=torch.long, device=z.device).masked_scatter(where, flat)
            return Quantised(found.movedim(-1, 1), codes, commitment)

    def _nearest(self, vectors: Vectors, offset: Tensor | None, shape: Sequence[int], where: Tensor | None) -> Tensor:
        """Return the code of each vector of a latent ``(b, d, x, y, z)``, ``(n,)``; an offset is its image's own."""
        if offset is None:
            return nearest_codes(vectors, self.codebook)
        whole = [math.prod(shape[2:])] * shape[0]
        parts = zip(
            torch.split(vectors, whole if where is None else where.flatten(1).sum(1).tolist()), offset, strict=True
        )
        return torch.cat([nearest_codes(part, self.codebook, row) for part, row in parts])

    def lookup(self, codes: Codes) -> Latent:
        """Return the vectors ``(b, d, x, y, z)`` of a code map ``(b, x, y, z)``."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def reset_usage(self) -> Tensor:
        """Return how often each code was used in training since the last call, ``(K,)``, and start again."""
        used = self.usage.clone()
        self.usage.zero_()
        return used

    def _start(self, centres: Tensor, counts: Tensor) -> None:
        """Set code, count and sum together."""
        if several():
            dist.broadcast(centres, 0)
            dist.broadcast(counts, 0)
        counts = counts.clamp(min=1)
        self.codebook.copy_(centres)
        self.counts.copy_(counts)
        self.sums.copy_(centres * counts[:, None])
        self.state[2] = 1

    @torch.no_grad()
    def _update(self, vectors: Vectors, codes: Tensor) -> None:
        """Move counts, sums and codes by one step, and revive what is not used."""
        counts = torch.bincount(codes, minlength=self.num_codes).to(vectors.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, vectors)
        if several():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        self.usage += counts.long()
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        if self.revive_below > 0 and counts.any():
            self._revive(vectors)
        # of a code that nobody has visited for long sum and count fade together; below eps their quotient would sink
        # to the origin, so the code stays where it is
        visited = self.counts[:, None] > self.eps
        self.codebook.copy_(torch.where(visited, self.sums / self.counts.clamp(min=self.eps)[:, None], self.codebook))

    def _revive(self, vectors: Vectors) -> None:
        """Put each dead code on a random token: count = mean count, sum = count x vector."""
        mean = self.counts.mean()
        dead = self.counts < self.revive_below * mean
        fresh = torch.zeros_like(self.codebook)
        if len(vectors):
            fresh.copy_(vectors[torch.randint(len(vectors), (self.num_codes,), device=vectors.device)])
        if several():
            # from whoever has most tokens: some rank has one, maybe not the first
            lengths = vectors.new_zeros(dist.get_world_size())
            lengths[dist.get_rank()] = len(vectors)
            dist.all_reduce(lengths)
            dist.broadcast(fresh, int(lengths.argmax()))
        self.counts.copy_(torch.where(dead, mean, self.counts))
        self.sums.copy_(torch.where(dead[:, None], mean * fresh, self.sums))
