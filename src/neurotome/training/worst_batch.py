"""The images of the training batch with the highest loss: what a method finds hard, or what is wrong with the data."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

IMAGES = 3  # of the batch, those with the largest error
MAX_VOXELS = 2**23  # of one image; a larger one would make checkpoints heavy


class WorstBatch:
    """Keeps images of the batch with the highest loss since :meth:`forget`."""

    def __init__(self) -> None:
        self.loss: float
        self.step: int
        self.images: dict[str, Tensor]
        self.entries: list[dict[str, str]]
        self.forget()

    @torch.no_grad()
    def offer(
        self, loss: float, step: int, image: Tensor, output: Tensor, subjects: Sequence[str], names: Sequence[str]
    ) -> None:
        """Keep the batch if its loss is the highest.

        Args:
            loss: Of the batch.
            step: Its number, from 1.
            image: ``(n, c, x, y, z)``; the first channel is kept.
            output: What was made of it.
            subjects: One per image.
            names: Contrast of each image.
        """
        if not loss > self.loss or image[0, 0].numel() > MAX_VOXELS:
            return
        self.loss, self.step = loss, step
        error = (output - image).abs().flatten(1).mean(1)  # (n,)
        self.images, self.entries = {}, []
        for at, i in enumerate(error.topk(min(IMAGES, len(error))).indices.tolist()):
            self.images |= {f"{at}/image": _half(image[i, 0]), f"{at}/output": _half(output[i, 0])}
            self.entries.append(
                {
                    "subject": subjects[i], "from": names[i], "to": names[i],
                    "source": f"{at}/image", "output": f"{at}/output",
                    "note": f"step {step}, loss {loss:.4g}, mean absolute error {float(error[i]):.3g}",
                }
            )  # fmt: skip

    def forget(self) -> None:
        """Start again."""
        self.loss, self.step = -math.inf, 0
        self.images, self.entries = {}, []

    def panels(self) -> tuple[Mapping[str, Tensor], Sequence[Mapping[str, str]]] | None:
        """Return the images ``(x, y, z)`` by name and the entries that say what they show; None before the first."""
        return (self.images, self.entries) if self.images else None

    def state_dict(self) -> dict[str, Any]:
        """Return all of it."""
        return {"loss": self.loss, "step": self.step, "images": dict(self.images), "entries": list(self.entries)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.loss, self.step = float(state["loss"]), int(state["step"])
        self.images, self.entries = dict(state["images"]), list(state["entries"])


def _half(image: Tensor) -> Tensor:
    return image.detach().float().clamp(-1, 1).to(torch.float16).cpu().contiguous()
