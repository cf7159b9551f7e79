r"""Batches of raw latents, in an order that is a pure function of the seed and the step.

    session of stream index n:   permutation[n // N](n mod N),   permutation e drawn from (seed, LATENT_ORDER, e)
    draws of a step:             drawn from (seed, LATENT_DRAW, step, rank)

As voxels are in :mod:`neurotome.data.stores.batches`: a run resumed at step k sees what an uninterrupted one would have
seen.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neurotome.data.datasets.splits import SPLITS
from neurotome.data.stores.base import Reader, Sessions, StepBatches, TrainingData, counts_by_split, mean_ranges
from neurotome.data.stores.batches import SessionCount
from neurotome.data.stores.latents import LatentEntry, Latents
from neurotome.data.stores.leaks import check_splits
from neurotome.ranges import Ranged
from neurotome.streams import LATENT_DRAW, LATENT_ORDER, generator
from neurotome.types import Batch, Images, Source


@dataclass(frozen=True)
class LatentVolumes(Ranged, TrainingData):
    """Raw latents of a store, as ``neurotome encode MODEL STORE OUT --shards`` wrote them.

    Args:
        batch_sessions: Sessions of a step; of each one draw of its augmentation.

    Raises:
        ValueError: A value is out of range.
    """

    batch_sessions: SessionCount = 6

    def open(self, path: Path) -> "LatentReader":
        """See :class:`TrainingData`; ``path`` is a folder of shards."""
        latents = Latents.open(path)
        check_splits(latents.entries, latents.path)
        return LatentReader(latents, self)


class LatentBatches(StepBatches):
    """The batches of a training on latents, by step.

    Args:
        latents: Shards of a store.
        batch_sessions: Sessions of a step.
        max_steps: Steps of the whole training.
        seed: Of order and draws.
        rank: Number of this process.
        world_size: Number of processes.
        split: Name of the split.
        modalities: The model's contrasts in its order; those of the latents by default.

    Raises:
        ValueError: An empty split, single latents, which have none, or a contrast that the latents lack.
    """

    def __init__(
        self,
        latents: Latents,
        batch_sessions: int,
        max_steps: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        split: str = "train",
        modalities: Sequence[str] | None = None,
    ) -> None:
        self.latents, self.batch_sessions, self.max_steps, self.seed = latents, batch_sessions, max_steps, seed
        self.rank, self.world_size, self.modalities = rank, world_size, modalities
        if lacking := sorted(set(modalities or ()) - set(latents.origin.modalities)):
            raise ValueError(f"the latents have {', '.join(latents.origin.modalities)}, but not {', '.join(lacking)}")
        if latents.entries and not any(entry.split for entry in latents.entries):
            raise ValueError(
                f"{latents.path}: single latents belong to no split, so nothing says which of them may be trained on; "
                "encode the store instead: `neurotome encode MODEL STORE OUT --shards`"
            )
        draws: dict[tuple[str, str], list[LatentEntry]] = {}
        for entry in latents.split(split):
            draws.setdefault((entry.subject, entry.session), []).append(entry)
        if not draws:
            raise ValueError(f"the {split} split holds no latent; encode a store with subjects in it")
        self.draws = list(draws.values())

    def __len__(self) -> int:
        return self.max_steps

    def sessions(self, step: int) -> list[LatentEntry]:
        """Return what a step sees on this rank."""
        first, num = (step * self.world_size + self.rank) * self.batch_sessions, len(self.draws)
        rng = generator(self.seed, LATENT_DRAW, step, self.rank)
        chosen = []
        for n in range(first, first + self.batch_sessions):
            session = self.draws[generator(self.seed, LATENT_ORDER, n // num).permutation(num)[n % num]]
            chosen.append(session[int(rng.integers(len(session)))])
        return chosen

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < self.max_steps:
            raise IndexError(f"step {step} of {self.max_steps}")
        return latent_batch(self.latents, self.sessions(step), self.modalities)


class LatentSessions(Sessions):
    """Latents of a split, one session at a time, each as the scan was (draw 0).

    Args:
        latents: Shards of a store.
        split: Name of the split.
        max_sessions: At most so many; None for all.
        modalities: The model's contrasts in its order; those of the latents by default.
    """

    def __init__(
        self, latents: Latents, split: str, max_sessions: int | None = None, modalities: Sequence[str] | None = None
    ) -> None:
        self.latents, self.modalities = latents, modalities
        self.entries = [entry for entry in latents.split(split) if entry.draw == 0][:max_sessions]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Batch:
        return latent_batch(self.latents, [self.entries[index]], self.modalities)


class LatentReader(Reader):
    """Latents, opened for a training.

    Args:
        latents: Shards of a store.
        plan: What a step sees.
    """

    def __init__(self, latents: Latents, plan: LatentVolumes) -> None:
        self.latents, self.plan = latents, plan
        self.path, self.modalities = latents.path, latents.origin.modalities
        self.preparation, self.sites = latents.origin.preparation, latents.sites

    @property
    def fingerprint(self) -> str:
        """See :class:`Reader`."""
        return hashlib.sha256(json.dumps([self.latents.fingerprint, repr(self.plan)]).encode()).hexdigest()

    @property
    def images(self) -> Images:
        """See :class:`Reader`."""
        return Images("latents", tokenizer=self.latents.origin.tokenizer)

    def source(self, modalities: Sequence[str]) -> Source:
        """See :class:`Reader`."""
        first = self.batches(1, 0, modalities)[0].image  # (b, v, d, x, y, z)
        x, y, z = first.shape[3:]
        return Source(
            images=self.images,
            modalities=tuple(modalities),
            channels=first.shape[2],
            grid=(x, y, z),
            steps={"batch_sessions": self.plan.batch_sessions},
            views=min(len(set(e.modalities) & set(modalities)) for e in self.latents.split("train")),
        )

    def batches(
        self, max_steps: int, seed: int, modalities: Sequence[str], rank: int = 0, world_size: int = 1
    ) -> LatentBatches:
        """See :class:`Reader`."""
        sessions = self.plan.batch_sessions
        return LatentBatches(self.latents, sessions, max_steps, seed, rank, world_size, modalities=modalities)

    def sessions(self, split: str, modalities: Sequence[str], max_sessions: int | None = None) -> LatentSessions:
        """See :class:`Reader`."""
        return LatentSessions(self.latents, split, max_sessions, modalities)

    def intensity(self, split: str) -> dict[str, Any]:
        """See :class:`Reader`."""
        return mean_ranges(entry.records for entry in self.latents.split(split) if entry.draw == 0)

    def subjects(self, split: str) -> tuple[str, ...]:
        """See :class:`Reader`."""
        return self.latents.subjects(split)

    def scans(self, split: str) -> tuple[str, ...]:
        """See :class:`Reader`."""
        return tuple(sorted({content for entry in self.latents.split(split) for content in entry.contents}))

    def describe(self) -> dict[str, Any]:
        """See :class:`Reader`."""
        return {
            "spacing_mm": self.preparation.spacing_mm,
            "shape": list(self.latents.origin.shape),
            "splits": counts_by_split({split: self.latents.split(split) for split in SPLITS}),
            "tokenizer": self.latents.origin.tokenizer,
        }


def latent_batch(latents: Latents, entries: Sequence[LatentEntry], modalities: Sequence[str] | None = None) -> Batch:
    """Return the raw latents of some entries; a missing view is zero and marked.

    Args:
        latents: Where they are.
        entries: Which, at least one.
        modalities: Contrasts in the model's order; those of the latents by default.
    """
    names = latents.origin.modalities if modalities is None else tuple(modalities)
    present = torch.tensor([[name in entry.modalities for name in names] for entry in entries])
    image: torch.Tensor | None = None
    for row, entry in enumerate(entries):
        for column, name in enumerate(names):
            if not present[row, column]:
                continue
            latent = torch.from_numpy(latents.load(entry, name).latent)
            if image is None:
                image = torch.zeros((len(entries), len(names), *latent.shape))
            image[row, column] = latent
    if image is None:
        raise ValueError(f"none of the entries has one of {', '.join(names)}")
    return Batch(
        image=image,
        modality=torch.arange(len(names)).repeat(len(entries), 1),
        present=present,
        subject=tuple(entry.subject for entry in entries),
        session=tuple(entry.session for entry in entries),
        site=torch.tensor([latents.site_index(entry) for entry in entries]),
        space="latents",
    )
