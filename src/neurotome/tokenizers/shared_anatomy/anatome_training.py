r"""How Anatome is trained: base and refined image of every view in one pass.

    b, x_hat = D(a_source, d_x, u_x)                       source: the view itself, its partner, or the canonical view
    L = w_base (|x - b|_1 + 2 |x - b|_2^2) + L_rec(x, x_hat) + beta |z - sg[q]|^2 + w_align(t) A(z_n, sg[z_c])

The base learns to synthesise from another view's anatomy; the detail of the view itself adds what that lacks.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from neurotome.losses.reconstruction import ReconstructionLoss
from neurotome.ranges import PositiveCount, Share, Weight
from neurotome.tokenizers.health import ALARM_BELOW
from neurotome.tokenizers.shared_anatomy.aligned_training import AlignedTraining, Views
from neurotome.tokenizers.shared_anatomy.alignment import Alignment
from neurotome.tokenizers.shared_anatomy.anatome import Anatome
from neurotome.training.optim import OptimizerConfig
from neurotome.types import Batch


class AnatomeTraining(AlignedTraining):
    """The objective above, for any number of contrasts, missing views, volumes and slices.

    Args:
        tokenizer: The network.
        optimizer: How weights are updated.
        reconstruction: Terms of L_rec.
        base_weight: w_base.
        commitment_weight: beta.
        swap_prob: Probability that the views of a session exchange their anatomy.
        alignment: What pulls all contrasts to the same codes; None for nothing.
        window_steps: Steps over which codebook use is counted and the worst batch is sought.
        alarm_below: Share of a codebook's codes in use under which it is called collapsed, in [0, 1].

    Raises:
        ValueError: The alignment's canonical contrast is unknown, or a value is out of range.
    """

    tokenizer: Anatome

    def __init__(
        self,
        tokenizer: Anatome,
        optimizer: OptimizerConfig | None = None,
        reconstruction: ReconstructionLoss | None = None,
        base_weight: Weight = 2.0,
        commitment_weight: Weight = 0.25,
        swap_prob: Share = 0.3,
        alignment: Alignment | None = None,
        window_steps: PositiveCount = 500,
        alarm_below: Share = ALARM_BELOW,
    ) -> None:
        super().__init__(tokenizer, optimizer, reconstruction, alignment, window_steps, alarm_below)
        self.base_weight, self.commitment_weight, self.swap_prob = base_weight, commitment_weight, swap_prob

    def edge_parameters(self) -> Sequence[str]:
        """Return what Muon leaves to AdamW: stems, outputs, embeddings."""
        edges = ("encoder.conv_in", "encoder.embedding", "detail_encoder.0", "embedding", "decoder.conv_out")
        return tuple(f"tokenizer.{name}" for name in (*edges, "refine_in", "refine_out"))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the objective and its terms."""
        image, modality = batch.flat()  # (n, c, x, y, z), (n,)
        views = Views.of(batch)
        encoded = self.tokenizer.encode(image, modality)
        source = self.drawn(modality, views, self.swap_prob)
        n = self.tokenizer.anatomy_channels
        mixed = torch.cat([encoded.latent[source, :n], encoded.latent[:, n:]], dim=1)
        base, refined = self.tokenizer.decode_both(replace(encoded, latent=mixed), modality)
        terms = self.reconstruction(refined, image)
        terms |= self.watch(terms["loss"], image, refined, encoded, modality, batch.view_subjects())
        terms["base"] = F.l1_loss(base, image) + 2 * F.mse_loss(base, image)
        terms["commitment"] = encoded.terms["commitment"]
        loss = terms["loss"] + self.base_weight * terms["base"] + self.commitment_weight * terms["commitment"]
        if 1 not in image.shape[2:]:
            # distances to codes want single precision, and every number of cells would be a new kernel in bfloat16
            with torch.autocast(image.device.type, enabled=False):
                loss = loss + self.aligned(batch, encoded, modality, views, terms)
        return {**terms, "loss": loss}
