"""Quality over rate: one named dot per tokenizer, its interval as a bar, names in a column of their own."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from neurotome.report.figures import TOP, Chart, axis_limits, drawing, element, short, ticks

# places of a chart, in its own units; a bold letter of a name is about this wide
LEFT, BELOW, LETTER, LINE, LONGEST = 50.0, 40.0, 7.2, 16.0, 26
TICK_ROOM = 52.0  # of the longest label, 0.00781


@dataclass(frozen=True)
class RateDot:
    """One tokenizer: its name, bits, value, and the ends of the interval of that."""

    name: str
    bits: float
    value: float
    low: float | None = None
    high: float | None = None


def rate_chart(
    title: str, dots: Sequence[RateDot], unit: str = "", *, width: float = 500, axis: str = "bits per voxel"
) -> Chart:
    """Return quality over bits (logarithmic), what they are is ``axis``; a thin line leads from a dot to its name."""
    words = [dot.name if len(dot.name) <= LONGEST else f"{dot.name[: LONGEST - 1]}…" for dot in dots]
    right = width - 28 - LETTER * max(len(word) for word in words)
    height = max(280.0, TOP + BELOW + LINE * len(dots))
    base = height - BELOW
    low, high = axis_limits(np.array([v for dot in dots for v in (dot.value, dot.low, dot.high) if v is not None]))
    rates = [math.log2(dot.bits) for dot in dots]
    first, last = min(rates) - 0.4, max(rates) + 0.4

    def x(bits: float) -> float:
        return LEFT + (math.log2(bits) - first) / (last - first) * (right - LEFT)

    def y(value: float) -> float:
        return base - (value - low) / (high - low) * (base - TOP)

    parts = [*_axes(x, y, (2.0**first, 2.0**last), (low, high), (right, base), axis)]
    order = sorted(range(len(dots)), key=lambda i: (y(dots[i].value), i))
    places = dict(zip(order, spread_out([y(dots[i].value) for i in order], LINE, TOP + LINE / 2, base), strict=True))
    for i, dot in enumerate(dots):
        ends = ((x(dot.bits) + 6, y(dot.value)), (right + 8, places[i]), (right + 14, places[i]))
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in ends)
        parts.append(element("polyline", class_="leader", points=points))
    for i, dot in enumerate(dots):
        at = f"{x(dot.bits):.1f}"
        if dot.low is not None and dot.high is not None:
            top, bottom = f"{y(dot.high):.1f}", f"{y(dot.low):.1f}"
            parts.append(element("line", class_="bar own", x1=at, x2=at, y1=top, y2=bottom))
        parts.append(element("circle", class_="mark own", cx=at, cy=f"{y(dot.value):.1f}", r=4.2))
        label = {"x": f"{right + 18:.1f}", "y": f"{places[i]:.1f}", "dy": "0.35em"}
        parts.append(element("text", words[i], class_="name own", **label))
    return Chart(title, drawing(width, height, f"{title} over {axis}", parts), (), unit)


def _axes(
    x: Callable[[float], float],
    y: Callable[[float], float],
    rates: tuple[float, float],
    levels: tuple[float, float],
    corner: tuple[float, float],
    name: str,
) -> list[Markup]:
    """Return grid, axis and labels; ``corner`` is the lower right end of the plot."""
    right, base = corner
    parts = [element("line", class_="axis", x1=LEFT, x2=f"{right:.1f}", y1=base, y2=base)]
    for value in ticks(*levels, 5):
        level = f"{y(value):.1f}"
        parts.append(element("line", class_="grid", x1=LEFT, x2=f"{right:.1f}", y1=level, y2=level))
        parts.append(element("text", short(value), class_="tick", x=LEFT - 7, y=level, dy="0.35em", text_anchor="end"))
    for value in rate_ticks(*rates, most=int((right - LEFT) / TICK_ROOM)):
        at = f"{x(value):.1f}"
        parts.append(element("line", class_="axis", x1=at, x2=at, y1=base, y2=base + 4))
        parts.append(element("text", f"{value:.3g}", class_="tick", x=at, y=base + 18, text_anchor="middle"))
    middle = f"{(LEFT + right) / 2:.1f}"
    return [*parts, element("text", name, class_="tick", x=middle, y=base + 35, text_anchor="middle")]


def rate_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Return at most ``most`` powers of two in ``[low, high]``, round numbers where there is no second power."""
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    every = math.ceil((last - first + 1) / max(most, 2))
    powers = [2.0**p for p in range(first, last + 1, max(every, 1))]
    return powers if len(powers) > 1 else ticks(low, high, 3)


def spread_out(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return ascending places moved as little as needed to lie ``gap`` apart, inside ``[low, high]``.

    Args:
        places: Ascending.
        gap: Least distance between neighbours; all must fit between the ends.
        low: First end.
        high: Last end.
    """
    moved: list[float] = []
    for place in places:
        moved.append(max(place, low, moved[-1] + gap if moved else low))
    end = high
    for i in range(len(moved) - 1, -1, -1):
        moved[i] = min(moved[i], end)
        end = moved[i] - gap
    return moved
