"""The seconds of a step: every method has its turns, and takes the steps that training takes."""

from typing import Annotated

import torch
from torch import nn

from neurotome.ranges import MAY_BE_EMPTY
from neurotome.training import pace
from neurotome.training.base import Method
from neurotome.training.optim import OptimizerConfig
from neurotome.types import Batch


class Line(Method):
    """Learns y = 2 from one weight, and notes when it was its turn."""

    def __init__(self, name: str, turns: Annotated[list[str], MAY_BE_EMPTY]) -> None:
        super().__init__(OptimizerConfig(name="adamw", lr=0.1))
        self.weight, self.name, self.turns = nn.Parameter(torch.zeros(1)), name, turns

    def product(self):
        """See the base class."""
        return self

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """See the base class."""
        self.turns.append(self.name)
        return {"loss": (self.weight - 2).square().sum()}


class Nothing(torch.utils.data.Dataset):
    """Batches nobody looks at, by step."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __getitem__(self, step: int) -> Batch:
        self.asked.append(step)
        empty = torch.zeros(1, 1, dtype=torch.long)
        return Batch(torch.zeros(1, 1, 1, 2, 2, 2), empty, empty.bool(), ("a",), ("",), torch.zeros(1).long())


def test_methods_take_turns_and_learn(monkeypatch) -> None:
    turns: list[str] = []
    clock = iter(range(1000))
    monkeypatch.setattr(pace.time, "process_time", lambda: float(next(clock)))
    data = {name: Nothing() for name in "ab"}
    methods = {name: Line(name, turns) for name in "ab"}
    runners = {n: pace.Runner(methods[n], data[n], "32-true", torch.device("cpu")) for n in "ab"}
    found, failed = pace.paces(runners, warm_steps=3, rounds=2, round_steps=4)
    assert "".join(turns) == "aaabbb" + "aaaabbbb" * 2
    assert data["a"].asked == data["b"].asked == pace.spread(11)
    assert failed == {}
    assert found == {"a": [0.25, 0.25], "b": [0.25, 0.25]}
    assert methods["a"].step == 11
    assert 0.5 < methods["a"].weight.item() <= 2.5


def test_dear_steps_count_by_their_share() -> None:
    """The last tenth of a schedule costs ten times as much: on average a step costs 1.9."""
    for steps in (190, 200, 97):
        order = pace.spread(steps)
        assert sorted(order) == list(range(steps))
        cost = [10 if step >= 0.9 * steps else 1 for step in order]
        for start in range(0, steps - 80, 10):
            assert abs(sum(cost[start : start + 80]) / 80 - 1.9) < 0.25
    assert pace.pace([1.0, 3.0]) == 2.0
    assert pace.spread(1) == [0]


def test_a_method_that_fails_costs_itself_alone() -> None:
    class Broken(Line):
        def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
            if self.step == 4:
                raise RuntimeError("no memory")
            return super().loss(batch)

    cpu = torch.device("cpu")
    runners = {"a": pace.Runner(Broken("a", []), Nothing(), "32-true", cpu)}
    runners["b"] = pace.Runner(Line("b", []), Nothing(), "32-true", cpu)
    found, failed = pace.paces(runners, warm_steps=2, rounds=2, round_steps=2)
    assert list(found) == ["b"]
    assert failed == {"a": "no memory"}
