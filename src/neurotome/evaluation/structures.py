r"""Structures of an image beside those of the true scan: what a segmenter still finds after a reconstruction.

    structure_dice          Dice(S(output), S(scan))         what the tokenizer changed
    structure_dice_truth    Dice(S(output), labels)          where the store holds label maps
    ceiling                 Dice(S(scan), labels)            what S itself can do: the most the line above can reach
    structure_volume_error  |V(S(output)) / V(S(scan)) - 1|  what a study of volumes would see of it

S is the segmenter, an image and the name of its contrast in, labels out. All within the brain mask; an image's number
is the mean over the structures that it or the other has.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from neurotome.data.stores.store import Store
from neurotome.errors import InputError
from neurotome.evaluation.results import Findings
from neurotome.metrics.overlap import mean_dice, structure_dice, volume_difference
from neurotome.types import Image, Mask

# methods whose images are segmented, the model itself first; a segmentation costs as much as all else of an image
SEGMENTED = ("", "shared_codes_alone", "trilinear")


class StructureReader(Protocol):
    """What names structures (:class:`neurotome.scans.segmenter.ScanSegmenter` does)."""

    digest: str

    @property
    def structures(self) -> tuple[str, ...]:
        """Names; label k is the k-th, counted from 1."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """The contrasts it knows."""

    def trained_on(self, subject: str, scans: Iterable[str] = ()) -> bool:
        """Return whether it was trained on the subject, by its id or by the content of its scans."""

    def check_store(self, store: Store) -> None:
        """Refuse a store that was prepared otherwise."""

    def __call__(self, image: Image, modality: str) -> Int[Tensor, "b x y z"]:
        """Return the labels of images of one contrast."""

    def classes(self, labels: Integer[Tensor, "b x y z"]) -> Int[Tensor, "b x y z"]:
        """Return the structures of a label map of the store."""


class StructureScores:
    """The structures of one session's scans, and how far outputs agree with them.

    Args:
        reader: The segmenter.
        views: The scans by contrast, ``(1, c, x, y, z)``.
        mask: The brain.
        labels: The store's label map ``(x, y, z)``, or None.
    """

    def __init__(
        self,
        reader: StructureReader,
        views: Mapping[str, Image],
        mask: Mask,
        labels: Integer[Tensor, "x y z"] | None,
    ) -> None:
        self.reader, self.mask = reader, mask
        self.truth = None if labels is None else self._inside(reader.classes(labels[None]))
        self.scans = {
            name: self._inside(reader(image, name)) for name, image in views.items() if name in reader.modalities
        }

    def ceilings(self, subject: str, found: Findings) -> None:
        """Note how far the segmentations of the scans themselves agree with the label map."""
        for name, labels in self.scans.items():
            if self.truth is not None:
                found.overlap(name, "ceiling", subject, self._named(self._dice(labels, self.truth)))

    def score(self, output: Image, task: str, target: str, subject: str, found: Findings | None) -> dict[str, float]:
        """Return the Dice of an output in contrast ``target``, and note it by structure where ``found`` is given."""
        if target not in self.scans:
            return {}
        labels = self._inside(self.reader(output, target))
        against = {"dice": self.scans[target]} | ({} if self.truth is None else {"truth_dice": self.truth})
        overlaps = {measure: self._dice(labels, other) for measure, other in against.items()}
        overlaps["volume_error"] = volume_difference(labels, self.scans[target], len(self.reader.structures)).abs()
        if found is not None:
            for measure, overlap in overlaps.items():
                found.overlap(task, measure, subject, self._named(overlap))
        names = {
            "dice": "structure_dice", "truth_dice": "structure_dice_truth", "volume_error": "structure_volume_error",
        }  # fmt: skip
        return {names[measure]: float(mean_dice(overlap)[0]) for measure, overlap in overlaps.items()}

    def _dice(self, a: Tensor, b: Tensor) -> Float[Tensor, "1 k"]:
        return structure_dice(a, b, len(self.reader.structures))

    def _named(self, overlap: Float[Tensor, "1 k"]) -> dict[str, float]:
        values = dict(zip(self.reader.structures, overlap[0].tolist(), strict=True))
        return {"mean": float(mean_dice(overlap)[0]), **values}

    def _inside(self, labels: Int[Tensor, "1 x y z"]) -> Int[Tensor, "1 x y z"]:
        return torch.where(self.mask[:, 0], labels, 0)


def check_reader(reader: StructureReader, store: Store, modalities: Sequence[str]) -> None:
    """Refuse a segmenter that cannot read the scans of a store.

    Raises:
        InputError: The store was prepared otherwise, or no contrast is one it knows.
    """
    reader.check_store(store)
    if not set(reader.modalities) & set(modalities):
        raise InputError(
            f"the segmenter knows {', '.join(reader.modalities)}, evaluated are {', '.join(modalities)}",
            remedy="train one on a store of these contrasts: `neurotome train segmenter-demo STORE --out RUN`",
        )
