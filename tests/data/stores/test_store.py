import json
import pickle
import shutil
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.build import prepare
from neurotome.data.stores.entries import entry_digest, safetensors_parts
from neurotome.data.stores.store import Store
from neurotome.errors import InputError, UsageError
from tests.data.scans import brain_array, write_bids, write_nifti

PREPARATION = Preparation(3.0, (20, 24, 16))


@pytest.fixture
def store(dataset, prepared, tmp_path):
    """A copy that may be damaged, with its sources in place."""
    shutil.copytree(prepared.path, tmp_path / "store")
    return Store.open(tmp_path / "store")


def test_what_is_stored_is_what_was_prepared(store, dataset):
    from neurotome.data.imaging.reader import read_volume

    entry = store.sessions[3]
    loaded = store.load(entry)
    files = {m: dataset / entry.sources[m] for m in ("T1w", "T2w")}
    expected = PREPARATION.apply({m: read_volume(p) for m, p in files.items()})
    np.testing.assert_array_equal(loaded.image[:, 0], expected.image)
    np.testing.assert_array_equal(loaded.mask, expected.mask)
    assert loaded.present.all()
    assert loaded.labels is None
    assert {m: r.to_json() for m, r in loaded.records.items()} == {m: r.to_json() for m, r in expected.records.items()}
    assert loaded.sources == entry.sources
    assert (loaded.image.dtype, loaded.mask.dtype) == (np.float32, bool)


def test_entries_are_plain_safetensors(store):
    entry = store.sessions[0]
    arrays = load_file(store.path / entry.file)
    np.testing.assert_array_equal(arrays["image"], store.load(entry).image)
    assert set(arrays) == {"image", "present", "mask"}


def test_store_knows_its_sessions(store):
    assert store.modalities == ("T1w", "T2w")
    assert store.sites == ("a", "b")
    assert [len(store.split(s)) for s in ("train", "val", "test")] == [8, 2, 2]
    assert set(store.subjects("train")).isdisjoint(store.subjects("test"))
    assert store.site_index(store.sessions[1]) == 1
    assert Store.open(store.path).fingerprint == store.fingerprint
    with pytest.raises(ValueError, match="no split 'dev'"):
        store.split("dev")


def test_memory_maps_protect_the_file_and_are_cheap(store):
    entry = store.sessions[0]
    before = (store.path / entry.file).read_bytes()
    image = store.load(entry).image
    image[0] = 7.0
    assert (store.path / entry.file).read_bytes() == before
    start = time.process_time()
    for _ in range(100):
        store.load(entry)
    assert (time.process_time() - start) / 100 < 3e-3
    loader = pickle.loads(pickle.dumps(store))  # noqa: S301 - our own object, as a loader process gets it
    assert len(loader._open) == 0
    assert loader._verified == {entry.digest}


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_corrupt_entry_is_rebuilt_alone(store):
    entries = store.sessions
    originals = {e.digest: (store.path / e.file).read_bytes() for e in entries}
    times = {e.digest: (store.path / e.file).stat().st_mtime_ns for e in entries[2:]}
    damage(store.path / entries[0].file)
    (store.path / entries[1].file).unlink()
    for entry in entries:
        store.load(entry)
    assert {e.digest: (store.path / e.file).read_bytes() for e in entries} == originals
    assert {e.digest: (store.path / e.file).stat().st_mtime_ns for e in entries[2:]} == times


def test_a_corrupt_entry_without_its_source_is_refused(store, dataset, tmp_path):
    moved = Store(store.path, store.preparation, store.modalities, store.sessions, tmp_path / "elsewhere")
    damage(store.path / store.sessions[0].file)
    with pytest.raises(InputError, match=r"is corrupt, and its source .* is missing or has changed"):
        moved.load(store.sessions[0])
    with pytest.raises(InputError, match="does not know its sources"):
        Store(store.path, store.preparation, store.modalities, store.sessions).load(store.sessions[0])


def test_each_entry_is_verified_once(store, monkeypatch):
    from neurotome.data.stores import store as module

    seen = []
    check = module.is_intact
    monkeypatch.setattr(module, "is_intact", lambda file, sha: seen.append(file) or check(file, sha))
    for _ in range(3):
        store.load(store.sessions[0])
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda i: i.update(format_version=2), "store format 2"),
        (lambda i: i["sessions"][0].update(split="test"), "fingerprint"),
        (lambda i: i["sessions"][0].update(split="dev"), "damaged"),
        (lambda i: i["sessions"][0].update(file="../../etc/passwd"), "damaged"),
        (lambda i: i["sessions"][0].update(colour=1), "damaged"),
        (lambda i: i.pop("sessions"), "damaged"),
        (lambda i: i.update(preparation=[1]), "damaged"),
        (lambda i: i["preparation"].update(shape=["x", 24, 16]), "damaged"),
        (lambda i: i["preparation"].update(shape=[float("inf"), 24, 16]), "not valid JSON"),
    ],
)
def test_a_damaged_index_is_refused(store, change, says):
    file = store.path / "index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))
    with pytest.raises(InputError, match=says):
        Store.open(store.path)


def test_no_store(tmp_path):
    with pytest.raises(UsageError, match="no store is there"):
        Store.open(tmp_path)


def test_an_entry_of_another_shape_is_refused(store):
    from neurotome.data.stores.entries import map_entry

    entry = store.sessions[0]
    with pytest.raises(InputError, match="another type or shape"):
        map_entry(store.path / entry.file, entry, store.modalities, (20, 24, 17))
    save_file({"image": np.zeros((2, 1, 20, 24, 16), np.float32)}, store.path / "x.safetensors")
    with pytest.raises(InputError, match="not an entry"):
        map_entry(store.path / "x.safetensors", entry, store.modalities, (20, 24, 16))
    arrays = load_file(store.path / entry.file)
    for records in ('{"records": []}', '{"records": ' + "[" * 100_000 + "]" * 100_000 + "}"):
        save_file(arrays, store.path / "x.safetensors", {"neurotome": records})
        with pytest.raises(InputError, match="not an entry"):
            map_entry(store.path / "x.safetensors", entry, store.modalities, (20, 24, 16))
    (store.path / "x.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match=r"header claims.* Remedy: run the same `neurotome prepare` again"):
        map_entry(store.path / "x.safetensors", entry, store.modalities, (20, 24, 16))


@pytest.mark.parametrize("labels", [None, np.uint8, np.int32])
def test_the_file_is_what_the_library_would_write(labels):
    rng = np.random.default_rng(0)
    arrays = {"image": rng.standard_normal((2, 1, 3, 5, 7)).astype(np.float32)}
    if labels is not None:
        arrays["labels"] = rng.integers(0, 200, (3, 5, 7)).astype(labels)
    arrays |= {"mask": rng.integers(0, 2, (3, 5, 7)).astype(np.uint8), "present": np.array([1, 0], np.uint8)}
    for text in ("", 'a "quoted" \\ backslash', json.dumps({"a": "\u00e9", "b": [1.5, None]})):
        ours = b"".join(bytes(part) for part in safetensors_parts(arrays, {"neurotome": text}))
        assert ours == save(arrays, {"neurotome": text})


def test_digest_depends_on_sources_preparation_and_order():
    sources = {"T1w": "a", "T2w": "b"}
    base = entry_digest(sources, PREPARATION, ("T1w", "T2w"))
    assert base == entry_digest(dict(reversed(sources.items())), PREPARATION, ("T1w", "T2w"))
    others = [
        entry_digest({"T1w": "b", "T2w": "a"}, PREPARATION, ("T1w", "T2w")),
        entry_digest(sources, Preparation(3.0, (20, 24, 17)), ("T1w", "T2w")),
        entry_digest(sources, PREPARATION, ("T2w", "T1w")),
    ]
    assert len({base, *others}) == 4


def test_missing_views_labels_and_masks(tmp_path):
    root = write_bids(tmp_path / "data", ["01", "02", "03"])
    (root / "sub-02/anat/sub-02_T2w.nii.gz").unlink()
    brain = brain_array()
    labels = (brain > 0).astype(np.uint8) * 2
    write_nifti(root / "derivatives/truth/sub-01/anat/sub-01_dseg.nii.gz", labels)
    write_nifti(root / "derivatives/x/sub-03/anat/sub-03_desc-brain_mask.nii.gz", labels)
    store = prepare(root, tmp_path / "store", preparation=PREPARATION, modalities=["T2w", "T1w"]).store
    one, two, _ = (store.load(e) for e in store.sessions)
    assert store.modalities == ("T2w", "T1w")
    assert two.present.tolist() == [False, True]
    assert (two.image[0] == 0).all()
    assert list(two.records) == ["T1w"]
    assert set(np.unique(one.labels)) == {0, 2}
    assert one.labels.dtype == np.uint8
    np.testing.assert_array_equal(one.labels > 0, one.mask)
    assert "mask" in store.sessions[2].sources
