"""Tokenizers of masks: what export and shards encode, what the folder says, and that no command takes a scan."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from neurotome.apply.shards import ShardPlan, ShardWriter
from neurotome.cli.main import main
from neurotome.data.imaging.reader import read_volume
from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.batches import batch_of
from neurotome.data.stores.build import prepare
from neurotome.data.stores.latents import Latents
from neurotome.data.stores.masks import MaskSource
from neurotome.data.stores.store import Store
from neurotome.data.stores.volumes import Masks
from neurotome.errors import InputError, UsageError
from neurotome.files.tensors import map_tensors
from neurotome.scans.export import training_statistics
from neurotome.scans.tokenizer import ScanTokenizer
from neurotome.tokenizers import MaskCodec, SpaceToDepth
from neurotome.tokenizers.base import Encoded
from neurotome.types import Images
from tests import toy

GRID = (24, 24, 24)


@pytest.fixture(scope="module")
def labelled_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy brains with two labels."""
    raw = toy.bids(tmp_path_factory.mktemp("masks") / "raw")
    for scan in sorted(raw.glob("sub-*/anat/*_T1w.nii.gz")):
        volume = read_volume(scan)
        labels = (volume.array > 0).astype(np.uint8)
        labels[: labels.shape[0] // 3] *= 2
        target = raw / "derivatives" / "truth" / scan.parent.relative_to(raw)
        target.mkdir(parents=True)
        Volume(labels, volume.geometry).save(target / scan.name.replace("_T1w", "_dseg"))
    return raw


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, labelled_raw: Path) -> Path:
    """A store of them; read it only."""
    folder = tmp_path_factory.mktemp("masks") / "store"
    prepare(labelled_raw, folder, preparation=Preparation(3.0, GRID), modalities=["T1w", "T2w"], seed=0)
    return folder


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory, labelled: Path) -> Path:
    """The model folder of a mask codec; read it only."""
    folder = tmp_path_factory.mktemp("masks") / "model"
    toy.exported(MaskCodec(2, layout="k8x8"), labelled, folder, masks="label")
    return folder


@pytest.mark.parametrize("channels", [1, 2])
def test_statistics_are_those_of_the_masks_that_training_sees(labelled: Path, channels: int) -> None:
    store, network = Store.open(labelled), SpaceToDepth(in_channels=channels)
    reader = Masks(channels=channels).open(labelled)
    found = training_statistics(network.eval(), reader)
    cells = []
    for entry in store.split("train"):
        image, ids = MaskSource("label", channels).of(batch_of(store, [entry])).flat()
        cells.append(network.encode(image, ids).latent[0].flatten(1).double())
    expected = torch.cat(cells, dim=1)
    stats = found.to_json()
    assert np.allclose(stats["mean"], expected.mean(dim=1))
    assert np.allclose(stats["std"], expected.std(dim=1, correction=0))
    assert stats["volumes"] == len(store.split("train"))  # one map per session, however many contrasts
    assert reader.intensity("train") == {}


def test_masks_that_are_images_are_thresholded_as_in_training(labelled: Path) -> None:
    store, network = Store.open(labelled), SpaceToDepth()
    stats = training_statistics(network.eval(), Masks(source="image").open(labelled)).to_json()
    images = np.concatenate([store.load(e).image.ravel() for e in store.split("train")])
    assert np.mean(stats["mean"]) == pytest.approx(np.mean(np.where(images > 0, 1.0, -1.0)), abs=1e-6)


def test_the_folder_says_what_it_was_trained_on(labelled: Path, codec: Path, tmp_path: Path) -> None:
    config = json.loads((codec / "config.json").read_text())
    masks = {"source": "label", "groups": ["every label above 0"]}
    assert config["images"] == {"space": "masks", "masks": masks}
    card = (codec / "README.md").read_text()
    assert "every label above 0 (source: label)" in card
    assert "from_pretrained" not in card
    toy.exported(SpaceToDepth(in_channels=2), labelled, tmp_path / "two", masks="label")
    assert toy.read(tmp_path / "two").images.masks == {"source": "label", "groups": ["label 1", "label 2"]}
    ScanTokenizer.from_pretrained(codec, masks=True).save_pretrained(tmp_path / "copy")
    assert toy.read(tmp_path / "copy").images.masks == masks
    toy.exported(SpaceToDepth(), labelled, tmp_path / "scans")
    assert toy.read(tmp_path / "scans").images == Images()
    assert json.loads((tmp_path / "scans" / "config.json").read_text())["images"] == {"space": "voxels"}


def test_what_a_latent_depends_on_includes_what_the_masks_are(labelled: Path, codec: Path, tmp_path: Path) -> None:
    """They have no weights that would differ: shards of one would pass for those of the other."""
    toy.exported(MaskCodec(2, layout="k8x8"), labelled, tmp_path / "m", masks="image")
    assert toy.read(codec).digest != toy.read(tmp_path / "m").digest


def test_a_folder_of_masks_of_an_unknown_source_is_refused(codec: Path, tmp_path: Path) -> None:
    shutil.copytree(codec, tmp_path / "m")
    config = json.loads((codec / "config.json").read_text())
    for change in ({"masks": {"source": "elsewhere"}}, {"masks": None}, {"masks": {}}, {"space": "voxels"}):
        images = {**config["images"], **change}
        toy.reseal(tmp_path / "m", images=images)
        with pytest.raises(InputError, match="the key masks is missing"):
            toy.read(tmp_path / "m")


@pytest.mark.parametrize("verb", ["reconstruct", "encode", "evaluate", "translate", "decode"])
def test_no_command_takes_a_scan(
    codec: Path, labelled: Path, labelled_raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    out = tmp_path / "out"
    words = [verb, str(codec), str(labelled_raw), str(out)]
    words += {"translate": ["--to", "T2w"]}.get(verb, [])
    if verb == "evaluate":
        words = [verb, str(codec), str(labelled), "--out", str(out)]
    assert main([*words, "--device", "cpu"]) == 3
    err = capsys.readouterr().err
    assert "was trained on masks" in err
    assert "--shards" in err
    assert not out.exists()


def test_no_method_takes_a_scan(codec: Path) -> None:
    model = ScanTokenizer.from_pretrained(codec, masks=True)
    with pytest.raises(UsageError, match="was trained on masks"):
        model.encode(toy.brain(), "T1w")
    with pytest.raises(UsageError, match="was trained on masks"):
        model.decode_batch([])


def test_shards_hold_the_masks_at_one_bit_per_voxel(labelled: Path, codec: Path, tmp_path: Path) -> None:
    assert main(["encode", str(codec), str(labelled), str(tmp_path / "out"), "--shards", "--draws", "3"]) == 0
    store, latents = Store.open(labelled), Latents.open(tmp_path / "out")
    network, sessions = toy.read(codec).network, {entry.digest: entry for entry in store.sessions}
    moved = 0
    for entry in latents.entries:
        assert entry.modalities == ("T1w",)  # the map stands under the model's first contrast
        stored = map_tensors(entry.file)[f"{entry.number}.T1w.latent"]
        assert stored.nbytes * 8 == network.bits(GRID) == np.prod(GRID)
        code = Encoded(torch.from_numpy(latents.load(entry, "T1w").latent)[None], {}, None, {}, GRID)
        mask = network.decode(code, torch.tensor([0]))[0, 0].numpy() > 0
        labels = store.load(sessions[entry.digest]).labels
        assert mask.sum() == (labels > 0).sum()
        moved += not np.array_equal(mask, labels > 0)
        if entry.draw == 0:
            assert np.array_equal(mask, labels > 0)
    assert moved
    assert len(latents.entries) == len(store.sessions) + 2 * len(store.split("train"))


def test_masks_of_several_labels_keep_their_channels(labelled: Path, tmp_path: Path) -> None:
    store = Store.open(labelled)
    toy.exported(SpaceToDepth(in_channels=2), store, tmp_path / "model", masks="label")
    model = ScanTokenizer.from_pretrained(tmp_path / "model", masks=True)
    ShardWriter(model, store, ShardPlan()).write(tmp_path / "out")
    latents = Latents.open(tmp_path / "out")
    entry = latents.entries[0]
    code = Encoded(torch.from_numpy(latents.load(entry, "T1w").latent)[None], {}, None, {}, GRID)
    labels = store.load(next(e for e in store.sessions if e.digest == entry.digest)).labels
    found = model.network.decode(code, torch.tensor([0]))[0].numpy() > 0
    assert np.array_equal(found, np.stack([labels == 1, labels == 2]))


def test_training_exports_what_it_was_trained_on(labelled: Path, tmp_path: Path) -> None:
    words = ["train", "mask-codec", str(labelled), "--out", str(tmp_path / "run"), "--device", "cpu", "--quiet"]
    assert main([*words, "--method.tokenizer.layout", "k8x8"]) == 0
    folder = toy.read(tmp_path / "run" / "model")
    assert folder.images.masks == {"source": "label", "groups": ["every label above 0"]}
    assert folder.stats["volumes"] == len(Store.open(labelled).split("train"))


def test_a_store_without_label_maps_is_refused(codec: Path, toy_raw: Path, tmp_path: Path) -> None:
    prepare(toy_raw, tmp_path / "store", preparation=Preparation(3.0, GRID), modalities=["T1w", "T2w"], seed=0)
    model = ScanTokenizer.from_pretrained(codec, masks=True)
    with pytest.raises(InputError, match=r"6 of 6 sessions have none \(sub-00\)"):
        ShardWriter(model, Store.open(tmp_path / "store"), ShardPlan())
