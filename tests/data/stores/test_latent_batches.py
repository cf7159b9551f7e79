"""Batches of latents in a pure order, and latents as a training reads them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from neurotome.data.stores.latent_batches import LatentBatches, LatentVolumes
from neurotome.data.stores.latents import Latents
from neurotome.errors import UsageError
from neurotome.types import Images, Source
from tests.data.stores.test_latents import PREPARATION, SHAPE, latent_of, write_shards, write_single


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards")
    return tmp_path / "shards"


def test_batches_are_raw_latents_of_a_pure_order(shards):
    latents = Latents.open(shards)
    batches = LatentBatches(latents, 2, 10, seed=1)
    again = LatentBatches(Latents.open(shards), 2, 10, seed=1)
    for step in (7, 0, 3):
        batch, twin = batches[step], again[step]
        assert batch.subject == twin.subject
        assert torch.equal(batch.image, twin.image)
        assert batch.space == "latents"
        assert batch.image.shape == (2, 2, 3, 2, 3, 5)
        for row, entry in enumerate(batches.sessions(step)):
            for column, name in enumerate(("T1w", "T2w")):
                there = name in entry.modalities
                assert bool(batch.present[row, column]) == there
                expected = latent_of(entry.number, name) if there else np.zeros((3, 2, 3, 5))
                assert np.array_equal(batch.image[row, column].numpy(), expected)
    orders = [
        [e.number for s in range(10) for e in LatentBatches(latents, 2, 10, seed=s0).sessions(s)] for s0 in (1, 2)
    ]
    assert orders[0] != orders[1]
    assert len(batches) == 10
    with pytest.raises(IndexError):
        batches[10]


def test_every_epoch_sees_every_session_once_and_ranks_share_it(shards):
    latents = Latents.open(shards)
    for world in (1, 2):
        seen = [
            e.subject
            for step in range(4 // world)
            for rank in range(world)
            for e in LatentBatches(latents, 1, 10, rank=rank, world_size=world).sessions(step)
        ]
        assert sorted(seen) == ["a", "b", "c", "d"]
    draws = {e.draw for step in range(40) for e in LatentBatches(latents, 1, 40).sessions(step)}
    assert draws == {0, 1}


def test_an_empty_split_and_an_empty_batch_are_refused(shards, tmp_path):
    with pytest.raises(ValueError, match="test split holds no latent"):
        LatentBatches(Latents.open(shards), 1, 1, split="test")
    with pytest.raises(ValueError, match=r"give a number in \[1, 4096\]"):
        LatentVolumes(batch_sessions=0)
    write_single(tmp_path / "x_T1w.safetensors")
    with pytest.raises(ValueError, match=r"belong to no split.*--shards"):
        LatentBatches(Latents.open(tmp_path / "x_T1w.safetensors"), 1, 1)
    with pytest.raises(ValueError, match="no split 'trian'"):
        Latents.open(shards).split("trian")


def test_a_reader_gives_the_batches_of_its_latents(shards):
    reader = LatentVolumes(batch_sessions=3).open(shards)
    assert (reader.modalities, reader.sites, reader.path) == (("T1w", "T2w"), ("s1",), shards)
    assert reader.preparation.digest == PREPARATION.digest
    batches = reader.batches(8, 5, reader.modalities, rank=1, world_size=2)
    direct = LatentBatches(Latents.open(shards), 3, 8, seed=5, rank=1, world_size=2)
    assert len(batches) == 8
    for step in (0, 6):
        assert batches[step].subject == direct[step].subject
        assert torch.equal(batches[step].image, direct[step].image)
    assert reader.subjects("train") == ("a", "b", "c", "d")
    with pytest.raises(UsageError, match="no such file or folder"):
        LatentVolumes().open(shards / "none")


def test_contrasts_come_in_the_order_of_the_model(shards):
    reader = LatentVolumes(batch_sessions=2).open(shards)
    stored, turned = (reader.batches(4, 0, names) for names in (("T1w", "T2w"), ("T2w", "T1w")))
    for step in range(4):
        a, b = stored[step], turned[step]
        assert a.subject == b.subject
        assert torch.equal(a.image, b.image.flip(1))
        assert torch.equal(a.present, b.present.flip(1))
        assert a.modality.tolist() == b.modality.tolist() == [[0, 1]] * 2
    alone = reader.batches(4, 0, ("T1w",))[0]
    assert torch.equal(alone.image, stored[0].image[:, :1])
    with pytest.raises(ValueError, match="the latents have T1w, T2w, but not FLAIR"):
        reader.batches(4, 0, ("T1w", "FLAIR"))


def test_whole_sessions_are_seen_as_the_scan_was(shards):
    reader = LatentVolumes().open(shards)
    for split, subjects in (("train", ["a", "b", "c", "d"]), ("val", ["e"])):
        sessions = reader.sessions(split, ("T2w", "T1w"))
        assert [sessions[i].subject[0] for i in range(len(sessions))] == subjects
        for i, entry in enumerate(sessions.entries):
            assert entry.draw == 0
            assert sessions[i].space == "latents"
            assert np.array_equal(sessions[i].image[0, 1].numpy(), latent_of(entry.number, "T1w"))
    assert len(reader.sessions("train", ("T1w",), 2)) == 2


def test_a_source_says_what_the_latents_are(shards):
    reader = LatentVolumes(batch_sessions=4).open(shards)
    expected = Source(
        images=Images("latents", tokenizer="f" * 64), modalities=("T2w", "T1w"), channels=3, grid=(2, 3, 5),
        steps={"batch_sessions": 4}, views=1,
    )  # fmt: skip
    assert reader.source(("T2w", "T1w")) == expected
    with pytest.raises(ValueError, match="but not FLAIR"):
        reader.source(("FLAIR",))


def test_a_report_and_a_resume_learn_what_the_latents_are(shards, tmp_path):
    reader = LatentVolumes().open(shards)
    described = reader.describe()
    assert (described["shape"], described["tokenizer"]) == (list(SHAPE), "f" * 64)
    assert {name: split["subjects"] for name, split in described["splits"].items()} == {"train": 4, "val": 1, "test": 0}
    assert reader.intensity("train") == {
        "T1w": {"low": 0.0, "high": 100.0, "n": 4}, "T2w": {"low": 0.0, "high": 100.0, "n": 3}
    }  # fmt: skip
    write_shards(tmp_path / "other", tokenizer="e" * 64)
    others = [LatentVolumes(batch_sessions=2).open(shards), LatentVolumes().open(tmp_path / "other")]
    assert len({reader.fingerprint, *(other.fingerprint for other in others)}) == 3
    assert LatentVolumes().open(shards).fingerprint == reader.fingerprint
    with pytest.raises(dataclasses.FrozenInstanceError):
        reader.plan.batch_sessions = 1
