"""The contract of a quantizer: a latent in, codes out, and back."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neurotome.nn.recorded import Recorded
from neurotome.types import Codes, Latent, Scalar, Vectors

Offsets = Sequence[tuple[int, Tensor]]


@dataclass(frozen=True)
class Coding:
    """What a quantizer makes of a latent.

    Args:
        vectors: Quantised latent ``(b, d, x, y, z)``, gradient straight through.
        codes: One map ``(b, x, y, z)`` per codebook, coarse to fine.
        terms: Named losses: ``commitment``, and ``entropy`` for sign codes.
    """

    vectors: Latent
    codes: tuple[Codes, ...]
    terms: Mapping[str, Scalar]


class Quantizer(Recorded, ABC):
    """A latent in, codes out, and back; in single precision, with autocast off.

    It is built before the network that it is handed to, so it draws nothing then: the network calls :meth:`draw` at the
    place where the quantizer stands among its layers, and a seed gives the same weights however the parts were made.

    Attributes:
        dim: d, length of the vectors.
        sizes: Number of codes of each codebook, coarse to fine.
        scratch: Names of own buffers that training alone needs; an exported model leaves them out.
    """

    dim: int
    sizes: tuple[int, ...]
    scratch: tuple[str, ...] = ()

    def forward(self, z: Latent, offset: Tensor | None = None, where: Tensor | None = None) -> Coding:
        """Quantise a latent.

        Args:
            z: ``(b, d, x, y, z)``.
            offset: Added to each image's squared distances to the codes, ``(b, K)``.
            where: Cells that are coded, ``(b, x, y, z)``; None for all. The others get the zero vector and code 0, and
                no code follows them.

        Raises:
            ValueError: There is an offset, but the quantizer takes none.
        """
        with torch.autocast(z.device.type, enabled=False):
            rows = z.float().movedim(1, -1)  # (b, x, y, z, d)
            vectors = rows.reshape(-1, self.dim) if where is None else rows[where]
            offsets: Offsets = ()
            if offset is not None:
                whole = [math.prod(z.shape[2:])] * z.shape[0]
                offsets = list(zip(whole if where is None else where.flatten(1).sum(1).tolist(), offset, strict=True))
            found, codes, terms = self.quantise(vectors, offsets)
            if where is None:
                maps = tuple(c.view(rows.shape[:-1]) for c in codes)
                return Coding(found.view_as(rows).movedim(-1, 1), maps, terms)
            filled = torch.zeros_like(rows).masked_scatter(where[..., None], found)
            empty = torch.zeros(where.shape, dtype=torch.long, device=z.device)
            return Coding(filled.movedim(-1, 1), tuple(empty.masked_scatter(where, c) for c in codes), terms)

    @abstractmethod
    def quantise(self, vectors: Vectors, offsets: Offsets) -> tuple[Vectors, tuple[Tensor, ...], Mapping[str, Scalar]]:
        """Return quantised vectors ``(n, d)``, codes ``(n,)`` per codebook, and the terms.

        Args:
            vectors: ``(n, d)``, image after image.
            offsets: For each image its number of vectors and what is added to their distances, ``(K,)``; may be empty.
        """

    @abstractmethod
    def lookup(self, codes: Sequence[Codes]) -> Latent:
        """Return the vectors ``(b, d, x, y, z)`` of one code map per codebook."""

    def draw(self) -> None:
        """Draw what starts at random; once, by the network that takes the quantizer."""

    @property
    def started(self) -> bool:
        """Whether the codes mean something; a codebook that starts from data has to see some first."""
        return True

    @property
    def fewest_passes(self) -> int:
        """Training passes that are left, at least, until :attr:`started`."""
        return 0

    @property
    def bits(self) -> int:
        """Bits per cell: the sum of ceil(log2 K) over the codebooks."""
        return sum(math.ceil(math.log2(size)) for size in self.sizes)
