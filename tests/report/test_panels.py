"""Pictures: an independent PNG reader, orientation, the sign and range of differences, and unexpected files."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from neurotome.report.panels import (
    DIFFERENCE_STEPS,
    MAX_SIDE,
    Panel,
    brain_box,
    difference_range,
    diverging_palette,
    draw,
    grey,
    png,
    read_panels,
    three_planes,
)
from tests.report.report_example import brain, panels


def opened(address: str) -> Image.Image:
    head, data = address.split(",", 1)
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_png_is_read_back_exactly_by_another_library() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (37, 53), dtype=np.uint8)
    assert np.array_equal(np.asarray(opened(png(picture))), picture)
    coloured = opened(png(picture, diverging_palette())).convert("RGB")
    assert np.array_equal(np.asarray(coloured), diverging_palette()[picture])


def test_large_pictures_are_halved_to_their_means() -> None:
    picture = np.kron(np.arange(250, dtype=np.uint8)[None].repeat(250, 0), np.ones((2, 2), np.uint8))
    small = np.asarray(opened(png(picture)))
    assert max(small.shape) <= MAX_SIDE
    assert np.array_equal(small, picture[::2, ::2])


def test_planes_are_neurological() -> None:
    scan = np.full((16, 20, 24), -1.0, np.float32)
    scan[0, :, 12] = 1.0  # the subject's left, in the axial plane
    canvas = three_planes(scan, -1.0)
    axial, coronal, sagittal = canvas[24:, 20:], canvas[:24, 20:], canvas[:24, :20]
    assert axial.shape == (20, 16)
    assert coronal.shape == (24, 16)
    assert sagittal.shape == (24, 20)
    assert (axial[:, 0] == 1).all()
    assert (axial[:, 1:] == -1).all()
    front = np.full((16, 20, 24), -1.0, np.float32)
    front[:, 19, :] = 1.0
    canvas = three_planes(front, -1.0)
    assert (canvas[24, 20:] == 1).all()  # front is the axial plane's top
    assert (canvas[:24, 19] == 1).all()  # and the sagittal plane's right
    top = np.full((16, 20, 24), -1.0, np.float32)
    top[:, :, 23] = 1.0
    assert (three_planes(top, -1.0)[0] == 1).all()
    assert (three_planes(top, -1.0)[24:, :20] == -1).all()  # the free quarter


def test_a_slice_stays_a_slice() -> None:
    scan = np.linspace(-1, 1, 30, dtype=np.float32).reshape(5, 6, 1)
    assert np.array_equal(three_planes(scan, -1.0), scan[:, :, 0].T[::-1])


def test_grey_ends() -> None:
    assert grey(np.array([[-3.0, -1.0, 0.0, 1.0, 3.0]], np.float32)).tolist() == [[0, 0, 128, 255, 255]]


def test_difference_is_output_minus_what_it_should_be() -> None:
    source, output, truth = (np.full((4, 5, 6), v, np.float32) for v in (0.1, 0.5, 0.8))
    own = Panel("s", "T1w", "T1w", {"source": source, "output": output})
    far = Panel("s", "T1w", "T2w", {"source": source, "output": output, "truth": truth})
    assert np.allclose(own.difference, 0.4)
    assert np.allclose(far.difference, -0.3)
    assert Panel("s", "T1w", "T2w", {"source": source, "output": output}).difference is None
    red, _, blue = diverging_palette()[[0, 127, 255]].astype(int)
    assert red[2] > red[0]  # too dark is blue
    assert blue[0] > blue[2]  # too bright is orange
    assert diverging_palette()[127:129].max() < 40  # equal is dark


def test_one_range_holds_99_percent_inside_the_brain() -> None:
    source, mask = np.zeros((10, 10, 10), np.float32), np.zeros((10, 10, 10), bool)
    mask[2:8] = True
    output = np.where(mask, 0.18, 5.0).astype(np.float32)
    panel = Panel("s", "T1w", "T1w", {"source": source, "output": output}, mask)
    assert difference_range([panel]) == 0.2
    assert difference_range([]) in DIFFERENCE_STEPS
    wild = Panel("s", "T1w", "T1w", {"source": source, "output": output})
    assert difference_range([wild]) == DIFFERENCE_STEPS[-1]


def test_pictures_are_cut_to_the_brain() -> None:
    image, mask = brain()
    big = np.pad(image, 20, constant_values=-1.0)
    panel = Panel("s", "T1w", "T1w", {"source": big}, np.pad(mask, 20))
    box = brain_box(panel)
    assert np.pad(mask, 20)[box].sum() == mask.sum()
    assert all(s.stop - s.start <= n for s, n in zip(box, image.shape, strict=True))
    empty = Panel("s", "T1w", "T1w", {"source": big}, np.zeros_like(big, bool))
    assert [s.stop for s in brain_box(empty)] == list(big.shape)


def test_reads_what_an_evaluation_writes(tmp_path: Path) -> None:
    path = tmp_path / "panels.safetensors"
    panels(path)
    found, notes = read_panels(path)
    assert notes == []
    assert [(p.source, p.target) for p in found[:4]] == [("T1w", "T1w"), ("T1w", "T2w"), ("T2w", "T1w"), ("T2w", "T2w")]
    captions = [[cell.caption for cell in draw(p, 0.2).cells] for p in found[:2]]
    assert captions == [
        ["Original", "Reconstruction", "Difference"],
        ["T1w", "T2w from T1w", "True T2w", "Difference"],
    ]
    figure = draw(found[1], 0.2)
    assert figure.cells[1].flicker == figure.cells[2].address
    assert opened(figure.cells[0].address).size == (figure.width, figure.height)


@pytest.mark.parametrize(
    "entries",
    [
        "",
        "{}",
        "[]",
        "[" * 100_000,
        json.dumps([3, {"output": "nowhere"}, {"source": ["a"]}, {"source": "flat"}]),
        json.dumps([{"source": "a", "output": "other_grid", "from": "T1w"}]),
    ],
)
def test_unexpected_panels_are_noted_not_fatal(tmp_path: Path, entries: str) -> None:
    path = tmp_path / "panels.safetensors"
    tensors = {"a": np.zeros((4, 4, 4), np.float32), "other_grid": np.zeros((5, 4, 4)), "flat": np.zeros(3)}
    save_file(tensors, path, metadata={"entries": entries})
    found, notes = read_panels(path)
    assert found == []
    assert len(notes) == 1


def test_a_broken_file_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "panels.safetensors"
    assert read_panels(path) == ([], [])
    path.write_bytes(b"\xff" * 200)
    found, notes = read_panels(path)
    assert found == []
    assert "could not be read" in notes[0]


def test_values_that_are_not_finite_become_background(tmp_path: Path) -> None:
    path = tmp_path / "panels.safetensors"
    scan = np.full((1, 1, 4, 4, 4), np.nan, np.float16)
    save_file({"a": scan}, path, metadata={"entries": json.dumps([{"source": "a", "modality": "T1w"}])})
    (panel,), _ = read_panels(path)
    assert (panel.images["source"] == -1).all()
    assert draw(panel, 0.2).title == "T1w"
