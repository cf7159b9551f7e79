"""``neurotome doctor MODEL``: what a model folder can do, and whether it still computes what it did."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from neurotome.cli.main import main
from tests import toy

pytestmark = pytest.mark.usefixtures("toys")


def test_a_model_says_what_it_can_do(toy_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(toy_model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["class"] == "ToyTokenizer"
    assert (facts["family"], facts["contrasts"], facts["grid"]) == ("tokenizer", ["T1w", "T2w"], [20, 24, 20])
    assert facts["translates"] is True
    assert facts["self_test"] == {"share_within_1e-3": 1.0, "largest": 0.0}
    assert facts["warnings"] == []


def test_a_model_that_computes_something_else_is_named(
    toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(toy_model, folder)
    stored = load_file(folder / "self_test.safetensors")
    stored["output"] += 0.01
    save_file(stored, folder / "self_test.safetensors")
    assert main(["doctor", str(folder)]) == 3
    assert "not what config.json promises" in capsys.readouterr().err
    hashes = json.loads((folder / "config.json").read_text())["sha256"]
    data = (folder / "self_test.safetensors").read_bytes()
    toy.reseal(folder, sha256={**hashes, "self_test.safetensors": hashlib.sha256(data).hexdigest()})
    assert main(["doctor", str(folder)]) == 3
    err = capsys.readouterr().err
    assert "the self-test failed: 0.0% of the values" in err
    assert err.count("\n") == 1


def test_a_share_of_values_may_differ_but_no_value_may_be_missing(toy_model: Path) -> None:
    from neurotome.models.self_test import compared

    content = toy.read(toy_model)
    stored = {name: value.clone() for name, value in content.self_test.items()}
    stored["output"].view(-1)[: stored["output"].numel() // 200] += 1  # half a per cent
    assert compared(content.network, stored, Path("f")).passed
    stored["output"] = torch.cat([stored["output"], stored["output"]])
    assert not compared(content.network, stored, Path("f")).passed
    bad = {**content.self_test, "output": torch.full_like(content.self_test["output"], float("nan"))}
    assert not compared(content.network, bad, Path("f")).passed


def test_what_is_no_model_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path / "nothing")]) == 2
    assert "no such model folder" in capsys.readouterr().err
