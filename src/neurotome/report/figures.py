"""Charts as inline SVG: text stays text, colours come from the page, and the same numbers give the same bytes.

Every chart has a fixed coordinate system and scales with its box. Classes (``line-1`` … ``line-6``, ``grid``, ``tick``)
are styled by the page, so that one chart serves light and dark.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from neurotome.report.run import Series

# Beyond this a line on a 400-pixel chart gains nothing.
MAX_POINTS = 240
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 10.0, 30.0


@dataclass(frozen=True)
class Chart:
    """A chart and its words.

    Args:
        title: What is drawn.
        svg: Safe markup.
        legend: Names in the order of the colours; empty for a single line.
        summary: The last value or the like, beside the title.
    """

    title: str
    svg: Markup
    legend: tuple[str, ...] = ()
    summary: str = ""


@dataclass(frozen=True)
class Dot:
    """One row of a dot chart.

    Args:
        name: Its label.
        value: Where the dot stands.
        low: Lower end of the interval, or None.
        high: Upper end of the interval, or None.
        own: Whether this is the model (filled) or something it is compared with (open).
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    own: bool = False


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) inside ``[low, high]``, about ``count`` of them."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    steps = [m * power for m in (0.5, 1.0, 2.0, 5.0, 10.0)]
    widest = next(i for i, step in enumerate(steps) if i and step >= raw * 0.999)
    for step in (steps[widest], steps[widest - 1]):  # the wider one may pass over a range that starts beside a tick
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last >= first:
            break
    return [i * step for i in range(first, last + 1)]


def short(value: float) -> str:
    """Return ``value`` as a tick label: 1500 is 1.5k, 0.003 is 0.003, 3e-05 is 3e-5."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1000:
        return f"{value / 1000:g}k"
    if size and size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{round(value, 6):g}"


def thinned(series: Series) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, medians, minima and maxima of at most :data:`MAX_POINTS` runs of neighbouring points."""
    groups = np.array_split(np.arange(series.step.size), min(series.step.size, MAX_POINTS))
    step = np.array([series.step[g].mean() for g in groups])
    low, middle, high = (np.array([f(series.value[g]) for g in groups]) for f in (np.min, np.median, np.max))
    return step, middle, low, high


def smooth(values: np.ndarray, share: float = 0.06) -> np.ndarray:
    """Return the running median over ``share`` of the points; short series come back as they are."""
    width = int(values.size * share) // 2 * 2 + 1
    if width < 5:
        return values
    padded = np.pad(values, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)


def axis_limits(values: np.ndarray) -> tuple[float, float]:
    """Return axis ends; a few points far above all others (the first of a training) may leave the chart."""
    low, high = float(values.min()), float(values.max())
    late = float(np.quantile(values, 0.95))
    if values.size > 40 and high - low > 4 * (late - low) > 0:
        high = low + 1.5 * (late - low)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    if low >= 0 and low < 0.25 * high:
        return 0.0, high + pad
    return low - pad, high + pad


def element(name: str, text: str = "", /, **attributes: object) -> Markup:
    """Return one element; every attribute and the text are escaped."""
    given = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, given, text)


def _points(x: np.ndarray, y: np.ndarray) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def drawing(width: float, height: float, label: str, parts: Sequence[Markup]) -> Markup:
    """Return a chart of a fixed coordinate system; ``label`` says what it shows."""
    return Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>').format(
        width, height, label, Markup("").join(parts)
    )


def line_chart(
    title: str,
    lines: Sequence[Series],
    names: Sequence[str] = (),
    marks: Mapping[str, float] | None = None,
    *,
    width: float = 400,
    height: float = 220,
) -> Chart:
    """Return a line chart over steps, one colour per series, with the spread of noisy series behind the line.

    Args:
        title: Of the chart.
        lines: The series.
        names: Of the series in the legend.
        marks: Steps by what began in them: each is a vertical line with its name.
        width: In pixels.
        height: In pixels.
    """
    thin = [thinned(series) for series in lines]
    values = np.concatenate([middle for _, middle, _, _ in thin])
    low, high = axis_limits(values)
    end = max(float(step[-1]) for step, *_ in thin)
    start = min(float(step[0]) for step, *_ in thin)
    start = 0.0 if 0 <= start <= 0.15 * end else start
    span = (end - start) or 1.0
    inner = width - LEFT - RIGHT, height - TOP - BOTTOM

    def at(step: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside = np.clip((value - low) / (high - low), -0.02, 1.02)
        return LEFT + (step - start) / span * inner[0], TOP + (1 - inside) * inner[1]

    parts = [*_y_axis(low, high, width, height), *_x_axis(start, end, width, height)]
    for i, (step, middle, least, most) in enumerate(thin, start=1):
        x, y = at(step, smooth(middle))
        if step.size > 30 and len(thin) <= 2:
            upper, lower = at(step, most)[1], at(step, least)[1]
            outline = _points(np.concatenate([x, x[::-1]]), np.concatenate([upper, lower[::-1]]))
            parts.append(element("polygon", class_=f"band-{i}", points=outline))
        parts.append(element("polyline", class_=f"line line-{(i - 1) % 6 + 1}", points=_points(x, y)))
        if step.size <= 30:
            dots = zip(x, y, strict=True)
            parts += [
                element("circle", class_=f"dot-{(i - 1) % 6 + 1}", cx=f"{a:.1f}", cy=f"{b:.1f}", r=2.6) for a, b in dots
            ]
    for i, (name, place) in enumerate(sorted((marks or {}).items(), key=lambda mark: mark[1])):
        if start <= place <= end:
            parts += _mark(name, LEFT + (place - start) / span * inner[0], TOP + 9 + 11 * (i % 3), width, height)
    legend = tuple(names) if len(lines) > 1 else ()
    last = f"{lines[0].value[-1]:.4g} at the end" if len(lines) == 1 else ""
    return Chart(title, drawing(width, height, f"{title} over steps", parts), legend, last)


def _mark(name: str, x: float, y: float, width: float, height: float) -> list[Markup]:
    """Return a vertical line at ``x`` with its name beside it, on the side that has room."""
    right = x < width / 2
    place = {"x": f"{x + (4 if right else -4):.1f}", "y": f"{y:.1f}", "text_anchor": "start" if right else "end"}
    return [
        element(
            "line", class_="mark", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=TOP, y2=height - BOTTOM, stroke_dasharray="3 3"
        ),
        element("text", name, class_="tick", **place),
    ]


def _y_axis(low: float, high: float, width: float, height: float) -> list[Markup]:
    parts = []
    for value in ticks(low, high):
        y = f"{TOP + (1 - (value - low) / (high - low)) * (height - TOP - BOTTOM):.1f}"
        parts.append(element("line", class_="grid", x1=LEFT, x2=width - RIGHT, y1=y, y2=y))
        parts.append(element("text", short(value), class_="tick", x=LEFT - 7, y=y, dy="0.35em", text_anchor="end"))
    return parts


def _x_axis(start: float, end: float, width: float, height: float) -> list[Markup]:
    base = height - BOTTOM
    parts = [element("line", class_="axis", x1=LEFT, x2=width - RIGHT, y1=base, y2=base)]
    for value in ticks(start, end):
        x = LEFT + (value - start) / ((end - start) or 1.0) * (width - LEFT - RIGHT)
        anchor = "end" if x > width - RIGHT - 12 else "middle"
        parts.append(element("text", short(value), class_="tick", x=f"{x:.1f}", y=base + 18, text_anchor=anchor))
    return parts


def dot_chart(title: str, rows: Sequence[Dot], unit: str, *, width: float = 410) -> Chart:
    """Return values on one line each, the model filled, the baselines open, intervals as bars."""
    label, line = 205.0, 25.0
    height = TOP + line * len(rows) + BOTTOM
    shown = [v for row in rows for v in (row.value, row.low, row.high) if v is not None]
    spread = (max(shown) - min(shown)) or 1.0
    low, high = min(shown) - 0.10 * spread, max(shown) + 0.10 * spread

    def at(value: float) -> float:
        return label + (value - low) / (high - low) * (width - label - 40)

    base = height - BOTTOM
    parts = []
    for value in ticks(low, high, 4):
        parts.append(element("line", class_="grid", x1=f"{at(value):.1f}", x2=f"{at(value):.1f}", y1=TOP, y2=base))
        parts.append(
            element("text", short(value), class_="tick", x=f"{at(value):.1f}", y=base + 18, text_anchor="middle")
        )
    for i, row in enumerate(rows):
        y = TOP + line * (i + 0.5)
        kind = "own" if row.own else "baseline"
        parts.append(
            element("text", row.name, class_=f"name {kind}", x=label - 14, y=y, dy="0.35em", text_anchor="end")
        )
        if row.low is not None and row.high is not None:
            parts.append(
                element("line", class_=f"bar {kind}", x1=f"{at(row.low):.1f}", x2=f"{at(row.high):.1f}", y1=y, y2=y)
            )
        parts.append(element("circle", class_=f"mark {kind}", cx=f"{at(row.value):.1f}", cy=y, r=4.6))
        right = max(row.value, row.high if row.high is not None else row.value)
        parts.append(
            element("text", f"{row.value:.1f}", class_=f"value {kind}", x=f"{at(right) + 10:.1f}", y=y, dy="0.35em")
        )
    return Chart(title, drawing(width, height, f"{title} in {unit}", parts), (), unit)


def gauge(value: float, low: float, high: float, goal: float | None, reference: float | None) -> Markup:
    """Return a strip with the value as a dot, the goal as a triangle and the reference (chance) as a line."""
    width, height, middle = 220.0, 26.0, 13.0

    def at(v: float) -> str:
        return f"{6 + (min(max(v, low), high) - low) / (high - low) * (width - 12):.1f}"

    parts = [element("line", class_="rail", x1=6, x2=width - 6, y1=middle, y2=middle)]
    if reference is not None:
        parts.append(element("line", class_="reference", x1=at(reference), x2=at(reference), y1=4, y2=22))
    if goal is not None:
        x = float(at(goal))
        parts.append(element("path", class_="goal", d=f"M{x:.1f},17 l-4.5,8 h9 z"))
    parts.append(element("circle", class_="mark own", cx=at(value), cy=middle, r=5))
    return drawing(width, height, f"{value:.2f} between {low:g} and {high:g}", parts)


def usage_chart(name: str, counts: Sequence[float], *, width: float = 400, height: float = 220) -> Chart:
    """Return the share of tokens per code, most used first, with the line of equal use."""
    shares = np.sort(np.asarray(counts, dtype=float))[::-1]
    total = float(shares.sum())
    shares = shares / total if total > 0 else shares
    top = max(float(shares[0]), 1.0 / shares.size) * 1.06
    inner, base = width - LEFT - RIGHT, height - BOTTOM
    x = LEFT + np.linspace(0, inner, shares.size + 1)
    y = TOP + (1 - shares / top) * (base - TOP)
    outline = np.stack([np.repeat(x, 2)[1:-1], np.repeat(y, 2)], axis=1)
    path = (
        f"M{LEFT:g},{base:g} " + " ".join(f"L{a:.1f},{b:.1f}" for a, b in outline) + f" L{width - RIGHT:g},{base:g} z"
    )
    parts = []
    for value in ticks(0.0, top, 3):
        level = f"{TOP + (1 - value / top) * (base - TOP):.1f}"
        parts.append(element("line", class_="grid", x1=LEFT, x2=width - RIGHT, y1=level, y2=level))
        parts.append(
            element("text", f"{100 * value:g} %", class_="tick", x=LEFT - 7, y=level, dy="0.35em", text_anchor="end")
        )
    parts.append(element("path", class_="area", d=path))
    even = f"{TOP + (1 - 1.0 / shares.size / top) * (base - TOP):.1f}"
    parts.append(element("line", class_="reference", x1=LEFT, x2=width - RIGHT, y1=even, y2=even))
    parts.append(element("text", "equal use", class_="tick", x=width - RIGHT, y=float(even) - 6, text_anchor="end"))
    parts += _x_axis(1, shares.size, width, height)
    svg = drawing(width, height, "Share of tokens per code", parts)
    return Chart(f"Codebook “{name}”", svg, (), f"share of tokens in the brain, {shares.size} codes by use")
