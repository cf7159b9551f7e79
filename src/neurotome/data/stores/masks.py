"""Masks in place of scans: the images of a tokenizer of masks, 1 inside and -1 outside."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from neurotome.data.stores.entries import SessionEntry
from neurotome.data.stores.store import Store
from neurotome.errors import InputError
from neurotome.ranges import Ranged, Size
from neurotome.types import Batch


@dataclass(frozen=True)
class MaskSource(Ranged):
    """Where masks are from.

    Args:
        source: ``label``: the label map of a session, one image per session. ``image``: the voxels of each contrast
            that are above 0, for a store whose scans are masks.
        channels: Channels of a mask: 1 for all labels above 0, else channel i is the label i + 1.

    Raises:
        ValueError: No channel, or several of masks that are images.
    """

    source: Literal["label", "image"] = "label"
    channels: Size = 1

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        super().__post_init__()
        if self.source == "image" and self.channels > 1:
            raise ValueError(f"channels is {self.channels}; masks of an image have 1 channel")

    def of(self, batch: Batch) -> Batch:
        """Return a batch of masks ``(b, v, c, x, y, z)``; of label maps there is one view, whose id is the first's.

        Raises:
            ValueError: Label maps are asked for and the batch holds none.
        """
        if self.source == "image":
            return replace(batch, image=torch.where(batch.image > 0, 1.0, -1.0), space="masks")
        if batch.label is None or batch.label.ndim != 4:
            raise ValueError(
                "masks of label maps are asked for, but the batch holds none (b, x, y, z); prepare the store with "
                "label maps, or give masks as images and source: image"
            )
        label = batch.label[:, None]  # (b, 1, x, y, z)
        labels = torch.arange(1, self.channels + 1, device=label.device).view(-1, 1, 1, 1)
        inside = label > 0 if self.channels == 1 else label == labels
        return replace(
            batch,
            image=torch.where(inside, 1.0, -1.0)[:, None],  # (b, 1, c, x, y, z)
            modality=batch.modality[:, :1],
            present=torch.ones_like(batch.present[:, :1]),
            space="masks",
        )

    def describe(self) -> dict[str, Any]:
        """Return what a model folder says of the masks: where they are from, and what each channel is."""
        if self.source == "image":
            groups = ["voxels of the image above 0"]
        elif self.channels == 1:
            groups = ["every label above 0"]
        else:
            groups = [f"label {label}" for label in range(1, self.channels + 1)]
        return {"source": self.source, "groups": groups}


def check_labelled(store: Store, entries: list[SessionEntry]) -> None:
    """Refuse sessions without label maps.

    Raises:
        InputError: Some have none.
    """
    missing = unlabelled(entries)
    if missing:
        raise InputError(
            f"the model encodes label maps, and {len(missing)} of {len(entries)} sessions have none ({missing[0]})",
            file=store.path,
            remedy="prepare a dataset that has them: derivatives/truth/sub-*/anat/*_dseg.nii.gz, or the column label "
            "of a manifest",
        )


def unlabelled(entries: list[SessionEntry]) -> tuple[str, ...]:
    """Return the names of the sessions without a label map."""
    return tuple(entry.name for entry in entries if "labels" not in entry.sources)
