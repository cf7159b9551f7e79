r"""How NeuroQuant is trained (Li et al., 2026, arXiv:2604.05171), and how its split is made real.

    L = L_rec(x_m, D(q_m, u_m)) + beta |z_m - sg[q_m]|^2                      eq. 7, 12
      + w_cross(t) |x_n - D(q_m, u_n)|_1                                      eq. 13-14, contrasts m, n of one session
      + w_adv(t) CE(adversary(GRL(z_m)), m)                                   eq. 15
      + w_align(t) A(z_n, sg[z_c])                                            ours, c the canonical contrast

The first three lines are the paper's. With them alone the codes name their contrast, because the decoder can learn two
dialects; :class:`Alignment` adds the fourth. Departures from the paper are marked and listed in
``docs/explanation/neuroquant.md``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from neurotome.losses.reconstruction import ReconstructionLoss
from neurotome.metrics.codebook import perplexity, utilisation
from neurotome.metrics.reconstruction import psnr
from neurotome.nn.adversary import reversal_ramp
from neurotome.nn.nd import channels_last
from neurotome.tokenizers.alignment import Alignment, balance, calibrate, code_logits, distance
from neurotome.tokenizers.base import Encoded
from neurotome.tokenizers.neuroquant import NeuroQuant
from neurotome.training.base import Method
from neurotome.training.optim import OptimizerConfig
from neurotome.types import Batch, Image

BALANCED_CELLS = 200_000


@dataclass(frozen=True)
class Ramp:
    """A weight that is 0 until ``start``, then grows on a straight line to ``weight`` over ``length`` steps.

    Args:
        weight: Final weight, at least 0.
        start: Finished steps before it is switched on.
        length: Steps it takes to reach ``weight``; 0 switches it on at once.

    Raises:
        ValueError: A value is negative.
    """

    weight: float
    start: int = 0
    length: int = 0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if min(self.weight, self.start, self.length) < 0:
            raise ValueError(
                f"weight {self.weight}, start {self.start}, length {self.length}: give values of at least 0"
            )

    def __call__(self, step: int) -> float:
        """Return the weight after ``step`` finished steps."""
        if step < self.start:
            return 0.0
        return self.weight * min(1.0, (step - self.start + 1) / max(self.length, 1))


class NeuroQuantTraining(Method):
    """The objective above, for any number of contrasts, missing views, volumes and slices.

    Args:
        tokenizer: The network.
        optimizer: How weights are updated.
        reconstruction: Terms of L_rec.
        commitment_weight: beta.
        cross: w_cross; the swapped image is compared with L1 alone, as in the paper.
        swap_prob: None decodes every view both own and swapped (paper). A number decodes each view once: with this
            probability a session's views exchange their anatomy, at the full L_rec.
        adversary: w_adv; the reversal's own ramp runs from its start to the end of training.
        slice_weight: Weight of a batch of slices (released code: 0.5); of it only L_rec counts (paper, section 3.5).
        alignment: What pulls all contrasts to the same codes; None for the published objective.
        private_drop: Share of the views whose private codes are hidden, so that the shared ones must suffice.

    Raises:
        ValueError: The alignment's canonical contrast is unknown, or a probability is out of range.
    """

    def __init__(
        self,
        tokenizer: NeuroQuant,
        optimizer: OptimizerConfig | None = None,
        reconstruction: ReconstructionLoss | None = None,
        commitment_weight: float = 0.25,
        cross: Ramp | None = None,
        swap_prob: float | None = None,
        adversary: Ramp | None = None,
        slice_weight: float = 0.5,
        alignment: Alignment | None = None,
        private_drop: float = 0.5,
    ) -> None:
        super().__init__(optimizer)
        if not (0 <= (swap_prob or 0) <= 1 and 0 <= private_drop <= 1):
            raise ValueError(f"swap_prob is {swap_prob}, private_drop {private_drop}; give probabilities in [0, 1]")
        self.tokenizer = tokenizer
        channels_last(tokenizer)
        self.reconstruction = reconstruction or ReconstructionLoss()
        self.commitment_weight, self.swap_prob, self.slice_weight = commitment_weight, swap_prob, slice_weight
        self.cross, self.adversary = cross or Ramp(0.5, 2000, 2000), adversary or Ramp(0.001, 5000)
        self.alignment, self.private_drop = alignment, private_drop
        self.canonical = tokenizer.modality_id(alignment.canonical) if alignment else -1
        self._codes_seen: list[Tensor] = []

    def averaged_modules(self) -> dict[str, torch.nn.Module]:
        """Return the network; its codebook is a buffer and therefore copied, not averaged."""
        return {"tokenizer": self.tokenizer}

    def edge_parameters(self) -> Sequence[str]:
        """Return what Muon leaves to AdamW: stem, output, embeddings."""
        edges = ["encoder.conv_in", "decoder.conv_out"]
        edges += ["embedding"] if self.tokenizer.film is not None else []
        edges += ["encoder.embedding"] if self.tokenizer.tell_encoder else []
        return tuple(f"tokenizer.{name}" for name in edges)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the objective and its terms."""
        image, modality = batch.flat()  # (n, c, x, y, z), (n,)
        views = Views.of(batch)
        encoded = self.tokenizer.encode(image, modality)
        flat = 1 in image.shape[2:]
        if self.swap_prob is None:
            terms = self._published(image, modality, encoded, views, flat)
        else:
            terms = self._decoded_once(image, modality, encoded, views)
        loss = terms["loss"]
        for name, term in encoded.terms.items():
            loss, terms[name] = loss + self.commitment_weight * term, term
        if not flat:
            loss = loss + self._adversarial(encoded, modality, terms)
            # distances to codes want single precision, and every number of cells would be a new kernel in bfloat16
            with torch.autocast(image.device.type, enabled=False):
                loss = loss + self._aligned(batch, encoded, modality, views, terms)
        return {**terms, "loss": self.slice_weight * loss if flat else loss}

    def _published(
        self, image: Image, modality: Tensor, encoded: Encoded, views: "Views", flat: bool
    ) -> dict[str, Tensor]:
        """Own reconstruction of every view, and the swapped one of every view that has a partner (eq. 12-14)."""
        own = self.tokenizer.decode(self._hide_private(encoded, hidden=None), modality)
        terms = self.reconstruction(own, image)
        weight = self.cross(self.step)
        partner = views.partner()
        swapped = torch.nonzero(partner != torch.arange(len(partner), device=partner.device)).flatten()
        if weight > 0 and len(swapped) and not flat:
            foreign = take(self.tokenizer.shared(encoded), partner[swapped])
            style = encoded.style[swapped] if encoded.style is not None else None
            painted = self.tokenizer.decode(replace(foreign, style=style), modality[swapped])
            terms["cross"] = F.l1_loss(painted, image[swapped])
            terms["loss"] = terms["loss"] + weight * terms["cross"]
        return terms

    def _decoded_once(self, image: Image, modality: Tensor, encoded: Encoded, views: "Views") -> dict[str, Tensor]:
        # differs from the paper: one decoding per view, own or foreign, because on a CPU the decoder is most of a step
        own = torch.arange(len(image), device=image.device)
        if self.alignment and torch.rand(()) < self.alignment.one_way_prob:
            source = views.canonical(modality, self.canonical)
        else:
            coin = torch.rand(views.num_sessions, device=image.device) < (self.swap_prob or 0)
            source = torch.where(coin[views.session], views.partner(), own)
        foreign = source != own
        mixed = take(encoded, source)
        mixed = self._hide_private(mixed, hidden=foreign)
        return self.reconstruction(self.tokenizer.decode(replace(mixed, style=encoded.style), modality), image)

    def _hide_private(self, encoded: Encoded, hidden: Tensor | None) -> Encoded:
        """Zero the private part of some views: those in ``hidden`` and a random share of the others."""
        if self.tokenizer.private is None:
            return encoded
        drop = torch.rand(len(encoded.latent), device=encoded.latent.device) < self.private_drop
        drop = drop if hidden is None else drop | hidden
        shared = self.tokenizer.shared(encoded).latent
        return replace(encoded, latent=torch.where(drop[:, None, None, None, None], shared, encoded.latent))

    def _adversarial(self, encoded: Encoded, modality: Tensor, terms: dict[str, Tensor]) -> Tensor | float:
        """Return eq. 15 through the gradient reversal; the head's accuracy is logged, or the term means nothing."""
        weight = self.adversary(self.step)
        if self.tokenizer.adversary is None or weight == 0:
            return 0.0
        start = self.adversary.start
        alpha = reversal_ramp((self.step - start) / max(self.max_steps - start, 1))
        logits = self.tokenizer.adversary(encoded.aux["anatomy"], alpha)
        terms["adversary"] = F.cross_entropy(logits, modality)
        terms["adversary_accuracy"] = (logits.argmax(1) == modality).float().mean()
        return weight * terms["adversary"]

    def _aligned(
        self, batch: Batch, encoded: Encoded, modality: Tensor, views: "Views", terms: dict[str, Tensor]
    ) -> Tensor | float:
        """Return the alignment of every other contrast with the canonical one of its session."""
        align = self.alignment
        if align is None:
            return 0.0
        pairs = torch.nonzero((leader := views.canonical(modality, self.canonical)) != views.index).flatten()
        cells = self._foreground(batch, encoded)[pairs]  # (p, x, y, z)
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
        book, price = self.tokenizer.quantizer.codebook, self.tokenizer.price
        tau = align.temperature * (lead - book[codes]).square().sum(1).mean()
        kinds = modality[pairs][:, None, None, None].expand_as(cells)[cells]
        logits = code_logits(follower, book, price[kinds], tau)
        taken = logits.detach().argmax(1)
        terms["align_index"] = F.cross_entropy(logits, codes)
        terms["align_agreement"] = (taken == codes).float().mean()
        for kind in torch.unique(kinds).tolist() if align.calibration_rate else ():
            of_kind = kinds == kind
            calibrate(
                price[kind], self.tokenizer.seen[kind], taken[of_kind], codes[of_kind], align.calibration_rate, tau
            )
        return loss + strength * align.index_weight * terms["align_index"]

    @torch.no_grad()
    def finish(self, batches: Iterable[Batch]) -> None:
        """Set the prices exactly on the training subjects, at most ``BALANCED_CELLS`` cells per contrast."""
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
                both = z[i][cells[i]], z[leader[i]][cells[i]]
                pairs.setdefault(int(modality[i]), []).append(both)
        for kind, found in pairs.items():
            follower, lead = (torch.cat(side) for side in zip(*found, strict=True))
            step = -(-len(follower) // BALANCED_CELLS)
            balance(self.tokenizer.price[kind], self.tokenizer.quantizer.codebook, follower[::step], lead[::step])

    def _foreground(self, batch: Batch, encoded: Encoded) -> Tensor:
        """Return which latent cells of each present view are at least half brain, ``(n, x, y, z)``."""
        if batch.mask is None:
            brain = (batch.image[:, :, :1] > self.reconstruction.foreground_above).any(dim=1)
        else:
            brain = batch.mask
        x, y, z = encoded.latent.shape[2:]
        cells = F.adaptive_avg_pool3d(brain.float(), (x, y, z))[:, 0] >= 0.5  # (b, x, y, z)
        return cells[:, None].expand(-1, batch.present.shape[1], -1, -1, -1)[batch.present]

    def validate(self, batch: Batch) -> Mapping[str, float | Tensor]:
        """Return PSNR per contrast, own and, where two contrasts are there, translated with the session's own style."""
        image, modality = batch.flat()
        encoded = self.tokenizer.encode(image, modality)
        views = Views.of(batch)
        mask = None if batch.mask is None else batch.mask[views.session]
        self._codes_seen.append(encoded.codes["anatomy"].flatten())
        own = psnr(self.tokenizer.decode(encoded, modality), image, mask=mask)
        foreign = replace(take(self.tokenizer.shared(encoded), views.partner()), style=encoded.style)
        painted = psnr(self.tokenizer.decode(foreign, modality), image, mask=mask)
        found: dict[str, float | Tensor] = {}
        for i, name in enumerate(self.tokenizer.modalities):
            if (chosen := modality == i).any():
                found[f"psnr/{name}"] = own[chosen].mean()
                found[f"psnr_swapped/{name}"] = painted[chosen].mean()
        return found

    def finish_validation(self) -> Mapping[str, float | Tensor]:
        """Return the use of the codebook over the whole validation split."""
        counts = torch.bincount(torch.cat(self._codes_seen), minlength=self.tokenizer.quantizer.num_codes)
        self._codes_seen = []
        return {"codebook/utilisation": utilisation(counts), "codebook/perplexity": perplexity(counts)}


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
        b, v = batch.present.shape
        owner = torch.arange(b, device=batch.present.device)[:, None].expand(b, v)
        return cls(owner[batch.present], b)

    @property
    def index(self) -> Tensor:
        """Return each view's own place, ``(n,)``."""
        return torch.arange(len(self.session), device=self.session.device)

    def partner(self) -> Tensor:
        """Return the place of the next view of the same session, cyclically; a lone view is its own partner."""
        same = self.session[:, None] == self.session[None]  # (n, n), a handful of views
        n = len(self.session)
        ahead = (self.index[None] - self.index[:, None] - 1) % n
        return torch.where(same, ahead, n).argmin(dim=1)

    def canonical(self, modality: Tensor, canonical: int) -> Tensor:
        """Return the place of the session's canonical view; a session without one keeps each view's own place."""
        leads = (self.session[:, None] == self.session[None]) & (modality == canonical)[None]
        return torch.where(leads.any(dim=1), leads.float().argmax(dim=1), self.index)


def take(encoded: Encoded, index: Tensor) -> Encoded:
    """Return the code of the images at ``index``."""
    return replace(
        encoded,
        latent=encoded.latent[index],
        codes={name: codes[index] for name, codes in encoded.codes.items()},
        style=None if encoded.style is None else encoded.style[index],
        gain=None if encoded.gain is None else encoded.gain[index],
        aux={name: value[index] for name, value in encoded.aux.items()},
    )
