"""Charts: where points land, what ticks say, and that words in them are escaped."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurotome.report.figures import (
    BOTTOM,
    LEFT,
    MAX_POINTS,
    RIGHT,
    TOP,
    Dot,
    dot_chart,
    gauge,
    line_chart,
    short,
    smooth,
    thinned,
    ticks,
    usage_chart,
)
from neurotome.report.run import Series


def series(values: list[float], name: str = "train/loss") -> Series:
    return Series(name, np.arange(len(values), dtype=float), np.array(values))


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_round_and_inside(low: float, span: float, count: int) -> None:
    found = ticks(low, low + span, count)
    assert 1 <= len(found) <= 2 * count + 2
    slack = 1e-6 * (span + abs(low) * 1e-3 + 1e-9)
    assert all(low - slack - span * 1e-6 <= t <= low + span + slack + span * 1e-6 for t in found)


def test_ticks_by_hand() -> None:
    assert ticks(0, 1, 4) == pytest.approx([0, 0.5, 1])
    assert ticks(13.2, 24.7, 4) == pytest.approx([15, 20])
    assert ticks(5, 5) == [5]
    assert ticks(1.0, 400402.0, 2) == [200000, 400000]  # no multiple of 500000 lies inside


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1500, "1.5k"), (2e6, "2M"), (0.003, "0.003"), (3e-5, "3e-5"), (-0.25, "-0.25"), (0.1 + 0.2, "0.3")],
)
def test_short_labels(value: float, text: str) -> None:
    assert short(value) == text


def test_thinning_keeps_extremes_and_length() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    step, middle, low, high = thinned(Series("a", np.arange(5000.0), values))
    assert step.size == MAX_POINTS
    assert low.min() == values.min()
    assert high.max() == values.max()
    assert (low <= middle).all()
    few = thinned(series([3.0, 1.0, 2.0]))
    assert few[1].tolist() == [3, 1, 2]


def test_smoothing_is_a_running_median() -> None:
    values = np.random.default_rng(1).normal(size=200)
    found, half = smooth(values), 6
    padded = np.pad(values, half, mode="edge")
    assert found.tolist() == [float(np.median(padded[i : i + 2 * half + 1])) for i in range(200)]
    assert smooth(np.array([5.0, 1.0])).tolist() == [5, 1]


def test_lines_run_from_edge_to_edge() -> None:
    chart = line_chart("x", [series([0.0, 10.0])], width=400, height=220)
    (points,) = re.findall(r'polyline class="line line-1" points="([^"]+)"', chart.svg)
    (x1, y1), (x2, y2) = [tuple(map(float, p.split(","))) for p in points.split()]
    assert x1 == LEFT
    assert x2 == 400 - RIGHT
    assert y1 == pytest.approx(220 - BOTTOM)
    assert y2 == pytest.approx(TOP + (220 - TOP - BOTTOM) * 0.6 / 10.6, abs=0.06)
    assert chart.summary.startswith("10")


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [0.0, 0.0], [5.0], [-1e-12, 1e-12], [1e30, 2e30]])
def test_degenerate_curves_are_drawn(values: list[float]) -> None:
    svg = line_chart("x", [series(values)]).svg
    assert "nan" not in svg
    assert "inf" not in svg


def test_a_first_spike_does_not_flatten_the_rest() -> None:
    values = [1e6, 1e5, *np.linspace(2, 1, 500)]
    (points,) = re.findall(r'polyline class="line line-1" points="([^"]+)"', line_chart("x", [series(values)]).svg)
    heights = [float(p.split(",")[1]) for p in points.split()][10:]
    assert max(heights) - min(heights) > 80


def test_words_are_escaped() -> None:
    name = "<script>\"&'"
    charts = [
        line_chart(name, [series([1.0, 2.0])]).svg,
        dot_chart(name, [Dot(name, 1.0), Dot("b", 2.0, 1.5, 2.5, own=True)], name).svg,
    ]
    for svg in charts:
        assert "<script" not in svg
        assert "&lt;script&gt;" in svg


def test_dots_are_ordered_along_the_axis() -> None:
    rows = [Dot("a", 24.0, 23.5, 24.5, own=True), Dot("b", 18.0), Dot("c", 14.0)]
    places = [float(x) for x in re.findall(r'circle class="mark \w+" cx="([\d.]+)"', dot_chart("x", rows, "dB").svg)]
    assert places[0] > places[1] > places[2]
    assert (places[0] - places[1]) / (places[1] - places[2]) == pytest.approx(6 / 4, abs=0.02)
    assert dot_chart("x", [Dot("a", 3.0)], "dB").svg.count("<circle") == 1


def test_gauge_clips_to_its_ends() -> None:
    assert 'cx="214.0"' in gauge(9.0, 0.0, 1.0, None, None)
    assert 'cx="6.0"' in gauge(-9.0, 0.0, 1.0, 0.5, 0.5)
    assert "reference" not in gauge(0.5, 0.0, 1.0, None, None)


def test_usage_is_sorted_and_complete() -> None:
    chart = usage_chart("a", [0, 3, 1, 0], width=400, height=220)
    (path,) = re.findall(r'path class="area" d="([^"]+)"', chart.svg)
    heights = [float(y) for y in re.findall(r"L[\d.]+,([\d.]+)", path)]
    assert heights[:-1] == sorted(heights[:-1])  # y grows downwards: most used first
    assert "nan" not in usage_chart("a", [0, 0]).svg
