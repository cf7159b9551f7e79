"""Ranges in annotations: what a constructor refuses, and how it says so."""

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from neurotome.data.stores.base import TrainingData
from neurotome.errors import UsageError
from neurotome.losses.adversarial import Adversarial
from neurotome.models.registry import public_classes
from neurotome.nn.quantize import EMAQuantizer
from neurotome.nn.recorded import Recorded
from neurotome.ranges import MAY_BE_EMPTY, Decay, Range, Ranged, Size
from neurotome.tokenizers import KLVAE
from neurotome.tokenizers.tokenizer_training import TokenizerTraining
from neurotome.training.base import Method
from neurotome.training.optim import OptimizerConfig


@pytest.mark.parametrize(
    ("text", "inside", "outside", "words"),
    [
        ("[0, 1]", [0, 0.5, 1], [-1e-9, 1.1, float("nan"), float("inf")], "in [0, 1]"),
        ("[0, 1)", [0, 0.999], [1], "in [0, 1)"),
        ("(0, inf)", [1e-300, 10**400], [0, -0.0, float("inf")], "> 0"),
        ("[1, inf)", [1], [0], ">= 1"),
    ],
)
def test_an_interval_holds_what_mathematics_says(
    text: str, inside: list[float], outside: list[float], words: str
) -> None:
    interval = Range(text)
    assert all(value in interval for value in inside)
    assert not any(value in interval for value in outside)
    assert str(interval) == words


@dataclass(frozen=True)
class Parts(Ranged):
    widths: Sequence[Size] = (8,)
    crop: tuple[Size, Size, Size] | Size | None = None
    names: Annotated[tuple[str, ...], MAY_BE_EMPTY] = ()
    free: float = 0.0
    decay: Decay | None = None
    kind: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"crop": (1, 2, 3)},
        {"crop": 4},
        {"crop": None},
        {"names": ()},
        {"free": -1e300},
        {"decay": None},
        {"kind": "b"},
    ],
)
def test_what_is_admissible_passes(given: dict[str, object]) -> None:
    parts = Parts(**given)
    assert {name: getattr(parts, name) for name in given} == given


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"widths": ()}, "widths is (); give at least one entry"),
        ({"widths": (8, 0)}, "widths is (8, 0); give numbers in [1, 65536]"),
        ({"crop": 0}, "crop is 0; give a number in [1, 65536]"),
        ({"crop": (4, 4, -1)}, "crop is (4, 4, -1)"),
        ({"crop": 10**400}, "give a number in [1, 65536]"),
        ({"free": float("nan")}, "free is nan; give a number in (-inf, inf)"),
        ({"free": float("-inf")}, "free is -inf; give a number in (-inf, inf)"),
        ({"decay": 1.0}, "decay is 1.0; give a number in [0, 1)"),
        ({"kind": "c"}, "kind is 'c'; give a or b"),
    ],
)
def test_the_text_names_argument_value_and_range(given: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError) as error:
        Parts(**given)
    assert text in str(error.value)


def test_networks_parts_settings_and_methods_refuse_alike() -> None:
    """A width of 0 was an IndexError of torch's making."""
    with pytest.raises(UsageError, match=r"channels is \(0, 4\); give numbers in \[1, 65536\]"):
        KLVAE(2, channels=(0, 4), attention_levels=(False,) * 2, norm_groups=4)
    with pytest.raises(UsageError, match="decay is 1"):
        EMAQuantizer(8, 4, decay=1.0)
    with pytest.raises(UsageError, match="lr is 0"):
        Adversarial(lr=0.0)
    with pytest.raises(UsageError, match="eps is inf"):
        OptimizerConfig(eps=float("inf"))
    with pytest.raises(UsageError, match="window_steps is 0"):
        TokenizerTraining(KLVAE(2, channels=(4,), attention_levels=(False,), norm_groups=4), window_steps=0)


def test_every_number_of_a_config_has_a_range() -> None:
    """A new argument without one would be an internal error where somebody gives it 0."""
    classes = [c for kind in (Recorded, Method, TrainingData) for c in public_classes(kind).values()]
    bare = {f"{name}: {hint}" for target in classes for name, hint in numbers_without_a_range(target)}
    assert not bare
    assert [name for name, _ in numbers_without_a_range(Bare)] == ["a", "b", "part.a", "part.b"]


@dataclass
class Bare:
    a: int = 0
    b: Sequence[float] | None = None
    fine: Size = 1
    flag: bool = False
    part: "Bare | None" = None


def numbers_without_a_range(target: type, seen: frozenset[type] = frozenset()) -> Iterator[tuple[str, object]]:
    for name, hint in typing.get_type_hints(target.__init__, include_extras=True).items():
        for part in [hint, *typing.get_args(hint)]:
            if dataclasses.is_dataclass(part) and isinstance(part, type) and part not in seen:
                yield from ((f"{name}.{key}", rest) for key, rest in numbers_without_a_range(part, seen | {part}))
        if bare_number(hint):
            yield name, hint


def bare_number(hint: object) -> bool:
    if hint in (int, float):
        return True
    ranged = typing.get_origin(hint) is Annotated and any(isinstance(m, Range) for m in hint.__metadata__)
    return not ranged and any(map(bare_number, typing.get_args(hint)))
