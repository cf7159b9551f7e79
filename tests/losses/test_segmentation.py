"""Masks: every term by brute force, and what is refused."""

import math

import pytest
import torch
from scipy.ndimage import binary_dilation, binary_erosion

from neurotome.losses.segmentation import SegmentationLoss, dice


def ball(shape=(8, 9, 7), n: int = 2) -> torch.Tensor:
    """Masks of -1 and 1."""
    grid = torch.stack(
        torch.meshgrid(*[torch.linspace(-1, 1, s) if s > 1 else torch.zeros(1) for s in shape], indexing="ij")
    )
    inside = torch.stack([grid.square().sum(0) < r for r in (0.4, 0.7)][:n])[:, None]
    return torch.where(inside, 1.0, -1.0)


@pytest.mark.parametrize("shape", [(8, 9, 7), (8, 9, 1)])
def test_the_terms_by_hand(shape):
    x = ball(shape)
    logits = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    p, m = logits.sigmoid(), x > 0
    cross = -torch.where(m, p.log(), (1 - p).log())
    size = [1, 1, *(1 if s == 1 else 3 for s in shape)]
    structure = torch.ones(size).numpy()
    border = torch.from_numpy(
        binary_dilation(m.numpy(), structure) & ~binary_erosion(m.numpy(), structure, border_value=1)
    )
    overlap = [(2 * p[i][m[i]].sum() + 1) / (p[i].sum() + m[i].sum() + 1) for i in range(2)]
    terms = SegmentationLoss()(logits, x)
    assert terms["bce"].item() == pytest.approx(cross.mean().item(), rel=1e-4)
    assert terms["boundary"].item() == pytest.approx(cross[border].mean().item(), rel=1e-4)
    assert terms["dice"].item() == pytest.approx(sum(o.item() for o in overlap) / 2, rel=1e-4)
    expected = terms["bce"] + 1 - terms["dice"] + 0.5 * terms["boundary"]
    assert terms["loss"].item() == pytest.approx(expected.item())


def test_perfect_and_empty_masks():
    x = ball()
    assert SegmentationLoss()(50 * x, x)["loss"].item() == pytest.approx(0, abs=1e-4)
    empty = -torch.ones_like(x)
    terms = SegmentationLoss()(50 * empty, empty)
    assert terms["loss"].item() == pytest.approx(0, abs=1e-4)
    assert dice(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2)).item() == 1
    undecided = SegmentationLoss()(torch.zeros_like(x), x)
    assert undecided["bce"].item() == pytest.approx(math.log(2), rel=1e-5)
    assert undecided["boundary"].item() == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"bce_weight": -1}, {"smooth": 0}, dict.fromkeys(("bce_weight", "dice_weight", "boundary_weight"), 0)]
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}"):
        SegmentationLoss(**wrong)
