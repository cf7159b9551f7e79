"""Both networks in one step: the same gradients as in two; the adaptive weight; the spike guard."""

import pytest
import torch
from torch import nn

from neurotome.losses.adversarial import Adversarial, frozen_logits, last_weight
from neurotome.losses.spikes import LossHistory, SpikeGuard
from neurotome.nn.discriminator import PatchDiscriminator
from neurotome.nn.nd import Conv


def generator() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(Conv(3, 1, 4), nn.SiLU(), Conv(3, 4, 1))


def discriminator() -> PatchDiscriminator:
    torch.manual_seed(2)
    return PatchDiscriminator(3, 1, channels=4, num_layers=2, norm_groups=2)


IMAGE = torch.rand(2, 1, 12, 12, 12, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_the_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.25])
    hinge, squares = Adversarial(), Adversarial(kind="least_squares")
    assert hinge.discriminator_loss(real, fake).item() == pytest.approx((0.25 + 0.625) / 2)
    assert hinge.generator_loss(fake).item() == pytest.approx(1.375)
    assert squares.discriminator_loss(real, fake).item() == pytest.approx((0.625 + 4.53125) / 2)
    assert squares.generator_loss(fake).item() == pytest.approx((16 + 0.5625) / 2)


@pytest.mark.parametrize("kind", ["hinge", "least_squares"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_one_backward_gives_each_network_the_gradient_of_its_own_loss(kind, adaptive):
    settings = Adversarial(weight=0.3, kind=kind, adaptive=adaptive)
    g, d = generator(), discriminator()
    y = g(IMAGE)
    near, fooled = (y - IMAGE).abs().mean(), settings.generator_loss(frozen_logits(d, y))
    weight = settings.scale(near, fooled, y)
    (near + weight * fooled + settings.discriminator_loss(d(IMAGE), d(y.detach()))).backward()
    joint = [p.grad.clone() for p in (*g.parameters(), *d.parameters())]
    # by turns, as in a textbook: the generator's step with the discriminator's gradients thrown away, then the other's
    for p in (*g.parameters(), *d.parameters()):
        p.grad = None
    y = g(IMAGE)
    ((y - IMAGE).abs().mean() + float(weight) * settings.generator_loss(d(y))).backward()
    apart = [p.grad.clone() for p in g.parameters()]
    for p in d.parameters():
        p.grad = None
    settings.discriminator_loss(d(IMAGE), d(g(IMAGE).detach())).backward()
    apart += [p.grad.clone() for p in d.parameters()]
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(joint, apart, strict=True))
    assert all(a.abs().max() > 0 for a in apart if a.ndim > 1)  # the hinge's two halves cancel in the last bias


def test_the_discriminator_gets_nothing_through_frozen_logits():
    d = discriminator()
    image = IMAGE.clone().requires_grad_()
    assert torch.equal(frozen_logits(d, image), d(image))
    frozen_logits(d, image).sum().backward()
    assert image.grad.abs().max() > 0
    assert all(p.grad is None for p in d.parameters())


def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_weight():
    g = generator()
    y = g(IMAGE)
    near, other = y.square().mean(), 1e-3 * y.sum()
    own, theirs = (torch.autograd.grad(t, g[2].weight, retain_graph=True)[0].norm() for t in (near, other))
    found = Adversarial(weight=0.5, adaptive=True).scale(near, other, y)
    assert found.item() == pytest.approx(0.5 * own.item() / (theirs.item() + 1e-4), rel=1e-5)
    assert not found.requires_grad
    assert Adversarial(weight=0.5, adaptive=True, max_ratio=0.01).scale(near, other, y).item() == pytest.approx(0.005)
    assert Adversarial(weight=0.5).scale(near, other, y).item() == 0.5


def test_the_last_weight_is_found_in_any_network():
    g = generator()
    assert last_weight(g(IMAGE)) is g[2].weight
    assert last_weight(g(IMAGE[..., :1]).clamp(-1, 1)) is g[2].weight  # a slice of the kernel, an output function
    line = nn.Sequential(Conv(3, 1, 1), Conv(3, 1, 1))
    assert last_weight(line(IMAGE[:, :, :1])) is line[1].weight
    dense = nn.Linear(4, 8)
    assert last_weight(dense(torch.rand(2, 4)).view(2, 1, 2, 2, 2)) is dense.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert last_weight(g(IMAGE)) is g[2].weight
    free = IMAGE.clone().requires_grad_()
    output = free * 2
    assert last_weight(output) is output


def test_both_networks_start_when_they_should():
    settings = Adversarial(start=10, lead=4)
    assert [settings.learns(s) for s in (5, 6, 10)] == [False, True, True]
    assert [settings.active(s) for s in (6, 9, 10)] == [False, False, True]
    assert not Adversarial(weight=0).active(100)


@pytest.mark.parametrize("wrong", [{"weight": -1}, {"lr": 0}, {"start": -1}, {"kind": "wasserstein"}, {"max_ratio": 0}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        Adversarial(**wrong)


def test_a_spike_is_beyond_k_robust_deviations():
    history = LossHistory(SpikeGuard(deviations=3, window=5, warmup=5))
    for value in (1.0, 2.0, 3.0, 4.0, 100.0):  # the median is 3, the deviation 1.4826, whatever the outlier
        assert not history.is_spike(torch.tensor(value))
    edge = 3 + 3 * 1.4826
    assert not LossHistory.is_spike(_copy(history), torch.tensor(edge - 0.01))
    assert LossHistory.is_spike(_copy(history), torch.tensor(edge + 0.01))
    assert not LossHistory.is_spike(_copy(history), torch.tensor(-1000.0))  # only upwards


def _copy(history: LossHistory) -> LossHistory:
    twin = LossHistory(history.guard)
    twin.load_state_dict(history.state_dict())
    return twin


def test_a_lasting_change_of_level_becomes_normal_and_skips_are_counted():
    history = LossHistory(SpikeGuard(deviations=5, window=20, warmup=10))
    found = [history.is_spike(torch.tensor(1.0 + 0.01 * (i % 3))) for i in range(20)]
    found += [history.is_spike(torch.tensor(9.0 + 0.01 * (i % 3))) for i in range(20)]
    assert not any(found[:20])
    assert found[20:].index(False) <= 11
    assert not any(found[32:])
    assert history.skipped == sum(found)
    history.forget()
    assert not history.is_spike(torch.tensor(1e6))


def test_a_flat_history_makes_no_spike_of_a_ripple():
    history = LossHistory(SpikeGuard(deviations=5, window=10, warmup=5))
    for _ in range(10):
        history.is_spike(torch.tensor(1.0))
    assert not history.is_spike(torch.tensor(1.04))
    assert history.is_spike(torch.tensor(1.06))


def test_a_guard_out_of_range_is_refused():
    for wrong in ({"deviations": 0}, {"window": 3}, {"warmup": 1}, {"budget": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
            SpikeGuard(**wrong)
