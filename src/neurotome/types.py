"""The axis alphabet, the named tensor types, and the one layout every method is given.

Axes: ``b`` batch, ``v`` view (a contrast of one session), ``c`` channel, ``x y z`` space in RAS+ (x grows to the
right, y to the front, z to the top), ``n`` token, ``d`` feature. A slice is a volume with one spatial axis of length 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Image = Float[Tensor, "b c x y z"]
Views = Float[Tensor, "b v c x y z"]
Latent = Float[Tensor, "b d x y z"]
Tokens = Float[Tensor, "b n d"]
Vectors = Float[Tensor, "n d"]
Codes = Int[Tensor, "b x y z"]
Labels = Int[Tensor, "b x y z"]
Style = Float[Tensor, "b d"]
ModalityIds = Int[Tensor, " b"]
Mask = Bool[Tensor, "b 1 x y z"]
Scalar = Float[Tensor, ""]
Space = Literal["voxels", "masks", "latents"]


@dataclass(frozen=True)
class Batch:
    """What every method receives: ``v`` views of ``b`` sessions on one grid.

    Args:
        image: Voxels in [-1, 1], or raw (never normalised) latents, ``(b, v, c, x, y, z)``.
        modality: Index of each view in the model's ``modalities``, ``(b, v)``.
        present: False where a view is missing; its voxels are then zero and must not enter a loss, ``(b, v)``.
        subject: Subject ids, one per session.
        session: Session ids, one per session.
        site: Index of the scanner site, ``(b,)``; -1 where unknown.
        mask: Brain mask on the same grid, ``(b, 1, x, y, z)``.
        label: A label map or a label per session.
        space: Whether ``image`` holds voxels, masks of -1 and 1, or latents.
    """

    image: Views
    modality: Int[Tensor, "b v"]
    present: Bool[Tensor, "b v"]
    subject: tuple[str, ...]
    session: tuple[str, ...]
    site: Int[Tensor, " b"]
    mask: Mask | None = None
    label: Tensor | None = None
    space: Space = "voxels"

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the batch with every tensor on ``device``."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def view_sessions(self) -> Int[Tensor, " n"]:
        """Return the session of each present view, in the order of :meth:`flat`."""
        b, v = self.present.shape
        return torch.arange(b, device=self.present.device)[:, None].expand(b, v)[self.present]

    def view_subjects(self) -> list[str]:
        """Return the subject of each present view, in the order of :meth:`flat`."""
        return [self.subject[i] for i in self.view_sessions().tolist()]

    def flat(self) -> tuple[Image, ModalityIds]:
        """Return the present views as ``(n, c, x, y, z)`` and their modality ids as ``(n,)``."""
        return self.image[self.present], self.modality[self.present]


@dataclass(frozen=True)
class Images:
    """What the images of a network are.

    Args:
        space: Scans in the preparation's window, masks of -1 and 1, or raw latents.
        masks: ``source`` and ``groups`` of masks; empty for others.
        tokenizer: Digest of the model whose latents they are; empty for others.
    """

    space: Space = "voxels"
    masks: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return what ``config.json`` holds."""
        found: dict[str, Any] = {"space": self.space}
        found |= {"masks": dict(self.masks)} if self.masks else {}
        return found | ({"tokenizer": self.tokenizer} if self.tokenizer else {})

    @classmethod
    def from_json(cls, value: Any) -> "Images":
        """Undo :meth:`to_json`.

        Raises:
            ValueError: Not of this form.
        """
        if not isinstance(value, dict) or value.get("space") not in ("voxels", "masks", "latents"):
            raise ValueError("images")
        masks, tokenizer = value.get("masks", {}), value.get("tokenizer", "")
        named = isinstance(masks, dict) and (not masks or masks.get("source") in ("image", "label"))
        if not named or bool(masks) != (value["space"] == "masks"):
            raise ValueError("masks")
        if not isinstance(tokenizer, str) or bool(tokenizer) != (value["space"] == "latents"):
            raise ValueError("tokenizer")
        return cls(value["space"], masks, tokenizer)


@dataclass(frozen=True)
class Source:
    """What a training will read: what its method checks before anything is written.

    Args:
        images: What the images are.
        modalities: Contrasts of the batches, in the order of their ids.
        channels: Of an image.
        grid: Spatial shape of a whole image.
        crop: Spatial shape of a crop; None where no step sees crops.
        window: Range no voxel leaves; None where the images have no bounds.
        steps: Sessions of a step, by the setting that says so, of each kind of step that occurs.
        unlabelled: Sessions of training and validation without a label map.
        views: Contrasts that every training session has at least.
    """

    images: Images
    modalities: tuple[str, ...]
    channels: int
    grid: tuple[int, int, int]
    crop: tuple[int, int, int] | None = None
    window: tuple[float, float] | None = None
    steps: Mapping[str, int] = field(default_factory=dict)
    unlabelled: tuple[str, ...] = ()
    views: int = 1
