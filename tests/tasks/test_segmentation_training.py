"""Training a segmenter: terms by hand, it learns, validation is Dice, no labels is an error that says what to do."""

import pytest
import torch

from neurotome.errors import InputError
from neurotome.losses.segmentation import SegmentationLoss
from neurotome.metrics.overlap import structure_dice
from neurotome.tasks import SegmentationTraining, SegResNet
from neurotome.types import Batch


def network() -> SegResNet:
    torch.manual_seed(0)
    return SegResNet(
        channels=8, blocks_down=(1, 1), blocks_up=(1,), structures=("bright", "dark"), label_ids=((1,), (2, 5))
    )


def batch(shape: tuple[int, int, int] = (8, 8, 8), label: bool = True) -> Batch:
    """Two sessions whose labels follow from T1w; of the first T2w is missing."""
    generator = torch.Generator().manual_seed(0)
    t1 = torch.rand((2, 1, 1, *shape), generator=generator) * 2 - 1
    image = torch.cat([t1, -t1], dim=1)
    present = torch.tensor([[True, False], [True, True]])
    image[~present] = 0
    labels = torch.where(t1[:, 0, 0] > 0.2, 1, torch.where(t1[:, 0, 0] < -0.2, 5, 0)).to(torch.uint8)
    return Batch(
        image, torch.tensor([[0, 1], [0, 1]]), present, ("a", "b"), ("", ""), torch.tensor([0, 1]),
        torch.ones((2, 1, *shape), dtype=torch.bool), labels if label else None,
    )  # fmt: skip


def test_the_terms_by_hand() -> None:
    method = SegmentationTraining(network(), loss_weights=SegmentationLoss(2.0, 1.0, 0.0), noise_sd=0.0, blur_prob=0.0)
    given = batch()
    terms = {name: term.detach() for name, term in method.loss(given).items()}
    image = torch.stack([given.image[0, 0], given.image[1, 0], given.image[1, 1]])
    logits = method.segmenter(image, torch.tensor([0, 0, 1])).detach()
    found = given.label[[0, 1, 1]]
    target = torch.stack([found == 1, found == 5], dim=1).float()
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    share = logits.sigmoid()
    dice = ((2 * (share * target).sum((2, 3, 4)) + 1) / (share.sum((2, 3, 4)) + target.sum((2, 3, 4)) + 1)).mean()
    assert float(terms["loss"]) == pytest.approx(float(2 * bce + 1 - dice), rel=1e-5)
    assert float(terms["dice"]) == pytest.approx(float(dice), rel=1e-5)


@pytest.mark.parametrize("shape", [(8, 8, 8), (16, 16, 1)])
def test_it_learns(shape: tuple[int, int, int]) -> None:
    method = SegmentationTraining(network(), noise_sd=0.02, blur_prob=0.0)
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-2)
    before = method.validate(batch(shape))["dice/mean"]
    for _ in range(25):
        loss = method.loss(batch(shape))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = method.validate(batch(shape))
    assert after["dice/mean"] > 0.85 > before
    assert set(after) == {"dice/mean", "dice/bright", "dice/dark"}


def test_validation_is_dice_over_the_present_contrasts() -> None:
    method = SegmentationTraining(network())
    given = batch()
    image, ids = given.flat()
    overlap = structure_dice(method.segmenter.segment(image, ids), method.segmenter.classes(given.label)[[0, 1, 1]], 2)
    assert method.validate(given)["dice/dark"] == pytest.approx(float(overlap[:, 1].nanmean()))


def test_images_are_degraded_in_training_alone() -> None:
    image = torch.rand(1, 1, 8, 8, 1)
    assert torch.equal(SegmentationTraining(network(), noise_sd=0.0, blur_prob=0.0)._degraded(image), image)
    blurred = SegmentationTraining(network(), noise_sd=0.0, blur_prob=1.0)._degraded(image)
    assert blurred[0, 0, 3, 4, 0] == pytest.approx(float(image[0, 0, 2:5, 3:6, 0].mean()))
    assert blurred[0, 0, 0, 0, 0] == pytest.approx(float(image[0, 0, :2, :2, 0].mean()))
    noisy = SegmentationTraining(network(), noise_sd=0.1, blur_prob=0.0)._degraded(torch.zeros(1, 1, 20, 20, 20))
    assert float(noisy.std()) == pytest.approx(0.1, rel=0.05)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(InputError, match=r"of a, b hold no label maps.*dseg"):
        SegmentationTraining(network()).loss(batch(label=False))
    for wrong in ({"noise_sd": -1.0}, {"blur_prob": 1.5}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
            SegmentationTraining(network(), **wrong)
