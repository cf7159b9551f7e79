r"""Vector quantisation with a codebook that follows the data by moving averages (van den Oord et al., 2017, app. A.1).

    k(z) = argmin_k |z - e_k|^2 + b_k                 z_q = e_k(z),  gradient straight through
    n_k <- g n_k + (1 - g) |{z: k(z) = k}|            counts
    s_k <- g s_k + (1 - g) sum_{z: k(z) = k} z        sums
    e_k  = s_k / n_k                                  commitment: mean (z - sg[z_q])^2

Conventions that keep the codebook alive: everything is float32 with autocast off; codes start from the data (k-means);
a code whose count falls under a share of the mean is put on a token of the batch with count *and* sum set together
(``s = n z``, so that the next update leaves it where it was put); start, counts, sums and revivals are the same on
every rank, also where some ranks have no coded cell.
``b_k`` is an offset per image (see ``tokenizers.shared_anatomy.alignment``); zero in the literature.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from neurotome.nn.quantize.base import Offsets, Quantizer
from neurotome.nn.quantize.reservoir import Reservoir, several
from neurotome.nn.quantize.search import kmeans, nearest_codes, straight_through
from neurotome.ranges import Count, Decay, NumCodes, Positive, Size, Weight
from neurotome.types import Codes, Latent, Scalar, Vectors


class EMAQuantizer(Quantizer):
    """Nearest-code quantizer; the codebook is a buffer, no optimiser touches it.

    Until the codebook starts, training passes the latent through unquantised and collects tokens; it starts with
    k-means after ``start_after`` training passes, when the reservoir is full. Evaluation before that sees the codes of
    :meth:`draw`.

    Args:
        num_codes: K, size of the codebook.
        dim: d, length of a code.
        decay: g, weight of the past in the moving averages, in [0, 1).
        revive_below: A code is revived when its count is under this share of the mean count; 0 never.
        start_after: Training passes before the codebook starts.
        reservoir: Tokens kept for the start, at least ``num_codes``; None for eight per code, at least 8192.
        eps: Smallest count that still moves a code.

    Raises:
        ValueError: An argument is out of range.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        num_codes: NumCodes,
        dim: Size,
        decay: Decay = 0.99,
        revive_below: Weight = 0.1,
        start_after: Count = 0,
        reservoir: NumCodes | None = None,
        eps: Positive = 1e-5,
    ) -> None:
        super().__init__()
        self.num_codes, self.dim, self.decay, self.revive_below, self.eps = num_codes, dim, decay, revive_below, eps
        self.sizes, self.reservoir = (num_codes,), Reservoir(dim, start_after, reservoir, num_codes)
        self.register_buffer("codebook", torch.zeros(num_codes, dim))
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, dim))

    @property
    def started(self) -> bool:
        """See :class:`Quantizer`."""
        return self.reservoir.started

    @property
    def fewest_passes(self) -> int:
        """See :class:`Quantizer`."""
        return self.reservoir.fewest_passes

    def draw(self) -> None:
        """Draw codes from a standard normal distribution."""
        self.codebook.normal_()
        self.sums.copy_(self.codebook)

    def quantise(self, vectors: Vectors, offsets: Offsets) -> tuple[Vectors, tuple[Tensor, ...], Mapping[str, Scalar]]:
        """See :class:`Quantizer`."""
        if self.training and not self.started and self.reservoir.collect(vectors.detach()):
            self.start(*kmeans(self.reservoir.tokens, self.num_codes))
        if self.training and not self.started:
            codes = torch.zeros(len(vectors), dtype=torch.long, device=vectors.device)
            return vectors, (codes,), {"commitment": vectors.new_zeros(())}
        codes = self._nearest(vectors.detach(), offsets)
        quantised = F.embedding(codes, self.codebook)
        if self.training:
            self._update(vectors.detach(), codes)
        straight, commitment = straight_through(vectors, quantised)
        return straight, (codes,), {"commitment": commitment}

    def lookup(self, codes: Sequence[Codes]) -> Latent:
        """See :class:`Quantizer`."""
        return F.embedding(codes[0], self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def start(self, centres: Tensor, counts: Tensor) -> None:
        """Set the codebook, ``(K, d)`` and counts ``(K,)``; codes, counts and sums together, the same on every rank."""
        if several():
            dist.broadcast(centres, 0)
            dist.broadcast(counts, 0)
        counts = counts.clamp(min=1)
        self.codebook.copy_(centres)
        self.counts.copy_(counts)
        self.sums.copy_(centres * counts[:, None])
        self.reservoir.mark_started()

    def _nearest(self, vectors: Vectors, offsets: Offsets) -> Tensor:
        """Return the code of each vector, ``(n,)``; an offset is its image's own."""
        if not offsets:
            return nearest_codes(vectors, self.codebook)
        parts = torch.split(vectors, [length for length, _ in offsets])
        return torch.cat(
            [nearest_codes(part, self.codebook, offset) for part, (_, offset) in zip(parts, offsets, strict=True)]
        )

    @torch.no_grad()
    def _update(self, vectors: Vectors, codes: Tensor) -> None:
        """Move counts, sums and codes by one step, and revive what is not used."""
        counts = torch.bincount(codes, minlength=self.num_codes).to(vectors.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, vectors)
        if several():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
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
