r"""Changes to a batch that are a pure function of (seed, step): mixed images and progressive resolution.

    mixup     x <- l x + (1 - l) x'                   l ~ Beta(a, a)              (Zhang et al., 2018)
    cutmix    x <- x' in a box, x elsewhere           box a share 1 - l, l uniform (Yun et al., 2019)
    progressive   images averaged over blocks of 2^h voxels per axis, h falling to 0 over the first part of the run

x' is another image of the same contrast: between contrasts a mixture would be an image of neither, and an image whose
contrast stands alone in its step stays as it is. Nothing else enters,
so that a resumed run sees what an uninterrupted one would have seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neurotome.ranges import Positive, Range, Ranged, Share
from neurotome.streams import MIX, generator
from neurotome.types import Image


@dataclass(frozen=True)
class Augmentation(Ranged):
    """What is done to the images of a step.

    Args:
        mixup_prob: Probability that a step's images are blended (MedGen: 0.2).
        cutmix_prob: Probability that they exchange boxes (MedGen: 0.2); with ``mixup_prob`` at most 1.
        alpha: a, both parameters of the blend's distribution, > 0.
        halvings: How often the first images are halved per axis; 0 for full resolution throughout.
        full_from: Share of the run after which images have full resolution, in (0, 1].

    Raises:
        ValueError: A value is out of range.
    """

    mixup_prob: Share = 0.0
    cutmix_prob: Share = 0.0
    alpha: Positive = 0.2
    halvings: Annotated[int, Range("[0, 16]")] = 0
    full_from: Annotated[float, Range("(0, 1]")] = 0.5

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        super().__post_init__()
        if self.mixup_prob + self.cutmix_prob > 1:
            raise ValueError(f"mixup_prob is {self.mixup_prob}, cutmix_prob {self.cutmix_prob}; give at most 1 in all")

    def mixed(self, image: Image, modality: Tensor, seed: int, step: int) -> Image:
        """Return the images of a run's step, each mixed with another of its contrast or left as it is."""
        rng = generator(seed, MIX, step)
        draw = rng.random()
        if draw >= self.mixup_prob + self.cutmix_prob:
            return image
        other = image[_partners(modality, rng)]
        if draw < self.mixup_prob:
            share = rng.beta(self.alpha, self.alpha)
            return image.lerp(other, 1 - share)
        inside = _box(image.shape[2:], 1 - rng.random(), rng).to(image.device)
        return torch.where(inside, other, image)

    def halved(self, progress: float) -> int:
        """Return how often images are halved per axis after this share of the run, where the network admits it."""
        return int(np.ceil(self.halvings * max(0.0, 1 - progress / self.full_from)))

    def reduced(self, image: Image, progress: float, admissible: Callable[[Sequence[int]], Any]) -> Tensor:
        """Return the images at the resolution of this part of the run.

        Args:
            image: At full resolution.
            progress: Share of the run that is done, in [0, 1].
            admissible: Raises ValueError for a spatial shape that the network refuses; the resolution is then halved
                less often.
        """
        for halvings in range(self.halved(progress), 0, -1):
            blocks = [2**halvings if s > 1 else 1 for s in image.shape[2:]]
            shape = [s // f for s, f in zip(image.shape[2:], blocks, strict=True)]
            if any(s % f or (f > 1 and s == f) for s, f in zip(image.shape[2:], blocks, strict=True)):
                continue
            try:
                admissible(shape)
            except ValueError:
                continue
            return F.avg_pool3d(image, blocks)
        return image


def _partners(modality: Tensor, rng: np.random.Generator) -> Tensor:
    """Return for each image another one of its contrast, or itself where it is the only one, ``(n,)``."""
    kinds = modality.tolist()
    partner = list(range(len(kinds)))
    for kind in sorted(set(kinds)):
        members = [i for i, k in enumerate(kinds) if k == kind]
        order = [members[i] for i in rng.permutation(len(members))]
        for at, member in enumerate(order):
            partner[member] = order[(at + 1) % len(order)]
    return torch.tensor(partner, device=modality.device)


def _box(shape: Sequence[int], share: float, rng: np.random.Generator) -> Tensor:
    """Return a box of about ``share`` of the voxels, anywhere, ``(x, y, z)``; a flat axis lies in it whole."""
    long = sum(s > 1 for s in shape)
    edge = share ** (1 / max(long, 1))
    inside = torch.zeros(tuple(shape), dtype=torch.bool)
    place = []
    for length in shape:
        size = max(1, round(edge * length)) if length > 1 else 1
        start = int(rng.integers(length - size + 1))
        place.append(slice(start, start + size))
    inside[tuple(place)] = True
    return inside
