"""Batches for Lightning: the whole training is one epoch of ``max_steps`` batches, resumable at any of them.

Lightning alone replays an epoch's first samples after a stop in its middle. Here the position is one number: the
sampler yields the steps from ``position`` on, and a batch is a pure function of its step.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import lightning
from torch.utils.data import DataLoader, Dataset, Sampler

from neurotome.data.stores.base import Reader, StepBatches
from neurotome.errors import NeurotomeError
from neurotome.types import Batch

# Seconds in which a loader process makes a batch, at the latest; one that a debugger, a scheduler or a dead network
# drive has stopped would be waited for without an end. A batch takes seconds; ten minutes are a fault.
PATIENCE = 600


class StepSampler(Sampler[int]):
    """The steps that are left, in order.

    Args:
        position: Finished steps.
        max_steps: Steps of the whole training.

    Raises:
        ValueError: ``position`` is not between 0 and ``max_steps``.
    """

    def __init__(self, position: int, max_steps: int) -> None:
        if not 0 <= position <= max_steps:
            raise ValueError(f"position is {position}; admissible is 0 to {max_steps}")
        self.position, self.max_steps = position, max_steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.position, self.max_steps))

    def __len__(self) -> int:
        return self.max_steps - self.position


class CarriedErrors(Dataset[Any]):
    """Batches; an error of ours becomes the item, because a loader process would make a traceback of it.

    Args:
        batches: By step.
    """

    def __init__(self, batches: Dataset[Batch]) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> Batch | NeurotomeError:
        try:
            return self.batches[step]
        except NeurotomeError as error:
            return error


class TrainingModule(lightning.LightningDataModule):
    """Training batches by step, and whole sessions of the validation split.

    Args:
        reader: A store or latents.
        max_steps: Steps of the whole training.
        seed: Of order and augmentation.
        num_workers: Loader processes; 0 loads in the training's own.
        max_val_sessions: Sessions of one validation; None for the whole split.
        modalities: The model's contrasts in its order; those of the reader by default.

    Attributes:
        position: Finished steps; set before ``trainer.fit`` (or by :meth:`load_state_dict`) to go on there.
    """

    def __init__(
        self,
        reader: Reader,
        max_steps: int,
        seed: int = 0,
        num_workers: int = 0,
        max_val_sessions: int | None = None,
        modalities: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.reader, self.max_steps, self.seed = reader, max_steps, seed
        self.num_workers, self.max_val_sessions = num_workers, max_val_sessions
        self.modalities = tuple(reader.modalities if modalities is None else modalities)
        self.position = 0
        self._batches: StepBatches | None = None
        self._ahead = 0  # finished steps that the trainer does not know of

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides which voxels a step sees, but for the number of steps."""
        parts = [self.reader.fingerprint, self.seed, list(self.modalities)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the batches from ``position`` on."""
        rank, world_size = 0, 1
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            self._ahead = self.position - self.trainer.global_step
        self._batches = self.reader.batches(self.max_steps, self.seed, self.modalities, rank, world_size)
        return DataLoader(
            CarriedErrors(self._batches),
            batch_size=None,
            sampler=StepSampler(self.position, self.max_steps),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            timeout=PATIENCE if self.num_workers else 0,
        )

    def subjects(self, step: int) -> tuple[str, ...]:
        """Return the subjects of a step, from 0; none before the batches are made."""
        if self._batches is None:
            return ()
        return tuple(dict.fromkeys(entry.subject for entry in self._batches.sessions(step)))

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the sessions of the validation split, one at a time."""
        return DataLoader(self.reader.sessions("val", self.modalities, self.max_val_sessions), batch_size=None)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of finished steps."""
        if self.trainer is None:
            return {"position": self.position}
        return {"position": max(self.position, self._ahead + int(self.trainer.global_step))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the finished steps of ``state_dict``."""
        self.position = int(state_dict["position"])
