"""What of a prepared session a tokenizer encodes: its scans, or the masks that it was trained on.

One function for the statistics of a model folder and for shards, through the very function that training uses.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from neurotome.data.preparation.record import Record
from neurotome.data.stores.entries import LoadedSession
from neurotome.data.stores.masks import MaskSource
from neurotome.data.stores.store import Store
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
    network: Tokenizer, store: Store, session: LoadedSession, masks: MaskSource | None = None
) -> list[SessionView]:
    """Return what is encoded of a session; nothing where it has none of the network's contrasts.

    Args:
        network: The tokenizer.
        store: Where the session lies.
        session: Of the store.
        masks: How a batch becomes masks; None for the scans themselves.

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
    images, ids = (batch if masks is None else masks.of(batch)).flat()
    first = next(session.records[name] for name in names if name in session.records)
    return [
        SessionView(one.numpy(), names[i], session.records.get(names[i], first))
        for one, i in zip(images, ids.tolist(), strict=True)
    ]
