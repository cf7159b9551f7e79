"""Training on a prepared store: volumes, pairs of contrasts, masks."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from neurotome.data.datasets.splits import SPLITS
from neurotome.data.stores.base import Reader, Sessions, TrainingData, counts_by_split, mean_ranges
from neurotome.data.stores.batches import StepPlan, VolumeBatches, batch_of
from neurotome.data.stores.leaks import check_splits
from neurotome.data.stores.masks import MaskSource, unlabelled
from neurotome.data.stores.store import Store
from neurotome.data.stores.store_fingerprint import fingerprint_of_store
from neurotome.ranges import Range, Size
from neurotome.types import Batch, Images, Source


@dataclass(frozen=True)
class Volumes(StepPlan, TrainingData):
    """Crops, whole volumes and slices of the sessions of a store; arguments as :class:`StepPlan`."""

    def open(self, path: Path) -> "StoreReader":
        """See :class:`TrainingData`; ``path`` is a folder that ``neurotome prepare`` wrote."""
        store = Store.open(path)
        check_splits(store.sessions, store.path)
        return StoreReader(store, self)


@dataclass(frozen=True)
class Pairs(Volumes):
    """As :class:`Volumes`, of the sessions that have several contrasts: every step sees so many of each session.

    Args:
        batch_sessions, crop, brain_prob, flip_prob, whole_fraction, whole_sessions: See :class:`Volumes`.
        slice_prob, slice_sessions, slice_fraction: See :class:`Volumes`.
        modalities_per_session: Contrasts of a session in a step, at least 2; those that are there are drawn first.

    Raises:
        ValueError: A value is out of range.
    """

    modalities_per_session: Annotated[int, Range("[2, 65536]")] | None = 2

    @property
    def min_views(self) -> int:
        """Contrasts that a training session must have."""
        return self.modalities_per_session or 2


@dataclass(frozen=True)
class Masks(Volumes):
    """As :class:`Volumes`, of masks instead of scans.

    Args:
        batch_sessions, crop, brain_prob, flip_prob, whole_fraction, whole_sessions: See :class:`Volumes`.
        slice_prob, slice_sessions, slice_fraction, modalities_per_session: See :class:`Volumes`.
        source: ``label`` takes the label map of a session, ``image`` the voxels above 0 of its scans.
        channels: Channels of a mask: 1 for all labels above 0, else channel i is the label i + 1.

    Raises:
        ValueError: A value is out of range.
    """

    source: Literal["label", "image"] = "label"
    channels: Size = 1

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        super().__post_init__()
        MaskSource(self.source, self.channels)

    @property
    def masks(self) -> MaskSource:
        """How a batch becomes masks."""
        return MaskSource(self.source, self.channels)


class WholeSessions(Sessions):
    """Whole volumes of a split, one session at a time.

    Args:
        store: Prepared sessions.
        split: Name of the split.
        max_sessions: At most so many, the first by subject; None for all.
        modalities: The model's contrasts in its order; those of the store by default.
        masks: How a batch becomes masks; None for scans.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        max_sessions: int | None = None,
        modalities: Sequence[str] | None = None,
        masks: MaskSource | None = None,
    ) -> None:
        self.store, self.modalities, self.masks = store, modalities, masks
        self.entries = store.split(split)[:max_sessions]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Batch:
        batch = batch_of(self.store, [self.entries[index]], modalities=self.modalities)
        return batch if self.masks is None else self.masks.of(batch)


class StoreReader(Reader):
    """A store, opened for a training.

    Args:
        store: Prepared sessions.
        plan: What a step sees.
    """

    def __init__(self, store: Store, plan: Volumes) -> None:
        self.store, self.plan = store, plan
        self.path, self.modalities, self.preparation = store.path, tuple(store.modalities), store.preparation
        self.sites = store.sites

    @property
    def fingerprint(self) -> str:
        """See :class:`Reader`."""
        return hashlib.sha256(json.dumps([self.store.fingerprint, repr(self.plan)]).encode()).hexdigest()

    @property
    def images(self) -> Images:
        """See :class:`Reader`."""
        masks = self.plan.masks
        return Images() if masks is None else Images("masks", masks.describe())

    def source(self, modalities: Sequence[str]) -> Source:
        """See :class:`Reader`."""
        plan, masks = self.plan, self.plan.masks
        entries = VolumeBatches(self.store, plan, 1, 0, modalities=modalities).entries
        return Source(
            images=self.images,
            modalities=tuple(modalities),
            channels=1 if masks is None else masks.channels,
            grid=self.preparation.shape,
            crop=None if plan.crop is None else plan.crop_shape,
            window=self.preparation.window if masks is None else (-1.0, 1.0),
            steps=plan.sessions_of_a_step(),
            unlabelled=unlabelled([*self.store.split("train"), *self.store.split("val")]),
            views=min(len(set(e.modalities) & set(modalities)) for e in entries),
        )

    def batches(
        self, max_steps: int, seed: int, modalities: Sequence[str], rank: int = 0, world_size: int = 1
    ) -> VolumeBatches:
        """See :class:`Reader`."""
        return VolumeBatches(self.store, self.plan, max_steps, seed, rank, world_size, modalities)

    def sessions(self, split: str, modalities: Sequence[str], max_sessions: int | None = None) -> WholeSessions:
        """See :class:`Reader`."""
        return WholeSessions(self.store, split, max_sessions, modalities, self.plan.masks)

    def intensity(self, split: str) -> dict[str, Any]:
        """See :class:`Reader`."""
        if self.plan.masks is not None:
            return {}
        return mean_ranges(self.store.load(entry).records for entry in self.store.split(split))

    def subjects(self, split: str) -> tuple[str, ...]:
        """See :class:`Reader`."""
        return self.store.subjects(split)

    def scans(self, split: str) -> tuple[str, ...]:
        """See :class:`Reader`."""
        return tuple(sorted({content for entry in self.store.split(split) for content in entry.contents}))

    def describe(self) -> dict[str, Any]:
        """See :class:`Reader`."""
        return {
            "spacing_mm": self.preparation.spacing_mm,
            "shape": list(self.preparation.shape),
            "splits": counts_by_split({split: self.store.split(split) for split in SPLITS}),
            "fingerprint": fingerprint_of_store(self.store),
        }
