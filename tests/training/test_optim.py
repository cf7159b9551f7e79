import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurotome.errors import UsageError
from neurotome.training import MuonAdamW, OptimizerConfig, Schedule, build_optimizer, orthogonalise
from neurotome.training.optim import QUINTIC, ROUNDS


def plain_iteration(x: torch.Tensor) -> torch.Tensor:
    """The iteration as published, one matrix, double precision."""
    a, b, c = QUINTIC
    x = x.double() / x.double().norm()
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


# long: Gram form; square: plain form; tall: transposed
@pytest.mark.parametrize("shape", [(8, 200), (8, 9), (24, 24), (60, 8), (9, 8)])
def test_orthogonalise_is_the_published_iteration(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    together = orthogonalise(matrices)
    for matrix, result in zip(matrices, together, strict=True):
        torch.testing.assert_close(result.double(), plain_iteration(matrix), atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(result, orthogonalise(matrix[None])[0], atol=1e-6, rtol=1e-5)


def test_orthogonalise_agrees_with_torch() -> None:
    reference = pytest.importorskip("torch.optim._muon", reason="torch has it since 2.9")
    torch.manual_seed(0)
    for shape in ((8, 200), (24, 24), (60, 8)):
        matrix = torch.randn(*shape)
        result = orthogonalise(matrix[None])[0]
        # torch's own runs in bfloat16, whose unit roundoff is 2^-8, and five rounds amplify it
        same = reference._zeropower_via_newtonschulz(matrix, QUINTIC, ROUNDS, 1e-7).double()
        assert (same - result).norm() / result.norm() < 0.05


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 80), st.integers(0, 2**16))
def test_singular_values_are_near_one_and_vectors_kept(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(1, rows, columns, generator=torch.Generator().manual_seed(seed))
    u, s, v = torch.linalg.svd(matrix[0], full_matrices=False)
    core = u.T @ orthogonalise(matrix)[0] @ v.T
    well = s / s.norm() > 0.02  # what is smaller has not arrived after five rounds
    assert ((core.diagonal()[well] > 0.6) & (core.diagonal()[well] < 1.3)).all()
    assert (core - core.diagonal().diag()).abs().max() < 5e-3


def test_a_zero_gradient_moves_nothing() -> None:
    assert torch.equal(orthogonalise(torch.zeros(2, 4, 30)), torch.zeros(2, 4, 30))


def test_one_muon_step_by_hand() -> None:
    torch.manual_seed(1)
    weight = nn.Parameter(torch.randn(12, 2, 1, 2, 1))
    config = OptimizerConfig(
        name="muon", muon_lr=0.1, muon_momentum=0.9, muon_weight_decay=0.5, schedule="constant", warmup_fraction=0
    )
    optimizer, _ = build_optimizer([("w", weight)], config, 10)
    before, momentum = weight.detach().clone(), torch.zeros(12, 4)
    for _ in range(3):
        weight.grad = torch.randn_like(weight)
        momentum = 0.9 * momentum + 0.1 * weight.grad.reshape(12, 4)
        update = plain_iteration(0.9 * momentum + 0.1 * weight.grad.reshape(12, 4)).float()
        before = (1 - 0.1 * 0.5) * before - 0.1 * math.sqrt(12 / 4) * update.reshape(before.shape)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), before, atol=1e-5, rtol=1e-4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 6, 3)
        self.hidden = nn.ModuleList([nn.Conv3d(6, 6, 3, padding=1) for _ in range(2)])
        self.gain = nn.Parameter(torch.ones(6, 1))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)


def test_who_updates_what() -> None:
    net = Net()
    config = OptimizerConfig(name="muon", weight_decay=0.1)
    optimizer, _ = build_optimizer(net.named_parameters(), config, 10, edge=("stem", "gain"))
    assert isinstance(optimizer, MuonAdamW)
    members = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            (name,) = (n for n, q in net.named_parameters() if q is p)
            members[name] = (group["kind"], group["weight_decay"], group["initial_lr"])
    assert members == {
        "stem.weight": ("adamw", 0.1, 3e-4), "gain": ("adamw", 0.1, 3e-4), "stem.bias": ("adamw", 0.0, 3e-4),
        "hidden.0.weight": ("muon", 0.0, 0.02), "hidden.1.weight": ("muon", 0.0, 0.02),
        "hidden.0.bias": ("adamw", 0.0, 3e-4), "hidden.1.bias": ("adamw", 0.0, 3e-4),
    }  # fmt: skip


def test_its_adamw_is_adamw() -> None:
    torch.manual_seed(2)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    config = {"lr": 0.01, "weight_decay": 0.1, "schedule": "constant", "warmup_fraction": 0.0}
    first, _ = build_optimizer(ours.named_parameters(), OptimizerConfig(name="muon", **config), 10, edge=("weight",))
    second, _ = build_optimizer(theirs.named_parameters(), OptimizerConfig(name="adamw", **config), 10)
    for _ in range(4):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        first.step()
        second.step()
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_a_loaded_optimizer_continues_bit_by_bit(name: str, memory_format: torch.memory_format) -> None:
    """A file holds contiguous tensors; beside channels-last weights fused kernels would pair the wrong elements."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv3d(2, 4, 3), nn.Conv3d(4, 4, 3)).to(memory_format=memory_format)
    gradients = [[torch.randn_like(p) for p in net.parameters()] for _ in range(6)]

    def run(net: nn.Module, optimizer: torch.optim.Optimizer, steps: list[list[torch.Tensor]]) -> None:
        for step in steps:
            for p, g in zip(net.parameters(), step, strict=True):
                p.grad = g.clone(memory_format=torch.preserve_format)
            optimizer.step()

    config = OptimizerConfig(name=name, lr=0.01)
    optimizer, _ = build_optimizer(net.named_parameters(), config, 10, edge=("0.",))
    run(net, optimizer, gradients[:3])
    twin = copy.deepcopy(net)
    state = copy.deepcopy(optimizer.state_dict())
    for entry in state["state"].values():
        entry.update({k: v.contiguous() for k, v in entry.items()})
    resumed, _ = build_optimizer(twin.named_parameters(), config, 10, edge=("0.",))
    resumed.load_state_dict(state)
    run(net, optimizer, gradients[3:])
    run(twin, resumed, gradients[3:])
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


def test_schedule_closed_form() -> None:
    cosine = Schedule(OptimizerConfig(warmup_fraction=0.1, final_lr_fraction=0.1), 111)
    assert [cosine(s) for s in (0, 4, 10)] == [1 / 11, 5 / 11, 1.0]
    assert cosine(11) == 1.0
    assert cosine(60) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 49 / 99)) / 2)
    assert cosine(110) == pytest.approx(0.1)
    paper = OptimizerConfig(
        lr=1e-4, schedule="two_stage", warmup_fraction=0, final_lr_fraction=0.045, decay_fraction=0.8
    )
    two_stage = Schedule(paper, 125)
    assert two_stage(0) * paper.lr == pytest.approx(1e-4)
    assert [two_stage(s) * paper.lr for s in (99, 100, 124)] == pytest.approx([4.5e-6] * 3)
    assert Schedule(OptimizerConfig(schedule="constant", warmup_fraction=0), 10)(7) == 1.0


@settings(max_examples=25)
@given(st.sampled_from(["constant", "cosine", "two_stage"]), st.integers(1, 400), st.floats(0, 0.5))
def test_schedule_rises_then_never_does(schedule: str, steps: int, warmup: float) -> None:
    factors = [Schedule(OptimizerConfig(schedule=schedule, warmup_fraction=warmup), steps)(s) for s in range(steps)]
    top = round(warmup * steps)
    assert all(0 < f <= 1 for f in factors)
    assert factors[:top] == sorted(factors[:top])
    assert factors[top:] == sorted(factors[top:], reverse=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"lr": 0.0}, "lr"), ({"betas": (0.9, 1.0)}, "betas"), ({"clip": -1.0}, "clip"), ({"name": "sgd"}, "name"),
     ({"schedule": "step"}, "schedule"),
     ({"decay_fraction": 0.0}, "decay_fraction")],
)  # fmt: skip
def test_a_value_out_of_range_is_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=f"{named} is"):
        OptimizerConfig(**change)  # type: ignore[arg-type]


def test_refusals_of_build() -> None:
    net = Net()
    with pytest.raises(UsageError, match="stemm"):
        build_optimizer(net.named_parameters(), OptimizerConfig(name="muon"), 10, edge=("stemm",))
    with pytest.raises(UsageError, match="max_steps is 0"):
        build_optimizer(net.named_parameters(), OptimizerConfig(), 0)
    with pytest.raises(UsageError, match="nothing to train"):
        build_optimizer([("frozen", net.frozen)], OptimizerConfig(), 10)
