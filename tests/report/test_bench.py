"""The pictures and charts of a bench: nothing leaves its frame, nothing crosses a name, one scan stands for all."""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from neurotome.report.bench import page
from neurotome.report.bench_pictures import rows_of_pictures
from neurotome.report.rates import LINE, RateDot, rate_chart, rate_ticks, spread_out

NAMES = ["neuroquant-aligned-demo", "vq-vae-demo", "kl-vae-demo", "x" * 60, "dc-ae-demo", "b"]


def texts(svg: str) -> list[tuple[str, float, float, str]]:
    """Return class, x, y and words of every text."""
    found = []
    for attributes, words in re.findall(r"<text ([^>]*)>([^<]*)</text>", svg):
        given_ = dict(re.findall(r'([\w-]+)="([^"]*)"', attributes))
        found.append((given_["class"], float(given_["x"]), float(given_["y"]), words))
    return found


@pytest.mark.parametrize("bits", [[1.0, 1.005, 1.01, 1.014, 1.02, 1.028], [0.01, 0.5, 1.0, 2.0, 16.0, 32.0], [1.0] * 6])
@pytest.mark.parametrize("values", [[20.0] * 6, [20.0, 20.01, 20.02, 31.0, 31.01, 12.0]])
def test_a_chart_keeps_its_words_apart_and_inside(bits: list[float], values: list[float]) -> None:
    dots = [RateDot(n, b, v, v - 0.3, v + 0.3) for n, b, v in zip(NAMES, bits, values, strict=True)]
    svg = str(rate_chart("PSNR of T1w", dots, "dB").svg)
    width, height = (float(v) for v in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    found = texts(svg)
    names = sorted((y, x, words) for kind, x, y, words in found if kind == "name own")
    assert len(names) == len(dots)
    assert all(b[0] - a[0] >= LINE - 0.11 for a, b in pairwise(names))
    right = names[0][1]
    assert all(x == right and x + 6.6 * len(words) <= width and 8 <= y <= height - 8 for y, x, words in names)
    drawn = [float(x) for x in re.findall(r'(?:cx|x1|x2)="([\d.]+)"', svg)]
    assert max(drawn) < right  # no bar, dot or grid line reaches the names
    axis = [(x, words) for kind, x, y, words in found if kind == "tick" and y == height - 40 + 18]
    assert len(axis) >= 2
    assert all(b[0] - a[0] > 6 * max(len(a[1]), len(b[1])) for a, b in pairwise(sorted(axis)))


def test_rates_are_marked_at_powers_of_two_or_round_numbers() -> None:
    assert rate_ticks(0.45, 4.1) == [0.5, 1, 2, 4]
    assert rate_ticks(0.76, 1.36) == pytest.approx([0.8, 1.0, 1.2])
    assert len(rate_ticks(2**-9.5, 2**6.5)) <= 7


@given(st.lists(st.floats(0, 300), min_size=1, max_size=15))
def test_places_are_spread_without_leaving_their_ends(places: list[float]) -> None:
    moved = spread_out(sorted(places), 16, 0, 250)
    assert min(moved) >= -1e-9
    assert max(moved) <= 250
    assert all(b - a >= 16 - 1e-9 for a, b in pairwise(moved))
    assert spread_out([10.0, 100.0], 16, 0, 250) == [10, 100]


def evaluated(folder: Path, level: float, subjects: tuple[str, ...] = ("07", "08")) -> Path:
    """Write the panels of a cell whose reconstructions are off by ``level``."""
    folder.mkdir()
    tensors, entries = {}, []
    scan = np.linspace(-1, 1, 6 * 8 * 6, dtype=np.float32).reshape(6, 8, 6)
    for at, subject in enumerate(subjects):
        for contrast in ("T1w", "T2w"):
            tensors |= {f"{at}/{contrast}": scan, f"{at}/{contrast}/out": scan + np.float32(level)}
            entries.append({"subject": subject, "from": contrast, "to": contrast, "note": f"{contrast} dB",
                            "source": f"{at}/{contrast}", "output": f"{at}/{contrast}/out"})  # fmt: skip
    (folder / "panels.safetensors").write_bytes(safetensors.numpy.save(tensors, {"entries": json.dumps(entries)}))
    return folder


def test_one_subject_goes_through_every_tokenizer(tmp_path: Path) -> None:
    folders = {"a": evaluated(tmp_path / "a", 0.1), "b": evaluated(tmp_path / "b", 0.25, ("08", "07")),
               "c": evaluated(tmp_path / "c", 0.9, ("09",)), "d": tmp_path / "d"}  # fmt: skip
    rows = rows_of_pictures(folders)
    assert [row.contrast for row in rows] == ["T1w", "T2w"]
    for row in rows:
        assert [name for name, _ in row.figures] == ["a", "b"]  # the others do not show subject 07
        assert row.subject == "07"
        assert row.limit == 0.3  # holds both differences; the same for all
        assert [len(figure.cells) for _, figure in row.figures] == [3, 3]
    assert rows_of_pictures({"d": tmp_path / "d"}) == []
    setting = {
        "about": "",
        "budget": "10 steps",
        "split": "val",
        "subjects": 2,
        "seeds": [0],
        "device": "cpu",
        "threads": 1,
    }
    text = page({**setting, "rows": [], "failed": [], "unprobed": []}, folders)
    assert text.count("<b>Scan</b>") == 2
    assert text.count(">b</b>") == 2
    assert "Subject 07 of the val split" in text
    assert "-0.3 too dark" in text
    assert "test" not in re.sub(r"<style>.*?</style>|base64,[^\"]*", "", text, flags=re.DOTALL)
    assert "pictures" not in re.sub(
        r"<style>.*?</style>", "", page({**setting, "rows": [], "failed": [], "unprobed": []}, {}), flags=re.DOTALL
    )
