"""Mosaics: an independent PNG reader, orientation, places, and what is drawn over them."""

import re

import numpy as np
import pytest

from neurotome.report.mosaics import MAX_SIDE, diverging_palette, grey, marks, mosaic, png, tiles
from neurotome.report.panels import Panel, brain_box
from tests.report.report_example import brain, opened


def test_png_is_read_back_exactly_by_another_library() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (37, 53), dtype=np.uint8)
    assert np.array_equal(np.asarray(opened(png(picture))), picture)
    coloured = opened(png(picture, diverging_palette())).convert("RGB")
    assert np.array_equal(np.asarray(coloured), diverging_palette()[picture])


def test_differences_are_blue_where_too_dark_and_orange_where_too_bright() -> None:
    dark, _, bright = diverging_palette()[[0, 127, 255]].astype(int)
    assert dark[2] > dark[0]
    assert bright[0] > bright[2]
    assert diverging_palette()[127:129].max() < 40  # equal is dark


def test_large_pictures_are_halved_to_their_means() -> None:
    picture = np.kron((np.arange(300) % 256).astype(np.uint8)[None].repeat(300, 0), np.ones((2, 2), np.uint8))
    small = np.asarray(opened(png(picture)))
    assert max(small.shape) <= MAX_SIDE
    assert np.array_equal(small, picture[::2, ::2])


def test_slices_are_neurological_and_at_their_places() -> None:
    """Each voxel holds its own number, so that every slice can be found again."""
    shape = (16, 20, 24)
    scan = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    canvas = mosaic(scan, -1.0)
    assert canvas.shape == (24 + 20, 20 + 16 + 16)
    sagittal, first, second = canvas[:24, :20], canvas[:24, 20:36], canvas[:24, 36:]
    assert np.array_equal(sagittal, scan[9].T[::-1])  # front is right, top is up
    assert np.array_equal(first, scan[:, 12].T[::-1])  # left is left
    assert np.array_equal(second, scan[:, 7].T[::-1])
    axial = canvas[24:]
    assert np.array_equal(axial[:, 2:18], scan[:, :, 8].T[::-1])  # in the middle of its column; front is up
    assert np.array_equal(axial[:, 20:36], scan[:, :, 12].T[::-1])
    assert np.array_equal(axial[:, 36:], scan[:, :, 15].T[::-1])
    assert (canvas == -1).sum() == 4 * 20  # beside the narrower first axial slice, and nothing else


@pytest.mark.parametrize("shape", [(16, 20, 24), (30, 20, 9), (2, 3, 2), (5, 6, 1), (1, 6, 7), (4, 1, 9)])
def test_little_of_a_mosaic_is_empty(shape: tuple[int, int, int]) -> None:
    canvas = mosaic(np.zeros(shape, np.float32), -1.0)
    assert (canvas == -1).mean() < 0.2
    placed = tiles(shape)
    assert canvas.shape == (max(t.row + t.height for t in placed), max(t.column + t.width for t in placed))


def test_marks_say_sides_and_mm_from_the_middle() -> None:
    words = re.findall(r"<text[^>]*>([^<]*)</text>", str(marks((16, 20, 25), (3.0, 2.0, 1.0))))
    assert words[:3] == ["P", "A", "x +4 mm"]  # index 9, the middle is 7.5
    assert words[3:6] == ["L", "R", "y +5 mm"]
    assert words[6:9] == ["L", "R", "y \u22125 mm"]
    assert [w for w in words if w.startswith("z")] == ["z \u22123 mm", "z +0 mm", "z +4 mm"]
    assert words[-1] == "50 mm"
    without = str(marks((16, 20, 25), None))
    assert "mm" not in without
    assert without.count(">L<") == 5
    slice_alone = str(marks((16, 20, 1), (3.0, 3.0, 3.0)))
    assert re.findall(r"<text[^>]*>([^<]*)</text>", slice_alone) == ["L", "R"]


def test_a_slice_stays_a_slice() -> None:
    scan = np.linspace(-1, 1, 30, dtype=np.float32).reshape(5, 6, 1)
    assert np.array_equal(mosaic(scan, -1.0), scan[:, :, 0].T[::-1])


def test_grey_ends() -> None:
    assert grey(np.array([[-3.0, -1.0, 0.0, 1.0, 3.0]], np.float32)).tolist() == [[0, 0, 128, 255, 255]]


def test_pictures_are_cut_to_the_brain() -> None:
    image, mask = brain()
    big = np.pad(image, 20, constant_values=-1.0)
    panel = Panel("s", "T1w", "T1w", {"source": big}, np.pad(mask, 20))
    box = brain_box(panel)
    assert np.pad(mask, 20)[box].sum() == mask.sum()
    assert all(s.stop - s.start <= n for s, n in zip(box, image.shape, strict=True))
    empty = Panel("s", "T1w", "T1w", {"source": big}, np.zeros_like(big, bool))
    assert [s.stop for s in brain_box(empty)] == list(big.shape)
