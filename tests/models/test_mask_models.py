"""Tokenizers of masks: what export and shards encode, what the folder says, and that no command takes a scan."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from neurotome.apply.shards import ShardPlan, ShardWriter
from neurotome.cli.main import main
from neurotome.data.imaging.nifti import read_volume
from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.batches import batch_of
from neurotome.data.stores.build import prepare
from neurotome.data.stores.latents import Latents
from neurotome.data.stores.store import Store
from neurotome.errors import InputError, UsageError
from neurotome.files.tensor_file import map_tensors
from neurotome.losses.segmentation import SegmentationLoss
from neurotome.models.folder import read_model_folder
from neurotome.scans.export import export_model, training_statistics
from neurotome.scans.tokenizer import ScanTokenizer
from neurotome.tokenizers import MaskCodec, SpaceToDepth
from neurotome.tokenizers.base import Encoded
from tests import toy

LABELS = SegmentationLoss(source="label")
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
    export_model(MaskCodec(2, layout="k8x8"), Store.open(labelled), folder, facts={}, segmentation=LABELS)
    return folder


@pytest.mark.parametrize("channels", [1, 2])
def test_statistics_are_those_of_the_masks_that_training_sees(labelled: Path, channels: int) -> None:
    store, network = Store.open(labelled), SpaceToDepth(in_channels=channels)
    found = training_statistics(network.eval(), store, segmentation=LABELS)
    cells = []
    for entry in store.split("train"):
        image, ids = LABELS.masks(batch_of(store, [entry]), channels)
        cells.append(network.encode(image, ids).latent[0].flatten(1).double())
    expected = torch.cat(cells, dim=1)
    stats = found.to_json()
    assert np.allclose(stats["mean"], expected.mean(dim=1))
    assert np.allclose(stats["std"], expected.std(dim=1, correction=0))
    assert stats["volumes"] == len(store.split("train"))  # one map per session, however many contrasts
    assert stats["intensity"] == {}


def test_masks_that_are_images_are_thresholded_as_in_training(labelled: Path) -> None:
    store, network = Store.open(labelled), SpaceToDepth()
    stats = training_statistics(network.eval(), store, segmentation=SegmentationLoss(source="image")).to_json()
    images = np.concatenate([store.load(e).image.ravel() for e in store.split("train")])
    assert np.mean(stats["mean"]) == pytest.approx(np.mean(np.where(images > 0, 1.0, -1.0)), abs=1e-6)


def test_the_folder_says_what_it_was_trained_on(labelled: Path, codec: Path, tmp_path: Path) -> None:
    config = json.loads((codec / "config.json").read_text())
    assert config["images"] == "masks"
    assert config["masks"] == {"source": "label", "groups": ["every label above 0"]}
    card = (codec / "README.md").read_text()
    assert "every label above 0 (source: label)" in card
    assert "from_pretrained" not in card
    store = Store.open(labelled)
    export_model(SpaceToDepth(in_channels=2), store, tmp_path / "two", facts={}, segmentation=LABELS)
    assert read_model_folder(tmp_path / "two").masks == {"source": "label", "groups": ["label 1", "label 2"]}
    ScanTokenizer.from_pretrained(codec, masks=True).save_pretrained(tmp_path / "copy")
    assert read_model_folder(tmp_path / "copy").masks == config["masks"]
    export_model(SpaceToDepth(), store, tmp_path / "scans", facts={})
    assert read_model_folder(tmp_path / "scans").masks is None
    assert "images" not in json.loads((tmp_path / "scans" / "config.json").read_text())


def test_what_a_latent_depends_on_includes_what_the_masks_are(labelled: Path, codec: Path, tmp_path: Path) -> None:
    """They have no weights that would differ: shards of one would pass for those of the other."""
    image = SegmentationLoss(source="image")
    export_model(MaskCodec(2, layout="k8x8"), Store.open(labelled), tmp_path / "m", facts={}, segmentation=image)
    assert read_model_folder(codec).digest != read_model_folder(tmp_path / "m").digest


def test_a_folder_of_masks_of_an_unknown_source_is_refused(codec: Path, tmp_path: Path) -> None:
    from shutil import copytree

    copytree(codec, tmp_path / "m")
    config = json.loads((codec / "config.json").read_text())
    for change in ({"masks": {"source": "elsewhere"}}, {"masks": None}, {"images": "meshes"}):
        (tmp_path / "m" / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError, match="the key masks is missing"):
            read_model_folder(tmp_path / "m")


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
    network, sessions = read_model_folder(codec).network, {entry.digest: entry for entry in store.sessions}
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
    export_model(SpaceToDepth(in_channels=2), store, tmp_path / "model", facts={}, segmentation=LABELS)
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
    folder = read_model_folder(tmp_path / "run" / "model")
    assert folder.masks == {"source": "label", "groups": ["every label above 0"]}
    assert folder.stats["volumes"] == len(Store.open(labelled).split("train"))


def test_a_store_without_label_maps_is_refused(codec: Path, toy_raw: Path, tmp_path: Path) -> None:
    prepare(toy_raw, tmp_path / "store", preparation=Preparation(3.0, GRID), modalities=["T1w", "T2w"], seed=0)
    model = ScanTokenizer.from_pretrained(codec, masks=True)
    with pytest.raises(InputError, match=r"6 of 6 sessions have none \(sub-00\)"):
        ShardWriter(model, Store.open(tmp_path / "store"), ShardPlan())
