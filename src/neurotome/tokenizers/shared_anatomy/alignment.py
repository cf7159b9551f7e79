r"""What pulls the codes of all contrasts of a brain together.

With c the canonical contrast, n another contrast of the same session, over the foreground cells of both:

    distance     |z_n - sg[z_c]|^2 / sg[Var z_c]
    index        CE(softmax_k(-(|z_n - e_k|^2 + b_nk) / tau), k_c)         tau = temperature * mean |z_c - e_{k_c}|^2
    calibration  b_nk <- b_nk + rate * tau * log(h_nk / h_ck)              h: running histograms of codes in use

The canonical side is detached: nothing rewards its codes for fading, only the others for following. The first term
brings vectors together, the second the codes themselves. What cannot be predicted exactly is predicted too often as the
most common code, so that a scan's histogram still names its contrast; the third term is an offset per code and
contrast that balances how often codes are used (the idea of prior correction, and of auxiliary-loss-free load balancing
in mixtures of experts, Wang et al., 2024, arXiv:2408.15664).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.nn.quantize.search import nearest_codes
from neurotome.ranges import Positive, Ranged, Share, Weight
from neurotome.tokenizers.base import Encoded, Tokenizer
from neurotome.tokenizers.tissue import coded_cells
from neurotome.types import Latent, Vectors


class SharedAnatomy(Tokenizer):
    """A tokenizer whose code "anatomy" has one codebook for all contrasts.

    Attributes:
        anatomy_channels: Channels of the latent that hold the anatomy; they come first.
        quantizer: The codebook of the anatomy; ``encode`` returns its input as ``aux["anatomy"]``.
        offset: b_nk, ``(contrasts, K)``.
        seen: Running counts that move the offsets, ``(contrasts, 2, K)``.
    """

    anatomy_channels: int
    quantizer: EMAQuantizer
    offset: Tensor
    seen: Tensor

    def anatomy(self, encoded: Encoded) -> Latent:
        """Return the quantised anatomy, ``(b, d, x, y, z)``."""
        return encoded.latent[:, : self.anatomy_channels]

    def coded(self, encoded: Encoded) -> Bool[Tensor, "b x y z"]:
        """Return which cells have a code; all of them, where no map "tissue" says otherwise."""
        where = coded_cells(encoded.codes, "anatomy")
        return torch.ones_like(encoded.codes["anatomy"], dtype=torch.bool) if where is None else where


@dataclass(frozen=True)
class Alignment(Ranged):
    """Weights of the alignment.

    Args:
        canonical: The contrast whose codes the others follow.
        distance_weight: Weight of the distance term.
        index_weight: Weight of the cross-entropy on code indices.
        temperature: tau in units of the mean squared quantisation error, above 0.
        calibration_rate: Step of the offset update; 0 leaves offsets at 0.
        one_way_prob: Share of the steps in which every contrast is decoded from the canonical codes.
        ramp_fraction: Share of the run over which the weights grow from 0.

    Raises:
        ValueError: A value is out of range.
    """

    canonical: str = "T1w"
    distance_weight: Weight = 0.3
    index_weight: Weight = 0.1
    temperature: Positive = 1.0
    calibration_rate: Weight = 0.01
    one_way_prob: Share = 0.5
    ramp_fraction: Share = 0.1


def distance(follower: Vectors, leader: Vectors) -> Tensor:
    """Return the mean squared distance over the (detached) leader's total variance."""
    leader = leader.detach()
    variance = leader.var(dim=0, correction=0).sum().clamp(min=1e-4)
    return (follower - leader).square().sum(dim=1).mean() / variance


def code_logits(follower: Vectors, codebook: Tensor, offset: Tensor, tau: Tensor) -> Tensor:
    """Return ``-(|z - e_k|^2 + b_k) / tau`` for every vector and code, ``(n, K)``; gradient flows into ``follower``."""
    squared = follower.square().sum(1, keepdim=True) - 2 * follower @ codebook.t() + codebook.square().sum(1)
    return -(squared + offset) / tau


@torch.no_grad()
def calibrate(offset: Tensor, seen: Tensor, follower: Tensor, leader: Tensor, rate: float, tau: Tensor) -> None:
    """Move one contrast's offsets in place.

    Args:
        offset: b, ``(K,)``; stays within 3 tau.
        seen: Running counts of the follower's and the leader's codes, ``(2, K)``, moved in place.
        follower: Codes the follower takes now.
        leader: Codes of the same cells on the canonical side.
        rate: Step of the update.
        tau: Unit of the offsets.
    """
    for row, codes in zip(seen, (follower, leader), strict=True):
        row.lerp_(torch.bincount(codes, minlength=len(offset)).to(row.dtype), 0.02)
    excess = torch.log((seen[0] + 0.5) / (seen[1] + 0.5)).clamp(-1, 1)
    offset.add_(rate * tau * excess)
    offset.copy_(torch.minimum(torch.maximum(offset, -3 * tau), 3 * tau))


@torch.no_grad()
def balance(offset: Tensor, codebook: Tensor, follower: Vectors, leader: Vectors, rounds: int = 300) -> float:
    """Set one contrast's offsets in place so that, over all given cells, both sides use every code equally often.

    The update of :func:`calibrate` with exact counts in place of running ones; small steps, because codes compete.

    Args:
        offset: b, ``(K,)``.
        codebook: ``(K, d)``.
        follower: Vectors of the follower, ``(n, d)``.
        leader: Vectors of the canonical contrast at the same cells.
        rounds: Steps.

    Returns:
        Half the L1 distance of the two histograms that remains, in [0, 1].
    """
    codes = nearest_codes(leader, codebook)
    tau = (leader - codebook[codes]).square().sum(1).mean()
    wanted = torch.bincount(codes, minlength=len(offset)).to(offset.dtype)
    taken = wanted
    for _ in range(rounds):
        taken = torch.bincount(nearest_codes(follower, codebook, offset), minlength=len(offset)).to(offset.dtype)
        offset.add_(0.03 * tau * torch.log((taken + 5) / (wanted + 5)))
    return float((taken - wanted).abs().sum() / (2 * wanted.sum()))
