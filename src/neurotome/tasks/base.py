r"""The contract of a segmenter: an image and its contrast in, the structures of the brain out.

    logits_k(v) of K structures,     label(v) = 1 + argmax_k logits_k(v)  if the largest is above 0, else 0

Structures are declared as groups of the ids of a label map; an id of no group is background.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from neurotome.nn.exported import Exportable
from neurotome.nn.nd import per_axis
from neurotome.ranges import PositiveCount
from neurotome.types import Image, ModalityIds

Logits = Float[Tensor, "b k x y z"]


class Segmenter(Exportable):
    """A network that assigns a structure to every voxel.

    Args:
        modalities: Contrasts; their order gives the ids.
        structures: Names of the structures; label k is the k-th, counted from 1.
        label_ids: For each structure the ids of the training's label maps that belong to it.

    Raises:
        ValueError: No structure, a name or an id twice, id 0, or not one group of ids per name.
    """

    def __init__(
        self, modalities: Sequence[str], structures: Sequence[str], label_ids: Sequence[Sequence[PositiveCount]]
    ) -> None:
        super().__init__()
        ids = [i for group in label_ids for i in group]
        if len(structures) != len(label_ids):
            raise ValueError(
                f"structures has {len(structures)} names, label_ids {len(label_ids)} groups; give each structure one"
            )
        if len({*structures}) < len(structures) or len({*ids}) < len(ids):
            raise ValueError(f"label_ids are {[list(g) for g in label_ids]}; names and ids occur once")
        self.modalities = tuple(modalities)
        self.structures = tuple(structures)
        self.label_ids = tuple(tuple(group) for group in label_ids)

    family = "segmenter"

    @abstractmethod
    def forward(self, image: Image, modality: ModalityIds) -> Logits:
        """Return one logit per structure and voxel of ``image`` in [-1, 1]; ``modality`` holds one id per image."""

    def segment(self, image: Image, modality: ModalityIds) -> Int[Tensor, "b x y z"]:
        """Return the label of every voxel, 0 where no structure is likelier than not."""
        best, which = self(image, modality).max(dim=1)
        return torch.where(best > 0, which + 1, 0)

    def classes(self, labels: Integer[Tensor, "b x y z"]) -> Int[Tensor, "b x y z"]:
        """Return the structures of a label map: 0 for none, k for the k-th."""
        found = torch.zeros_like(labels, dtype=torch.long)
        ids = labels.long()  # an id above 255 is no number of bytes, but it may stand in a config
        for number, group in enumerate(self.label_ids, 1):
            found[torch.isin(ids, torch.tensor(group, device=labels.device))] = number
        return found

    def masks(self, labels: Integer[Tensor, "b x y z"]) -> Bool[Tensor, "b k x y z"]:
        """Return the mask of each structure of a label map."""
        numbers = torch.arange(1, len(self.structures) + 1, device=labels.device)
        return self.classes(labels)[:, None] == numbers.view(-1, 1, 1, 1)

    def example(self) -> dict[str, Tensor]:
        """See :class:`Exportable`: one image per contrast, of a side that most strides divide."""
        side = per_axis(16, self.arguments.get("spatial_dims", 3))
        image = torch.rand(len(self.modalities), 1, *side, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return {"image": image, "modality": torch.arange(len(self.modalities))}

    def respond(self, example: Mapping[str, Tensor]) -> Tensor:
        """See :class:`Exportable`: the logits."""
        return self(example["image"], example["modality"])

    def capabilities(self, grid: Sequence[int]) -> dict[str, object]:
        """See :class:`Exportable`."""
        return {**super().capabilities(grid), "grid": list(grid), "structures": list(self.structures)}

    def usage(self) -> list[str]:
        """See :class:`Exportable`."""
        return ["`neurotome evaluate MODEL STORE --segmenter path/to/this/folder --out DIR`"]

    def describe(self, grid: Sequence[int]) -> list[str]:
        """See :class:`Exportable`."""
        groups = zip(self.structures, self.label_ids, strict=True)
        named = "; ".join(f"{name} ({','.join(map(str, ids))})" for name, ids in groups)
        return [f"Structures (ids of the label maps): {named}. Other ids are no structure."]

    def limits(self) -> str:
        """See :class:`Exportable`."""
        return "It compares an image with its reconstruction and measures no patient."
