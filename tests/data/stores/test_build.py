import errno
import os
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from filelock import FileLock

from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores import entries, session_jobs
from neurotome.data.stores.build import prepare
from neurotome.data.stores.entries import is_intact
from neurotome.data.stores.session_jobs import SessionError
from neurotome.data.stores.store import Store
from neurotome.errors import InputError, UsageError
from tests.data.scans import affine_of, brain_array, write_bids, write_nifti

PREPARATION = Preparation(3.0, (20, 24, 16))


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_equal_inputs_give_equal_bytes(dataset, prepared, tmp_path):
    again = prepare(dataset, tmp_path / "store", preparation=PREPARATION)
    assert contents(tmp_path / "store") == contents(prepared.path)
    assert (again.num_built, again.num_kept) == (12, 0)
    third = prepare(dataset, tmp_path / "store", preparation=PREPARATION)
    assert (third.num_built, third.num_kept) == (0, 12)
    assert contents(tmp_path / "store") == contents(prepared.path)


def test_a_stopped_run_goes_on_and_ends_alike(dataset, prepared, tmp_path, monkeypatch):
    count = []

    def stop(done, total, name):
        count.append(name)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(dataset, tmp_path / "store", preparation=PREPARATION, progress=stop)
    assert not (tmp_path / "store" / "index.json").exists()
    with (tmp_path / "store" / "journal.jsonl").open("a") as journal:
        journal.write("[" * 100_000 + "\n1\n" + '["torn')
    (tmp_path / "store" / "entries" / ".neurotome-0.tmp").write_bytes(b"half")
    report = prepare(dataset, tmp_path / "store", preparation=PREPARATION)
    assert (report.num_built, report.num_kept) == (7, 5)
    assert contents(tmp_path / "store") == contents(prepared.path)


def test_bad_sessions_are_named_and_the_others_stored(tmp_path):
    root = write_bids(tmp_path / "data", [f"{n}" for n in range(6)])
    broken = root / "sub-1/anat/sub-1_T1w.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-20])
    write_nifti(root / "sub-2/anat/sub-2_T2w.nii.gz", np.full((20, 24, 18), 5.0, np.float32))
    write_nifti(root / "derivatives/truth/sub-4/anat/sub-4_dseg.nii.gz", brain_array())
    report = prepare(root, tmp_path / "store", preparation=PREPARATION)
    assert {f.subject: f.reason.split(": ")[0] for f in report.failures}.keys() == {"1", "2", "4"}
    assert [s.subject for s in report.store.sessions] == ["0", "3", "5"]
    with pytest.raises(
        InputError,
        match=r"3 of 6 sessions.*sub-1: .*sub-1_T1w.nii.gz.*sub-2: .*whole head.*sub-4: .*labels are not whole",
    ) as e:
        report.raise_failures()
    assert e.value.exit_code == 3
    assert Store.open(tmp_path / "store").fingerprint == report.store.fingerprint


def test_a_changed_source_is_another_entry(tmp_path):
    root = write_bids(tmp_path / "data", ["1", "2", "3"])
    before = prepare(root, tmp_path / "store", preparation=PREPARATION).store
    write_nifti(root / "sub-2/anat/sub-2_T1w.nii.gz", brain_array(seed=99))
    report = prepare(root, tmp_path / "store", preparation=PREPARATION)
    assert (report.num_built, report.num_kept) == (1, 2)
    changed = [a.subject for a, b in zip(report.store.sessions, before.sessions, strict=True) if a.digest != b.digest]
    assert changed == ["2"]


def test_another_preparation_or_a_foreign_folder_is_refused(dataset, prepared, tmp_path):
    shutil.copytree(prepared.path, tmp_path / "store")
    other = Preparation(3.0, (24, 24, 16))
    with pytest.raises(UsageError, match=r"another preparation.*--overwrite"):
        prepare(dataset, tmp_path / "store", preparation=other)
    assert contents(tmp_path / "store") == contents(prepared.path)
    store = prepare(dataset, tmp_path / "store", preparation=other, overwrite=True).store
    assert store.preparation == other
    assert len(list((tmp_path / "store" / "entries").iterdir())) == 12
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="not empty and holds no store"):
            prepare(dataset, tmp_path / "mine", preparation=other, overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_damaged_index_is_written_anew(dataset, prepared, tmp_path):
    shutil.copytree(prepared.path, tmp_path / "store")
    (tmp_path / "store" / "index.json").write_text("{")
    prepare(dataset, tmp_path / "store", preparation=PREPARATION)
    assert contents(tmp_path / "store") == contents(prepared.path)


def test_splits_of_the_user_are_respected(dataset, tmp_path):
    table = tmp_path / "splits.tsv"
    table.write_text(
        "participant_id\tsplit\n" + "".join(f"sub-{n:02d}\t{'test' if n else 'train'}\n" for n in range(12))
    )
    store = prepare(dataset, tmp_path / "store", preparation=PREPARATION, splits=table).store
    assert store.subjects("train") == ("00",)
    assert len(store.subjects("test")) == 11
    assert "00\ttrain\n" in (tmp_path / "store" / "splits.tsv").read_text()


def test_wanted_contrasts_must_occur(dataset, tmp_path):
    with pytest.raises(InputError, match="no session has FLAIR; there are T1w, T2w"):
        prepare(dataset, tmp_path / "store", preparation=PREPARATION, modalities=["flair"])
    assert not (tmp_path / "store").exists()


def test_several_visits_of_a_subject_share_a_split(tmp_path):
    for subject in range(5):
        for visit in range(3):
            name = f"sub-{subject}/ses-{visit}/anat/sub-{subject}_ses-{visit}_T1w.nii.gz"
            write_nifti(tmp_path / "data" / name, brain_array(seed=subject * 3 + visit))
    store = prepare(tmp_path / "data", tmp_path / "store", preparation=PREPARATION).store
    assert len(store.sessions) == 15
    splits = {}
    for entry in store.sessions:
        assert splits.setdefault(entry.subject, entry.split) == entry.split


def test_workers_make_the_same_store(dataset, prepared, tmp_path):
    prepare(dataset, tmp_path / "store", preparation=PREPARATION, workers=2)
    assert contents(tmp_path / "store") == contents(prepared.path)


def test_a_file_that_changes_while_it_is_read_is_refused(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(session_jobs, "file_sha256", lambda path: "0" * 64)
    with pytest.raises(InputError, match=r"12 of 12 sessions .*nothing was stored") as error:
        prepare(dataset, tmp_path / "store", preparation=PREPARATION)
    assert str(error.value).count("changed while it was read") == 12
    assert not (tmp_path / "store").exists()


def test_a_run_that_stores_nothing_leaves_what_was_there(dataset, prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared.path, tmp_path / "store")
    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(session_jobs, "make_entry", refuse)
        patch.setattr(session_jobs, "is_intact", lambda *_: False)
        for name in ("store", "empty"):
            with pytest.raises(InputError, match="12 of 12"):
                prepare(dataset, tmp_path / name, preparation=PREPARATION)
    assert contents(tmp_path / "store") == contents(prepared.path)
    assert [part.name for part in (tmp_path / "empty").iterdir()] == [".lock"]
    # a store of another preparation that was given up is gone, and does not stand in the way of a third
    with monkeypatch.context() as patch:
        patch.setattr(session_jobs, "make_entry", refuse)
        with pytest.raises(InputError, match="12 of 12"):
            prepare(dataset, tmp_path / "store", preparation=Preparation(3.0, (24, 24, 16)), overwrite=True)
    prepare(dataset, tmp_path / "store", preparation=Preparation(3.0, (20, 32, 16)))


def test_a_store_of_another_preparation_is_refused_before_brains_are_measured(dataset, prepared, monkeypatch):
    before = contents(prepared.path)
    with pytest.raises(UsageError, match=r"choose another folder, prepare with --shape 20 24 16, or give --overwrite"):
        prepare(dataset, prepared.path, preparation=PREPARATION, multiple=32)
    monkeypatch.setattr(session_jobs, "read_volume", refuse)
    with pytest.raises(UsageError, match=r"choose another folder, or give --overwrite"):
        prepare(dataset, prepared.path, preparation=replace(PREPARATION, crop="centre"), multiple=32)
    assert contents(prepared.path) == before


def refuse(*_, **__):
    raise InputError("refused")


def test_the_fitted_grid_does_not_depend_on_workers_and_leaves_out_what_is_unusable(tmp_path):
    root = write_bids(tmp_path / "data", ["1", "2", "3", "4"], modalities=("T1w",))
    write_nifti(root / "sub-2/anat/sub-2_T1w.nii.gz", np.ones((90, 90, 90), np.float32))  # a head, if anything
    centred = replace(PREPARATION, crop="centre")
    runs = (("alone", PREPARATION, 0), ("workers", PREPARATION, 2), ("centred", centred, 0))
    for name, preparation, workers in runs:
        report = prepare(root, tmp_path / name, preparation=preparation, multiple=8, workers=workers)
        assert report.store.preparation.shape == (16, 16, 16)
        assert [f.subject for f in report.failures] == ["2"]
        assert [entry.subject for entry in report.store.sessions] == ["1", "3", "4"]
    assert contents(tmp_path / "alone") == contents(tmp_path / "workers")


def test_an_unforeseen_error_names_subject_and_file(dataset, tmp_path, monkeypatch):
    def fail(path, **options):
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(entries, "read_volume", fail)
    says = r"^sub-00 \(.*sub-00_T1w\.nii\.gz, .*\): internal error, ZeroDivisionError: by zero"
    with pytest.raises(SessionError, match=says) as e:
        prepare(dataset, tmp_path / "store", preparation=PREPARATION)
    assert e.value.exit_code == 1
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)  # noqa: S301 - our own object, as it leaves a worker


def test_heads_are_stored_only_when_allowed_and_rebuilt_all_the_same(tmp_path):
    root = write_bids(tmp_path / "data", ["1", "2", "3"], modalities=("T1w",))
    write_nifti(root / "sub-2/anat/sub-2_T1w.nii.gz", 1 + np.random.default_rng(0).random((20, 24, 16), np.float32))
    refused = prepare(root, tmp_path / "store", preparation=PREPARATION)
    assert [f.subject for f in refused.failures] == ["2"]
    assert "--allow-head" in refused.failures[0].reason
    store = prepare(root, tmp_path / "store", preparation=PREPARATION, allow_head=True).store
    assert store.subjects("train") + store.subjects("val") + store.subjects("test")
    head = next(entry for entry in store.sessions if entry.subject == "2")
    (store.path / head.file).write_bytes(b"damaged")
    assert Store.open(store.path).load(head).mask.all()


def test_splits_of_the_dataset_are_respected_unless_others_are_given(tmp_path):
    names = {"a": "test", "b": "train", "c": "val"}
    rows = ["participant_id\tmodality\tpath\tsplit"]
    for number, (subject, split) in enumerate(names.items()):
        write_nifti(tmp_path / "data" / f"{subject}.nii.gz", brain_array(seed=number))
        rows.append(f"{subject}\tT1w\t{subject}.nii.gz\t{split}")
    table = tmp_path / "data" / "table.tsv"
    table.write_text("\n".join(rows) + "\n")
    store = prepare(table, tmp_path / "store", preparation=PREPARATION).store
    assert {s.subject: s.split for s in store.sessions} == names
    other = prepare(table, tmp_path / "other", preparation=PREPARATION, sizes=(1.0, 0.0, 0.0)).store
    assert {s.split for s in other.sessions} == {"train"}
    table.write_text("\n".join(rows).replace("\tval", "\tn/a") + "\n")
    with pytest.raises(InputError, match=r"assigns splits, but none to 1 subjects: c.*--splits"):
        prepare(table, tmp_path / "third", preparation=PREPARATION)


def test_a_killed_run_leaves_nothing_that_stops_the_next(dataset, prepared, tmp_path):
    """The states a killed process can leave, made by hand: an empty journal alone, a torn table, an old index."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "journal.jsonl").touch()
    prepare(dataset, store, preparation=PREPARATION)
    (store / "journal.jsonl").write_text("")
    (store / ".neurotome-1.tmp").write_bytes(b"half an index")
    (store / "splits.tsv").unlink()
    report = prepare(dataset, store, preparation=PREPARATION)
    assert report.num_kept == 12
    assert contents(store) == contents(prepared.path)


def test_the_quaternion_is_read_where_asked_and_is_part_of_the_declaration(tmp_path):
    root = write_bids(tmp_path / "data", ["0", "1", "2"])
    for modality in ("T1w", "T2w"):
        image = nibabel.load(write_nifti(root / f"sub-1/anat/sub-1_{modality}.nii", brain_array()))
        image.set_qform(affine_of(origin=(9.0, 0.0, 0.0)), code=1, update_affine=False)  # three voxels from the matrix
        nibabel.save(image, root / f"sub-1/anat/sub-1_{modality}.nii.gz")
        (root / f"sub-1/anat/sub-1_{modality}.nii").unlink()
    report = prepare(root, tmp_path / "store", preparation=PREPARATION)
    assert ["--use-qform" in f.reason for f in report.failures] == [True]
    asked = replace(PREPARATION, use_qform=True)
    report = prepare(root, tmp_path / "asked", preparation=asked)
    assert not report.failures
    record = report.store.load(report.store.sessions[1]).records["T1w"]
    assert record.geometry.affine[0, 3] == 9.0
    assert "use_qform" not in PREPARATION.to_json()
    assert Preparation.from_json(asked.to_json()) == asked
    assert asked.digest != PREPARATION.digest


def test_one_volume_of_every_series_is_read_where_asked_and_is_part_of_the_declaration(tmp_path):
    root = write_bids(tmp_path / "data", ["0", "1", "2"], modalities=("T1w",))
    one, other = brain_array(seed=1), brain_array(seed=2)
    write_nifti(root / "sub-1/anat/sub-1_T1w.nii.gz", np.stack([one, other], axis=-1))
    write_nifti(root / "sub-2/anat/sub-2_T1w.nii.gz", one[..., None])
    report = prepare(root, tmp_path / "none", preparation=PREPARATION)
    (failure,) = report.failures
    assert re.search(r"sub-1_T1w\.nii\.gz: a series of 2 volumes .*--volume K \(0 to 1\)", failure.reason)
    stores = {}
    for k in (0, 1):
        report = prepare(root, tmp_path / str(k), preparation=replace(PREPARATION, volume=k))
        assert not report.failures
        stores[k] = Store.open(tmp_path / str(k))
        assert stores[k].preparation.volume == k
        assert stores[k].sessions[1].notes == (f"T1w: volume {k} of 2",)
        assert stores[k].sessions[2].notes == ("T1w: a 4-D file with one volume, read as 3-D",)
        series, single = (stores[k].load(entry).image for entry in stores[k].sessions[1:])
        assert np.array_equal(series, single) == (k == 0)
    assert stores[0].fingerprint != stores[1].fingerprint
    assert {s.digest for s in stores[0].sessions}.isdisjoint(s.digest for s in stores[1].sessions)
    with pytest.raises(UsageError, match="another preparation"):
        prepare(root, tmp_path / "1", preparation=replace(PREPARATION, volume=0))
    report = prepare(root, tmp_path / "2", preparation=replace(PREPARATION, volume=2))
    assert re.search(r"a series of 2 volumes .* no volume 2.*--volume K from 0 to 1", report.failures[0].reason)
    # damage is repaired from the same volume, and the same command keeps what stands
    entry = stores[1].sessions[1]
    (tmp_path / "1" / entry.file).write_bytes(b"")
    assert not np.array_equal(Store.open(tmp_path / "1").load(entry).image, single)
    assert prepare(root, tmp_path / "1", preparation=replace(PREPARATION, volume=1)).num_kept == 3
    # a network sees no difference: it may be trained on the one and evaluated on the other
    assert stores[1].preparation.digest != PREPARATION.digest
    assert stores[1].preparation.image_digest == PREPARATION.image_digest
    assert replace(PREPARATION, crop="centre").image_digest != PREPARATION.image_digest
    with pytest.raises(UsageError, match="counted from 0"):
        replace(PREPARATION, volume=-1)


@pytest.mark.skipif("NEUROTOME_TEST_DATA" not in os.environ, reason="NEUROTOME_TEST_DATA is not set")
def test_a_volume_of_a_real_series(tmp_path):
    source = Path(os.environ["NEUROTOME_TEST_DATA"]) / "hostile/nibabel_example4d.nii.gz"
    if not source.is_file():
        pytest.skip("the folder has no hostile/nibabel_example4d.nii.gz")
    (tmp_path / "data").mkdir()
    shutil.copy(source, tmp_path / "data/sub-1_T1w.nii.gz")
    series = nibabel.load(source).get_fdata()
    wide = Preparation((2.0, 2.0, 2.2), (128, 96, 24), percentiles=(0, 100), crop="centre")
    for k in (0, 1):
        asked = replace(wide, volume=k)
        report = prepare(tmp_path / "data", tmp_path / str(k), preparation=asked, allow_head=True)
        report.raise_failures()
        loaded = report.store.load(report.store.sessions[0])
        back = loaded.records["T1w"].restore(loaded.image[0, 0], loaded.mask).array
        inside = back > 0
        assert np.abs(back - series[..., k])[inside].max() < 1.0  # stored oblique and mirrored, copied voxel by voxel
        assert np.abs(back - series[..., 1 - k])[inside].max() > 10.0


def test_a_store_that_another_process_prepares_is_not_touched(dataset, prepared, tmp_path):
    shutil.copytree(prepared.path, tmp_path / "store")
    before = contents(tmp_path / "store")
    with FileLock(tmp_path / "store" / ".lock"), pytest.raises(UsageError, match="another process prepares into"):
        prepare(dataset, tmp_path / "store", preparation=Preparation(3.0, (24, 24, 16)), overwrite=True)
    assert {name: data for name, data in contents(tmp_path / "store").items() if name in before} == before


def test_an_entry_that_may_not_be_read_is_not_made_again(dataset, prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared.path, tmp_path / "store")
    before, real = contents(tmp_path / "store"), os.open
    entry = sorted((tmp_path / "store" / "entries").iterdir())[0].name

    def refuse(path, *args, **kwargs):
        if str(path).endswith((entry, "index.json")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        is_intact(tmp_path / "store" / "entries" / entry, "0" * 64)
    with pytest.raises(InputError, match="Permission denied"):
        prepare(dataset, tmp_path / "store", preparation=prepared.preparation)
    monkeypatch.undo()
    after = contents(tmp_path / "store")
    assert {name: data for name, data in after.items() if name in before} == before
