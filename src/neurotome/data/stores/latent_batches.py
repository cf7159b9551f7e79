r"""Batches of raw latents, in an order that is a pure function of the seed and the step.

    session of stream index n:   permutation[n // N](n mod N),   permutation e drawn from (seed, "order", e)
    draws of a step:             drawn from (seed, "draw", step, rank)

As voxels are in :mod:`neurotome.data.stores.batches`: a run resumed at step k sees what an uninterrupted one would have
seen.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from neurotome.data.stores.latents import LatentEntry, Latents
from neurotome.types import Batch

_ORDER, _DRAW = 11, 12


class LatentBatches(Dataset[Batch]):
    """The batches of a training on latents, by step.

    Args:
        latents: Shards of a store.
        batch_sessions: Sessions of a step.
        max_steps: Steps of the whole training.
        seed: Of order and draws.
        rank: Number of this process.
        world_size: Number of processes.
        split: Name of the split.

    Raises:
        ValueError: An empty split, single latents, which have none, or fewer than one session per step.
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
    ) -> None:
        if batch_sessions < 1:
            raise ValueError(f"batch_sessions is {batch_sessions}; at least 1 session is needed")
        self.latents, self.batch_sessions, self.max_steps, self.seed = latents, batch_sessions, max_steps, seed
        self.rank, self.world_size = rank, world_size
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

    def entries(self, step: int) -> list[LatentEntry]:
        """Return what a step sees on this rank."""
        first, num = (step * self.world_size + self.rank) * self.batch_sessions, len(self.draws)
        rng = _generator(self.seed, _DRAW, step, self.rank)
        chosen = []
        for n in range(first, first + self.batch_sessions):
            session = self.draws[_generator(self.seed, _ORDER, n // num).permutation(num)[n % num]]
            chosen.append(session[int(rng.integers(len(session)))])
        return chosen

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < self.max_steps:
            raise IndexError(f"step {step} of {self.max_steps}")
        return latent_batch(self.latents, self.entries(step))


def latent_batch(latents: Latents, entries: Sequence[LatentEntry]) -> Batch:
    """Return the raw latents of some entries; a missing view is zero and marked.

    Args:
        latents: Where they are.
        entries: Which, at least one.
    """
    names = latents.origin.modalities
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


def _generator(*numbers: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(numbers)))
