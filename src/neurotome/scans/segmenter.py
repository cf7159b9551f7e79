"""A trained segmenter for prepared scans: an image and its contrast in, labels out, as the Dice of a tokenizer needs.

It is bound to the preparation of the store it was trained on, and used on subjects other than its own.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Int, Integer
from torch import Tensor

from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.store import Store
from neurotome.errors import InputError
from neurotome.models.folder import read_folder
from neurotome.models.subjects import TrainingSubjects
from neurotome.tasks.base import Segmenter
from neurotome.types import Image


class ScanSegmenter:
    """A segmenter with the preparation and the subjects of its training.

    Args:
        network: Put into evaluation mode.
        preparation: What it expects.
        training_subjects: Hashes of subjects and scans.
        digest: Of its model folder.
        card: README of its model folder.
    """

    def __init__(
        self,
        network: Segmenter,
        preparation: Preparation,
        training_subjects: TrainingSubjects,
        digest: str,
        card: str = "",
    ) -> None:
        self.network = network.eval()
        self.preparation, self.training_subjects, self.digest, self.card = preparation, training_subjects, digest, card

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], device: str = "cpu") -> Self:
        """Read a model folder.

        Raises:
            UsageError: No such folder.
            InputError: It is damaged, changed, of a newer format, or holds no segmenter.
        """
        content = read_folder(Path(folder), Segmenter)  # type: ignore[type-abstract]  # the registry's are concrete
        network = content.network.to(device)
        return cls(network, content.preparation, content.training_subjects, content.digest, content.card)

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures; label k is the k-th, counted from 1."""
        return self.network.structures

    @property
    def modalities(self) -> tuple[str, ...]:
        """The contrasts it knows."""
        return self.network.modalities

    def trained_on(self, subject: str, scans: Iterable[str] = ()) -> bool:
        """Return whether a subject was among those it was trained on, by its id or the content of its scans."""
        return self.training_subjects.include(subject, scans)

    def check_store(self, store: Store) -> None:
        """Refuse a store that was prepared otherwise than the segmenter's.

        Raises:
            InputError: The store was prepared otherwise.
        """
        if store.preparation.image_digest != self.preparation.image_digest:
            raise InputError(
                f"the segmenter expects scans {self.preparation.describe()}, the store holds them "
                f"{store.preparation.describe()}",
                remedy="train one on this store: `neurotome train segmenter-demo STORE --out RUN`",
            )

    @torch.inference_mode()
    def __call__(self, image: Image, modality: str) -> Int[Tensor, "b x y z"]:
        """Return the structures of prepared images of one contrast.

        Raises:
            ValueError: The contrast is not one it knows.
        """
        ids = torch.full((len(image),), self.network.modality_id(modality), device=image.device)
        return self.network.segment(image.float(), ids)

    def classes(self, labels: Integer[Tensor, "b x y z"]) -> Int[Tensor, "b x y z"]:
        """Return the structures of a label map of the store."""
        return self.network.classes(labels)
