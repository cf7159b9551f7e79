"""The contract of a config's ``data`` block: what a training reads.

settings ──open(path)──▶ reader ──batches──▶ a batch per step      (training)
                                ──sessions─▶ a batch per session   (validation, statistics)

Settings are a frozen dataclass, built by the class block; the reader knows the folder that they were opened on. A batch
is a pure function of seed, step and rank, so that a resumed run sees what an uninterrupted one would have seen.
"""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.record import Record
from neurotome.types import Batch, Images, Source


class Sessions(Dataset[Batch], ABC):
    """Whole sessions, one at a time."""

    @abstractmethod
    def __len__(self) -> int:
        """Return how many there are."""


class StepBatches(Dataset[Batch], ABC):
    """The batches of a training, by step."""

    @abstractmethod
    def sessions(self, step: int) -> Sequence[Any]:
        """Return the entries of the sessions of a step on this rank; each has a ``subject``."""


class Reader(ABC):
    """A store or latents, opened for a training.

    Attributes:
        path: The folder.
        modalities: The contrasts that lie there, in their order.
        preparation: What made the images.
        sites: Names of the sites, by the index that a batch gives.
    """

    path: Path
    modalities: tuple[str, ...]
    preparation: Preparation
    sites: tuple[str, ...]

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of all that decides what a step sees, but for seed, contrasts and the number of steps."""

    @property
    @abstractmethod
    def images(self) -> Images:
        """What the images are: scans, masks, or latents of which model."""

    @abstractmethod
    def source(self, modalities: Sequence[str]) -> Source:
        """Return what a method needs to know of the batches.

        Args:
            modalities: The model's contrasts in its order.

        Raises:
            ValueError: The folder cannot give such batches: a contrast is missing, a crop larger than the grid, no
                training session.
        """

    @abstractmethod
    def batches(
        self, max_steps: int, seed: int, modalities: Sequence[str], rank: int = 0, world_size: int = 1
    ) -> StepBatches:
        """Return the batches of a training by step; raises as :meth:`source`."""

    @abstractmethod
    def sessions(self, split: str, modalities: Sequence[str], max_sessions: int | None = None) -> Sessions:
        """Return whole sessions of a split, one at a time; at most so many, the first by subject."""

    @abstractmethod
    def intensity(self, split: str) -> dict[str, Any]:
        """Return by contrast the mean source intensities that became -1 and 1; empty where there are none."""

    @abstractmethod
    def subjects(self, split: str) -> tuple[str, ...]:
        """Return the subjects of a split, sorted."""

    @abstractmethod
    def scans(self, split: str) -> tuple[str, ...]:
        """Return the content hashes of the scans of a split, sorted."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what the report says about the cohort: sessions, contrasts and sites per split, and the grid."""


class TrainingData(ABC):
    """The settings of a ``data`` block."""

    @abstractmethod
    def open(self, path: Path) -> Reader:
        """Open a folder for a training.

        Raises:
            UsageError: Nothing of the kind is there.
            InputError: It is damaged, of a newer format, or its splits share a subject or a scan.
        """


def counts_by_split(entries: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return subjects, sessions, contrasts and sites of the entries of each split."""
    return {
        split: {
            "subjects": len({e.subject for e in found}),
            "sessions": len({(e.subject, e.session) for e in found}),
            "modalities": dict(Counter(m for e in found for m in e.modalities)),
            "sites": dict(Counter(e.site or "unknown" for e in found)),
        }
        for split, found in entries.items()
    }


def mean_ranges(records: Iterable[Mapping[str, Record]]) -> dict[str, Any]:
    """Return the mean low and high of the records of many sessions, by contrast, and of how many scans."""
    lows: dict[str, list[float]] = defaultdict(list)
    highs: dict[str, list[float]] = defaultdict(list)
    for views in records:
        for name, record in views.items():
            lows[name].append(record.low)
            highs[name].append(record.high)
    return {
        name: {"low": float(np.mean(lows[name])), "high": float(np.mean(highs[name])), "n": len(lows[name])}
        for name in lows
    }
