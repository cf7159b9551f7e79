import pytest
import torch
from torch import nn

from neurotome.errors import UsageError
from neurotome.training import EMA


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, 3).to(memory_format=torch.channels_last_3d), nn.BatchNorm3d(2))


def move(net: nn.Module) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))
        for b in net.buffers():
            b.add_(1)


def test_parameters_are_averaged_and_buffers_are_the_live_ones() -> None:
    net = module()
    ema = EMA({"net": net}, 0.9, warmup=False)
    expected = [p.detach().clone() for p in net.parameters()]
    for _ in range(5):
        move(net)
        ema.update()
        expected = [0.9 * e + 0.1 * p.detach() for e, p in zip(expected, net.parameters(), strict=True)]
    live = {k: v.clone() for k, v in net.state_dict().items()}
    with ema.averaged():
        for p, e in zip(net.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), e)
        assert all(torch.equal(b, live[k]) for k, b in net.named_buffers())
        assert len(live) == 7
    assert all(torch.equal(v, live[k]) for k, v in net.state_dict().items())


def test_decay_warms_up() -> None:
    net = nn.Linear(1, 1, bias=False)
    ema = EMA({"net": net}, 0.5)
    nn.init.zeros_(net.weight)
    with ema.averaged():
        value = net.weight.item()
    for n in range(12):
        ema.update()
        value *= min(0.5, (1 + n) / (10 + n))
    with ema.averaged():
        assert net.weight.item() == pytest.approx(value, rel=1e-5)


def test_the_context_restores_after_an_error_and_nothing_is_shared() -> None:
    net = module()
    ema = EMA({"net": net}, 0.5)
    move(net)
    live = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match="inside"), ema.averaged():
        raise RuntimeError("inside")
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), live, strict=True))
    before = {k: v.clone() for k, v in ema.state_dict()["average"].items()}
    move(net)
    assert all(torch.equal(v, before[k]) for k, v in ema.state_dict()["average"].items())


def test_a_shared_parameter_is_averaged_once() -> None:
    net = module()
    ema = EMA({"a": net, "b": net}, 0.5, warmup=False)
    old = net[0].weight.detach().clone()
    move(net)
    ema.update()
    with ema.averaged():
        torch.testing.assert_close(net[0].weight.detach(), old + 0.5 * (ema._average["a.0.weight"] - old))
    assert len(ema.state_dict()["average"]) == 4


def test_state_round_trip_and_refusals() -> None:
    net = module()
    ema = EMA({"net": net}, 0.9)
    move(net)
    ema.update()
    other = EMA({"net": module()}, 0.9)
    other.load_state_dict(ema.state_dict())
    assert other.updates == 1
    assert all(torch.equal(v, other._average[k]) for k, v in ema._average.items())
    with pytest.raises(ValueError, match="another model"):
        EMA({"net": nn.Linear(2, 2)}, 0.9).load_state_dict(ema.state_dict())
    with pytest.raises(UsageError, match=r"ema_decay is 1\.0"):
        EMA({"net": net}, 1.0)
