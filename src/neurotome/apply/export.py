r"""From a trained network to a model folder: statistics over the training subjects, and the card.

    latent_stats   mean and standard deviation per channel over all cells of all training scans
    styles         mean and covariance of the style vector per contrast, over all sites and per site
    intensity      mean of the source intensities that became -1 and 1, per contrast

Nothing here looks at a validation or test subject.
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
from neurotome.apply.model_folder import write_model_folder
from neurotome.apply.tokenizer import ALL_SITES, named_styles
from neurotome.data.store import Store
from neurotome.errors import UsageError
from neurotome.tokenizers.base import Tokenizer


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
    network: Tokenizer, store: Store, progress: Callable[[float], None] | None = None
) -> TrainingStatistics:
    """Encode every training session and collect what a model folder states.

    Args:
        network: In evaluation mode.
        store: Its training split is read.
        progress: Called with the share of sessions done.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    found = TrainingStatistics()
    entries = store.split("train")
    for number, entry in enumerate(entries, 1):
        session = store.load(entry)
        views = [i for i, name in enumerate(store.modalities) if session.present[i] and name in network.modalities]
        if not views:
            continue
        names = [store.modalities[i] for i in views]
        image = torch.from_numpy(np.array(session.image[views], dtype=np.float32)).to(device)  # (v, 1, x, y, z)
        with torch.inference_mode():
            encoded = network.encode(image, torch.tensor([network.modality_id(n) for n in names], device=device))
        found.add_latent(encoded.latent)
        for i, name in enumerate(names):
            record = session.records[name]
            found.ranges[name].append((record.low, record.high))
            if encoded.style is None:
                continue
            vector = encoded.style[i].float().cpu()
            found.styles[name, ALL_SITES].append(vector)
            if entry.site and entry.site != ALL_SITES:
                found.styles[name, entry.site].append(vector)
        if progress is not None:
            progress(number / len(entries))
    return found


def export_model(
    network: Tokenizer,
    store: Store,
    folder: Path,
    *,
    facts: Mapping[str, Any],
    overwrite: bool = False,
    progress: Callable[[float], None] | None = None,
) -> str:
    """Write the model folder of a trained network and return its digest.

    Args:
        network: Holding the averaged weights.
        store: What it was trained on.
        folder: Where the model folder will stand.
        facts: Lines of the card: config, steps, seconds, validation.
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
        found = training_statistics(network, store, progress)
    finally:
        network.train(training)
    subjects = sorted(store.subjects("train"))
    return write_model_folder(
        folder,
        network,
        preparation=store.preparation.to_json(),
        stats=found.to_json(),
        styles=named_styles(*found.style_moments()),
        subjects=subjects,
        card=card(network, store, facts, styled=bool(found.styles)),
        overwrite=overwrite,
    )


def card(network: Tokenizer, store: Store, facts: Mapping[str, Any], *, styled: bool = True) -> str:
    """Return the README of a model folder: what it is, what it was trained on, what it must not be used for.

    Args:
        network: The tokenizer.
        store: What it was trained on.
        facts: Further lines.
        styled: Whether it tells style from anatomy, and can paint another contrast.
    """
    other = "The default style of another contrast is the mean over the training subjects; so is its intensity range."
    alone = "It has no style apart from the anatomy: it reconstructs scans and cannot translate them."
    preparation, name = store.preparation, type(network).__name__
    size = sum(value.numel() for value in network.exported_state().values())
    counts = ", ".join(f"{len(store.subjects(split))} {split}" for split in ("train", "val", "test"))
    lines = [
        f"# {name}",
        "",
        f"Tokenizer for brain MRI ({', '.join(network.modalities)}), made by neurotome {neurotome.__version__}.",
        "",
        "## Use",
        "",
        "```python",
        "from neurotome import Tokenizer, read_volume",
        'tokenizer = Tokenizer.from_pretrained("path/to/this/folder")',
        f'code = tokenizer.encode(read_volume("scan.nii.gz"), modality="{network.modalities[0]}")',
        "```",
        "",
        "## Data and protocol",
        "",
        f"- Skull-stripped scans at {preparation.describe()}.",
        f"- Subjects: {counts}. The training subjects are listed in config.json as salted hashes.",
        f"- Bits per voxel: at most {network.bits_per_voxel(preparation.shape):.3f}; {size} stored numbers.",
        f"- {other if styled else alone}",
        *(f"- {key}: {value}" for key, value in facts.items()),
        "",
        "## Limits",
        "",
        "Research only; not for clinical use. Reconstructed and translated scans are synthetic: a structure may be "
        "missing, moved or invented. Scans unlike the training data give results that only look right.",
    ]
    return "\n".join(lines) + "\n"
