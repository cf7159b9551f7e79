"""Reading latents: shards and single files through one face, verified, mapped, confined."""

import copy
import hashlib
import json
import math
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from neurotome.data.imaging.geometry import Geometry
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.record import Record
from neurotome.data.stores import latents as module
from neurotome.data.stores.latent_batches import latent_batch
from neurotome.data.stores.latents import (
    INDEX_NAME,
    KIND,
    LatentEntry,
    Latents,
    entry_from_json,
    entry_to_json,
    shard_name,
)
from neurotome.errors import InputError, UsageError
from neurotome.files.bit_planes import pack_bits
from neurotome.files.tensors import inflated, map_tensors

SHAPE = (4, 6, 5)
PREPARATION = Preparation(3.0, SHAPE)
RECORD = Record(Geometry(SHAPE, np.diag([3.0, 3.0, 3.0, 1.0])), np.eye(4), SHAPE, 0.0, 100.0, 0.0)
SUBJECTS = ("a", "b", "c", "d", "e")


def latent_of(number: int, modality: str) -> np.ndarray:
    return np.random.default_rng([number, len(modality), ord(modality[1])]).random((3, 2, 3, 5), dtype=np.float32)


def brain() -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[1:3, 1:5, 1:4] = True
    return mask


def entries_of(folder: Path, draws: int = 2) -> list[LatentEntry]:
    """Four training sessions of some draws, one of them without T2w, and one for validation."""
    found = []
    for subject in SUBJECTS:
        for draw in range(draws if subject != "e" else 1):
            modalities = ("T1w",) if subject == "b" else ("T1w", "T2w")
            number = len(found)
            records = dict.fromkeys(modalities, RECORD)
            split, site = ("val" if subject == "e" else "train"), ("s1" if subject < "c" else None)
            file = folder / shard_name(number // 4)
            found.append(LatentEntry(number, file, subject, "", site, split, draw, records, {"flip": False}, "ab"))
    return found


def described(entries) -> list[dict]:
    return json.loads(json.dumps([entry_to_json(entry) for entry in entries]))


def write_shards(folder: Path, tokenizer: str = "f" * 64) -> dict:
    """Shards as the writer makes them, from their description alone."""
    folder.mkdir()
    entries, lines = entries_of(folder), []
    for place in range(-(-len(entries) // 4)):
        group = entries[4 * place : 4 * place + 4]
        tensors = {}
        for entry in group:
            packed = zlib.compress(np.packbits(brain()).tobytes())
            tensors[f"{entry.number}.mask"] = np.frombuffer(packed, np.uint8)
            for name in entry.modalities:
                tensors[f"{entry.number}.{name}.latent"] = latent_of(entry.number, name)
                tensors[f"{entry.number}.{name}.codes.anatomy"] = np.full((2, 3, 5), entry.number, np.int32)
                tensors[f"{entry.number}.{name}.style"] = np.full(4, entry.number, np.float32)
        head = {"tokenizer": tokenizer, "entries": [entry_to_json(entry) for entry in group]}
        data = safetensors.numpy.save(tensors, {"neurotome": json.dumps(head)})
        (folder / shard_name(place)).write_bytes(data)
        header = data[8 : 8 + int.from_bytes(data[:8], "little")]
        hashes = {"sha256": hashlib.sha256(data).hexdigest(), "header_sha256": hashlib.sha256(header).hexdigest()}
        lines.append({"file": shard_name(place), **hashes})
    index = {
        "format_version": 1, "kind": KIND, "tokenizer": tokenizer, "modalities": ["T1w", "T2w"], "shape": list(SHAPE),
        "preparation": PREPARATION.to_json(), "num_entries": len(entries), "shards": lines,
    }  # fmt: skip
    (folder / INDEX_NAME).write_text(json.dumps(index))
    return index


def write_single(file: Path, modality: str = "T1w", **changes) -> None:
    tensors = {
        "latent": latent_of(0, modality)[None],
        "codes.anatomy": np.ones((1, 2, 3, 5), np.int32),
        "style": np.ones((1, 4), np.float32),
        "mask": np.packbits(brain()),
    }
    head = {
        "format_version": 1, "tokenizer": "f" * 64, "modality": modality, "shape": list(SHAPE),
        "preparation": PREPARATION.to_json(), "record": RECORD.to_json(), **changes,
    }  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(safetensors.numpy.save(tensors, {"neurotome": json.dumps(head)}))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards")
    return tmp_path / "shards"


def test_entries_and_arrays_come_back(shards):
    latents = Latents.open(shards, "f" * 64, ("T1w", "T2w"))
    assert described(latents.entries) == described(entries_of(shards))
    assert [e.file for e in latents.entries] == [e.file for e in entries_of(shards)]
    assert latents.origin.shape == SHAPE
    assert latents.origin.preparation.digest == PREPARATION.digest
    assert latents.subjects("train") == ("a", "b", "c", "d")
    assert [latents.site_index(e) for e in latents.entries[::2]] == [0, 0, -1, -1, -1]
    for entry in latents.entries:
        assert np.array_equal(latents.mask(entry), brain())
        for name in entry.modalities:
            view = latents.load(entry, name)
            assert np.array_equal(view.latent, latent_of(entry.number, name))
            assert view.arrays.keys() == {"latent", "codes.anatomy", "style"}
            assert view.arrays["codes.anatomy"].max() == entry.number == view.arrays["style"][0]


def test_an_entry_survives_its_json(shards):
    entries = entries_of(shards)
    again = [entry_from_json(entry.file, line) for entry, line in zip(entries, described(entries), strict=True)]
    assert described(again) == described(entries)
    assert again[0].modalities == ("T1w", "T2w")


def test_arrays_are_mapped_and_each_shard_is_verified_once(shards, monkeypatch):
    seen = []
    read = module.file_sha256
    monkeypatch.setattr(module, "file_sha256", lambda file: seen.append(file) or read(file))
    latents = Latents.open(shards)
    for _ in range(2):
        for entry in latents.entries:
            base = latents.load(entry, "T1w").latent
            while base.base is not None and not isinstance(base, np.memmap):
                base = base.base
            assert type(base).__name__ in ("memmap", "mmap")
    assert sorted(seen) == [shards / shard_name(i) for i in range(3)]


def test_writing_to_a_view_leaves_the_file_alone(shards):
    before = (shards / shard_name(0)).read_bytes()
    latents = Latents.open(shards)
    latents.load(latents.entries[0], "T1w").latent[:] = 0
    assert (shards / shard_name(0)).read_bytes() == before


def test_a_changed_byte_is_noticed_before_use(shards):
    file = shards / shard_name(1)
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    latents = Latents.open(shards)
    latents.load(latents.entries[0], "T1w")
    with pytest.raises(InputError, match=r"shard-00001.* not what the index promises"):
        latents.load(latents.entries[4], "T1w")


def test_a_changed_header_is_noticed_at_once(shards):
    file = shards / shard_name(0)
    data = file.read_bytes()
    assert data.count(b'\\"s1\\"')
    file.write_bytes(data.replace(b'\\"s1\\"', b'\\"s9\\"'))  # JSON as before, another site
    with pytest.raises(InputError, match="header is not what the index promises"):
        Latents.open(shards)


def promised_header(shards: Path, change) -> None:
    """Replace the first shard's description of its entries, and let the index promise the result."""
    file = shards / shard_name(0)
    data = file.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:size])
    header["__metadata__"]["neurotome"] = change(header["__metadata__"]["neurotome"])
    raw = json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + data[size:])
    index = json.loads((shards / INDEX_NAME).read_text())
    index["shards"][0]["header_sha256"] = hashlib.sha256(raw).hexdigest()
    (shards / INDEX_NAME).write_text(json.dumps(index))


def changed_entry(text: str, *keys, value) -> str:
    head = json.loads(text)
    place = head["entries"][0]
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return json.dumps(head)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "[" * 100_000 + "]" * 100_000,
        lambda text: changed_entry(text, "number", value=math.inf),
        lambda text: changed_entry(text, "draw", value=math.inf),
        lambda text: changed_entry(text, "records", "T1w", "geometry", "shape", value=[math.inf, 6, 5]),
        lambda text: changed_entry(text, "records", "T1w", "low", value=10**400),
    ],
)
def test_a_forged_header_is_refused_by_name(shards, change):
    promised_header(shards, change)
    with pytest.raises(InputError, match=r"shard-00000.*its header is damaged.* Remedy: ") as error:
        Latents.open(shards)
    assert error.value.file == shards / shard_name(0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "a store"}, "this release reads"),
        ({"format_version": 2}, "format 2"),
        ({"num_entries": 99}, "unfinished: 9 of 99 entries"),
        ({"tokenizer": "0" * 64}, "another model than the index says"),
        ({"shape": [4, 6]}, "index is damaged"),
        ({"preparation": {}}, "index is damaged"),
        ({"shards": [{"file": "../elsewhere.safetensors", "sha256": "", "header_sha256": ""}]}, "index is damaged"),
        ({"shards": [{"file": "shard-00007.safetensors", "sha256": "", "header_sha256": ""}]}, "index is damaged"),
        ({"shards": "all"}, "index is damaged"),
        ({"shape": [math.inf, 6, 5]}, "not valid JSON"),
        ({"num_entries": math.inf}, "not valid JSON"),
        ({"modalities": "x"}, "the index is damaged"),
        ({"modalities": []}, "the index is damaged"),
        ({"preparation": PREPARATION.to_json() | {"shape": [math.inf, 6, 5]}}, "not valid JSON"),
    ],
)
def test_an_index_that_cannot_be_trusted_is_refused(shards, change, match):
    index = json.loads((shards / INDEX_NAME).read_text())
    (shards / INDEX_NAME).write_text(json.dumps(index | change))
    with pytest.raises(InputError, match=match) as error:
        Latents.open(shards)
    assert error.value.file is not None
    assert error.value.remedy


def test_another_model_or_another_order_of_contrasts_is_refused(shards):
    with pytest.raises(InputError, match="made by model ffffffffffff, this one is 000000000000"):
        Latents.open(shards, "0" * 64)
    with pytest.raises(InputError, match="of T1w, T2w, the model of T2w, T1w"):
        Latents.open(shards, modalities=("T2w", "T1w"))


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        Latents.open(tmp_path / "none")
    with pytest.raises(UsageError, match="no latent file"):
        Latents.open(tmp_path)


def test_a_missing_shard_is_named(shards):
    (shards / shard_name(1)).unlink()
    with pytest.raises(InputError, match="shard-00001"):
        Latents.open(shards)


def test_single_latents_have_the_same_face(tmp_path):
    write_single(tmp_path / "out" / "sub-a" / "sub-a_ses-1_desc-latent_T1w.safetensors")
    write_single(tmp_path / "out" / "sub-b" / "sub-b_desc-latent_T2w.safetensors", "T2w")
    latents = Latents.open(tmp_path / "out")
    assert [(e.subject, e.session, e.modalities) for e in latents.entries] == [
        ("a", "1", ("T1w",)),
        ("b", "", ("T2w",)),
    ]
    assert latents.origin.modalities == ("T1w", "T2w")
    first = latents.entries[0]
    view = latents.load(first, "T1w")
    assert np.array_equal(view.latent, latent_of(0, "T1w"))
    assert view.arrays["codes.anatomy"].shape == (2, 3, 5)
    assert view.arrays["style"].shape == (4,)
    assert np.array_equal(latents.mask(first), brain())
    assert not latents.split("train")
    alone = Latents.open(first.file, "f" * 64)
    assert len(alone.entries) == 1
    batch = latent_batch(latents, latents.entries)
    assert batch.present.tolist() == [[True, False], [False, True]]


def test_a_view_that_an_entry_lacks_is_not_another_ones(shards, tmp_path):
    write_single(tmp_path / "x_T1w.safetensors")
    for latents in (Latents.open(shards), Latents.open(tmp_path / "x_T1w.safetensors")):
        lacking = next(e for e in latents.entries if e.modalities == ("T1w",))
        with pytest.raises(ValueError, match=f"sub-{lacking.subject} has T1w, not T2w"):
            latents.load(lacking, "T2w")


def test_a_single_latent_is_compared_with_its_sidecar(tmp_path):
    file, sidecar = tmp_path / "x_T1w.safetensors", tmp_path / "x_T1w.json"
    write_single(file)
    data = file.read_bytes()
    sidecar.write_text(json.dumps({"ResultSHA256": hashlib.sha256(data).hexdigest()}))
    latents = Latents.open(file)
    assert np.array_equal(latents.load(latents.entries[0], "T1w").latent, latent_of(0, "T1w"))
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    latents = Latents.open(file)
    for read in (lambda: latents.load(latents.entries[0], "T1w"), lambda: latents.mask(latents.entries[0])):
        with pytest.raises(InputError, match=r"x_T1w.safetensors: .* sidecar beside it .* encode the scan again"):
            read()
    sidecar.write_text("{")
    with pytest.raises(InputError, match=r"x_T1w.json: not valid JSON"):
        Latents.open(file)
    sidecar.unlink()  # nothing is promised, nothing is compared
    latents = Latents.open(file)
    assert latents.load(latents.entries[0], "T1w").arrays["codes.anatomy"].shape == (2, 3, 5)


def test_packed_planes_come_back_as_planes(tmp_path, monkeypatch):
    planes = np.where(np.random.default_rng(0).random((64, 2, 3, 5)) < 0.5, -1.0, 1.0).astype(np.float32)
    monkeypatch.setattr(sys.modules[__name__], "latent_of", lambda number, modality: pack_bits(planes))
    write_shards(tmp_path / "shards")
    write_single(tmp_path / "x_T1w.safetensors")
    for latents in (Latents.open(tmp_path / "shards"), Latents.open(tmp_path / "x_T1w.safetensors")):
        assert np.array_equal(latents.load(latents.entries[0], "T1w").latent, planes)


@pytest.mark.parametrize("changes", [
        {"record": {}}, {"record": None}, {"preparation": {"x": 1}}, {"shape": [4, 6]}, {"shape": [math.inf, 6, 5]},
        {"format_version": math.inf}, {"record": RECORD.to_json() | {"low": 10**400}},
        {"record": RECORD.to_json() | {"geometry": {"shape": [0, 6, 5], "affine": [[1]], "header": None}}},
    ])  # fmt: skip
def test_a_malformed_head_is_named(tmp_path, changes):
    write_single(tmp_path / "x.safetensors", **changes)
    with pytest.raises(InputError, match=r"x.safetensors: holds no latent of a scan"):
        Latents.open(tmp_path / "x.safetensors")


def test_single_latents_of_two_models_do_not_mix(tmp_path):
    write_single(tmp_path / "a_T1w.safetensors")
    write_single(tmp_path / "b_T1w.safetensors", tokenizer="0" * 64)
    with pytest.raises(InputError, match=r"b_T1w.*tokenizer is not that of a_T1w"):
        Latents.open(tmp_path)
    with pytest.raises(InputError, match="latents of T1w, but the model knows T2w"):
        Latents.open(tmp_path / "a_T1w.safetensors", modalities=("T2w",))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "header"),
        (b"\xff" * 64, "claims"),
        (b"\x04\0\0\0\0\0\0\0nope", "not JSON"),
        (b"\x02\0\0\0\0\0\0\0[]", "not a JSON object"),
        (b"\x02\0\0\0\0\0\0\0{}", "holds no latent of a scan"),
    ],
)
def test_what_is_no_latent_is_named(tmp_path, content, match):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=match):
        Latents.open(tmp_path / "x.safetensors")


def test_a_newer_single_latent_is_refused(tmp_path):
    write_single(tmp_path / "x.safetensors", format_version=3)
    with pytest.raises(InputError, match="newer"):
        Latents.open(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": [16], "data_offsets": [8, 72]},
        {"dtype": "F32", "shape": [-16], "data_offsets": [0, 64]},
        {"dtype": "F64", "shape": [8], "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": [16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]},
    ],
)
def test_a_tensor_outside_the_file_is_refused(tmp_path, tensor):
    header = json.dumps({"latent": tensor}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(InputError, match="tensor latent"):
        map_tensors(tmp_path / "x.safetensors")


def test_a_mask_cannot_expand_without_end():
    bomb = zlib.compress(bytes(10_000_000))
    with pytest.raises(ValueError, match="more than 15 bytes"):
        inflated(bomb, 15)
    with pytest.raises(ValueError, match="cut short"):
        inflated(zlib.compress(bytes(15))[:-4], 15)
    assert inflated(zlib.compress(bytes(15)), 15) == bytes(15)


def test_a_loader_process_opens_its_own_maps(shards):
    latents = Latents.open(shards)
    latents.load(latents.entries[0], "T1w")
    sent = copy.copy(latents)  # what travels to a process is what is copied
    assert not sent._maps
    assert np.array_equal(sent.load(sent.entries[0], "T1w").latent, latent_of(0, "T1w"))
    assert sent.fingerprint == latents.fingerprint


def test_the_fingerprint_follows_the_content(tmp_path):
    write_shards(tmp_path / "a")
    write_shards(tmp_path / "b")
    write_shards(tmp_path / "c", tokenizer="e" * 64)
    first, twin, other = (Latents.open(tmp_path / name).fingerprint for name in "abc")
    assert first == twin != other
