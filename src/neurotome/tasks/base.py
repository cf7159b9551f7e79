r"""The contract of a segmenter: an image and its contrast in, the structures of the brain out.

    logits_k(v) of K structures,     label(v) = 1 + argmax_k logits_k(v)  if the largest is above 0, else 0

Structures are declared as groups of the ids of a label map; an id that no group names is no structure.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from neurotome.nn.recorded import Recorded
from neurotome.types import Image, ModalityIds

Logits = Float[Tensor, "b k x y z"]


class Segmenter(Recorded, ABC):
    """A network that names the structure of every voxel.

    Args:
        modalities: Contrasts; their order gives the ids.
        structures: Names of the structures; label k is the k-th, counted from 1.
        label_ids: For each structure the ids of the training's label maps that belong to it.

    Raises:
        ValueError: No structure, a name or an id twice, id 0, or not one group of ids per name.
    """

    def __init__(
        self, modalities: Sequence[str], structures: Sequence[str], label_ids: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        ids = [i for group in label_ids for i in group]
        if len(structures) != len(label_ids) or not structures or not all(label_ids):
            raise ValueError(
                f"structures has {len(structures)} names, label_ids {len(label_ids)} groups; give each structure at "
                "least one id of the label maps"
            )
        if len({*structures}) < len(structures) or len({*ids}) < len(ids) or min(ids) < 1:
            raise ValueError(f"label_ids are {[list(g) for g in label_ids]}; names and ids occur once, ids are above 0")
        self.modalities = tuple(modalities)
        self.structures = tuple(structures)
        self.label_ids = tuple(tuple(group) for group in label_ids)

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
        for number, group in enumerate(self.label_ids, 1):
            found[torch.isin(labels, torch.tensor(group, dtype=labels.dtype, device=labels.device))] = number
        return found

    def masks(self, labels: Integer[Tensor, "b x y z"]) -> Bool[Tensor, "b k x y z"]:
        """Return the mask of each structure of a label map."""
        numbers = torch.arange(1, len(self.structures) + 1, device=labels.device)
        return self.classes(labels)[:, None] == numbers.view(-1, 1, 1, 1)

    def modality_id(self, name: str) -> int:
        """Return the id of a contrast.

        Raises:
            ValueError: The network was not trained on it.
        """
        if name not in self.modalities:
            raise ValueError(f"this segmenter knows {', '.join(self.modalities)}, not {name}")
        return self.modalities.index(name)

    def exported_state(self) -> dict[str, Tensor]:
        """Return the state; nothing of it is for training alone."""
        return {key: value.detach() for key, value in self.state_dict().items()}

    def adopt(self, state: Mapping[str, Tensor]) -> None:
        """Make the tensors of a checked state this network's own; for one that was built on the meta device."""
        self.load_state_dict(dict(state), assign=True)
