"""A person in two splits is refused under whatever id: by training, evaluation and bench."""

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import neurotome
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.build import prepare
from neurotome.data.stores.leaks import check_splits
from neurotome.data.stores.store import Store
from neurotome.data.stores.volumes import Masks, Pairs, Volumes
from neurotome.errors import InputError
from neurotome.experiments.bench_plan import BenchSettings
from neurotome.experiments.bench_run import load_plan, run_bench
from tests import toy

pytestmark = pytest.mark.usefixtures("toys")
PREPARATION = Preparation(3.0, (20, 24, 20))


def copied(raw: Path, other: str, *, stored_anew: bool) -> None:
    """Give the first subject a second id; stored anew, its files have other bytes, types, axes and headers."""
    anat = raw / f"sub-{other}" / "anat"
    anat.mkdir(parents=True)
    for name in ("T1w", "T2w"):
        source, target = raw / f"sub-00/anat/sub-00_{name}.nii.gz", anat / f"sub-{other}_{name}.nii.gz"
        if not stored_anew:
            shutil.copy(source, target)
            continue
        image = nib.load(source)
        flip = np.diag([-1.0, 1, 1, 1])
        flip[0, 3] = image.shape[0] - 1
        array = np.asarray(image.dataobj)[::-1].astype(np.float64)
        nib.Nifti1Image(array, image.affine @ flip).to_filename(target)


@pytest.fixture(scope="module", params=[False, True], ids=["copied", "stored anew"])
def leaking(request: pytest.FixtureRequest, toy_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one person in training and test, under two ids."""
    folder = tmp_path_factory.mktemp("leak")
    shutil.copytree(toy_raw, folder / "raw")
    copied(folder / "raw", "other", stored_anew=request.param)
    rows = [f"sub-{n:02d}\t{s}" for n, s in enumerate(["train", "train", "train", "val", "test", "test"])]
    table = "\n".join(["participant_id\tsplit", *rows, "sub-other\ttest"])
    (folder / "splits.tsv").write_text(table + "\n")
    report = prepare(folder / "raw", folder / "store", preparation=PREPARATION, splits=folder / "splits.tsv")
    report.raise_failures()
    return folder / "store"


def test_a_training_refuses_it(leaking: Path) -> None:
    for data in (Volumes(), Pairs(), Masks(source="image")):
        with pytest.raises(InputError, match=r"sub-00 \(train\) and sub-other \(test\) hold the same scan") as error:
            data.open(leaking)
        assert error.value.file == leaking
        assert error.value.remedy


def test_train_and_bench_refuse_it_before_anything_is_written(leaking: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="splits leak"):
        neurotome.train("neuroquant-demo", leaking, tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match="splits leak"):
        run_bench(load_plan("tokenizers"), BenchSettings(store=str(leaking)), tmp_path / "bench")
    assert toy.names(tmp_path) == []


def test_an_evaluation_refuses_it(leaking: Path, toy_model: Path) -> None:
    with pytest.raises(InputError, match="splits leak"):
        neurotome.evaluate(toy_model, leaking)


def test_a_renamed_training_subject_is_recognised_in_another_store(
    toy_raw: Path, toy_store: Path, toy_model: Path, tmp_path: Path
) -> None:
    """The file was stored anew, the id is another one, the preparation is the same."""
    seen = Store.open(toy_store).subjects("train")[0]
    anat = tmp_path / "raw" / "sub-new" / "anat"
    anat.mkdir(parents=True)
    for name in ("T1w", "T2w"):
        image = nib.load(toy_raw / f"sub-{seen}/anat/sub-{seen}_{name}.nii.gz")
        nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float64), image.affine).to_filename(
            anat / f"sub-new_{name}.nii.gz"
        )
    (tmp_path / "splits.tsv").write_text("participant_id\tsplit\nsub-new\ttest\n")
    prepare(tmp_path / "raw", tmp_path / "store", preparation=PREPARATION, splits=tmp_path / "splits.tsv")
    entry = Store.open(tmp_path / "store").sessions[0]
    model = neurotome.Tokenizer.from_pretrained(toy_model)
    assert model.trained_on("new", entry.contents)
    assert not model.trained_on("new")
    with pytest.raises(InputError, match="1 of 1 subjects of the test split were in the model's training: new"):
        neurotome.evaluate(toy_model, tmp_path / "store")


def test_kept_entries_and_old_stores(toy_raw: Path, tmp_path: Path) -> None:
    """Entries that are kept list their contents; those of before have the hashes of their files alone."""
    prepare(toy_raw, tmp_path / "store", preparation=PREPARATION)
    again = prepare(toy_raw, tmp_path / "store", preparation=PREPARATION)
    assert again.num_built == 0
    entries = Store.open(tmp_path / "store").sessions
    assert all(len(entry.contents) == 4 and len(entry.content_sha256) == 2 for entry in entries)
    old = [replace(entry, content_sha256={}) for entry in entries]
    assert old[0].contents == set(old[0].source_sha256.values())
    check_splits(old, tmp_path)
    other = "val" if old[0].split != "val" else "test"
    renamed = replace(old[0], subject="x", split=other)
    with pytest.raises(InputError, match="hold the same scan"):
        check_splits([*old, renamed], tmp_path)
    revisited = replace(old[0], source_sha256={}, split=other)
    with pytest.raises(InputError, match="are one subject, and 1 more pairs"):
        check_splits([*old, revisited, renamed], tmp_path)


def test_shared_masks_and_labels_are_no_leak(toy_raw: Path, tmp_path: Path) -> None:
    prepare(toy_raw, tmp_path / "store", preparation=PREPARATION)
    entries = [
        replace(entry, source_sha256={**entry.source_sha256, "mask": "m", "labels": "l"})
        for entry in Store.open(tmp_path / "store").sessions
    ]
    check_splits(entries, tmp_path)
