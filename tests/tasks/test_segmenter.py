"""The segmenter's network: groups of ids, any shape, slices and volumes, and what does not fit."""

import pytest
import torch

from neurotome.tasks import SegResNet

SMALL = {"channels": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}
GROUPS = {"structures": ("fluid", "matter"), "label_ids": ((1, 2), (7,))}


def small(**changes) -> SegResNet:
    torch.manual_seed(0)
    return SegResNet(**{**SMALL, **GROUPS, **changes}).eval()


def test_ids_become_structures() -> None:
    network = small()
    labels = torch.tensor([0, 1, 2, 3, 7, 255], dtype=torch.uint8).view(1, 6, 1, 1)
    assert network.classes(labels).flatten().tolist() == [0, 1, 1, 0, 2, 0]
    wide = small(label_ids=((1, 1_000_000),), structures=("a",))  # beside the bytes of a label map
    assert wide.classes(labels).flatten().tolist() == [int(i == 1) for i in labels.flatten().tolist()]
    masks = network.masks(labels.int())
    assert masks.shape == (1, 2, 6, 1, 1)
    assert masks[0, 1].flatten().tolist() == [False, False, False, False, True, False]


def test_the_likeliest_structure_is_named_or_none() -> None:
    network = small()
    logits = torch.tensor([[-1.0, -2.0], [0.5, 2.0], [3.0, -1.0]]).T.view(1, 2, 3, 1, 1)
    network.forward = lambda image, modality: logits
    assert network.segment(torch.zeros(1, 1, 3, 1, 1), torch.zeros(1).long()).flatten().tolist() == [0, 2, 1]


@pytest.mark.parametrize("shape", [(8, 12, 8), (9, 7, 5), (12, 8, 1), (1, 8, 8)])
def test_any_shape_and_slice(shape: tuple[int, int, int]) -> None:
    image = torch.rand(2, 1, *shape)
    logits = small()(image, torch.tensor([0, 1]))
    assert logits.shape == (2, 2, *shape)
    assert logits.isfinite().all()


def test_a_network_of_two_dimensions_takes_slices_alone() -> None:
    network = small(spatial_dims=2)
    slices = torch.rand(2, 1, 9, 7, 1)
    assert network(slices, torch.tensor([0, 1])).shape == (2, 2, 9, 7, 1)
    with pytest.raises(ValueError, match="whose last axis is 1"):
        network(torch.rand(1, 1, 8, 8, 8), torch.tensor([0]))


def test_padding_to_the_stride_is_the_border_repeated() -> None:
    network = small()
    image = torch.rand(1, 1, 6, 8, 8)
    padded = torch.cat([image, image[:, :, -1:], image[:, :, -1:]], dim=2)
    ids = torch.tensor([1])
    torch.testing.assert_close(network(image, ids), network(padded, ids)[:, :, :6])


def test_the_contrast_counts_and_every_weight_learns() -> None:
    network = small().train()
    image = torch.rand(1, 1, 8, 8, 8)
    one, other = (network(image, torch.tensor([i])) for i in (0, 1))
    assert not torch.equal(one, other)
    one.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_the_shipped_size() -> None:
    with torch.device("meta"):
        network = SegResNet(blocks_down=(1, 2, 2), blocks_up=(1, 1))
    assert sum(p.numel() for p in network.parameters()) == 710_021


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"channels": 12}, "multiple of 8"),
        ({"blocks_up": (1,)}, "one entry fewer"),
        ({"blocks_down": (1, 0, 1)}, "blocks_down is"),
        ({"label_ids": ((1,),)}, "2 names, label_ids 1"),
        ({"label_ids": ((1,), ())}, "at least one entry"),
        ({"label_ids": ((1,), (1,))}, "occur once"),
        ({"label_ids": ((0,), (1,))}, "label_ids is"),
        ({"structures": ("a", "a")}, "occur once"),
        ({"structures": (), "label_ids": ()}, "at least one entry"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        small(**change)
    with pytest.raises(ValueError, match="not PDw"):
        small().modality_id("PDw")
