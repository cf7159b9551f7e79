"""The axis alphabet, the named tensor types, and the one layout every method is given.

Axes: ``b`` batch, ``v`` view (a contrast of one session), ``c`` channel, ``x y z`` space in RAS+ (x grows to the
right, y to the front, z to the top), ``n`` token, ``d`` feature. A slice is a volume with one spatial axis of length 1.
"""

from dataclasses import dataclass, fields, replace
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
        space: Whether ``image`` holds voxels or latents.
    """

    image: Views
    modality: Int[Tensor, "b v"]
    present: Bool[Tensor, "b v"]
    subject: tuple[str, ...]
    session: tuple[str, ...]
    site: Int[Tensor, " b"]
    mask: Mask | None = None
    label: Tensor | None = None
    space: Literal["voxels", "latents"] = "voxels"

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
