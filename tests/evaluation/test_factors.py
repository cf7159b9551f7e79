"""What a code says of a subject: classes by accuracy, numbers by R², and what cannot be probed is left out."""

import pytest
import torch

from neurotome.evaluation.audit import ScanCode
from neurotome.evaluation.factors import factors, truth_digest


def scans(start: int, stop: int, modalities=("T1w", "T2w"), site=True, style=False) -> list[ScanCode]:
    """Scans whose mean vector is the subject's number and its parity; the second contrast holds neither."""
    found = []
    generator = torch.Generator().manual_seed(start)
    for i in range(start, stop):
        for k, modality in enumerate(modalities):
            mean = torch.randn(2, generator=generator) if k else torch.tensor([float(i), float(i % 2)])
            look = torch.tensor([float(i)]) if style else None
            found.append(ScanCode(f"{i}", "", modality, f"s{i % 2}" * site, mean[None], mean, look, None))
    return found


TRUTH = {
    f"{i}": {
        "age": 20.0 + i,
        "sex": "FM"[i % 2],
        "coded": float(1 + i % 2),
        "name": f"n{i % 30}",
        "lab": "one",
        "site": i % 4,
    }
    for i in range(60)
}


def test_classes_and_numbers_are_told_apart() -> None:
    result = factors(scans(0, 40), scans(40, 60), ("T1w", "T2w"), TRUTH)
    assert result["sex"]["T1w"] == {"chance": 0.5, "n": 20, "anatomy": 1.0}
    assert result["coded"]["T1w"] == {"chance": 0.5, "n": 20, "anatomy": 1.0}
    assert result["age"]["T1w"]["anatomy_r2"] == pytest.approx(1, abs=0.02)
    assert set(result["age"]["T2w"]) == {"n", "anatomy_r2"}
    assert result["age"]["T2w"]["anatomy_r2"] < 0.5
    assert result["sex"]["T2w"]["anatomy"] < 0.9
    # a name is another for nearly every subject, and "lab" the same for all
    assert set(result) == {"site", "sex", "coded", "age"}


def test_the_site_of_the_scans_goes_before_that_of_the_table() -> None:
    found = factors(scans(0, 40), scans(40, 60), ("T1w",), TRUTH)
    assert found["site"]["T1w"]["chance"] == 0.5
    table = factors(scans(0, 40, site=False), scans(40, 60, site=False), ("T1w",), TRUTH)
    assert table["site"]["T1w"]["chance"] == 0.25  # classes, though written as numbers


def test_style_is_probed_where_there_is_one() -> None:
    result = factors(scans(0, 40, style=True), scans(40, 60, style=True), ("T2w",), TRUTH)
    assert result["age"]["T2w"]["style_r2"] == pytest.approx(1, abs=0.02)
    assert result["age"]["T2w"]["style_r2"] > result["age"]["T2w"]["anatomy_r2"]


def test_classes_that_training_did_not_see_are_left_out() -> None:
    truth = {f"{i}": {"sex": "X" if i == 45 else "FM"[i % 2]} for i in range(60)}
    assert factors(scans(0, 40), scans(40, 60), ("T1w",), truth)["sex"]["T1w"]["n"] == 19
    one = {f"{i}": {"sex": "F" if i >= 40 else "FM"[i % 2]} for i in range(60)}
    assert "sex" not in factors(scans(0, 40), scans(40, 60), ("T1w",), one)
    assert factors(scans(0, 1), scans(40, 60), ("T1w",), {"0": {"age": 3.0}}) == {}


def test_tables_are_told_apart_by_what_they_say() -> None:
    assert truth_digest(None) is truth_digest({}) is None
    turned = {subject: dict(reversed(row.items())) for subject, row in reversed(TRUTH.items())}
    assert truth_digest(TRUTH) == truth_digest(turned)
    assert truth_digest(TRUTH) != truth_digest({**TRUTH, "0": {"age": 1.0}})
