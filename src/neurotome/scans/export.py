r"""From a trained network to a model folder: statistics over the training subjects, and the card.

    latent_stats   mean and standard deviation per channel over all cells of all training scans
    styles         mean and covariance of the style vector per contrast, over all sites and per site
    intensity      mean of the source intensities that became -1 and 1, per contrast

Of a tokenizer of masks the same, over masks; they have no intensities. Nothing here looks at a validation or test
subject.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import neurotome
from neurotome.data.stores.store import Store
from neurotome.errors import UsageError
from neurotome.losses.segmentation import SegmentationLoss
from neurotome.models.folder import write_model_folder
from neurotome.models.pretrained import NO_SCANS, longer
from neurotome.models.session_views import described_masks, session_views
from neurotome.models.styles import ALL_SITES, named_styles
from neurotome.tokenizers.base import Tokenizer
from neurotome.tokenizers.health import books_started

# a mean and spread per channel from fewer volumes are those of these volumes (ours: no source gives a number)
FEW_VOLUMES = 16


@dataclass
class TrainingStatistics:
    """Sums over the training scans.

    Args:
        volumes: Training volumes seen.
        count: Latent cells seen.
        total: Sum per latent channel, float64.
        square: Sum of squares per latent channel, float64.
        styles: Style vectors by (contrast, site).
        ranges: (low, high) of the sources by contrast.
    """

    volumes: int = 0
    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    square: Tensor = field(default_factory=lambda: torch.zeros(()))
    styles: dict[tuple[str, str], list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    ranges: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def add_latent(self, latent: Tensor) -> None:
        """Add latents ``(b, d, x, y, z)``."""
        cells = latent.double().cpu().movedim(1, -1).flatten(0, -2)  # (n, d)
        self.volumes += len(latent)
        self.count += len(cells)
        self.total = self.total + cells.sum(dim=0)
        self.square = self.square + cells.square().sum(dim=0)

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``latent_stats.json``."""
        mean = self.total / max(self.count, 1)
        variance = (self.square / max(self.count, 1) - mean.square()).clamp(min=0)
        intensity = {
            name: {
                "low": float(np.mean([a for a, _ in pairs])),
                "high": float(np.mean([b for _, b in pairs])),
                "n": len(pairs),
            }
            for name, pairs in self.ranges.items()
        }
        return {
            "mean": mean.tolist(),
            "std": variance.sqrt().tolist(),
            "volumes": self.volumes,
            "cells": self.count,
            "intensity": intensity,
        }

    def volumes_in_words(self) -> str:
        """Return on how many volumes the statistics rest, and whether these are few."""
        few = f"; these are few, {FEW_VOLUMES} and more are better" if self.volumes < FEW_VOLUMES else ""
        return f"per channel, over {self.volumes} training volumes{few}"

    def style_moments(self) -> tuple[dict[tuple[str, str], Tensor], dict[tuple[str, str], Tensor]]:
        """Return means ``(d,)`` and covariances ``(d, d)`` by (contrast, site); one vector has covariance 0."""
        means, covariances = {}, {}
        for key, vectors in self.styles.items():
            stacked = torch.stack(vectors).double()  # (n, d)
            centred = stacked - stacked.mean(dim=0)
            means[key] = stacked.mean(dim=0).float()
            covariances[key] = (centred.T @ centred / max(len(stacked) - 1, 1)).float()
        return means, covariances


def training_statistics(
    network: Tokenizer,
    store: Store,
    progress: Callable[[float], None] | None = None,
    segmentation: SegmentationLoss | None = None,
) -> TrainingStatistics:
    """Encode every training session and collect what a model folder states.

    Args:
        network: In evaluation mode.
        store: Its training split is read.
        segmentation: How a batch becomes the masks it was trained on; None for scans.
        progress: Called with the share of sessions done.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    found = TrainingStatistics()
    entries = store.split("train")
    for number, entry in enumerate(entries, 1):
        views = session_views(network, store, store.load(entry), segmentation)
        if not views:
            continue
        image = torch.from_numpy(np.stack([view.image for view in views])).to(device)  # (v, c, x, y, z)
        ids = torch.tensor([network.modality_id(view.modality) for view in views], device=device)
        with torch.inference_mode():
            encoded = network.encode(image, ids)
        found.add_latent(encoded.latent)
        for i, view in enumerate(views):
            if segmentation is None:
                found.ranges[view.modality].append((view.record.low, view.record.high))
            if encoded.style is None:
                continue
            vector = encoded.style[i].float().cpu()
            found.styles[view.modality, ALL_SITES].append(vector)
            if entry.site and entry.site != ALL_SITES:
                found.styles[view.modality, entry.site].append(vector)
        if progress is not None:
            progress(number / len(entries))
    return found


def export_model(
    network: Tokenizer,
    store: Store,
    folder: Path,
    *,
    facts: Mapping[str, Any],
    segmentation: SegmentationLoss | None = None,
    overwrite: bool = False,
    progress: Callable[[float], None] | None = None,
) -> str:
    """Write the model folder of a trained network and return its digest.

    Args:
        network: Holding the averaged weights.
        store: What it was trained on.
        folder: Where the model folder will stand.
        facts: Lines of the card: config, steps, seconds, validation.
        segmentation: How a batch becomes the masks it was trained on; None for scans.
        overwrite: Replace a model folder that is there.
        progress: Called with the share of training sessions done.

    Raises:
        UsageError: The store has no training session; the folder is there already.
    """
    if not store.split("train"):
        raise UsageError("the store has no training session; prepare it again with a training split")
    training = network.training
    network.eval()
    try:
        found = training_statistics(network, store, progress, segmentation)
    finally:
        network.train(training)
    subjects = sorted(store.subjects("train"))
    masks = None if segmentation is None else described_masks(network, segmentation)
    return write_model_folder(
        folder,
        network,
        preparation=store.preparation.to_json(),
        stats=found.to_json(),
        styles=named_styles(*found.style_moments()),
        subjects=subjects,
        card=card(
            network,
            store,
            {**facts, "Latent statistics": found.volumes_in_words()},
            styled=bool(found.styles),
            masks=masks,
        ),
        masks=masks,
        overwrite=overwrite,
    )


def card(
    network: Tokenizer,
    store: Store,
    facts: Mapping[str, Any],
    *,
    styled: bool = True,
    masks: Mapping[str, Any] | None = None,
) -> str:
    """Return the README of a model folder: what it is, what it was trained on, what it must not be used for.

    Args:
        network: The tokenizer.
        store: What it was trained on.
        facts: Further lines.
        styled: Whether it tells style from anatomy, and can paint another contrast.
        masks: ``source`` and ``groups`` of the masks it was trained on; None for scans.
    """
    preparation, name = store.preparation, type(network).__name__
    size = sum(value.numel() for value in network.exported_state().values())
    counts = ", ".join(f"{len(store.subjects(split))} {split}" for split in ("train", "val", "test"))
    what = f"brain MRI ({', '.join(network.modalities)})" if masks is None else "masks of brain MRI"
    lines = [
        f"# {name}",
        "",
        f"Tokenizer for {what}, made by neurotome {neurotome.__version__}.",
        "",
        "## Use",
        "",
        *_use(network, masks),
        "",
        "## Data and protocol",
        "",
        f"- {'Skull-stripped scans' if masks is None else 'Masks on the grid of skull-stripped scans'} at "
        f"{preparation.describe()}.",
        f"- Subjects: {counts}. The training subjects are listed in config.json as salted hashes.",
        f"- Bits per voxel: at most {network.bits_per_voxel(preparation.shape):.3f}; {size} stored numbers.",
        f"- {_images(masks, styled)}",
        *(f"- {key}: {value}" for key, value in facts.items()),
        "",
        "## Limits",
        "",
        *([] if books_started(network) else [f"CODEBOOK NOT STARTED: its codes are noise; {longer(network)}.", ""]),
        "Research only; not for clinical use. Reconstructed and translated scans are synthetic: a structure may be "
        "missing, moved or invented. Scans unlike the training data give results that only look right.",
    ]
    return "\n".join(lines) + "\n"


def _use(network: Tokenizer, masks: Mapping[str, Any] | None) -> list[str]:
    if masks is not None:
        return [f"The model {NO_SCANS[0]}; {NO_SCANS[1]}."]
    return [
        "```python",
        "from neurotome import Tokenizer, read_volume",
        'tokenizer = Tokenizer.from_pretrained("path/to/this/folder")',
        f'code = tokenizer.encode(read_volume("scan.nii.gz"), modality="{network.modalities[0]}")',
        "```",
    ]


def _images(masks: Mapping[str, Any] | None, styled: bool) -> str:
    """Return what the images are that it learned from, or what it can do with their style."""
    if masks is not None:
        return f"Images: masks, one channel each of: {', '.join(masks['groups'])} (source: {masks['source']})."
    if styled:
        return (
            "The default style of another contrast is the mean over the training subjects; so is its intensity range."
        )
    return "It has no style apart from the anatomy: it reconstructs scans and cannot translate them."
