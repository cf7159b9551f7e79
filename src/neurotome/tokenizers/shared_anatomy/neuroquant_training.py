r"""How NeuroQuant is trained (Li et al., 2026, arXiv:2604.05171), and how its split is made real.

    L = L_rec(x_m, D(q_m, u_m)) + beta |z_m - sg[q_m]|^2                      eq. 7, 12
      + w_cross(t) |x_n - D(q_m, u_n)|_1                                      eq. 13-14, contrasts m, n of one session
      + w_adv(t) CE(adversary(GRL(z_m)), m)                                   eq. 15
      + w_align(t) A(z_n, sg[z_c])                                            ours, c the canonical contrast

The first three lines are the paper's. With them alone the codes name their contrast, because the decoder can learn two
dialects; :class:`Alignment` adds the fourth. Departures from the paper are marked and listed in
``docs/explanation/fidelity.md``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from neurotome.losses.reconstruction import ReconstructionLoss
from neurotome.nn.adversary import reversal_ramp
from neurotome.ranges import Count, PositiveCount, Ranged, Share, Weight
from neurotome.tokenizers.base import Encoded
from neurotome.tokenizers.health import ALARM_BELOW
from neurotome.tokenizers.shared_anatomy.aligned_training import AlignedTraining, Views
from neurotome.tokenizers.shared_anatomy.alignment import Alignment
from neurotome.tokenizers.shared_anatomy.neuroquant import NeuroQuant
from neurotome.training.optim import OptimizerConfig
from neurotome.types import Batch, Image


@dataclass(frozen=True)
class Ramp(Ranged):
    """A weight that is 0 until ``start``, then grows on a straight line to ``weight`` over ``length`` steps.

    Args:
        weight: Final weight, at least 0.
        start: Finished steps before it is switched on.
        length: Steps it takes to reach ``weight``; 0 switches it on at once.

    Raises:
        ValueError: A value is negative.
    """

    weight: Weight
    start: Count = 0
    length: Count = 0

    def __call__(self, step: int) -> float:
        """Return the weight after ``step`` finished steps."""
        if step < self.start:
            return 0.0
        return self.weight * min(1.0, (step - self.start + 1) / max(self.length, 1))


class NeuroQuantTraining(AlignedTraining):
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
        window_steps: Steps over which codebook use is counted and the worst batch is sought.
        alarm_below: Share of a codebook's codes in use under which it is called collapsed, in [0, 1].

    Raises:
        ValueError: The alignment's canonical contrast is unknown, or a probability is out of range.
    """

    tokenizer: NeuroQuant

    def __init__(
        self,
        tokenizer: NeuroQuant,
        optimizer: OptimizerConfig | None = None,
        reconstruction: ReconstructionLoss | None = None,
        commitment_weight: Weight = 0.25,
        cross: Ramp | None = None,
        swap_prob: Share | None = None,
        adversary: Ramp | None = None,
        slice_weight: Weight = 0.5,
        alignment: Alignment | None = None,
        private_drop: Share = 0.5,
        window_steps: PositiveCount = 500,
        alarm_below: Share = ALARM_BELOW,
    ) -> None:
        super().__init__(tokenizer, optimizer, reconstruction, alignment, window_steps, alarm_below)
        self.commitment_weight, self.swap_prob, self.slice_weight = commitment_weight, swap_prob, slice_weight
        self.cross, self.adversary = cross or Ramp(0.5, 2000, 2000), adversary or Ramp(0.001, 5000)
        self.private_drop = private_drop

    def edge_parameters(self) -> Sequence[str]:
        """Return what Muon leaves to AdamW: stem, output, embeddings."""
        edges = ["encoder.conv_in", "decoder.conv_out"]
        edges += ["embedding"] if self.tokenizer.film is not None else []
        edges += ["encoder.embedding"] if self.tokenizer.contrast_in_encoder else []
        return tuple(f"tokenizer.{name}" for name in edges)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the objective and its terms."""
        image, modality = batch.flat()  # (n, c, x, y, z), (n,)
        views = Views.of(batch)
        encoded = self.tokenizer.encode(image, modality)
        flat = 1 in image.shape[2:]
        if self.swap_prob is None:
            output, terms = self._published(image, modality, encoded, views, flat)
        else:
            output, terms = self._decoded_once(image, modality, encoded, views)
        loss = terms["loss"]
        terms |= self.watch(loss, image, output, encoded, modality, batch.view_subjects())
        for name, term in encoded.terms.items():
            loss, terms[name] = loss + self.commitment_weight * term, term
        if not flat:
            loss = loss + self._adversarial(encoded, modality, terms)
            # distances to codes want single precision, and every number of cells would be a new kernel in bfloat16
            with torch.autocast(image.device.type, enabled=False):
                loss = loss + self.aligned(batch, encoded, modality, views, terms)
        return {**terms, "loss": self.slice_weight * loss if flat else loss}

    def _published(
        self, image: Image, modality: Tensor, encoded: Encoded, views: Views, flat: bool
    ) -> tuple[Image, dict[str, Tensor]]:
        """Own reconstruction of every view, and the terms of the swapped ones of views with a partner (eq. 12-14)."""
        own = self.tokenizer.decode(self._hide_private(encoded, hidden=None), modality)
        terms = self.reconstruction(own, image)
        weight = self.cross(self.step)
        partner = views.partner()
        swapped = torch.nonzero(partner != torch.arange(len(partner), device=partner.device)).flatten()
        if weight > 0 and len(swapped) and not flat:
            foreign = self.tokenizer.shared(encoded).take(partner[swapped])
            style = encoded.style[swapped] if encoded.style is not None else None
            decoded = self.tokenizer.decode(replace(foreign, style=style), modality[swapped])
            terms["cross"] = F.l1_loss(decoded, image[swapped])
            terms["loss"] = terms["loss"] + weight * terms["cross"]
        return own, terms

    def _decoded_once(
        self, image: Image, modality: Tensor, encoded: Encoded, views: Views
    ) -> tuple[Image, dict[str, Tensor]]:
        """Each view decoded from its own anatomy or from one of its session's."""
        # differs from the paper: one decoding per view, own or foreign, because on a CPU the decoder is most of a step
        source = self.drawn(modality, views, self.swap_prob or 0)
        mixed = self._hide_private(encoded.take(source), hidden=source != views.index)
        output = self.tokenizer.decode(replace(mixed, style=encoded.style), modality)
        return output, self.reconstruction(output, image)

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
