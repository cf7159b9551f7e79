r"""Quantizers of the library vector-quantize-pytorch.

    residual           z_q = sum_l e^l_k(r_l),  r_{l+1} = r_l - e^l_k  each codebook codes what is left over
    finite scalar      z_q = round(half(L) tanh(W z)) per channel      the grid is the codebook (Mentzer et al., 2024)
    lookup-free        z_q = sign(W z)                                 2^d corners of the cube (Yu et al., 2024)
    binary spherical   z_q = sign(u) / sqrt(d),  u = W z / |W z|       2^d corners on the sphere (Zhao et al., 2024)

Residual codebooks hold n x K distances in training, as the library makes them; the moving averages of
:mod:`neurotome.nn.quantize.ema` hold O(n + K), and sign codes, whose bits are independent given z, O(n sqrt(K) + K):

    p(k | z) = prod_i p(k_i | z),   H(k | z) = sum_i H(k_i | z),   p(k) = mean_z p(front half | z) p(back half | z)
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurotome.errors import UsageError
from neurotome.nn.quantize.base import Offsets, Quantizer
from neurotome.nn.quantize.reservoir import Reservoir
from neurotome.nn.quantize.search import straight_through
from neurotome.ranges import Count, Decay, NumCodes, Range, Size, Weight
from neurotome.types import Codes, Latent, Scalar, Vectors

INVERSE_TEMPERATURE = 100.0  # of the soft assignment to sign codes, the library's


class LibraryQuantizer(Quantizer):
    """What the library's modules have in common.

    They hold buffers that no state dictionary carries, so that they cannot be made on the meta device, and they draw
    their projections when they are built, so that :meth:`draw` draws them again.

    Args:
        dim: d, length of the latent.
        name: Class in the library.
        settings: Its arguments.

    Raises:
        UsageError: The library is not installed.
    """

    def __init__(self, dim: int, name: str, **settings: Any) -> None:
        super().__init__()
        self.dim = dim
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            self.layer = getattr(library(), name)(dim=dim, **settings)

    def draw(self) -> None:
        """Draw the projections as torch's linear layers do."""
        for module in self.layer.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    def quantise(self, vectors: Vectors, offsets: Offsets) -> tuple[Vectors, tuple[Tensor, ...], Mapping[str, Scalar]]:
        """See :class:`Quantizer`."""
        if offsets:
            raise ValueError(f"{type(self).__name__} has no distances that could be offset; use EMAQuantizer")
        if not len(
            vectors
        ):  # crops of background alone, where only tissue is coded; the library divides by their number
            none = torch.zeros(0, dtype=torch.long, device=vectors.device)
            return vectors, tuple(none for _ in self.sizes), {"commitment": vectors.sum()}
        found, codes, terms = self.batched(vectors[None])
        return found[0], tuple(c[0].long() for c in codes), terms

    def lookup(self, codes: Sequence[Codes]) -> Latent:
        """See :class:`Quantizer`."""
        found = self.vectors_of([c.reshape(1, -1) for c in codes])
        return found.view(*codes[0].shape, -1).movedim(-1, 1)

    @abstractmethod
    def batched(self, z: Tensor) -> tuple[Tensor, Sequence[Tensor], dict[str, Scalar]]:
        """Return vectors ``(1, n, d)``, codes ``(1, n)`` per codebook and terms of ``(1, n, d)``."""

    def vectors_of(self, codes: Sequence[Tensor]) -> Tensor:
        """Return the vectors ``(1, n, d)`` of codes ``(1, n)`` per codebook."""
        found: Tensor = self.layer.indices_to_codes(codes[0])
        return found


class ResidualQuantizer(LibraryQuantizer):
    """Codebooks that each code what the ones before left over (Zeghidour et al., 2022, arXiv:2107.03312).

    The library hands the gradient on once per codebook, which would multiply it by their number; here it is handed on
    once. The commitment is the distance of the latent to the sum of its codes. The library revives what falls below a
    number of hits, which of a codebook with more codes than a batch has tokens is all of it, for ever; here a code is
    revived below a share of its codebook's mean count. The codebooks start from a reservoir of tokens; until then the
    latent stays as it is, also in evaluation.

    Args:
        num_codes: K of every codebook.
        dim: d, length of a code.
        num_codebooks: Codebooks, coarse to fine.
        decay: Weight of the past.
        revive_below: Share of the mean count under which a code is revived; 0 never, and the library then lets what is
            not used fade to the origin.
        start_after: Training passes before the codebooks start.
        reservoir: Tokens kept for the start; None for eight per code, at least 8192.

    Raises:
        ValueError: The reservoir holds fewer tokens than a codebook has codes, or ``start_after`` is negative.
        UsageError: The library is not installed.
    """

    def __init__(
        self,
        num_codes: NumCodes,
        dim: Size,
        num_codebooks: Size,
        decay: Decay = 0.99,
        revive_below: Weight = 0.1,
        start_after: Count = 0,
        reservoir: NumCodes | None = None,
    ) -> None:
        super().__init__(
            dim, "ResidualVQ", num_quantizers=num_codebooks, codebook_size=num_codes, decay=decay, kmeans_init=True,
            threshold_ema_dead_code=revive_below, rotation_trick=False, commitment_weight=1.0,
        )  # fmt: skip
        self.sizes, self.revive_below = (num_codes,) * num_codebooks, revive_below
        self.reservoir = Reservoir(dim, start_after, reservoir, num_codes)

    @property
    def started(self) -> bool:
        """See :class:`Quantizer`."""
        return self.reservoir.started

    @property
    def fewest_passes(self) -> int:
        """See :class:`Quantizer`."""
        return self.reservoir.fewest_passes

    def batched(self, z: Tensor) -> tuple[Tensor, Sequence[Tensor], dict[str, Scalar]]:
        """See :class:`LibraryQuantizer`."""
        if self.training and not self.started and self.reservoir.collect(z[0].detach()):
            with torch.no_grad():
                self.layer(self.reservoir.tokens[None])  # k-means, codebook after codebook
            self.reservoir.mark_started()
        if not self.started:
            return z, [z.new_zeros(z.shape[:2], dtype=torch.long) for _ in self.sizes], {"commitment": z.new_zeros(())}
        for codebook in (layer._codebook for layer in self.layer.layers if self.training):
            mean = codebook.cluster_size.mean()
            codebook.threshold_ema_dead_code, codebook.reset_cluster_size = self.revive_below * mean, mean
        found, codes, _ = self.layer(z)
        vectors, commitment = straight_through(z[0], found[0].detach())
        return vectors[None], codes.unbind(-1), {"commitment": commitment}

    def vectors_of(self, codes: Sequence[Tensor]) -> Tensor:
        """See :class:`LibraryQuantizer`."""
        found: Tensor = self.layer.get_output_from_indices(torch.stack(list(codes), dim=-1))
        return found


class FiniteScalarQuantizer(LibraryQuantizer):
    """Rounding to a grid (Mentzer et al., 2024, arXiv:2309.15505): no commitment, no codebook that could collapse.

    Args:
        levels: Values per rounded channel; K is their product. Each at least 3.
        dim: d, length of the latent.

    Raises:
        ValueError: There is no level, or one of less than 3 values.
        UsageError: The library is not installed.
    """

    def __init__(self, levels: Sequence[Annotated[int, Range("[3, 65536]")]], dim: Size) -> None:
        super().__init__(dim, "FSQ", levels=tuple(levels))
        self.sizes = (math.prod(levels),)

    def batched(self, z: Tensor) -> tuple[Tensor, Sequence[Tensor], dict[str, Scalar]]:
        """See :class:`LibraryQuantizer`; the commitment is 0."""
        vectors, codes = self.layer(z)
        return vectors, (codes,), {"commitment": z.new_zeros(())}


class LookupFreeQuantizer(LibraryQuantizer):
    """The signs of log2 K channels are the code (Yu et al., 2024, arXiv:2310.05737).

    ``entropy`` is H(k | z) - H(k) over all tokens: low when each is sure of its code and all codes are used. H(k) of a
    few of them would be at most the logarithm of their number, so none is left out.

    Args:
        num_codes: K, a power of 2.
        dim: d, length of the latent.

    Raises:
        ValueError: ``num_codes`` is not a power of 2.
        UsageError: The library is not installed.
    """

    spherical = False

    def __init__(self, num_codes: NumCodes, dim: Size) -> None:
        if num_codes & (num_codes - 1):
            raise ValueError(f"num_codes is {num_codes}; codes made of signs come in powers of 2")
        super().__init__(
            dim, "LFQ", codebook_size=num_codes, entropy_loss_weight=1.0, commitment_loss_weight=1.0,
            spherical=self.spherical,
        )  # fmt: skip
        self.sizes = (num_codes,)

    def batched(self, z: Tensor) -> tuple[Tensor, Sequence[Tensor], dict[str, Scalar]]:
        """See :class:`LibraryQuantizer`."""
        self.layer.frac_per_sample_entropy = 1.5 / z.shape[1]  # of one token: the library's own is not used
        (vectors, codes, _), parts = self.layer(z, return_loss_breakdown=True)
        entropy = self._entropy(z[0]) if self.training else z.new_zeros(())
        return vectors, (codes,), {"commitment": parts.commitment, "entropy": entropy}

    def _entropy(self, z: Vectors) -> Scalar:
        """Return H(k | z) - H(k) in nats, of the library's soft assignment to the corners."""
        u = self.layer.maybe_l2norm(self.layer.project_in(z))  # (n, bits)
        corner = u.shape[1] ** -0.5 if self.spherical else 1.0
        logits = 4 * INVERSE_TEMPERATURE * corner * u  # of a bit being 1: twice 2 / T times its coordinate
        ones = logits.sigmoid()
        sure = (F.softplus(logits) - logits * ones).sum(1).mean()
        front, back = (_joint(half) for half in ones.tensor_split([u.shape[1] // 2], dim=1))
        used = library().lookup_free_quantization.maybe_distributed_mean(front.t() @ back / len(z))
        return sure + (used * used.clamp_min(torch.finfo(used.dtype).tiny).log()).sum()


class BinarySphericalQuantizer(LookupFreeQuantizer):
    """Sign codes whose vectors lie on the unit sphere (Zhao et al., 2024, arXiv:2406.07548).

    Args and errors are those of :class:`LookupFreeQuantizer`.
    """

    spherical = True


def _joint(ones: Tensor) -> Tensor:
    """Return the probabilities ``(n, 2^b)`` of all words of b independent bits from those of ones, ``(n, b)``."""
    words = ones.new_ones(len(ones), 1)
    for one in ones.unbind(1):
        words = torch.cat([words * (1 - one)[:, None], words * one[:, None]], dim=1)
    return words


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
            "`pip install vector-quantize-pytorch`, or choose EMAQuantizer"
        ) from error
    return vector_quantize_pytorch
