r"""The contract of a training method: a batch in, named losses out.

    loss(batch) -> {"loss": minimised, name: logged as train/name, ...}
    weights <- optimiser(gradient of loss),   step <- step + 1,   on_step()

A method receives its networks, keeps them as attributes and says in ``loss`` what is minimised, in ``product`` what it
makes, in ``frozen`` what it only reads, in ``needs`` and ``check`` what data it can be trained on. It knows nothing of
devices, files, checkpoints or progress bars: :func:`neurotome.training.fit` does.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neurotome.errors import NeurotomeError, UsageError
from neurotome.nn.exported import Exportable, is_finite
from neurotome.ranges import check_ranges
from neurotome.training.optim import OptimizerConfig, Schedule, build_optimizer, check_edges
from neurotome.types import Batch, Source, Space

FROZEN = "frozen"  # key of what a checkpoint keeps of the networks that are only read
DATA_BLOCKS = {
    "voxels": "give `data: {class_path: Volumes}`",
    "masks": "give `data: {class_path: Masks}`, with `source: label` or `source: image`",
    "latents": "give `data: {class_path: LatentVolumes}` and a folder of `neurotome encode MODEL STORE OUT --shards`",
}


class Diverged(NeurotomeError):  # noqa: N818 - says what happened, as Interrupted does
    """A loss or a gradient is not finite; the text names the step and the subjects of the batch."""


@dataclass(frozen=True)
class Needs:
    """What the batches of a method must hold.

    Args:
        space: What the images are.
        labels: Whether every session has a label map.
        views: Contrasts that every session has at least.
        tokenizer: Digest of the model whose latents are read; None for those of any.
    """

    space: Space = "voxels"
    labels: bool = False
    views: int = 1
    tokenizer: str | None = None


@dataclass(frozen=True)
class Frozen:
    """A network that a method only reads.

    Args:
        network: The network.
        digest: Of its model folder, or SHA-256 of its weights: what a run depends on.
    """

    network: object
    digest: str


class Method(lightning.LightningModule, ABC):
    """How networks are trained.

    Subclasses call ``super().__init__(optimizer)``, keep their networks as attributes and implement :meth:`product` and
    :meth:`loss`.

    Args:
        optimizer: How weights are updated; None for the defaults.

    Attributes:
        step: Finished optimiser steps; exact after a resume.
        max_steps: Steps of the whole run.
        seed: Of the run; a method that draws from numpy takes it.
        log_every_steps: Every so many steps the terms are read, and checked where checking each step would stall.
        gradient_norm: Norm of the last gradient before clipping; None where nothing is clipped.
        skip_update: Set by :meth:`loss` where this batch shall change no weight.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse arguments outside the ranges of the annotations."""
        check_ranges(cls, inspect.signature(cls.__init__).bind_partial(None, *args, **kwargs).arguments)
        return super().__new__(cls)

    def __init__(self, optimizer: OptimizerConfig | None = None) -> None:
        super().__init__()
        self.optimizer_config = optimizer or OptimizerConfig()
        self.step = 0
        self.max_steps = 1
        self.seed = 0
        self.log_every_steps = 1
        self._schedule: Schedule | None = None
        self._subjects: tuple[str, ...] = ()
        self.gradient_norm: Tensor | None = None
        self.skip_update = False

    @abstractmethod
    def product(self) -> Exportable:
        """Return the network that this training makes: it is averaged, exported, and loaded by ``--init-from``."""

    def frozen(self) -> Mapping[str, Frozen]:
        """Return the networks that are only read, by name; a resume with others is refused."""
        return {}

    @property
    def needs(self) -> Needs:
        """What the batches must hold."""
        return Needs()

    def check(self, source: Source) -> None:
        """Refuse data that the method cannot be trained on, before anything is written.

        Raises:
            ValueError: The data lack what the method needs, or the networks cannot take them.
            UsageError: A part that the optimiser shall treat apart is none of the method's.
        """
        if self.optimizer_config.name == "muon":
            check_edges((name for name, p in self.named_parameters() if p.requires_grad), self.edge_parameters())
        needs = self.needs
        if source.images.space != needs.space:
            raise ValueError(
                f"{type(self).__name__} is trained on {needs.space}, the data block gives {source.images.space}; "
                f"{DATA_BLOCKS[needs.space]}"
            )
        if (needs.labels or source.images.masks.get("source") == "label") and source.unlabelled:
            raise ValueError(
                f"the config trains on label maps, and {len(source.unlabelled)} sessions of the store have none "
                f"({source.unlabelled[0]}); prepare a dataset that has them: "
                "derivatives/truth/sub-*/anat/*_dseg.nii.gz, or the column label of a manifest"
            )
        if source.views < needs.views:
            raise ValueError(
                f"{type(self).__name__} wants {needs.views} contrasts of every session, and some sessions have "
                f"{source.views}; give `data: {{class_path: Pairs}}`, which leaves those out"
            )
        if needs.tokenizer not in (None, source.images.tokenizer):
            raise ValueError(
                f"the latents were made by model {source.images.tokenizer[:12]}, the method reads those of "
                f"{str(needs.tokenizer)[:12]}; encode the store with that model"
            )
        self.product().check(source)

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the named terms, scalars; ``"loss"`` is minimised, every key is logged as ``train/<key>``."""

    def validate(self, batch: Batch) -> Mapping[str, float | Tensor]:
        """Return named means over the sessions of a validation batch, logged as ``val/<key>``.

        The module is in evaluation mode, holds the averaged weights where there are some, and needs no gradient.
        """
        return {}

    def start_validation(self) -> None:
        """Called before the first validation batch."""

    def finish_validation(self) -> Mapping[str, float | Tensor]:
        """Return further ``val/<key>`` values, over the whole validation split: codebook usage, for example."""
        return {}

    def finish(self, batches: Iterable[Batch]) -> None:
        """Called once before export with whole volumes of every training subject: what is set exactly, not learned.

        The method holds the weights that are exported; it must leave parameters alone.
        """

    def on_step(self) -> None:
        """Called after each optimiser step, before weights are averaged; ``self.step`` counts it already."""

    def begun(self) -> Mapping[str, str]:
        """Return what has begun in the step that is finished, and why the loss may jump there, by a short name.

        Called once after each step, after :meth:`on_step`; the log says it, and the journal and the report mark it.
        """
        return {}

    def averaged_modules(self) -> dict[str, nn.Module]:
        """Return the modules whose parameters a moving average follows: the product, under its name here."""
        product = self.product()
        return {name: module for name, module in self.named_children() if module is product}

    def edge_parameters(self) -> Sequence[str]:
        """Return prefixes of parameter names that Muon leaves to AdamW: stem, output, embeddings, codebooks."""
        return ()

    def parts(self) -> Mapping[str, float]:
        """Return prefixes of parameter names that learn at a peak rate of their own: a discriminator, for example.

        Their gradients are clipped by themselves, so that neither player slows the other.
        """
        return {}

    def facts(self) -> Mapping[str, str | int | float]:
        """Return what a model's card should say of the training beside config, steps and validation."""
        return {}

    def panels(self) -> tuple[Mapping[str, Tensor], Sequence[Mapping[str, str]]] | None:
        """Return images of the training worth a look, or None; written as ``worst_batch.safetensors`` when it is saved.

        Tensors ``(x, y, z)`` by name, and entries that name them by role as in an evaluation's panels.
        """
        return None

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return min(1.0, self.step / self.max_steps)

    # What follows is Lightning's side of the contract; methods leave it alone.

    def configure_optimizers(self) -> Optimizer:
        """Build the optimiser; its rates are set before every step as a function of the step."""
        optimizer, self._schedule = build_optimizer(
            self.named_parameters(), self.optimizer_config, self.max_steps, self.edge_parameters(), self.parts()
        )
        return optimizer

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rates of this step."""
        for optimizer in self.trainer.optimizers:
            self.set_rates(optimizer)

    def set_rates(self, optimizer: Any) -> None:
        """Give an optimiser of :meth:`configure_optimizers` the rates of this step."""
        if self._schedule is not None:
            self._schedule.apply(optimizer, self.step)

    def learning_rates(self) -> dict[str, float]:
        """Return the rates of the last step: ``lr``, ``muon_lr`` where Muon is used, ``lr_PART`` of each part."""
        groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        rates = {_rate_name(group): group["lr"] for group in groups}
        return {"lr": rates.get("lr", rates.get("muon_lr", 0.0)), **rates}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the run depends on beside its own weights."""
        checkpoint[FROZEN] = {name: one.digest for name, one in self.frozen().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the step; the weights follow.

        Raises:
            UsageError: The run was started with another frozen network.
        """
        before, now = checkpoint[FROZEN], {name: one.digest for name, one in self.frozen().items()}
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise UsageError(
                    f"the run was started with {name} {str(before.get(name))[:12]}, the file now has "
                    f"{str(now.get(name))[:12]}: give the same file to resume it, or another --out to start a new run"
                )
        self.step = checkpoint["global_step"]

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the terms; only the minimised one keeps its graph."""
        self._subjects = batch.subject
        self.skip_update = False
        terms = self.loss(batch)
        if "loss" not in terms:
            raise ValueError(f"loss() returned {sorted(terms)}; the term to minimise must be named 'loss'")
        total = terms["loss"]
        if self._must_check(total) and not math.isfinite(total.item()):
            raise Diverged(self._divergence("the loss is not finite", terms, self.step + 1))
        return {name: term if name == "loss" else term.detach() for name, term in terms.items()}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Scale each part's gradient down to the configured norm, refuse one that is not finite, drop a skipped one."""
        if self.skip_update:
            optimizer.zero_grad(set_to_none=True)  # what has no gradient is left alone, momenta and decay included
            return
        clip = self.optimizer_config.clip
        if clip is None:
            return
        parts: dict[str, list[nn.Parameter]] = {}
        for group in optimizer.param_groups:
            parts.setdefault(group.get("part", ""), []).extend(p for p in group["params"] if p.grad is not None)
        for part, parameters in sorted(parts.items()):
            norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
            if part == "" or "" not in parts:
                self.gradient_norm = norm
            if self._must_check(norm) and not math.isfinite(norm.item()):
                what = f"the gradient{f' of the {part}' if part else ''} is not finite"
                raise Diverged(self._divergence(what, {"norm": norm}, self.step + 1))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch; on the CPU it is already there."""
        return batch if device.type == "cpu" else batch.to(device, non_blocking=True)

    def _must_check(self, value: Tensor) -> bool:
        """Reading a number back stalls an accelerator, so there it is done when numbers are logged anyway."""
        return value.device.type == "cpu" or (self.step + 1) % self.log_every_steps == 0

    def check_finite(self, others: Mapping[str, Tensor]) -> None:
        """Refuse weights and buffers that are not finite, so that no checkpoint is made of them.

        Args:
            others: Tensors that a checkpoint keeps beside them, by name.

        Raises:
            Diverged: One holds NaN or infinity.
        """
        for name, value in {**self.state_dict(), **others}.items():
            if not is_finite(value):
                raise Diverged(self._divergence(f"{name} is not finite", {}, self.step))

    def _divergence(self, what: str, terms: Mapping[str, Tensor], step: int) -> str:
        values = ", ".join(f"{name} {float(term.detach()):.4g}" for name, term in terms.items())
        return (
            f"{what} at step {step} of {self.max_steps}{f' ({values})' if values else ''} on the batch of "
            f"subjects {', '.join(self._subjects) or 'unknown'}; check these scans with `neurotome check`, or "
            "lower the learning rate and train into a new run folder"
        )


def _rate_name(group: Mapping[str, Any]) -> str:
    if group.get("kind") == "muon":
        return "muon_lr"
    return f"lr_{part}" if (part := group.get("part", "")) else "lr"
