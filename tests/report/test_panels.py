"""The images an evaluation keeps: the sign and range of differences, and unexpected files."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from neurotome.report.mosaics import draw
from neurotome.report.panels import DIFFERENCE_STEPS, Panel, difference_range, read_panels
from tests.report.report_example import opened, panels


def test_difference_is_output_minus_what_it_should_be() -> None:
    source, output, truth = (np.full((4, 5, 6), v, np.float32) for v in (0.1, 0.5, 0.8))
    own = Panel("s", "T1w", "T1w", {"source": source, "output": output})
    far = Panel("s", "T1w", "T2w", {"source": source, "output": output, "truth": truth})
    assert np.allclose(own.difference, 0.4)
    assert np.allclose(far.difference, -0.3)
    assert Panel("s", "T1w", "T2w", {"source": source, "output": output}).difference is None


def test_one_range_holds_99_percent_inside_the_brain() -> None:
    source, mask = np.zeros((10, 10, 10), np.float32), np.zeros((10, 10, 10), bool)
    mask[2:8] = True
    output = np.where(mask, 0.18, 5.0).astype(np.float32)
    panel = Panel("s", "T1w", "T1w", {"source": source, "output": output}, mask)
    assert difference_range([panel]) == 0.2
    assert difference_range([]) in DIFFERENCE_STEPS
    wild = Panel("s", "T1w", "T1w", {"source": source, "output": output})
    assert difference_range([wild]) == DIFFERENCE_STEPS[-1]


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
