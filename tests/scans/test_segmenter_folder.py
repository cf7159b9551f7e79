"""A segmenter's model folder: the same weights come back; what is damaged, foreign or of the other kind is named."""

import shutil
from pathlib import Path

import pytest
import torch

from neurotome.errors import InputError, UsageError
from neurotome.evaluation.evaluate import evaluate
from neurotome.models.folder import read_folder
from neurotome.scans.segmenter import ScanSegmenter
from neurotome.tasks import SegResNet
from neurotome.tokenizers.base import Tokenizer
from tests import toy
from tests.evaluation.toy_evaluation import BlockTokenizer, ToyScans, toy_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    return toy_store(tmp_path_factory.mktemp("segmenter") / "store", labelled=True)


@pytest.fixture(scope="module")
def network() -> SegResNet:
    torch.manual_seed(0)
    groups = {"structures": ("bright", "dark"), "label_ids": ((1,), (2,))}
    return SegResNet(channels=8, blocks_down=(1, 1), blocks_up=(1,), **groups).eval()


@pytest.fixture(scope="module")
def folder(store, network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter") / "model"
    toy.exported(network, store, folder)
    return folder


def test_it_comes_back_as_it_was(folder: Path, network: SegResNet, store) -> None:
    reader = ScanSegmenter.from_pretrained(folder)
    image = torch.from_numpy(store.load(store.split("test")[0]).image[0:1].copy())
    assert torch.equal(reader(image, "T2w"), network.segment(image, torch.tensor([1])))
    assert (reader.structures, reader.modalities) == (("bright", "dark"), ("T1w", "T2w"))
    assert reader.trained_on("00")
    assert not reader.trained_on("06")
    reader.check_store(store)
    assert toy.names(folder) == [
        "README.md", "config.json", "model.safetensors", "preprocess.json", "self_test.safetensors"
    ]  # fmt: skip
    card = (folder / "README.md").read_text()
    assert "bright (1); dark (2)" in card
    assert "not for clinical use" in card
    with pytest.raises(ValueError, match="not FLAIR"):
        reader(image, "FLAIR")


def test_the_digest_names_weights_and_preparation(folder: Path, network: SegResNet, store, tmp_path: Path) -> None:
    with torch.no_grad():
        next(network.parameters()).mul_(1.5)
    digest = toy.exported(network, store, tmp_path / "other")
    with torch.no_grad():
        next(network.parameters()).div_(1.5)
    assert (
        digest
        == ScanSegmenter.from_pretrained(tmp_path / "other").digest
        != ScanSegmenter.from_pretrained(folder).digest
    )


def test_an_evaluation_takes_it(folder: Path, store) -> None:
    reader = ScanSegmenter.from_pretrained(folder)
    metrics = evaluate(ToyScans(BlockTokenizer()), store, segmenter=reader)
    assert metrics["protocol"]["segmenter_sha256"] == reader.digest
    assert metrics["reconstruction"]["T1w"]["structure_dice"]["n"] == 4


def test_another_preparation_is_refused(folder: Path, tmp_path: Path) -> None:
    other = toy_store(tmp_path / "store", (1, 0, 1), shape=(16, 16, 16))
    with pytest.raises(InputError, match=r"expects scans .* 16 x 20 x 16.* 16 x 16 x 16.*segmenter-demo"):
        ScanSegmenter.from_pretrained(folder).check_store(other)


def test_the_other_kind_is_refused(folder: Path, toy_model: Path, toys: None) -> None:
    with pytest.raises(InputError, match=r"'ToyTokenizer' is a tokenizer, no segmenter \(SegResNet\)"):
        ScanSegmenter.from_pretrained(toy_model)
    with pytest.raises(InputError, match=r"'SegResNet' is a segmenter, no tokenizer"):
        read_folder(folder, Tokenizer)


def test_damage_is_named(folder: Path, tmp_path: Path) -> None:
    def broken(name: str, change) -> Path:
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        change(copy)
        return copy

    def other_class(copy: Path) -> None:
        toy.reseal(copy, network={"class": "os.system"})

    def flip(copy: Path) -> None:
        data = bytearray((copy / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (copy / "model.safetensors").write_bytes(bytes(data))

    cases = (
        ("class", other_class, "'os.system' is not a public segmenter"),
        ("weights", flip, "model.safetensors: its content is not what"),
        ("missing", lambda c: (c / "preprocess.json").unlink(), r"preprocess.json: cannot be read"),
        ("cut", lambda c: (c / "config.json").write_text("{"), "not JSON"),
    )
    for name, change, said in cases:
        with pytest.raises(InputError, match=said):
            ScanSegmenter.from_pretrained(broken(name, change))
    with pytest.raises(UsageError, match="no such model folder"):
        ScanSegmenter.from_pretrained(tmp_path / "nothing")
