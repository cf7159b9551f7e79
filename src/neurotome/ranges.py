"""The range of an argument stands in its annotation, and constructors refuse what lies outside.

    num_heads: Size = 8          swap_prob: Share = 0.3          scales: Annotated[Sequence[Size], MAY_BE_EMPTY] = (5,)

A number that is not finite, an empty list and a word that a ``Literal`` lacks are refused whatever the range says.
"""

import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from neurotome.errors import UsageError, printable

MAY_BE_EMPTY = "may be empty"


@dataclass(frozen=True)
class Range:
    """An interval of numbers.

    Args:
        text: As mathematics writes it, ``"[0, 1)"``.
    """

    text: str

    def __contains__(self, value: float) -> bool:
        """Return whether a number lies in it."""
        low, high = map(float, self.text[1:-1].split(","))
        above = low < value or (low == value and self.text[0] == "[")
        return above and (value < high or (value == high and self.text[-1] == "]"))

    def __str__(self) -> str:
        """Return what is admissible, in words."""
        low, high = self.text[1:-1].split(", ")
        above = f"{'>=' if self.text[0] == '[' else '>'} {low}"
        return {"inf": above, "1e30": f"{above}, at most 1e30"}.get(high if low[0] != "-" else "", f"in {self.text}")


Dims = Annotated[int, Range("[2, 3]")]
Axis = Annotated[int, Range("[0, 2]")]
Size = Annotated[int, Range("[1, 65536]")]  # channels, blocks, heads, edges; the upper end is beyond any memory
SizeOrNone = Annotated[int, Range("[0, 65536]")]  # 0 leaves the part out
NumCodes = Annotated[int, Range("[2, 16777216]")]
Count = Annotated[int, Range("[0, 1000000000]")]  # steps, updates
PositiveCount = Annotated[int, Range("[1, 1000000000]")]
# beyond 1e30 single precision overflows in a product or two
Weight = Annotated[float, Range("[0, 1e30]")]
Positive = Annotated[float, Range("(0, 1e30]")]
Share = Annotated[float, Range("[0, 1]")]
Decay = Annotated[float, Range("[0, 1)")]
Finite = Annotated[float, Range("[-1e30, 1e30]")]


class Ranged:
    """A dataclass of arguments that refuses what lies outside the ranges of its fields."""

    def __post_init__(self) -> None:
        """Refuse what is out of range; subclasses add what several fields must fulfil together."""
        check_ranges(type(self), vars(self))


def check_ranges(target: type, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments outside the ranges that a constructor's annotations give.

    Args:
        target: A class.
        arguments: Of its constructor, by name; those without a number or a list are passed over.

    Raises:
        UsageError: One is out of range, not finite, an empty list or no admissible word; the text names it, its value
            and what is admissible.
    """
    for name, value in arguments.items():
        marks = _marks(target).get(name, ())
        ranges = [mark for mark in marks if isinstance(mark, Range)]
        word = "numbers" if isinstance(value, list | tuple | Mapping) else "a number"
        admissible = " and ".join(f"{word} {one}" for one in ranges) or f"{word} in (-inf, inf)"
        choices = [choice for mark in marks if isinstance(mark, tuple) for choice in mark]
        if isinstance(value, str) and choices and value not in choices:
            raise UsageError(f"{name} is {_shown(value)}; give {' or '.join(map(str, choices))}")
        for leaf in _leaves(value):
            if leaf is None and MAY_BE_EMPTY not in marks:
                raise UsageError(f"{name} is {_shown(value)}; give at least one entry")
            if leaf is not None and not (abs(leaf) < math.inf and all(leaf in one for one in ranges)):
                raise UsageError(f"{name} is {_shown(value)}; give {admissible}")


@cache
def _marks(target: type) -> dict[str, tuple[Any, ...]]:
    """Return the metadata in the annotation of every parameter of a constructor."""
    hints = typing.get_type_hints(target.__init__, include_extras=True)  # type: ignore[misc]  # of this very class
    return {name: tuple(dict.fromkeys(_metadata(hint))) for name, hint in hints.items()}


def _metadata(hint: Any) -> Iterator[Any]:
    if isinstance(hint, Range) or hint == MAY_BE_EMPTY:
        yield hint
    if typing.get_origin(hint) is Literal:
        yield typing.get_args(hint)
        return
    for part in typing.get_args(hint):  # of Annotated: the type and its metadata
        yield from _metadata(part)


def _leaves(value: Any) -> Iterator[float | None]:
    """Yield the numbers of an argument, and None for an empty list."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, list | tuple):
        yield from (leaf for item in value for leaf in _leaves(item)) if value else (None,)
    elif isinstance(value, Mapping):
        yield from (leaf for item in value.values() for leaf in _leaves(item))


def _shown(value: Any) -> str:
    return printable(repr(value))[:80]
