"""The latents of a whole store: draws, geometry, resuming to the same bytes, refusals, and the command."""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotome.apply.resume import LOCK, RECORD
from neurotome.apply.shards import Draw, ShardPlan, ShardWriter, drawn_for, read_scan
from neurotome.cli.main import Parser
from neurotome.cli.shards import add_flags, run_shards, wants_shards
from neurotome.data.imaging.reader import read_volume
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.record import Record
from neurotome.data.stores.build import prepare
from neurotome.data.stores.latents import INDEX_NAME, Latents
from neurotome.data.stores.store import Store
from neurotome.errors import InputError, UsageError
from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.scans.tokenizer import ScanTokenizer
from neurotome.tokenizers import DCAE, Identity, NeuroQuant
from neurotome.tokenizers.shared_anatomy.parts import Appearance, Trunk
from tests import toy

DC_AE = {
    "channels": (8, 16),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, True),
    "depth_factors": (2,),
    "latent_channels": 8,
    "head_channels": 8,
    "scales": (),
}
TRUNK = Trunk(
    channels=(8,), num_res_blocks=1, attention_levels=(False,), mid_blocks=False, downsample=(False,), stem_factor=2,
    norm_groups=0, factored=False,
)  # fmt: skip
PLAN = ShardPlan(draws=2, seed=3, shard_bytes=110_000)


@pytest.fixture(scope="module")
def store(toy_store: Path) -> Store:
    return Store.open(toy_store)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("shards") / "model"
    toy.exported(DCAE(**DC_AE), store, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> ScanTokenizer:
    return ScanTokenizer.from_pretrained(model)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, store: Store, tokenizer: ScanTokenizer) -> Path:
    """Written without a break; read it only."""
    out = tmp_path_factory.mktemp("shards") / "out"
    ShardWriter(tokenizer, store, PLAN).write(out)
    return out


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_an_entry_is_the_code_of_its_session(store, tokenizer, shards):
    latents = Latents.open(shards, tokenizer.digest)
    sessions = {entry.digest: entry for entry in store.sessions}
    assert [e.number for e in latents.entries] == list(range(len(latents.entries)))
    for entry in (e for e in latents.entries if e.draw == 0):
        session = store.load(sessions[entry.digest])
        assert entry.modalities == ("T1w", "T2w")
        for view, name in enumerate(entry.modalities):
            image = torch.from_numpy(np.array(session.image[view]))[None]
            with torch.inference_mode():
                expected = tokenizer.network.encode(image, torch.tensor([view])).latent[0]
            assert torch.allclose(torch.from_numpy(latents.load(entry, name).latent), expected, atol=2e-3)
        assert np.array_equal(latents.mask(entry), session.mask)


def test_codes_style_and_the_way_back_are_those_of_a_single_scan(store, tmp_path, toy_raw):
    torch.manual_seed(0)
    appearance = Appearance(channels=4, embedding_channels=4, film_hidden=16)
    network = NeuroQuant(trunk=TRUNK, appearance=appearance, quantizer=EMAQuantizer(16, 4), adversary=False)
    network.quantizer.reservoir.mark_started()  # as after training: its codebook counts as started
    toy.exported(network, store, tmp_path / "model")
    tokenizer = ScanTokenizer.from_pretrained(tmp_path / "model")
    ShardWriter(tokenizer, store, ShardPlan()).write(tmp_path / "out")
    latents = Latents.open(tmp_path / "out", tokenizer.digest)
    entry = latents.entries[2]
    scan = read_volume(toy_raw / f"sub-{entry.subject}" / "anat" / f"sub-{entry.subject}_T1w.nii.gz")
    # of one session both views are cropped alike, a scan alone by itself: here the two views have the same brain
    single, stored = tokenizer.encode(scan, "T1w"), read_scan(latents, entry, "T1w")
    assert torch.equal(single.encoded.codes["anatomy"], stored.encoded.codes["anatomy"])
    assert stored.encoded.codes["anatomy"].dtype == torch.int64
    assert torch.allclose(single.encoded.style, stored.encoded.style, atol=1e-3)
    assert np.array_equal(single.mask, stored.mask)
    there, back = tokenizer.decode(single), tokenizer.decode(stored)
    assert back.geometry.same_grid(scan.geometry)
    assert np.allclose(there.array, back.array, atol=1e-2)


def test_only_training_sessions_have_several_draws(store, shards):
    latents = Latents.open(shards)
    for split, draws in (("train", 2), ("val", 1), ("test", 1)):
        assert len(latents.split(split)) == draws * len(store.split(split))
        assert latents.subjects(split) == store.subjects(split)


def test_every_draw_leads_back_to_the_source(store, tmp_path):
    """With the identity the decoded scan of any draw is the one of the plain scan, where it was not cut off."""
    toy.exported(Identity(), store, tmp_path / "model")
    tokenizer = ScanTokenizer.from_pretrained(tmp_path / "model")
    ShardWriter(tokenizer, store, ShardPlan(draws=6, shift_voxels=3)).write(tmp_path / "out")
    latents = Latents.open(tmp_path / "out", tokenizer.digest)
    train = [e for e in latents.entries if e.split == "train"]
    drawn = {(e.augmentation["flip"], tuple(e.augmentation["shift"])) for e in train}
    assert len(drawn) > 8
    assert {flip for flip, _ in drawn} == {True, False}
    for entry in train[:12]:
        plain = next(e for e in train if e.subject == entry.subject and e.draw == 0)
        for name in entry.modalities:
            expected = tokenizer.decode(read_scan(latents, plain, name))
            found = tokenizer.decode(read_scan(latents, entry, name))
            assert np.allclose(found.array, expected.array, atol=1e-3)
            assert found.geometry.same_grid(expected.geometry)


@settings(max_examples=40, deadline=None)
@given(st.booleans(), st.tuples(*[st.integers(-3, 3)] * 3), st.integers(0, 99))
def test_a_move_is_its_formula_and_its_matrix(flip, shift, seed):
    rng = np.random.default_rng(seed)
    volume = rng.random((5, 6, 7)).astype(np.float32)
    drawn = Draw(flip, shift)
    moved = drawn.moved(volume, -1.0)
    geometry = toy.oblique((5, 6, 7))
    record = drawn.record(Record(geometry, np.eye(4), (5, 6, 7), 0.0, 1.0, 0.0))
    for p in np.ndindex(5, 6, 7):
        q = np.array(p) - shift
        if flip:
            q[0] = 4 - q[0]
        inside = all(0 <= a < n for a, n in zip(q, volume.shape, strict=True))
        assert moved[p] == (volume[tuple(q)] if inside else -1.0)
        assert np.allclose(record.grid_to_source @ [*p, 1], [*q, 1])


def test_a_draw_depends_on_seed_session_and_number_alone():
    mask = np.zeros((20, 20, 20), dtype=bool)
    mask[4:16, 4:16, 4:16] = True
    plan = ShardPlan(seed=7, shift_voxels=3)
    first = drawn_for(plan, "sub-01", 4, mask)
    assert drawn_for(plan, "sub-01", 4, mask) == first
    others = [drawn_for(plan, "sub-01", k, mask) for k in range(1, 30)]
    assert len(set(others)) > 20
    assert [drawn_for(plan, "sub-02", k, mask) for k in range(1, 30)] != others
    assert [drawn_for(ShardPlan(seed=8, shift_voxels=3), "sub-01", k, mask) for k in range(1, 30)] != others
    assert 0.2 < np.mean([drawn.flip for drawn in others]) < 0.8
    assert drawn_for(plan, "sub-01", 0, mask) == Draw()


@pytest.mark.parametrize("flip_prob", [0.0, 1.0])
def test_no_shift_moves_the_brain_off_the_grid(flip_prob):
    mask = np.zeros((12, 12, 12), dtype=bool)
    mask[1:, :11, 3:9] = True
    plan = ShardPlan(shift_voxels=5, flip_prob=flip_prob)
    drawn = [drawn_for(plan, "sub-01", k, mask) for k in range(1, 60)]
    assert all(one.moved(mask, False).sum() == mask.sum() for one in drawn)
    assert {one.shift[0] for one in drawn} == ({0, 1} if flip_prob else {-1, 0})
    assert {one.shift[2] for one in drawn} == set(range(-3, 4))


class Stop(Exception):  # noqa: N818 - not a fault
    """What a signal does."""


def test_an_interrupted_run_resumes_to_the_same_bytes(store, tokenizer, shards, tmp_path):
    seen = []

    def stop(*line: object) -> None:
        seen.append(line)
        if len(seen) == 3:
            raise Stop

    with pytest.raises(Stop):
        ShardWriter(tokenizer, store, PLAN).write(tmp_path / "out", progress=stop)
    index = json.loads((shards / INDEX_NAME).read_text())["shards"]
    assert seen == [
        (sum(line["entries"] for line in index[: place + 1]), 10, f"shard-{place:05d}.safetensors")
        for place in range(3)
    ]
    (tmp_path / "out" / ".neurotome-00.tmp").write_bytes(b"left by a killed process")
    with pytest.raises(InputError, match=r"unfinished: .* of 10 entries"):
        Latents.open(tmp_path / "out")
    summary = ShardWriter(tokenizer, store, PLAN).write(tmp_path / "out")
    assert summary.kept == 3
    assert summary.entries == 10
    assert bytes_of(tmp_path / "out") == bytes_of(shards)


def test_shards_are_bounded_and_whole(shards):
    index = json.loads((shards / INDEX_NAME).read_text())
    assert len(index["shards"]) > 2
    for line in index["shards"]:
        assert line["bytes"] == (shards / line["file"]).stat().st_size <= PLAN.shard_bytes
    assert sum(line["entries"] for line in index["shards"]) == index["num_entries"] == 10


def test_what_stands_is_kept_and_only_what_is_damaged_made_again(store, tokenizer, shards, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    expected = bytes_of(out)
    damaged = out / "shard-00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*")}
    summary = ShardWriter(tokenizer, store, PLAN).write(out)
    assert summary.kept == summary.shards - 1
    assert bytes_of(out) == expected
    after = {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*")}
    assert {name for name in after if after[name] != before[name]} == {damaged.name}


def test_another_request_is_refused_and_overwrite_begins_anew(store, tokenizer, shards, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    other = ShardWriter(tokenizer, store, ShardPlan(draws=1, shard_bytes=10_000_000))
    with pytest.raises(UsageError, match="another choice of options"):
        other.write(out)
    assert bytes_of(out) == bytes_of(shards)
    assert other.write(out, overwrite=True).shards == 1
    assert [p.name for p in out.glob("shard-*")] == ["shard-00000.safetensors"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UsageError, match="not empty"):
        other.write(tmp_path / "mine")


@pytest.mark.parametrize("cut", ["in the first shard", "after two shards"])
def test_an_interrupted_overwrite_keeps_nothing_of_what_was_there(store, tokenizer, shards, tmp_path, monkeypatch, cut):
    """The same plan but for the seed: shards of the same names, places and sizes."""
    out, plan = tmp_path / "out", replace(PLAN, seed=4)
    shutil.copytree(shards, out)
    seen = []

    def stop(*line: object) -> None:
        seen.append(line)
        if len(seen) == 2:
            raise Stop

    with monkeypatch.context() as patch:
        if cut == "in the first shard":
            patch.setattr(ShardWriter, "_shard", lambda *_: stop() or stop())
        with pytest.raises(Stop):
            ShardWriter(tokenizer, store, plan).write(out, overwrite=True, progress=stop)
    summary = ShardWriter(tokenizer, store, plan).write(out)
    assert summary.kept == (0 if cut == "in the first shard" else 2)
    ShardWriter(tokenizer, store, plan).write(tmp_path / "fresh")
    assert bytes_of(out) == bytes_of(tmp_path / "fresh") != bytes_of(shards)


@pytest.mark.parametrize("key", ["ModelSHA256", "Parameters"])
def test_an_index_of_another_request_is_never_resumed(store, tokenizer, shards, tmp_path, key):
    """As it stands where a process died between the record of a new request and the removal of the old index."""
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    index = json.loads((out / INDEX_NAME).read_text())
    index["request"][key] = "another"
    (out / INDEX_NAME).write_text(json.dumps(index))
    assert ShardWriter(tokenizer, store, PLAN).write(out).kept == 0
    assert bytes_of(out) == bytes_of(shards)


def test_another_model_is_refused_for_training_and_for_decoding(store, shards, tmp_path):
    torch.manual_seed(1)
    toy.exported(DCAE(**DC_AE), store, tmp_path / "model")
    other = ScanTokenizer.from_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="made by model"):
        Latents.open(shards, other.digest)
    latents = Latents.open(shards)
    with pytest.raises(InputError, match="made by model"):
        other.decode(read_scan(latents, latents.entries[0], "T1w"))


def test_a_store_of_another_preparation_or_contrast_is_refused(tokenizer, toy_raw, tmp_path, store):
    prepare(toy_raw, tmp_path / "other", preparation=Preparation(4.0, (20, 24, 20)), modalities=["T1w"], seed=0)
    with pytest.raises(InputError, match="prepared differently"):
        ShardWriter(tokenizer, Store.open(tmp_path / "other"), PLAN)
    toy.exported(DCAE(**DC_AE, modalities=("T1w", "T2w")), store, tmp_path / "model")
    foreign = ScanTokenizer.from_pretrained(tmp_path / "model")
    foreign.network.modalities = ("FLAIR",)
    with pytest.raises(InputError, match="the model knows FLAIR"):
        ShardWriter(foreign, store, PLAN)


def test_a_missing_contrast_is_left_out_of_its_entry(tokenizer, toy_raw, tmp_path):
    raw = shutil.copytree(toy_raw, tmp_path / "raw")
    (raw / "sub-01" / "anat" / "sub-01_T2w.nii.gz").unlink()
    prepare(raw, tmp_path / "store", preparation=Preparation(3.0, (20, 24, 20)), modalities=["T1w", "T2w"], seed=0)
    ShardWriter(tokenizer, Store.open(tmp_path / "store"), ShardPlan()).write(tmp_path / "out")
    latents = Latents.open(tmp_path / "out")
    entry = next(e for e in latents.entries if e.subject == "01")
    assert entry.modalities == ("T1w",)
    with pytest.raises(UsageError, match="sub-01 has T1w, not T2w"):
        read_scan(latents, entry, "T2w")


def test_latents_that_are_not_numbers_are_refused_and_leave_nothing(store, model, tmp_path):
    broken = ScanTokenizer.from_pretrained(model)
    with torch.no_grad():
        broken.network.to_latent.bias.fill_(torch.nan)
    with pytest.raises(InputError, match="latent that the model makes of it is not finite"):
        ShardWriter(broken, store, PLAN).write(tmp_path / "out")
    assert toy.names(tmp_path / "out") == sorted((RECORD, LOCK))  # who began it, and no latent


@pytest.mark.parametrize("values", [{"draws": 0}, {"shard_bytes": 0}, {"flip_prob": 1.5}, {"shift_voxels": -1}])
def test_a_plan_out_of_range_is_refused(values):
    with pytest.raises(UsageError, match=f"{next(iter(values))} is"):
        ShardPlan(**values)


def call(*words: str) -> argparse.Namespace:
    """The words of `neurotome encode`, as the verb reads them."""
    from neurotome.cli import add_common

    parser = Parser(prog="neurotome encode")
    for name in ("model", "source", "target"):
        parser.add_argument(name)
    parser.add_argument("--modality")
    parser.add_argument("--dry-run", action="store_true")
    add_flags(parser)
    add_common(parser, compute=True, overwrite=True)
    args = parser.parse_args(words)
    args.verb = "encode"
    return args


def test_the_command_writes_and_resumes(toy_store, model, tmp_path, capsys):
    words = [str(model), str(toy_store), str(tmp_path / "out"), "--shards", "--draws", "2", "--device", "cpu"]
    args = call(*words, "--dry-run")
    assert wants_shards(args)
    assert run_shards(args) == 0
    assert "10 entries of 6 sessions; nothing is written" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert run_shards(call(*words)) == 0
    assert "10 entries in 1 shard (" in capsys.readouterr().out
    assert run_shards(call(*words, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 1
    with pytest.raises(UsageError, match="holds results of another"):
        run_shards(call(*words, "--seed", "1"))


def test_flags_that_do_not_go_together_are_refused(tmp_path, model):
    assert not wants_shards(call("m", "s", "o"))
    with pytest.raises(UsageError, match="--draws is for a whole store"):
        wants_shards(call("m", "s", "o", "--draws", "2"))
    with pytest.raises(UsageError, match="--modality is for scans"):
        wants_shards(call("m", "s", "o", "--shards", "--modality", "T1w"))
    with pytest.raises(UsageError, match="no such store"):
        run_shards(call(str(model), str(tmp_path / "none"), "o", "--shards"))
    with pytest.raises(UsageError, match="no store is there"):
        run_shards(call(str(model), str(tmp_path), "o", "--shards"))
