r"""Training the features of the perceptual loss: a small network of two dimensions learns to name tissues.

    classes(slice) = 1x1 convolution of all levels, brought to full size          9 classes, cross-entropy

The slices are of synthetic brains, along every axis, in every contrast, with gamma and flips: what tells tissues apart
in all contrasts is what a reconstruction must not lose. No scan of a person enters, so the file may be given to anyone.

    from neurotome.experiments.perceptual_features import train_features
    train_features("features.safetensors")
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from neurotome.data.phantom.cohort import LABELS, SyntheticCohort
from neurotome.errors import OutputError, printable
from neurotome.losses.perceptual import SliceFeatures, write_features
from neurotome.nn.nd import Conv, upsample

CONTRASTS = ("T1w", "T2w", "FLAIR", "PDw")
SLICES = 8  # of a step, along one axis, of one subject in one contrast each
MARGIN = 0.15  # of the box at either end, where slices show little brain


class _TissueNamer(nn.Module):
    """The features with a linear reading of all levels."""

    def __init__(self, features: SliceFeatures, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.features = features
        self.head = Conv(2, sum(channels), len(LABELS), 1)

    def forward(self, slices: Tensor) -> Tensor:
        """Map slices ``(n, 1, x, y, 1)`` to logits ``(n, classes, x, y, 1)``."""
        size = slices.shape[2:]
        return self.head(torch.cat([upsample(level, size) for level in self.features(slices)], dim=1))


def train_features(
    out: str | Path,
    steps: int = 600,
    num_subjects: int = 12,
    spacing_mm: float = 3.0,
    channels: tuple[int, ...] = (12, 24, 32, 48),
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> tuple[str, float]:
    """Train the features and write their file; return its SHA-256 and the balanced accuracy on a further subject.

    The same arguments give the same features up to rounding, which differs between processors: the hash of the file
    that comes with the package is that of one training.

    Args:
        out: Where the file will stand; one that is there is replaced.
        steps: Optimiser steps.
        num_subjects: Synthetic subjects, at least 1; one more is rendered for the accuracy.
        spacing_mm: Size of their voxels.
        channels: Width of each level.
        seed: Of the cohort and of all draws.
        progress: Called with the share of steps done.

    Raises:
        OutputError: The file cannot be written.
    """
    cohort = SyntheticCohort(num_subjects + 1, spacing_mm, CONTRASTS, seed=seed)
    scans, labels = zip(*(_subject(cohort, index) for index in range(num_subjects + 1)), strict=True)
    rng = np.random.default_rng(seed)
    generators = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        network = _TissueNamer(SliceFeatures(channels), channels)
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stubs lack it
        optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
        counts = np.bincount(np.concatenate([m.ravel() for m in labels[:-1]]), minlength=len(LABELS))
        weight = torch.tensor(1 / np.sqrt(counts + 1), dtype=torch.float32)
        for step in range(steps):
            image, truth = _draw(scans[:-1], labels[:-1], rng)
            loss = F.cross_entropy(network(image), truth, weight=weight)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress((step + 1) / steps)
    finally:
        torch.random.set_rng_state(generators)
    accuracy = _balanced_accuracy(network, scans[-1], labels[-1])
    facts = {
        "trained_on": f"{num_subjects} synthetic subjects, {spacing_mm:g} mm, {', '.join(CONTRASTS)}, seed {seed}",
        "task": f"names of {len(LABELS)} classes, {steps} steps",
        "held_out_balanced_accuracy": f"{accuracy:.3f}",
    }
    try:
        return write_features(Path(out), network.features, facts), accuracy
    except OSError as error:
        raise OutputError(f"{printable(out)}: cannot be written ({error.strerror}); give another file") from error


def _subject(cohort: SyntheticCohort, index: int) -> tuple[Float[np.ndarray, "v x y z"], UInt8[np.ndarray, "x y z"]]:
    subject = cohort.subject(index)
    images = np.stack([subject.images[name] for name in CONTRASTS])
    return (2 * np.clip(images, 0, 1) - 1).astype(np.float32), subject.labels


def _draw(
    scans: tuple[np.ndarray, ...], labels: tuple[np.ndarray, ...], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return slices ``(n, 1, u, v, 1)`` along one axis and their classes ``(n, u, v, 1)``."""
    axis = int(rng.integers(3))
    images, classes = [], []
    for _ in range(SLICES):
        subject, contrast = int(rng.integers(len(scans))), int(rng.integers(len(CONTRASTS)))
        length = scans[subject].shape[1 + axis]
        at = int(rng.integers(int(MARGIN * length), int((1 - MARGIN) * length)))
        image, truth = scans[subject][contrast].take(at, axis), labels[subject].take(at, axis)
        image = 2 * ((image + 1) / 2) ** float(np.exp(rng.normal(0, 0.3))) - 1
        flips = tuple(slice(None, None, int(rng.choice([-1, 1]))) for _ in range(2))
        images.append(image[flips])
        classes.append(truth[flips])
    return (
        torch.from_numpy(np.stack(images).astype(np.float32))[:, None, ..., None],
        torch.from_numpy(np.stack(classes).astype(np.int64))[..., None],
    )


@torch.no_grad()
def _balanced_accuracy(network: nn.Module, scans: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean recall over classes on all axial slices of a subject in all contrasts."""
    images = torch.from_numpy(np.moveaxis(scans, 3, 1).reshape(-1, 1, *scans.shape[1:3], 1).copy())
    guess = network(images).argmax(1)[..., 0].numpy()
    truth = np.concatenate([np.moveaxis(labels, 2, 0)] * len(scans))
    return float(np.mean([np.mean(guess[truth == k] == k) for k in np.unique(truth)]))
