"""Scans through a network in slabs: the same scan, and the flag that says so."""

from pathlib import Path

import numpy as np
import pytest
import torch

from neurotome.cli.main import main
from neurotome.data.preparation.preparation import Preparation
from neurotome.nn.slabs.computing import Slabs
from neurotome.scans.tokenizer import ScanTokenizer
from neurotome.tokenizers import KLVAE
from tests.toy import brain, oblique


def model(**given: object) -> ScanTokenizer:
    torch.manual_seed(0)
    network = KLVAE(channels=(8, 8), attention_levels=(False, False), num_res_blocks=1, norm_groups=4)
    return ScanTokenizer(network, Preparation(3.0, (20, 24, 20)), {}, {}, {}, ("", frozenset()), "0" * 64, **given)


def test_a_scan_is_the_same_in_slabs() -> None:
    scan = brain(3, geometry=oblique())
    whole, cut = model(slabs="off"), model(slabs=3)
    assert cut.codec.compute((20, 24, 20)) == Slabs(3)
    assert not isinstance(model().codec.compute((20, 24, 20)), Slabs)  # a small volume
    cut.codec.compute = lambda shape: Slabs(3, small=0)
    a, b = (m.reconstruct(scan, "T1w").array for m in (whole, cut))
    assert a.std() > 0
    assert np.abs(a - b).max() < 1e-4 * np.abs(a).max()


@pytest.mark.usefixtures("toys")
def test_the_flag_reaches_the_model(tmp_path: Path, toy_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brain(9, geometry=oblique()).save(tmp_path / "sub-9_T1w.nii.gz")
    seen: list[object] = []
    read = ScanTokenizer.from_pretrained
    monkeypatch.setattr(
        ScanTokenizer, "from_pretrained", lambda *args, **kwargs: seen.append(kwargs["slabs"]) or read(*args, **kwargs)
    )
    for number, words in enumerate(([], ["--slabs", "off"], ["--slabs", "5"])):
        out = tmp_path / f"{number}_T1w.nii.gz"
        assert main(["reconstruct", str(toy_model), str(tmp_path / "sub-9_T1w.nii.gz"), str(out), *words]) == 0
    assert seen == ["auto", "off", 5]


@pytest.mark.parametrize("value", ["0", "-3", "many", "1.5"])
def test_a_bad_thickness_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "model", "in", "out", f"--slabs={value}"]) == 2
    assert value in capsys.readouterr().err
