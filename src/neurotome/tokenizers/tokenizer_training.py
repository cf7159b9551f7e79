r"""One training for every tokenizer: reconstruct, keep the bottleneck in order, look real.

    L_G = L_rec(x, y) + sum_t w_t term_t + w_p L_perceptual(x, y) + w_a L_adversarial(y)          y = D(E(x))
    L_D = discriminator's own loss on x and on y detached                                         both in one step

L_rec is :class:`ReconstructionLoss`, or :class:`SegmentationLoss` where the image is a mask; the terms are those that
the bottleneck names (``kl``, ``commitment``). All present views of all sessions are pooled into one batch of images:
missing views cost nothing, and any number of contrasts trains one tokenizer. :mod:`neurotome.losses.adversarial` says
why both players learn in one backward pass. What only NeuroQuant has (swaps, alignment) is in ``neuroquant_training``.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from neurotome.errors import did_you_mean
from neurotome.losses.adversarial import Adversarial, frozen_logits
from neurotome.losses.perceptual import Perceptual
from neurotome.losses.reconstruction import ReconstructionLoss
from neurotome.losses.segmentation import SegmentationLoss, dice
from neurotome.losses.spikes import LossHistory, SpikeGuard
from neurotome.metrics.fidelity import psnr
from neurotome.nn.nd import channels_last
from neurotome.ranges import MAY_BE_EMPTY, PositiveCount, Share, Weight
from neurotome.tokenizers.base import Encoded, Tokenizer
from neurotome.tokenizers.health import ALARM_BELOW
from neurotome.tokenizers.watched_training import WatchedTraining
from neurotome.training.augment import Augmentation
from neurotome.training.base import Diverged, Frozen, Needs
from neurotome.training.optim import OptimizerConfig
from neurotome.types import Batch, Image, Scalar, Source

# the entropy of sign codes as in vector-quantize-pytorch (LFQ's entropy_loss_weight)
TERM_WEIGHTS = {"kl": 1e-6, "commitment": 0.25, "entropy": 0.1}
FEATURES = "perceptual features"  # name of the frozen network
STATE = "tokenizer_training"  # key of what a checkpoint keeps beside weights and buffers
log = logging.getLogger("neurotome")


class TokenizerTraining(WatchedTraining):
    """The objective above for a tokenizer of any kind, with or without an adversary.

    Args:
        tokenizer: The network.
        optimizer: How weights are updated; the discriminator has a learning rate of its own.
        reconstruction: L_rec of images.
        term_weights: w_t by name; a term the tokenizer has and this has not is an error.
        adversarial: The discriminator and how it enters the objective; None for none.
        perceptual: The perceptual loss; None for none.
        segmentation: L_rec of masks; the data are then masks, the outputs logits, and Dice is the metric.
        augmentation: Mixed images and progressive resolution; None for the images as they come.
        spike_guard: When a batch is skipped; None for never.
        phase: Part of a published training in phases; only ``tokenizer.phase_parameters(phase)`` learn. None for all.
        edge: Prefixes of the tokenizer's parameters that Muon leaves to AdamW: stem, output, embeddings.
        window_steps: Steps over which codebook use is counted and the worst batch is sought; choose it so that a
            window sees every session.
        alarm_below: Share of a codebook's codes in use under which it is called collapsed, in [0, 1].

    Raises:
        ValueError: Mask losses beside image losses, a phase of a tokenizer without phases, a value out of range.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        optimizer: OptimizerConfig | None = None,
        reconstruction: ReconstructionLoss | None = None,
        term_weights: dict[str, Weight] = TERM_WEIGHTS,
        adversarial: Adversarial | None = None,
        perceptual: Perceptual | None = None,
        segmentation: SegmentationLoss | None = None,
        augmentation: Augmentation | None = None,
        spike_guard: SpikeGuard | None = None,
        phase: str | None = None,
        edge: Annotated[tuple[str, ...], MAY_BE_EMPTY] = (),
        window_steps: PositiveCount = 500,
        alarm_below: Share = ALARM_BELOW,
    ) -> None:
        super().__init__(tokenizer, optimizer, window_steps, alarm_below)
        if segmentation is not None and (reconstruction is not None or perceptual is not None):
            raise ValueError("segmentation is given beside losses of images; a mask has no use for them: give one kind")
        self.reconstruction, self.segmentation = reconstruction or ReconstructionLoss(), segmentation
        self.term_weights, self.edge = dict(term_weights), tuple(edge)
        self.adversarial, self.augmentation = adversarial, augmentation
        self.perceptual = None if perceptual is None else perceptual.loss()
        if adversarial is not None:
            dims = int(tokenizer.arguments.get("spatial_dims", 3))
            self.discriminator = adversarial.discriminator(dims, tokenizer.in_channels)
            channels_last(self.discriminator)
        self.history = None if spike_guard is None else LossHistory(spike_guard)
        self.skipped_subjects: dict[str, int] = {}
        if phase is not None:
            freeze_all_but_phase(tokenizer, phase)

    @property
    def needs(self) -> Needs:
        """See :class:`Method`."""
        return Needs(space="voxels" if self.segmentation is None else "masks")

    def frozen(self) -> Mapping[str, Frozen]:
        """Return the perceptual features."""
        return {} if self.perceptual is None else {FEATURES: Frozen(self.perceptual, self.perceptual.sha256)}

    def check(self, source: Source) -> None:
        """See :class:`Method`; also a term without a weight, and mixed images where a step has none to mix with."""
        super().check(source)
        learns = self.tokenizer.training
        self.tokenizer.eval()  # changes no codebook; the terms are those of training
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            image = torch.zeros(2, source.channels, *self.tokenizer.factor)  # norms want more than one value
            encoded = self.tokenizer.encode(image, torch.zeros(2, dtype=torch.long))
        self.tokenizer.train(learns)
        known = {**TERM_WEIGHTS, **encoded.terms}
        for name in self.term_weights.keys() - known.keys():
            raise ValueError(f"term_weights has {name!r}{did_you_mean(name, known)}; terms are {', '.join(known)}")
        if unknown := sorted(encoded.terms.keys() - self.term_weights.keys()):
            flags = " ".join(f"--method.term_weights.{name} {TERM_WEIGHTS.get(name, 1.0)}" for name in unknown)
            raise ValueError(f"{self._unweighted(unknown)}: {flags}")
        mixes = self.augmentation is not None and self.augmentation.mixup_prob + self.augmentation.cutmix_prob > 0
        if mixes and max(source.steps.values()) < 2:
            raise ValueError(
                "mixup and cutmix take another image of the same contrast, and every step has one session: give "
                f"--data.{list(source.steps)[-1]} 2 or more, or leave them out"
            )

    def edge_parameters(self) -> Sequence[str]:
        """Return what Muon leaves to AdamW."""
        return tuple(f"tokenizer.{name}" for name in self.edge)

    def parts(self) -> Mapping[str, float]:
        """Return the discriminator's learning rate."""
        return {} if self.adversarial is None else {"discriminator": self.adversarial.lr}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the objectives of both players and their terms."""
        image, modality = batch.flat()  # (n, c, x, y, z), (n,)
        if self.augmentation is not None:
            image = self.augmentation.mixed(image, modality, self.seed, self.step)
            image = self.augmentation.reduced(image, self.progress, self.tokenizer.latent_shape)
        encoded = self.tokenizer.encode(image, modality)
        output = self.tokenizer.decode(encoded, modality)
        terms = dict(self._compared(output, image))
        near = terms.pop("loss")
        loss = near + self._bottleneck(encoded, terms)
        loss = loss + self._adversarial(near, output, terms)
        shown = output if self.segmentation is None else output.sigmoid() * 2 - 1
        terms |= self.watch(near, image, shown, encoded, modality, batch.view_subjects())
        self._guard(loss, batch, terms)
        discriminator = self._discriminator(image, output, terms)
        if discriminator is not None:
            terms["generator"] = loss.detach()
            loss = loss + discriminator
        return {"loss": loss, **terms}

    def _compared(self, output: Image, image: Image) -> dict[str, Tensor]:
        """Return L_rec as ``loss``, with the perceptual term in it, and their terms."""
        terms = (self.segmentation or self.reconstruction)(output, image)
        if self.perceptual is not None and self.perceptual.active(self.step):
            terms["perceptual"] = self.perceptual(output, image)
            terms["loss"] = terms["loss"] + self.perceptual.weight * terms["perceptual"]
        return terms

    def _unweighted(self, names: Sequence[str]) -> str:
        return (
            f"{type(self.tokenizer).__name__} has the terms {', '.join(names)}, term_weights has only "
            f"{', '.join(self.term_weights) or 'none'}; give each a weight, 0 to leave it out"
        )

    def _bottleneck(self, encoded: Encoded, terms: dict[str, Tensor]) -> Tensor | float:
        """Return the weighted terms of the bottleneck.

        Raises:
            ValueError: A term has no weight.
        """
        if unknown := sorted(encoded.terms.keys() - self.term_weights.keys()):
            raise ValueError(self._unweighted(unknown))
        total: Tensor | float = 0.0
        for name, term in encoded.terms.items():
            terms[name] = term
            total = total + self.term_weights[name] * term
        return total

    def _adversarial(self, near: Scalar, output: Image, terms: dict[str, Tensor]) -> Tensor | float:
        """Return the generator's weighted adversarial term; the discriminator is frozen in it."""
        if self.adversarial is None or not self.adversarial.active(self.step):
            return 0.0
        terms["adversarial"] = self.adversarial.generator_loss(frozen_logits(self.discriminator, output))
        weight = self.adversarial.scale(near, terms["adversarial"], output)
        terms["adversarial_weight"] = weight
        return weight * terms["adversarial"]

    def _discriminator(self, image: Image, output: Image, terms: dict[str, Tensor]) -> Scalar | None:
        """Return the discriminator's own loss, or None while it does not learn."""
        if self.adversarial is None or not self.adversarial.learns(self.step):
            return None
        real, fake = self.discriminator(image), self.discriminator(output.detach())
        terms["discriminator"] = self.adversarial.discriminator_loss(real, fake)
        # the middle between the two targets: 0 for the hinge's +-1, a half for least squares' 0 and 1
        middle = 0.0 if self.adversarial.kind == "hinge" else 0.5
        right = (real.detach() > middle).float().mean() + (fake.detach() <= middle).float().mean()
        terms["discriminator_accuracy"] = right / 2
        return terms["discriminator"]

    def _guard(self, loss: Scalar, batch: Batch, terms: dict[str, Tensor]) -> None:
        """Skip the update of a batch whose loss is a spike.

        A running average inside the network (codebook, batch statistics) has seen the batch all the same; therefore a
        loss that is not finite still stops the run.

        Raises:
            Diverged: The budget of skipped updates is spent.
        """
        if self.history is None:
            return
        if self._changes(self.step):
            self.history.forget()
        self.skip_update = self.history.is_spike(loss.detach())
        terms["skipped"] = loss.new_tensor(float(self.skip_update))
        if not self.skip_update:
            return
        for subject in batch.subject:
            self.skipped_subjects[subject] = self.skipped_subjects.get(subject, 0) + 1
        subjects = ", ".join(batch.subject)
        log.warning("step %d: loss %.4g is a spike; update skipped (%s)", self.step + 1, float(loss.detach()), subjects)
        if self.history.skipped > self.history.guard.budget:
            often = sorted(self.skipped_subjects.items(), key=lambda item: (-item[1], item[0]))
            raise Diverged(
                f"{self.history.skipped} updates were skipped because of spikes in the loss by step {self.step + 1} of "
                f"{self.max_steps}, the budget is {self.history.guard.budget}; subjects of these batches, how often: "
                f"{', '.join(f'{s} ({n})' for s, n in often[:10])}; check these scans with `neurotome check`, or lower "
                "the learning rate and train into a new run folder"
            )

    def begun(self) -> Mapping[str, str]:
        """See :class:`WatchedTraining`; also terms that have entered the objective, and images that got larger."""
        return {**super().begun(), **self._changes(self.step - 1)}

    def _changes(self, step: int) -> dict[str, str]:
        """Return what the objective has from a step on, from 0, that it had not before; nothing at the first step."""
        found = {}
        if step and self.adversarial is not None and self.adversarial.start == step:
            found["adversary"] = "the adversarial term has entered the loss"
        if step and self.perceptual is not None and self.perceptual.settings.start == step:
            found["perceptual"] = "the perceptual term has entered the loss"
        if step and self.augmentation is not None:
            before, now = (self.augmentation.halved(at / self.max_steps) for at in (step - 1, step))
            if before != now:
                found["resolution"] = "images have got larger"
        return found

    def validate(self, batch: Batch) -> Mapping[str, float | Tensor]:
        """Return PSNR in the brain, or the overlap of masks, per contrast."""
        image, modality = batch.flat()
        encoded = self.tokenizer.encode(image, modality)
        output = self.tokenizer.decode(encoded, modality)
        self.watch_validation(encoded)
        if self.segmentation is not None:
            name, values = "dice", dice((output > 0).float(), (image > 0).float(), smooth=1e-6).mean(1)
        else:
            mask = None if batch.mask is None else batch.mask[batch.view_sessions()]
            name, values = "psnr", psnr(output.float(), image, mask=mask)
        found: dict[str, float | Tensor] = {}
        for i, contrast in enumerate(self.tokenizer.modalities):
            if (chosen := modality == i).any():
                found[f"{name}/{contrast}"] = values[chosen].mean()
        return found

    def facts(self) -> Mapping[str, str | int | float]:
        """Return what the card says: the feature extractor's hash, and updates that were skipped."""
        facts: dict[str, str | int | float] = {}
        if self.perceptual is not None:
            facts["Perceptual features, SHA-256"] = self.perceptual.sha256
        if self.history is not None:
            facts["Updates skipped because of spikes"] = self.history.skipped
        return facts

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is neither weight nor buffer."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[STATE] = {"skipped_subjects": dict(self.skipped_subjects)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the step and what is neither weight nor buffer; raises as :class:`Method`."""
        super().on_load_checkpoint(checkpoint)
        self.skipped_subjects = dict(checkpoint[STATE]["skipped_subjects"])


def freeze_all_but_phase(tokenizer: Tokenizer, phase: str) -> None:
    """Leave gradients to the parameters of one phase alone.

    Raises:
        ValueError: The tokenizer has no phases, not this one, or one without parameters.
    """
    named = getattr(tokenizer, "phase_parameters", None)
    if named is None:
        raise ValueError(f"{type(tokenizer).__name__} is not trained in phases; leave phase out")
    chosen = set(named(phase))
    own = dict(tokenizer.named_parameters())
    if not chosen or not chosen <= own.keys():
        raise ValueError(f"phase {phase!r} names {sorted(chosen - own.keys())[:3] or 'no parameters'}")
    for name, parameter in own.items():
        parameter.requires_grad_(name in chosen)
