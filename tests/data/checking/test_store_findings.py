"""The check of a prepared store: damage, voxels, splits, twins, sources, strays."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from neurotome.data.checking.check import check
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.build import prepare
from neurotome.data.stores.store import Store
from neurotome.files.verified import file_sha256
from tests.data.scans import brain_array, write_bids, write_nifti


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    raw = write_bids(folder / "raw", ["01", "02", "03", "04"])
    prepare(raw, folder / "store", preparation=Preparation(3.0, (20, 24, 16))).raise_failures()
    return folder


@pytest.fixture
def store(made, tmp_path):
    shutil.copytree(made / "store", tmp_path / "store")
    return Store.open(tmp_path / "store")


def codes(store):
    return {f.code for f in check(store.path).findings}


def rewritten(store, **changes):
    """Write the index anew, the first session changed."""
    sessions = [dataclasses.replace(store.sessions[0], **changes), *store.sessions[1:]]
    return Store.create(store.path, store.preparation, store.modalities, sessions, store.root)


def test_a_whole_store_is_clean(store):
    report = check(store.path)
    assert (report.kind, report.findings) == ("store", ())
    assert report.fingerprint["subjects"] == 4


def test_damage_is_named_and_not_repaired(store):
    first, second = (store.path / s.file for s in store.sessions[:2])
    block = bytearray(first.read_bytes())
    block[-1] ^= 1
    first.write_bytes(block)
    second.unlink()
    report = check(store.path)
    assert [(f.code, f.subject) for f in report.findings] == [("store-entry", "01"), ("store-entry", "02")]
    assert first.read_bytes() == block
    assert not second.exists()


def test_a_damaged_index(store):
    index = json.loads((store.path / "index.json").read_text())
    index["sessions"][0]["split"] = "test" if index["sessions"][0]["split"] == "train" else "train"
    (store.path / "index.json").write_text(json.dumps(index))
    assert codes(store) == {"store-index"}


def test_a_subject_in_two_splits(store):
    one, other = store.sessions[0], next(s for s in store.sessions if s.split != store.sessions[0].split)
    moved = rewritten(store, subject=other.subject, session="2")
    report = check(moved.path)
    assert [f.subject for f in report.findings if f.code == "two-splits"] == [other.subject]
    near = rewritten(store, subject=other.subject.lstrip("0"), session="2")
    assert "two-splits" in codes(near)
    assert one.split != other.split


def test_equal_sources_and_equal_voxels(made, tmp_path):
    raw = shutil.copytree(made / "raw", tmp_path / "raw")
    shutil.copy(raw / "sub-01/anat/sub-01_T1w.nii.gz", raw / "sub-02/anat/sub-02_T1w.nii.gz")
    # other bytes, the same voxels
    write_nifti(raw / "sub-03/anat/sub-03_T1w.nii.gz", brain_array().astype(np.float64))
    (tmp_path / "s.tsv").write_text("participant_id\tsplit\n01\ttrain\n02\ttest\n03\ttrain\n04\tval\n")
    mask = (brain_array() > 0).astype(np.uint8)
    for n in ("01", "02", "03", "04"):
        write_nifti(raw / f"derivatives/m/sub-{n}/anat/sub-{n}_desc-brain_mask.nii.gz", mask)
    prepare(
        raw, tmp_path / "store", preparation=Preparation(3.0, (20, 24, 16)), splits=tmp_path / "s.tsv"
    ).raise_failures()
    found = {(f.code, f.subject) for f in check(tmp_path / "store").findings}
    assert {("leak", "02"), ("duplicate-subjects", "03")} <= found


def test_voxels_that_prepare_never_writes(store):
    entry = store.sessions[0]
    file = store.path / entry.file
    block = bytearray(file.read_bytes())
    at = block.index(np.float32(-1).tobytes() * 50, 8 + int.from_bytes(block[:8], "little"))
    block[at : at + 4] = np.float32(np.nan).tobytes()
    file.write_bytes(block)
    (one,) = check(rewritten(store, sha256=file_sha256(file)).path).findings
    assert (one.code, one.subject, one.reason) == ("store-voxels", "01", "view 0 holds NaN or infinite values")


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ({"intensity": "zscore"}, {"mean-1sd", "mean+1sd"}),
        ({"intensity": "zscore", "clip": 4.0, "background": 0.0}, {"mean-4sd", "mean+4sd"}),
        ({"intensity": "minmax"}, {"min", "max"}),
    ],
)
def test_every_kind_of_intensity_is_known(made, tmp_path, how, names):
    report = prepare(made / "raw", tmp_path / "store", preparation=Preparation(3.0, (20, 24, 16), **how))
    found = check(tmp_path / "store")
    assert found.findings == ()
    assert set(found.fingerprint["contrasts"]["T1w"]["intensity"]) == names
    # a value beyond the declared window is no value of this store
    entry = report.store.sessions[0]
    array = report.store.load(entry).image
    file = tmp_path / "store" / entry.file
    block = bytearray(file.read_bytes())
    at = block.index(array.tobytes()[:64]) + 4 * int(np.flatnonzero(array.ravel() == array.max())[0])
    block[at : at + 4] = np.float32(1e9).tobytes()
    file.write_bytes(block)
    odd = [f.code for f in check(rewritten(report.store, sha256=file_sha256(file)).path).findings]
    assert odd == ([] if how == {"intensity": "zscore"} else ["store-voxels"])


def test_strays_tables_and_sources(made, store):
    (store.path / "entries/.neurotome-x.tmp").write_text("x")
    (store.path / "entries/old.safetensors").write_text("x")
    (store.path / "journal.jsonl").write_text("")
    (store.path / "splits.tsv").write_text("participant_id\tsplit\n01\ttrain\n")
    scan = made / "raw/sub-01/anat/sub-01_T1w.nii.gz"
    before = scan.read_bytes()
    try:
        write_nifti(scan, brain_array(seed=50))
        report = check(store.path)
    finally:
        scan.write_bytes(before)
    found = [f.code for f in report.findings]
    assert found.count("store-stray") == 2
    assert {"store-unfinished", "store-tables", "store-source"} <= set(found)
    assert report.counts["error"] == 0
