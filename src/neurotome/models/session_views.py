"""What of a prepared session a tokenizer encodes: its scans, or the masks that it was trained on.

One function for the statistics of a model folder and for shards, through the very function that training uses.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from neurotome.data.preparation.record import Record
from neurotome.data.stores.store import LoadedSession, SessionEntry, Store
from neurotome.errors import InputError
from neurotome.losses.segmentation import SegmentationLoss
from neurotome.tokenizers.base import Tokenizer
from neurotome.types import Batch


@dataclass(frozen=True, eq=False)
class SessionView:
    """One image of a session as the network sees it.

    Args:
        image: A scan in the preparation's window, or masks of -1 and 1, ``(c, x, y, z)``.
        modality: Contrast whose id goes with it; of the masks of a label map the model's first, as in training.
        record: How it was prepared; a label map lies on the grid of the session's scans.
    """

    image: Float[np.ndarray, "c x y z"]
    modality: str
    record: Record


def session_views(
    network: Tokenizer, store: Store, session: LoadedSession, segmentation: SegmentationLoss | None = None
) -> list[SessionView]:
    """Return what is encoded of a session; nothing where it has none of the network's contrasts.

    Args:
        network: The tokenizer.
        store: Where the session lies.
        session: Of the store.
        segmentation: How a batch becomes masks; None for the scans themselves.

    Raises:
        ValueError: Label maps are asked for, and the session has none.
    """
    names = network.modalities
    places = [store.modalities.index(name) if name in store.modalities else None for name in names]
    there = [at is not None and bool(session.present[at]) for at in places]
    if not any(there):
        return []
    image = np.zeros((1, len(names), *session.image.shape[1:]), dtype=np.float32)
    for row, at, found in zip(image[0], places, there, strict=True):
        if found:
            row[...] = session.image[at]
    batch = Batch(
        image=torch.from_numpy(image),
        modality=torch.arange(len(names))[None],
        present=torch.tensor([there]),
        subject=("",),
        session=("",),
        site=torch.tensor([-1]),
        label=None if session.labels is None else torch.from_numpy(session.labels.astype(np.int64))[None],
    )
    images, ids = batch.flat() if segmentation is None else segmentation.masks(batch, in_channels(network))
    first = next(session.records[name] for name in names if name in session.records)
    return [
        SessionView(one.numpy(), names[i], session.records.get(names[i], first))
        for one, i in zip(images, ids.tolist(), strict=True)
    ]


def in_channels(network: Tokenizer) -> int:
    """Return the channels of the images that a tokenizer takes."""
    return int(network.arguments.get("in_channels", 1))


def described_masks(network: Tokenizer, segmentation: SegmentationLoss) -> dict[str, Any]:
    """Return what ``config.json`` says of masks: where they are from, and what each channel is."""
    channels = in_channels(network)
    if segmentation.source == "image":
        groups = ["voxels of the image above 0"]
    elif channels == 1:
        groups = ["every label above 0"]
    else:
        groups = [f"label {label}" for label in range(1, channels + 1)]
    return {"source": segmentation.source, "groups": groups}


def check_labelled(store: Store, entries: list[SessionEntry]) -> None:
    """Refuse sessions without label maps.

    Raises:
        InputError: Some have none.
    """
    bare = [entry.name for entry in entries if "labels" not in entry.sources]
    if bare:
        raise InputError(
            f"the model encodes label maps, and {len(bare)} of {len(entries)} sessions have none ({bare[0]})",
            file=store.path,
            remedy="prepare a dataset that has them: derivatives/truth/sub-*/anat/*_dseg.nii.gz, or the column label "
            "of a manifest",
        )
