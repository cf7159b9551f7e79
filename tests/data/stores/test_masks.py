"""Where the masks of a tokenizer of masks come from."""

import pytest
import torch

from neurotome.data.stores.masks import MaskSource
from neurotome.types import Batch


def batch(image: torch.Tensor, label: torch.Tensor | None = None) -> Batch:
    n = len(image)
    return Batch(
        image=image[:, None], modality=torch.zeros(n, 1, dtype=torch.long), present=torch.ones(n, 1, dtype=torch.bool),
        subject=tuple("ab"[:n]), session=("",) * n, site=torch.zeros(n, dtype=torch.long), label=label,
    )  # fmt: skip


def test_masks_come_from_images_or_from_label_maps():
    draws = torch.Generator().manual_seed(2)
    image = torch.where(torch.rand(2, 1, 8, 9, 7, generator=draws) > 0.5, 1.0, -1.0)
    label = torch.randint(0, 3, (2, 8, 9, 7), generator=draws)
    found = MaskSource("image").of(batch(0.3 * image))
    assert torch.equal(found.image[:, 0], image)
    assert found.space == "masks"
    whole = MaskSource().of(batch(image, label))
    assert torch.equal(whole.image[:, 0, 0] > 0, label > 0)
    each = MaskSource(channels=2).of(batch(image, label))
    assert torch.equal(each.image[:, 0, 0] > 0, label == 1)
    assert torch.equal(each.image[:, 0, 1] > 0, label == 2)
    with pytest.raises(ValueError, match="holds none"):
        MaskSource().of(batch(image))
    with pytest.raises(ValueError, match="an image have 1 channel"):
        MaskSource("image", channels=2)
