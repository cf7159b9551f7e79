r"""One face for every way to make a latent discrete.

    ema        k(z) = argmin_k |z - e_k|                       one book that follows the data (ours, nn.quantize)
    residual   z_q = sum_l e^l_k(r_l),  r_{l+1} = r_l - e^l_k  books that each code what the ones before left over
    fsq        z_q = round(half(L) tanh(W z)) per channel      the grid is the book (Mentzer et al., 2024, FSQ)
    lfq        z_q = sign(W z)                                 2^d corners of the cube (Yu et al., 2024)
    bsq        z_q = sign(u) / sqrt(d),  u = W z / |W z|       2^d corners on the sphere (Zhao et al., 2024)

All but the first come from the library vector-quantize-pytorch and keep to the same rules: single precision with
autocast off, codes ``(b, x, y, z)`` per book, coarse to fine, ``lookup`` gives back what the decoder saw. Residual
books and sign codes hold n x K distances in training, as the library makes them; ``ema`` holds O(n + K).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neurotome.errors import UsageError
from neurotome.nn.quantize.ema import EMAQuantizer, Reservoir, straight_through
from neurotome.types import Codes, Latent, Scalar

Kind = Literal["ema", "residual", "fsq", "lfq", "bsq"]

# products token x code that the entropy of sign codes looks at in one step; beyond it a random share of the tokens does
ENTROPY_CELLS = 1 << 22


@dataclass(frozen=True)
class Coding:
    """What a quantizer makes of a latent.

    Args:
        vectors: Quantised latent ``(b, d, x, y, z)``, gradient straight through.
        codes: One map ``(b, x, y, z)`` per book, coarse to fine.
        terms: Named losses: ``commitment``, and ``entropy`` for sign codes.
    """

    vectors: Latent
    codes: tuple[Codes, ...]
    terms: Mapping[str, Scalar]


class Quantizer(nn.Module, ABC):
    """A latent in, codes out, and back.

    Attributes:
        sizes: Number of codes of each book.
        training_only: Tensors that an exported model leaves out.
    """

    sizes: tuple[int, ...]
    training_only: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, z: Latent) -> Coding:
        """Quantise ``(b, d, x, y, z)``."""

    @abstractmethod
    def lookup(self, codes: Sequence[Codes]) -> Latent:
        """Return the vectors ``(b, d, x, y, z)`` of the code maps."""

    @property
    def bits(self) -> int:
        """Bits per cell: the sum of ceil(log2 K) over the books."""
        return sum(math.ceil(math.log2(size)) for size in self.sizes)


class MovingAverage(Quantizer):
    """One book that follows the data by moving averages; see :class:`neurotome.nn.quantize.ema.EMAQuantizer`.

    Args:
        dim: d, length of a code.
        num_codes: K.
        decay: Weight of the past.
        revive_below: Share of the mean count under which a code is revived.
        start_after: Training passes before the book starts.
        reservoir: Tokens kept for the start; None for eight per code, at least 8192.
    """

    training_only = ("book.tokens", "book.usage")

    def __init__(
        self,
        dim: int,
        num_codes: int,
        decay: float = 0.99,
        revive_below: float = 0.1,
        start_after: int = 0,
        reservoir: int | None = None,
    ) -> None:
        super().__init__()
        self.sizes = (num_codes,)
        self.book = EMAQuantizer(num_codes, dim, decay, revive_below, start_after, reservoir)

    def forward(self, z: Latent) -> Coding:
        """See :class:`Quantizer`."""
        found = self.book(z)
        return Coding(found.vectors, (found.codes,), {"commitment": found.commitment})

    def lookup(self, codes: Sequence[Codes]) -> Latent:
        """See :class:`Quantizer`."""
        return self.book.lookup(codes[0])


class LibraryQuantizer(Quantizer):
    """What the library's modules have in common: tokens in rows, single precision, built on the CPU.

    The modules hold buffers that no state dictionary carries, so that they cannot be made on the meta device.
    """

    def forward(self, z: Latent) -> Coding:
        """See :class:`Quantizer`."""
        with torch.autocast(z.device.type, enabled=False):
            rows = z.float().movedim(1, -1)  # (b, x, y, z, d)
            vectors, codes, terms = self.rows(rows.reshape(1, -1, rows.shape[-1]))
            maps = tuple(c.long().view(rows.shape[:-1]) for c in codes)
            return Coding(vectors.view(*rows.shape[:-1], -1).movedim(-1, 1), maps, terms)

    def lookup(self, codes: Sequence[Codes]) -> Latent:
        """See :class:`Quantizer`."""
        found = self.looked_up([c.reshape(1, -1) for c in codes])
        return found.view(*codes[0].shape, -1).movedim(-1, 1)

    @abstractmethod
    def rows(self, z: Tensor) -> tuple[Tensor, Sequence[Tensor], dict[str, Scalar]]:
        """Return vectors ``(1, n, d)``, codes ``(1, n)`` per book and terms of ``(1, n, d)``."""

    @abstractmethod
    def looked_up(self, codes: Sequence[Tensor]) -> Tensor:
        """Return the vectors ``(1, n, d)`` of codes ``(1, n)`` per book."""


class Residual(LibraryQuantizer):
    """Books that each code what the ones before left over (Zeghidour et al., 2022, arXiv:2107.03312).

    The library hands the gradient on once per book, which would multiply it by their number; here it is handed on once.
    The commitment is the distance of the latent to the sum of its codes. The library revives what falls below a number
    of hits, which of a book with more codes than a batch has tokens is all of it, for ever; here a code is revived
    below a share of its book's mean count. The books start from a reservoir of tokens, as that of
    :class:`MovingAverage` does; until then the latent stays as it is, also in evaluation.

    Args:
        dim: d, length of a code.
        num_codes: K of every book.
        num_books: Books, coarse to fine.
        decay: Weight of the past.
        revive_below: Share of the mean count under which a code is revived; 0 never, and the library then lets what is
            not used fade to the origin.
        start_after: Training passes before the books start.
        reservoir: Tokens kept for the start; None for eight per code, at least 8192.

    Raises:
        ValueError: The reservoir holds fewer tokens than a book has codes.
    """

    training_only = ("reservoir.tokens",)

    def __init__(
        self,
        dim: int,
        num_codes: int,
        num_books: int,
        decay: float = 0.99,
        revive_below: float = 0.1,
        start_after: int = 0,
        reservoir: int | None = None,
    ) -> None:
        super().__init__()
        tokens = max(8 * num_codes, 8192) if reservoir is None else reservoir
        if tokens < num_codes:
            raise ValueError(f"reservoir is {tokens}; give at least one token per code, {num_codes}")
        self.sizes, self.revive_below = (num_codes,) * num_books, revive_below
        self.reservoir = Reservoir(dim, start_after, tokens)
        with torch.device("cpu"):
            self.layer = library().ResidualVQ(
                dim=dim, num_quantizers=num_books, codebook_size=num_codes, decay=decay, kmeans_init=True,
                threshold_ema_dead_code=revive_below, rotation_trick=False, commitment_weight=1.0,
            )  # fmt: skip

    def rows(self, z: Tensor) -> tuple[Tensor, Sequence[Tensor], dict[str, Scalar]]:
        """See :class:`LibraryQuantizer`."""
        if self.training and not self.reservoir.started and self.reservoir.collect(z[0].detach()):
            with torch.no_grad():
                self.layer(self.reservoir.tokens[None])  # k-means, book after book
            self.reservoir.state[2] = 1
        if not self.reservoir.started:
            return z, [z.new_zeros(z.shape[:2], dtype=torch.long) for _ in self.sizes], {"commitment": z.new_zeros(())}
        for book in (layer._codebook for layer in self.layer.layers if self.training):
            mean = book.cluster_size.mean()
            book.threshold_ema_dead_code, book.reset_cluster_size = self.revive_below * mean, mean
        found, codes, _ = self.layer(z)
        vectors, commitment = straight_through(z[0], found[0].detach())
        return vectors[None], codes.unbind(-1), {"commitment": commitment}

    def looked_up(self, codes: Sequence[Tensor]) -> Tensor:
        """See :class:`LibraryQuantizer`."""
        found: Tensor = self.layer.get_output_from_indices(torch.stack(list(codes), dim=-1))
        return found


class FiniteScalar(LibraryQuantizer):
    """Rounding to a grid (Mentzer et al., 2024, arXiv:2309.15505): no book, no commitment, nothing that can collapse.

    Args:
        dim: d, length of the latent.
        levels: Values per rounded channel; K is their product. Each at least 3.
    """

    def __init__(self, dim: int, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 3:
            raise ValueError(f"levels are {tuple(levels)}; give numbers of at least 3, for example (8, 8, 8)")
        self.sizes = (math.prod(levels),)
        with torch.device("cpu"):
            self.layer = library().FSQ(levels=tuple(levels), dim=dim)

    def rows(self, z: Tensor) -> tuple[Tensor, Sequence[Tensor], dict[str, Scalar]]:
        """See :class:`LibraryQuantizer`; the commitment is 0."""
        vectors, codes = self.layer(z)
        return vectors, (codes,), {"commitment": z.new_zeros(())}

    def looked_up(self, codes: Sequence[Tensor]) -> Tensor:
        """See :class:`LibraryQuantizer`."""
        found: Tensor = self.layer.indices_to_codes(codes[0])
        return found


class Sign(LibraryQuantizer):
    """The signs of log2 K channels are the code (Yu et al., 2024, arXiv:2310.05737; Zhao et al., arXiv:2406.07548).

    ``entropy`` is H(k | z) - H(k): low when each token is sure of its code and all codes are used. At most
    ``ENTROPY_CELLS`` products of token and code enter it.

    Args:
        dim: d, length of the latent.
        num_codes: K, a power of 2.
        spherical: Whether vectors lie on the unit sphere (BSQ).
    """

    def __init__(self, dim: int, num_codes: int, spherical: bool) -> None:
        super().__init__()
        if num_codes < 2 or num_codes & (num_codes - 1):
            raise ValueError(f"num_codes is {num_codes}; codes made of signs come in powers of 2")
        self.sizes = (num_codes,)
        with torch.device("cpu"):
            self.layer = library().LFQ(
                dim=dim, codebook_size=num_codes, entropy_loss_weight=1.0, commitment_loss_weight=1.0,
                spherical=spherical,
            )  # fmt: skip

    def rows(self, z: Tensor) -> tuple[Tensor, Sequence[Tensor], dict[str, Scalar]]:
        """See :class:`LibraryQuantizer`."""
        self.layer.frac_per_sample_entropy = min(1.0, ENTROPY_CELLS / (z.shape[1] * self.sizes[0]))
        (vectors, codes, _), parts = self.layer(z, return_loss_breakdown=True)
        entropy = parts.per_sample_entropy - parts.batch_entropy
        return vectors, (codes,), {"commitment": parts.commitment, "entropy": entropy}

    def looked_up(self, codes: Sequence[Tensor]) -> Tensor:
        """See :class:`LibraryQuantizer`."""
        found: Tensor = self.layer.indices_to_codes(codes[0])
        return found


def quantizer_of(
    kind: Kind,
    dim: int,
    num_codes: int,
    num_books: int = 1,
    fsq_levels: Sequence[int] = (),
    decay: float = 0.99,
    revive_below: float = 0.1,
    start_after: int = 0,
    reservoir: int | None = None,
) -> Quantizer:
    """Return the quantizer of a kind; arguments that it has no use for must not contradict it.

    Raises:
        ValueError: More than one book of a kind that has one, or levels whose product is not ``num_codes``.
        UsageError: The library is missing.
    """
    if num_books != 1 and kind != "residual":
        raise ValueError(f"num_books is {num_books}, but {kind} has one book; give 1, or choose residual")
    if kind == "fsq" and math.prod(fsq_levels) != num_codes:
        raise ValueError(
            f"fsq_levels {tuple(fsq_levels)} make {math.prod(fsq_levels)} codes, num_codes is {num_codes}; "
            "make them equal"
        )
    if kind == "ema":
        return MovingAverage(dim, num_codes, decay, revive_below, start_after, reservoir)
    if kind == "residual":
        return Residual(dim, num_codes, num_books, decay, revive_below, start_after, reservoir)
    if kind == "fsq":
        return FiniteScalar(dim, fsq_levels)
    return Sign(dim, num_codes, spherical=kind == "bsq")


def library() -> Any:
    """Return the library, imported when it is first needed.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import vector_quantize_pytorch
    except ImportError as error:
        raise UsageError(
            "this quantizer needs the library vector-quantize-pytorch, which is not installed; "
            "`pip install vector-quantize-pytorch`, or choose quantizer ema"
        ) from error
    return vector_quantize_pytorch
