r"""Adversarial loss: the discriminator D classifies images x and reconstructions y; both networks learn in one step.

    hinge           L_D = (mean max(0, 1 - D(x)) + mean max(0, 1 + D(y))) / 2        L_G = -mean D(y)
    least squares   L_D = (mean (D(x) - 1)^2 + mean D(y)^2) / 2                      L_G = mean (D(y) - 1)^2

    one step        minimise  L_rec + w L_G(D detached) + L_D(y detached)

The discriminator's weights enter L_G detached and the reconstruction y enters L_D detached, so the gradient of the sum
is, for each network, the gradient of its own loss: one backward pass, one optimiser, a learning rate per network.

    adaptive        w <- w min(|dL_rec/dW| / (|dL_G/dW| + 1e-4), max)                W the decoder's last weight

(Esser et al., 2021, arXiv:2012.09841; Lim and Ye, 2017, arXiv:1705.02894; Mao et al., 2017, arXiv:1611.04076).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurotome.nn.discriminator import PatchDiscriminator
from neurotome.ranges import Count, Positive, Ranged, Size, SizeOrNone, Weight
from neurotome.types import Image, Scalar

DELTA = 1e-4  # Esser et al.: keeps the ratio finite where the discriminator has no gradient


@dataclass(frozen=True)
class Adversarial(Ranged):
    """How the discriminator is built and trained, and the weight of its loss for the generator.

    Args:
        weight: w, at least 0.
        lr: Peak learning rate of the discriminator, > 0; its curve is the generator's.
        kind: ``hinge`` or ``least_squares``.
        start: Finished steps before L_G enters the loss.
        lead: Steps by which the discriminator begins to learn before that.
        adaptive: Whether w is scaled to the gradient of the reconstruction.
        max_ratio: Largest such scale, > 0.
        channels: Width of the discriminator's first layer.
        num_layers: Its layers after the first.
        norm_groups: Groups of its normalisation.

    Raises:
        ValueError: A value is out of range.
    """

    weight: Weight = 0.01
    lr: Positive = 5e-4
    kind: Literal["hinge", "least_squares"] = "hinge"
    start: Count = 0
    lead: Count = 0
    adaptive: bool = False
    max_ratio: Positive = 1e4
    channels: Size = 64
    num_layers: Size = 3
    norm_groups: SizeOrNone = 32

    def discriminator(self, spatial_dims: int, in_channels: int) -> PatchDiscriminator:
        """Return the discriminator for the images of a tokenizer."""
        return PatchDiscriminator(spatial_dims, in_channels, self.channels, self.num_layers, self.norm_groups)

    def active(self, step: int) -> bool:
        """Return whether L_G enters the loss after ``step`` finished steps."""
        return self.weight > 0 and step >= self.start

    def learns(self, step: int) -> bool:
        """Return whether the discriminator learns after ``step`` finished steps."""
        return step >= self.start - self.lead

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Scalar:
        """Return L_D of the logits of images and of reconstructions."""
        if self.kind == "hinge":
            return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
        return ((real - 1).square().mean() + fake.square().mean()) / 2

    def generator_loss(self, fake: Tensor) -> Scalar:
        """Return L_G of the logits of reconstructions."""
        return -fake.mean() if self.kind == "hinge" else (fake - 1).square().mean()

    def scale(self, reconstruction: Scalar, adversarial: Scalar, output: Image) -> Scalar:
        """Return w, scaled to the gradient of the reconstruction where that is asked for; no gradient flows into it.

        Args:
            reconstruction: L_rec.
            adversarial: L_G.
            output: The reconstruction; the weight nearest to it is W.
        """
        weight = torch.full((), self.weight, device=output.device)
        if not self.adaptive:
            return weight
        last = last_weight(output)
        own, other = (
            torch.autograd.grad(term, last, retain_graph=True)[0].float().norm()
            for term in (reconstruction, adversarial)
        )
        return weight * (own / (other + DELTA)).clamp(max=self.max_ratio)


def frozen_logits(discriminator: nn.Module, image: Image) -> Tensor:
    """Return the logits of ``image``; gradients reach the image and not the discriminator."""
    held = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    logits: Tensor = torch.func.functional_call(discriminator, held, (image,))
    return logits


def last_weight(output: Tensor) -> Tensor:
    """Return the weight matrix whose product is nearest to ``output`` in its graph; ``output`` itself where none is.

    The graph is walked backwards, breadth first. A weight is a leaf of at least two axes that an operation takes
    directly, or through a chain of views and casts.
    """
    frontier, seen = [output.grad_fn], set()
    while frontier:
        node = frontier.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        children = [child for child, _ in node.next_functions if child is not None]
        if len(children) > 1:
            for child in children:
                while len(child.next_functions) == 1 and child.next_functions[0][0] is not None:
                    child = child.next_functions[0][0]
                leaf = getattr(child, "variable", None)
                if leaf is not None and leaf.ndim >= 2:
                    found: Tensor = leaf
                    return found
        frontier += children
    return output
