"""Mixed images and progressive resolution: pure functions of seed and step."""

import pytest
import torch

from neurotome.training.augment import Augmentation, _box, _partners

IMAGE = torch.rand(6, 1, 8, 10, 12, generator=torch.Generator().manual_seed(0))
KINDS = torch.tensor([0, 1, 0, 1, 0, 2])


def anything(shape):
    return shape


def test_the_draws_depend_on_seed_and_step_alone():
    plan = Augmentation(0.4, 0.4)
    torch.manual_seed(5)
    first = [plan.mixed(IMAGE, KINDS, 1, step) for step in range(20)]
    torch.manual_seed(6)
    assert all(torch.equal(x, plan.mixed(IMAGE, KINDS, 1, step)) for step, x in enumerate(first))
    assert any(not torch.equal(x, plan.mixed(IMAGE, KINDS, 2, step)) for step, x in enumerate(first))
    left = sum(torch.equal(x, IMAGE) for x in (plan.mixed(IMAGE, KINDS, 1, step) for step in range(400)))
    assert 40 < left < 125  # a fifth of the steps


def test_images_are_mixed_with_others_of_their_contrast():
    rng = __import__("numpy").random.default_rng(0)
    for _ in range(20):
        partner = _partners(KINDS, rng)
        assert sorted(partner.tolist()) == list(range(6))
        assert torch.equal(KINDS[partner], KINDS)
        assert partner[5] == 5
        assert all(partner[i] != i for i in range(5))
    by_kind = KINDS.float().view(-1, 1, 1, 1, 1).expand(-1, 1, 4, 4, 4)
    for step in range(10):
        assert torch.allclose(Augmentation(0.5, 0.5).mixed(by_kind, KINDS, 0, step), by_kind)


def test_mixup_lies_between_two_images_and_cutmix_takes_voxels_as_they_are():
    two = torch.stack([torch.zeros(1, 8, 10, 12), torch.ones(1, 8, 10, 12)])
    ids = torch.zeros(2, dtype=torch.long)
    blends = [Augmentation(mixup_prob=1.0).mixed(two, ids, 0, s) for s in range(50)]
    assert all(torch.allclose(x[0] + x[1], torch.ones(1)) and len(x[0].unique()) == 1 for x in blends)
    assert len({round(float(x[0].max()), 4) for x in blends}) > 25
    cut = [Augmentation(cutmix_prob=1.0).mixed(two, ids, 0, s) for s in range(200)]
    assert all(set(x.unique().tolist()) <= {0.0, 1.0} for x in cut)
    assert 0.4 < torch.stack([x[0].mean() for x in cut]).mean() < 0.6  # the share is uniform


@pytest.mark.parametrize("shape", [(20, 20, 20), (40, 1, 40)])
def test_a_box_has_its_share(shape):
    rng = __import__("numpy").random.default_rng(0)
    for share in (0.1, 0.5, 0.9):
        assert _box(shape, share, rng).float().mean() == pytest.approx(share, abs=0.08)


def test_resolution_grows_in_equal_stretches():
    plan = Augmentation(halvings=2, full_from=0.5)
    x = torch.rand(1, 1, 16, 16, 1)
    sizes = [plan.reduced(x, p, anything).shape[2] for p in (0.0, 0.24, 0.25, 0.49, 0.5, 1.0)]
    assert sizes == [4, 4, 8, 8, 16, 16]
    small = plan.reduced(x, 0.0, anything)
    assert small.shape == (1, 1, 4, 4, 1)
    assert small[0, 0, 0, 0, 0].item() == pytest.approx(x[0, 0, :4, :4].mean().item(), rel=1e-5)


def test_a_resolution_that_the_network_refuses_is_halved_less_often():
    def at_least_eight(shape):
        if min(s for s in shape if s > 1) < 8:
            raise ValueError("too small")

    plan, x = Augmentation(halvings=3), torch.rand(1, 1, 16, 24, 16)
    assert plan.reduced(x, 0.0, at_least_eight).shape[2:] == (8, 12, 8)
    assert plan.reduced(torch.rand(1, 1, 9, 9, 9), 0.0, anything).shape[2:] == (9, 9, 9)


@pytest.mark.parametrize(
    "wrong", [{"mixup_prob": 0.7, "cutmix_prob": 0.4}, {"alpha": 0}, {"halvings": -1}, {"full_from": 0}]
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        Augmentation(**wrong)
