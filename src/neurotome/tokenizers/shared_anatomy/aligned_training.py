r"""What methods share whose tokenizer has one anatomy for all contrasts: who is decoded from whom, and the pull.

source(n) = n | partner | canonical        drawn per session (swap) or per step (one way)
A(z_n, sg[z_c])                            see :mod:`neurotome.tokenizers.shared_anatomy.alignment`
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from neurotome.losses.reconstruction import ReconstructionLoss
from neurotome.metrics.fidelity import psnr
from neurotome.tokenizers.base import Encoded
from neurotome.tokenizers.health import ALARM_BELOW
from neurotome.tokenizers.shared_anatomy.alignment import (
    Alignment,
    SharedAnatomy,
    balance,
    calibrate,
    code_logits,
    distance,
)
from neurotome.tokenizers.watched_training import WatchedTraining
from neurotome.training.optim import OptimizerConfig
from neurotome.types import Batch

BALANCED_CELLS = 200_000


@dataclass(frozen=True)
class Views:
    """Which flat views of a batch belong to one session.

    Args:
        session: Session of each present view, ``(n,)``.
        num_sessions: Sessions in the batch.
    """

    session: Tensor
    num_sessions: int

    @classmethod
    def of(cls, batch: Batch) -> "Views":
        """Read the present views of a batch in the order of :meth:`Batch.flat`."""
        return cls(batch.view_sessions(), len(batch.present))

    @property
    def index(self) -> Tensor:
        """Return each view's own index, ``(n,)``."""
        return torch.arange(len(self.session), device=self.session.device)

    def partner(self) -> Tensor:
        """Return the index of the next view of the same session, cyclically; a lone view is its own partner."""
        same = self.session[:, None] == self.session[None]  # (n, n), a handful of views
        n = len(self.session)
        ahead = (self.index[None] - self.index[:, None] - 1) % n
        return torch.where(same, ahead, n).argmin(dim=1)

    def canonical(self, modality: Tensor, canonical: int) -> Tensor:
        """Return the index of the session's canonical view; without one each view keeps its own index."""
        leads = (self.session[:, None] == self.session[None]) & (modality == canonical)[None]
        return torch.where(leads.any(dim=1), leads.float().argmax(dim=1), self.index)


class AlignedTraining(WatchedTraining):
    """Swapping, alignment and validation for a tokenizer with a shared anatomy.

    Args:
        tokenizer: The network.
        optimizer: How weights are updated.
        reconstruction: Terms of L_rec.
        alignment: What pulls all contrasts to the same codes; None for nothing.
        window_steps, alarm_below: See :class:`WatchedTraining`.

    Raises:
        ValueError: The alignment's canonical contrast is unknown, or a value is out of range.
    """

    tokenizer: SharedAnatomy

    def __init__(
        self,
        tokenizer: SharedAnatomy,
        optimizer: OptimizerConfig | None,
        reconstruction: ReconstructionLoss | None,
        alignment: Alignment | None,
        window_steps: int = 500,
        alarm_below: float = ALARM_BELOW,
    ) -> None:
        super().__init__(tokenizer, optimizer, window_steps, alarm_below)
        self.reconstruction = reconstruction or ReconstructionLoss()
        self.alignment = alignment
        if alignment and alignment.canonical not in tokenizer.modalities:
            raise ValueError(
                f"alignment.canonical is {alignment.canonical}, the contrasts are {', '.join(tokenizer.modalities)}; "
                f"give one of them: --method.alignment.canonical {tokenizer.modalities[0]}"
            )
        self.canonical = tokenizer.modality_id(alignment.canonical) if alignment else -1

    def drawn(self, modality: Tensor, views: Views, swap_prob: float) -> Tensor:
        """Return the index of the view that each view is decoded from, ``(n,)``.

        Either every view is decoded from its session's canonical one, or each session's views exchange their anatomy
        with probability ``swap_prob``.
        """
        if self.alignment and torch.rand(()) < self.alignment.one_way_prob:
            return views.canonical(modality, self.canonical)
        coin = torch.rand(views.num_sessions, device=modality.device) < swap_prob
        return torch.where(coin[views.session], views.partner(), views.index)

    def aligned(
        self, batch: Batch, encoded: Encoded, modality: Tensor, views: Views, terms: dict[str, Tensor]
    ) -> Tensor | float:
        """Return the alignment of every other contrast with the canonical one of its session."""
        align = self.alignment
        if align is None:
            return 0.0
        pairs = torch.nonzero((leader := views.canonical(modality, self.canonical)) != views.index).flatten()
        foreground = self._foreground(batch, encoded)
        cells = foreground[pairs] & foreground[leader[pairs]]  # (p, x, y, z)
        if not cells.any():
            return 0.0
        z = encoded.aux["anatomy"].movedim(1, -1)  # (n, x, y, z, d)
        follower, lead = z[pairs][cells], z[leader[pairs]][cells].detach()
        strength = min(1.0, self.progress / align.ramp_fraction) if align.ramp_fraction else 1.0
        terms["align_distance"] = distance(follower, lead)
        loss = strength * align.distance_weight * terms["align_distance"]
        if not self.tokenizer.quantizer.started:
            return loss
        codes = encoded.codes["anatomy"][leader[pairs]][cells]
        codebook, offset = self.tokenizer.quantizer.codebook, self.tokenizer.offset
        tau = align.temperature * (lead - codebook[codes]).square().sum(1).mean()
        kinds = modality[pairs][:, None, None, None].expand_as(cells)[cells]
        logits = code_logits(follower, codebook, offset[kinds], tau)
        taken = logits.detach().argmax(1)
        terms["align_index"] = F.cross_entropy(logits, codes)
        terms["align_agreement"] = (taken == codes).float().mean()
        for kind in torch.unique(kinds).tolist() if align.calibration_rate else ():
            of_kind = kinds == kind
            calibrate(
                offset[kind], self.tokenizer.seen[kind], taken[of_kind], codes[of_kind], align.calibration_rate, tau
            )
        return loss + strength * align.index_weight * terms["align_index"]

    @torch.no_grad()
    def finish(self, batches: Iterable[Batch]) -> None:
        """Set the offsets exactly on the training subjects, at most ``BALANCED_CELLS`` cells per contrast."""
        if self.alignment is None or not self.alignment.calibration_rate:
            return
        self.tokenizer.eval()
        pairs: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for batch in batches:
            image, modality = batch.flat()
            encoded, views = self.tokenizer.encode(image, modality), Views.of(batch)
            leader, cells = views.canonical(modality, self.canonical), self._foreground(batch, encoded)
            z = encoded.aux["anatomy"].movedim(1, -1)  # (n, x, y, z, d)
            for i in torch.nonzero(leader != views.index).flatten().tolist():
                both = cells[i] & cells[leader[i]]
                if both.any():
                    pairs.setdefault(int(modality[i]), []).append((z[i][both], z[leader[i]][both]))
        for kind, found in pairs.items():
            follower, lead = (torch.cat(side) for side in zip(*found, strict=True))
            step = -(-len(follower) // BALANCED_CELLS)
            balance(self.tokenizer.offset[kind], self.tokenizer.quantizer.codebook, follower[::step], lead[::step])

    def _foreground(self, batch: Batch, encoded: Encoded) -> Tensor:
        """Return which latent cells of each present view are at least half brain and have a code, ``(n, x, y, z)``."""
        if batch.mask is None:
            brain = (batch.image[:, :, :1] > self.reconstruction.foreground_above).any(dim=1)
        else:
            brain = batch.mask
        x, y, z = encoded.latent.shape[2:]
        cells = F.adaptive_avg_pool3d(brain.float(), (x, y, z))[:, 0] >= 0.5  # (b, x, y, z)
        of_views = cells[:, None].expand(-1, batch.present.shape[1], -1, -1, -1)[batch.present]
        return of_views & self.tokenizer.coded(encoded)

    def validate(self, batch: Batch) -> Mapping[str, float | Tensor]:
        """Return PSNR per contrast, own and, where two contrasts are there, translated with the session's own style."""
        image, modality = batch.flat()
        encoded = self.tokenizer.encode(image, modality)
        views = Views.of(batch)
        mask = None if batch.mask is None else batch.mask[views.session]
        self.watch_validation(encoded)
        own = psnr(self.tokenizer.decode(encoded, modality), image, mask=mask)
        foreign = replace(self.tokenizer.shared(encoded).take(views.partner()), style=encoded.style)
        swapped = psnr(self.tokenizer.decode(foreign, modality), image, mask=mask)
        has_partner = views.partner() != views.index
        found: dict[str, float | Tensor] = {}
        for i, name in enumerate(self.tokenizer.modalities):
            of_kind = modality == i
            for key, values, chosen in (("psnr", own, of_kind), ("psnr_swapped", swapped, of_kind & has_partner)):
                if chosen.any():
                    found[f"{key}/{name}"] = values[chosen].mean()
        return found
