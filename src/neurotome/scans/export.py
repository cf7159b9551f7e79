r"""From a trained network to a model folder: statistics over the training subjects, and the card.

    latent_stats   mean and standard deviation per channel over all cells of all training images
    styles         mean and covariance of the style vector per contrast, over all sites and per site
    intensity      mean of the source intensities that became -1 and 1, per contrast

Statistics are those of a tokenizer; of masks there are no intensities. Nothing here looks at a validation or test
subject.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import neurotome
from neurotome.data.stores.base import Reader
from neurotome.errors import UsageError
from neurotome.files.progress import Report
from neurotome.models.folder import NO_SCANS, write_model_folder
from neurotome.models.starting_model import StartingModel
from neurotome.models.styles import ALL_SITES, named_styles
from neurotome.nn.exported import Exportable
from neurotome.scans.codec import Codec
from neurotome.tokenizers.base import Tokenizer
from neurotome.training.base import Frozen
from neurotome.types import Images

# a mean and spread per channel from fewer volumes are those of these volumes (ours: no source gives a number)
FEW_VOLUMES = 16
UNKNOWN = (
    " The subjects that the weights it started from were trained on are not known: an evaluation cannot tell whether "
    "it has seen them."
)


@dataclass
class TrainingStatistics:
    """Sums over the training images.

    Args:
        volumes: Training volumes seen.
        count: Latent cells seen.
        total: Sum per latent channel, float64.
        square: Sum of squares per latent channel, float64.
        styles: Style vectors by (contrast, site).
        bits: Of each image, its voxels, and those of its brain.
    """

    volumes: int = 0
    bits: list[tuple[float, int, int]] = field(default_factory=list)
    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    square: Tensor = field(default_factory=lambda: torch.zeros(()))
    styles: dict[tuple[str, str], list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def add_latent(self, latent: Tensor) -> None:
        """Add latents ``(b, d, x, y, z)``."""
        cells = latent.double().cpu().movedim(1, -1).flatten(0, -2)  # (n, d)
        self.volumes += len(latent)
        self.count += len(cells)
        self.total = self.total + cells.sum(dim=0)
        self.square = self.square + cells.square().sum(dim=0)

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``latent_stats.json`` but for the intensities."""
        mean = self.total / max(self.count, 1)
        variance = (self.square / max(self.count, 1) - mean.square()).clamp(min=0)
        return {
            "mean": mean.tolist(), "std": variance.sqrt().tolist(), "volumes": self.volumes, "cells": self.count
        }  # fmt: skip

    def bits_in_words(self) -> str:
        """Return the mean bits per voxel of the grid and of the brain."""
        grid = statistics.fmean(bits / voxels for bits, voxels, _ in self.bits)
        known = [bits / brain for bits, _, brain in self.bits if brain]
        brain = f", {statistics.fmean(known):.3f} per brain voxel" if known else ""
        return f"{grid:.3f} per voxel of the grid{brain}, mean over {len(self.bits)} training volumes"

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


def training_statistics(network: Tokenizer, reader: Reader, progress: Report | None = None) -> TrainingStatistics:
    """Encode every training session and collect what a model folder states.

    Args:
        network: Holding the averaged weights; put into evaluation mode.
        reader: Its training split is read.
        progress: Called after every session.
    """
    codec, found = Codec(network, reader.preparation.shape), TrainingStatistics()
    sessions = reader.sessions("train", network.modalities)
    for number in range(len(sessions)):
        batch = sessions[number]
        image, ids = batch.flat()
        names = [network.modalities[i] for i in ids.tolist()]
        site = reader.sites[index] if (index := int(batch.site[0])) >= 0 else ""
        codes = codec.encode(list(image.numpy()), names)
        if codes:
            found.add_latent(torch.cat([code.latent for code in codes]))
            brain = 0 if batch.mask is None else int(batch.mask[0].sum())
            found.bits += [(float(network.bits_used(code)[0]), math.prod(code.shape), brain) for code in codes]
        for name, code in zip(names, codes, strict=True):
            if code.style is None:
                continue
            found.styles[name, ALL_SITES].append(code.style[0])
            if site and site != ALL_SITES:
                found.styles[name, site].append(code.style[0])
        if progress is not None:
            progress(number + 1, len(sessions), f"sub-{batch.subject[0]}")
    return found


def export(
    network: Exportable,
    reader: Reader,
    folder: Path,
    *,
    facts: Mapping[str, Any],
    frozen: Mapping[str, Frozen] | None = None,
    origin: StartingModel | None = None,
    overwrite: bool = False,
    progress: Report | None = None,
) -> str:
    """Write the model folder of a trained network and return its digest.

    Args:
        network: Holding the averaged weights.
        reader: What it was trained on.
        folder: Where the model folder will stand.
        facts: Lines of the card: config, steps, seconds, validation.
        frozen: Networks that its training only read, by name.
        origin: What its training started from; None for freshly drawn weights.
        overwrite: Replace a model folder that is there.
        progress: Called after every training session that statistics are made of.

    Raises:
        UsageError: There is no training session; the folder is there already.
    """
    if not reader.subjects("train"):
        raise UsageError("the store has no training session; prepare it again with a training split")
    images, stats, styles = reader.images, None, None
    subjects: Any = reader.subjects("train")
    scans = reader.scans("train")
    if origin is not None:
        subjects, facts = origin.subjects.joined(subjects, scans), {**facts, "Started from": origin.in_words()}
    if isinstance(network, Tokenizer):
        training = network.training
        found = training_statistics(network, reader, progress)
        network.train(training)
        stats = {**found.to_json(), "intensity": reader.intensity("train")}
        styles = named_styles(*found.style_moments())
        facts = {**facts, "Latent statistics": found.volumes_in_words(), "Translation": _translation(bool(styles))}
        facts |= {"Bits": found.bits_in_words()} if found.bits else {}
    return write_model_folder(
        folder,
        network,
        preparation=reader.preparation,
        subjects=subjects,
        scans=scans,
        card=card(network, reader, images, facts, complete=origin is None or origin.subjects.complete),
        images=images,
        frozen={name: one.digest for name, one in (frozen or {}).items()},
        stats=stats,
        styles=styles,
        origin=() if origin is None else origin.chain,
        overwrite=overwrite,
    )


def card(
    network: Exportable, reader: Reader, images: Images, facts: Mapping[str, Any], *, complete: bool = True
) -> str:
    """Return the README of a model folder: what it is, what it was trained on, what it must not be used for.

    Args:
        network: What was trained.
        reader: What it was trained on.
        images: What its images are.
        facts: Further lines.
        complete: Whether all are known that it was trained on.
    """
    size = sum(value.numel() for value in network.exported_state().values())
    counts = ", ".join(f"{len(reader.subjects(split))} {split}" for split in ("train", "val", "test"))
    of_masks, contrasts = images.space == "masks", ", ".join(network.modalities)
    what = "masks of brain MRI" if of_masks else f"brain MRI ({contrasts})"
    seen = "Masks on the grid of skull-stripped scans" if of_masks else "Skull-stripped scans"
    unready = network.unready()
    lines = [
        f"# {type(network).__name__}",
        "",
        f"{network.family.capitalize()} for {what}, made by neurotome {neurotome.__version__}.",
        "",
        "## Use",
        "",
        *([f"The model {NO_SCANS[0]}; {NO_SCANS[1]}."] if of_masks else network.usage()),
        "",
        "## Data and protocol",
        "",
        f"- {seen} at {reader.preparation.describe()}.",
        f"- Subjects: {counts}. {'All' if complete else 'Those'} it was trained on, and their scans, are listed in "
        f"config.json as salted hashes.{'' if complete else UNKNOWN}",
        f"- {size} stored numbers.",
        *(f"- {line}" for line in ([_masks(images)] if of_masks else network.describe(reader.preparation.shape))),
        *(f"- {key}: {value}" for key, value in facts.items()),
        "",
        "## Limits",
        "",
        *([f"NOT READY: {unready}.", ""] if unready else []),
        f"Research only; not for clinical use. {network.limits()} Scans unlike the training data give results that "
        "only look right.",
    ]
    return "\n".join(lines) + "\n"


def _translation(styled: bool) -> str:
    if styled:
        return "the default style of another contrast is the mean over training subjects, and so is its intensity range"
    return "it has no style apart from the anatomy: it reconstructs scans and cannot translate them"


def _masks(images: Images) -> str:
    """Return what the channels of masks are."""
    return (
        f"Images: masks, one channel each of: {', '.join(images.masks['groups'])} (source: {images.masks['source']})."
    )
