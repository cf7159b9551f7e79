r"""Batches in an order that is a pure function of the seed and the step.

    session of stream index n:   permutation[n // N](n mod N),      permutation e drawn from (seed, VOXEL_ORDER, e)
    crop, flip, views of a step: drawn from (seed, VOXEL_DRAW, step, rank)
    kind and axis of a step:     drawn from (seed, VOXEL_KIND, step), so that all ranks agree

Nothing else enters, so that a run resumed at step k sees what an uninterrupted one would have seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Int

from neurotome.data.stores.base import StepBatches
from neurotome.data.stores.entries import LoadedSession, SessionEntry
from neurotome.data.stores.masks import MaskSource
from neurotome.data.stores.store import Store
from neurotome.ranges import Range, Ranged, Share, Size
from neurotome.streams import VOXEL_DRAW, VOXEL_KIND, VOXEL_ORDER, generator
from neurotome.types import Batch

# a slice through the outer tenth of the box shows little brain
_SLICE_MARGIN = 0.1
# enough places to centre a crop on; keeps the list of a large brain small
_MAX_CENTRES = 1 << 16
SessionCount = Annotated[int, Range("[1, 4096]")]  # of a step; more no memory holds
Kind = Literal["crop", "whole", "slice"]


@dataclass(frozen=True)
class StepPlan(Ranged):
    """What a training step sees.

    Args:
        batch_sessions: Sessions of a step of crops.
        crop: Edge of a crop in voxels, one number or three; None for whole volumes throughout.
        brain_prob: Share of crops centred on a brain voxel; the others lie anywhere.
        flip_prob: Probability of mirroring left and right.
        whole_fraction: The last share of the steps sees whole volumes.
        whole_sessions: Sessions of a step of whole volumes.
        slice_prob: Probability that a step is one of slices, along an axis drawn for the step.
        slice_sessions: Sessions of a step of slices.
        slice_fraction: The last share of the steps sees slices alone (the second stage of NeuroQuant's schedule).
        modalities_per_session: Views drawn per session; None for all.

    Raises:
        ValueError: A value is out of range.
    """

    batch_sessions: SessionCount = 6
    crop: tuple[Size, Size, Size] | Size | None = 16
    brain_prob: Share = 0.9
    flip_prob: Share = 0.5
    whole_fraction: Share = 0.1
    whole_sessions: SessionCount = 1
    slice_prob: Share = 0.0
    slice_sessions: SessionCount = 8
    slice_fraction: Share = 0.0
    modalities_per_session: Size | None = None

    def __post_init__(self) -> None:
        """Refuse crops that have no neighbouring voxels."""
        super().__post_init__()
        if self.crop is not None and sum(edge > 1 for edge in self.crop_shape) < 2:
            raise ValueError(f"crop is {self.crop}; give at least two edges above 1, three for volumes")

    @property
    def crop_shape(self) -> tuple[int, int, int]:
        """The three edges of a crop."""
        if self.crop is None:
            raise ValueError("this plan has no crops")
        return (self.crop,) * 3 if isinstance(self.crop, int) else tuple(self.crop)  # type: ignore[return-value]  # three

    @property
    def masks(self) -> MaskSource | None:
        """How a batch becomes masks; None for scans."""
        return None

    @property
    def min_views(self) -> int:
        """Contrasts that a training session must have."""
        return 1

    def sessions_of_a_step(self) -> dict[str, int]:
        """Return the sessions of each kind of step that occurs, by the setting that says so."""
        found = {}
        if self.whole_fraction > 0 or self.crop is None:
            found["whole_sessions"] = self.whole_sessions
        if self.slice_prob + self.slice_fraction > 0:
            found["slice_sessions"] = self.slice_sessions
        if self.crop is not None and self.whole_fraction + self.slice_fraction < 1:
            found["batch_sessions"] = self.batch_sessions
        return found


class VolumeBatches(StepBatches):
    """The batches of a training, by step.

    Args:
        store: Prepared sessions; the train split is used.
        plan: What a step sees.
        max_steps: Steps of the whole training.
        seed: Of order and augmentation.
        rank: Number of this process.
        world_size: Number of processes.
        modalities: The model's contrasts in its order; those of the store by default.

    Raises:
        ValueError: An empty train split, a crop larger than the grid, or more views asked for than there are.
    """

    def __init__(
        self,
        store: Store,
        plan: StepPlan,
        max_steps: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        modalities: Sequence[str] | None = None,
    ) -> None:
        self.store, self.plan, self.max_steps, self.seed = store, plan, max_steps, seed
        self.rank, self.world_size = rank, world_size
        self.modalities = tuple(modalities) if modalities is not None else store.modalities
        self.views = view_indices(store, self.modalities)
        self.entries = training_entries(store, plan, self.modalities)
        shape = store.preparation.shape
        if plan.crop is not None and any(c > n for c, n in zip(plan.crop_shape, shape, strict=True)):
            raise ValueError(f"crop {plan.crop_shape} is larger than the prepared grid {shape}; give a smaller crop")
        if (plan.modalities_per_session or 1) > len(self.modalities):
            raise ValueError(f"modalities_per_session is {plan.modalities_per_session} of {len(self.modalities)}")
        self._centres: dict[str, Int[np.ndarray, " n"]] = {}

    def __len__(self) -> int:
        return self.max_steps

    def kind(self, step: int) -> tuple[Kind, int]:
        """Return whether a step sees crops, whole volumes or slices, and the axis of the slices."""
        plan = self.plan
        rng = generator(self.seed, VOXEL_KIND, step, 0)
        draw, axis = rng.random(), int(rng.integers(3))
        if draw < plan.slice_prob or step >= round(self.max_steps * (1.0 - plan.slice_fraction)):
            return "slice", axis
        if plan.crop is None or step >= round(self.max_steps * (1.0 - plan.whole_fraction)):
            return "whole", axis
        return "crop", axis

    def sessions(self, step: int) -> list[SessionEntry]:
        """Return the sessions of a step on this rank."""
        plan = self.plan
        size = {"crop": plan.batch_sessions, "whole": plan.whole_sessions, "slice": plan.slice_sessions}[
            self.kind(step)[0]
        ]
        first = (step * self.world_size + self.rank) * size
        num = len(self.entries)
        return [self.entries[_permutation(self.seed, n // num, num)[n % num]] for n in range(first, first + size)]

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < self.max_steps:
            raise IndexError(f"step {step} of {self.max_steps}")
        kind, axis = self.kind(step)
        entries = self.sessions(step)
        rng = generator(self.seed, VOXEL_DRAW, step, self.rank)
        num_views = self.plan.modalities_per_session or len(self.views)
        size = self._size(kind, axis)
        image = np.empty((len(entries), num_views, 1, *size), dtype=np.float32)
        mask = np.empty((len(entries), 1, *size), dtype=bool)
        present = np.empty((len(entries), num_views), dtype=bool)
        modality = np.empty((len(entries), num_views), dtype=np.int64)
        labels = []
        for row, entry in enumerate(entries):
            loaded = self.store.load(entry)
            place = self._place(loaded, entry, kind, axis, size, rng)
            if rng.random() < self.plan.flip_prob:
                place = (slice(place[0].stop - 1, place[0].start - 1 if place[0].start else None, -1), *place[1:])
            chosen = self._choose(loaded, rng)
            for column, index in enumerate(chosen):
                image[row, column, 0] = loaded.image[self.views[index], 0][place]
            present[row] = loaded.present[[self.views[i] for i in chosen]]
            modality[row] = chosen
            mask[row, 0] = loaded.mask[place]
            if loaded.labels is not None:
                labels.append(loaded.labels[place])
        batch = Batch(
            image=torch.from_numpy(image),
            modality=torch.from_numpy(modality),
            present=torch.from_numpy(present),
            subject=tuple(e.subject for e in entries),
            session=tuple(e.session for e in entries),
            site=torch.tensor([self.store.site_index(e) for e in entries]),
            mask=torch.from_numpy(mask),
            label=torch.from_numpy(np.stack(labels)) if len(labels) == len(entries) else None,
        )
        return batch if self.plan.masks is None else self.plan.masks.of(batch)

    def _size(self, kind: Kind, axis: int) -> tuple[int, int, int]:
        if kind == "crop":
            return self.plan.crop_shape
        x, y, z = (1 if kind == "slice" and a == axis else n for a, n in enumerate(self.store.preparation.shape))
        return x, y, z

    def _place(
        self,
        loaded: LoadedSession,
        entry: SessionEntry,
        kind: Kind,
        axis: int,
        size: tuple[int, int, int],
        rng: np.random.Generator,
    ) -> tuple[slice, slice, slice]:
        """Draw where a crop or slice lies."""
        shape = self.store.preparation.shape
        start = [0, 0, 0]
        if kind == "slice":
            margin = int(_SLICE_MARGIN * shape[axis])
            start[axis] = int(rng.integers(margin, max(shape[axis] - margin, margin + 1)))
        elif kind == "crop":
            if rng.random() < self.plan.brain_prob:
                centres = self._brain_centres(loaded, entry)
                centre = np.unravel_index(int(centres[rng.integers(len(centres))]), shape)
                start = [int(np.clip(c - s // 2, 0, n - s)) for c, s, n in zip(centre, size, shape, strict=True)]
            else:
                start = [int(rng.integers(n - s + 1)) for s, n in zip(size, shape, strict=True)]
        x, y, z = (slice(a, a + s) for a, s in zip(start, size, strict=True))
        return x, y, z

    def _brain_centres(self, loaded: LoadedSession, entry: SessionEntry) -> Int[np.ndarray, " n"]:
        centres = self._centres.get(entry.digest)
        if centres is None:
            found = np.flatnonzero(loaded.mask)
            centres = found[:: -(-len(found) // _MAX_CENTRES)].astype(np.int32)
            self._centres[entry.digest] = centres
        return centres

    def _choose(self, loaded: LoadedSession, rng: np.random.Generator) -> list[int]:
        """Return the views of a session as positions in ``modalities``; missing ones are drawn last."""
        count = self.plan.modalities_per_session
        if count is None:
            return list(range(len(self.views)))
        order = rng.permutation(len(self.views))
        there = [int(i) for i in order if loaded.present[self.views[i]]]
        missing = [int(i) for i in order if not loaded.present[self.views[i]]]
        return sorted((there + missing)[:count])


def training_entries(store: Store, plan: StepPlan, modalities: Sequence[str]) -> list[SessionEntry]:
    """Return the training sessions that have as many contrasts as a step wants.

    Raises:
        ValueError: There is none.
    """
    entries = store.split("train")
    if not entries:
        raise ValueError("the train split is empty; give it at least one subject")
    if plan.min_views > 1:
        entries = [e for e in entries if len(set(e.modalities) & set(modalities)) >= plan.min_views]
        if not entries:
            raise ValueError(f"no training session has {plan.min_views} of {', '.join(modalities)}")
    return entries


def view_indices(store: Store, modalities: Sequence[str]) -> tuple[int, ...]:
    """Return where a model's contrasts lie in a store.

    Raises:
        ValueError: The store lacks one.
    """
    if lacking := [m for m in modalities if m not in store.modalities]:
        raise ValueError(f"the store has {', '.join(store.modalities)}, but not {', '.join(lacking)}")
    return tuple(store.modalities.index(m) for m in modalities)


def batch_of(
    store: Store,
    entries: Sequence[SessionEntry],
    device: torch.device | str = "cpu",
    modalities: Sequence[str] | None = None,
) -> Batch:
    """Return whole volumes of some sessions.

    Args:
        store: Prepared sessions.
        entries: Which, at least one.
        device: Where the tensors go.
        modalities: The model's contrasts in its order; those of the store by default.
    """
    names = tuple(modalities) if modalities is not None else store.modalities
    views = list(view_indices(store, names))
    loaded = [store.load(entry) for entry in entries]
    labels = [one.labels for one in loaded if one.labels is not None]
    # copied once, straight from the memory maps
    image = np.empty((len(loaded), len(views), 1, *store.preparation.shape), dtype=np.float32)
    for row, one in zip(image, loaded, strict=True):
        for column, view in zip(row, views, strict=True):
            column[...] = one.image[view]
    batch = Batch(
        image=torch.from_numpy(image),
        modality=torch.arange(len(names)).repeat(len(entries), 1),
        present=torch.from_numpy(np.stack([one.present[views] for one in loaded])),
        subject=tuple(e.subject for e in entries),
        session=tuple(e.session for e in entries),
        site=torch.tensor([store.site_index(e) for e in entries]),
        mask=torch.from_numpy(np.stack([one.mask[None] for one in loaded])),
        label=torch.from_numpy(np.stack(labels).astype(np.int64)) if len(labels) == len(loaded) else None,
    )
    return batch.to(device)


@lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, num: int) -> Int[np.ndarray, " n"]:
    return generator(seed, VOXEL_ORDER, epoch, 0).permutation(num)
