"""What the data blocks of a store give a training: volumes, pairs of contrasts, masks."""

from pathlib import Path

import pytest
import torch

from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.batches import VolumeBatches, batch_of
from neurotome.data.stores.build import prepare
from neurotome.data.stores.masks import MaskSource
from neurotome.data.stores.store import Store
from neurotome.data.stores.volumes import Masks, Pairs, Volumes, WholeSessions
from neurotome.errors import UsageError
from neurotome.types import Batch, Images, Source
from tests.data.scans import brain_array, write_nifti
from tests.evaluation.toy_evaluation import toy_store

SHAPE = (20, 24, 16)
BOTH = ("T1w", "T2w")
ALL = {"0": ("T2w",), "1": ("T1w",), "2": BOTH, "3": (*BOTH, "FLAIR"), "4": ("T1w", "FLAIR"), "5": BOTH}


def same(a: Batch, b: Batch) -> bool:
    tensors = ("image", "modality", "present", "site", "mask")
    return a.subject == b.subject and all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training sessions with one, two or three contrasts."""
    root = tmp_path_factory.mktemp("uneven")
    for subject, modalities in ALL.items():
        for modality in modalities:
            write_nifti(
                root / f"data/sub-{subject}/anat/sub-{subject}_{modality}.nii.gz", brain_array(seed=int(subject))
            )
    sizes = (1.0, 0.0, 0.0)
    prepare(root / "data", root / "store", preparation=Preparation(3.0, SHAPE), sizes=sizes).raise_failures()
    return root / "store"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_store(tmp_path_factory.mktemp("labelled") / "store", (6, 2, 0), labelled=True).path


def test_a_reader_gives_the_batches_of_its_store(prepared):
    plan = Volumes(crop=8, batch_sessions=3, slice_prob=0.3)
    reader = plan.open(prepared.path)
    assert (reader.path, reader.modalities, reader.sites) == (prepared.path, prepared.modalities, prepared.sites)
    assert (reader.preparation, reader.images) == (prepared.preparation, Images())
    batches = reader.batches(20, 7, ("T2w", "T1w"), rank=1, world_size=2)
    direct = VolumeBatches(prepared, plan, 20, 7, 1, 2, ("T2w", "T1w"))
    assert all(same(batches[step], direct[step]) for step in (0, 9, 19))
    with pytest.raises(UsageError):
        plan.open(prepared.path / "none")


def test_whole_sessions_come_one_by_one_in_the_order_of_subjects(prepared):
    reader = Volumes().open(prepared.path)
    sessions = reader.sessions("train", ("T2w", "T1w"))
    assert isinstance(sessions, WholeSessions)
    assert tuple(sessions[i].subject[0] for i in range(len(sessions))) == prepared.subjects("train")
    assert same(sessions[1], batch_of(prepared, [prepared.split("train")[1]], modalities=("T2w", "T1w")))
    assert len(reader.sessions("train", BOTH, 2)) == 2
    assert len(WholeSessions(prepared, "val")) == len(prepared.split("val"))


def test_a_source_says_what_a_training_will_read(prepared, labelled, uneven):
    unlabelled = tuple(e.name for split in ("train", "val") for e in prepared.split(split))
    expected = Source(
        images=Images(), modalities=("T2w", "T1w"), channels=1, grid=SHAPE, crop=(8, 8, 8), window=(-1.0, 1.0),
        steps={"whole_sessions": 1, "batch_sessions": 6}, unlabelled=unlabelled, views=2,
    )  # fmt: skip
    assert Volumes(crop=8).open(prepared.path).source(("T2w", "T1w")) == expected
    assert Volumes(crop=None).open(prepared.path).source(BOTH).crop is None
    assert Volumes(crop=8).open(labelled).source(BOTH).unlabelled == ()
    with pytest.raises(ValueError, match="larger than the prepared grid"):
        Volumes(crop=32).open(prepared.path).source(BOTH)
    with pytest.raises(ValueError, match="but not FLAIR"):
        Volumes(crop=8).open(prepared.path).source((*BOTH, "FLAIR"))
    masks = Masks(crop=8, channels=2).open(labelled).source(BOTH)
    assert masks.images == Images("masks", {"source": "label", "groups": ["label 1", "label 2"]})
    assert (masks.channels, masks.window) == (2, (-1.0, 1.0))
    counts = {kind: kind(crop=8).open(uneven).source(BOTH).views for kind in (Volumes, Pairs)}
    assert counts == {Volumes: 1, Pairs: 2}


def test_a_session_of_one_contrast_never_occurs_in_a_step_of_pairs(uneven):
    reader = Pairs(crop=8, batch_sessions=2).open(uneven)
    for modalities, subjects in (
        (BOTH, {"2", "3", "5"}),
        (("T1w", "T2w", "FLAIR"), {"2", "3", "4", "5"}),
        (("FLAIR", "T1w"), {"3", "4"}),
    ):
        batches = reader.batches(30, 0, modalities)
        seen = [batches[step] for step in range(30)]
        assert {subject for batch in seen for subject in batch.subject} == subjects
        assert all(batch.present.all() and batch.image.shape[1] == 2 for batch in seen)
        assert all((batch.modality[:, 0] < batch.modality[:, 1]).all() for batch in seen)
    three = Pairs(crop=8, modalities_per_session=3).open(uneven).batches(9, 0, ("T1w", "T2w", "FLAIR"))
    assert {subject for step in range(9) for subject in three[step].subject} == {"3"}
    every = Pairs(crop=8, modalities_per_session=None).open(uneven).batches(9, 0, ("T1w", "T2w", "FLAIR"))
    assert {subject for step in range(9) for subject in every[step].subject} == {"2", "3", "4", "5"}


def test_pairs_are_refused_where_no_session_has_two(uneven):
    reader = Pairs(crop=8).open(uneven)
    for ask in (reader.source, lambda names: reader.batches(3, 0, names)):
        with pytest.raises(ValueError, match=r"no training session has 2 of T1w$"):
            ask(("T1w",))
    with pytest.raises(ValueError, match="no training session has 4 of T1w, T2w, FLAIR"):
        Pairs(crop=8, modalities_per_session=4).open(uneven).source(("T1w", "T2w", "FLAIR"))
    with pytest.raises(ValueError, match="modalities_per_session is 1; give a number in"):
        Pairs(modalities_per_session=1)
    with pytest.raises(ValueError, match="brain_prob is 2"):
        Pairs(brain_prob=2)


@pytest.mark.parametrize(("source", "channels"), [("label", 1), ("label", 2), ("image", 1)])
def test_batches_of_masks_are_the_masks_of_the_batches_of_volumes(labelled, source, channels):
    settings = {"crop": (6, 8, 4), "batch_sessions": 3, "slice_prob": 0.3, "whole_fraction": 0.2}
    masks, volumes = Masks(**settings, source=source, channels=channels), Volumes(**settings)
    made, plain = (data.open(labelled).batches(12, 3, BOTH) for data in (masks, volumes))
    for step in range(12):
        scans = plain[step]
        expected = MaskSource(source, channels).of(scans)
        assert made[step].space == "masks"
        assert same(made[step], expected)
        assert set(made[step].image.unique().tolist()) <= {-1.0, 1.0}
        if source == "label":
            inside = scans.label[:, None] > 0 if channels == 1 else torch.stack([scans.label == 1, scans.label == 2], 1)
            assert torch.equal(made[step].image[:, 0] > 0, inside)
        else:
            assert torch.equal(made[step].image > 0, scans.image > 0)
    sessions = [data.open(labelled).sessions("val", BOTH) for data in (masks, volumes)]
    assert same(sessions[0][1], MaskSource(source, channels).of(sessions[1][1]))


def test_masks_of_a_store_without_label_maps_are_refused_by_the_batch(prepared):
    reader = Masks(crop=8).open(prepared.path)
    assert len(reader.source(BOTH).unlabelled) == len(prepared.split("train")) + len(prepared.split("val"))
    with pytest.raises(ValueError, match="prepare the store with label maps"):
        reader.batches(3, 0, BOTH)[0]
    for settings in ({"channels": 0}, {"source": "image", "channels": 2}, {"source": "elsewhere"}):
        with pytest.raises(ValueError, match=r"(channels|source) is"):
            Masks(**settings)


def test_the_fingerprint_follows_store_and_settings(prepared, labelled):
    plans = [Volumes(), Volumes(crop=8), Pairs(), Masks(), Masks(channels=2)]
    prints = {plan.open(prepared.path).fingerprint for plan in plans}
    assert len({*prints, Volumes().open(labelled).fingerprint}) == 6
    assert Volumes().open(prepared.path).fingerprint in prints


def test_intensities_are_the_mean_ranges_of_a_split(prepared):
    found = Volumes().open(prepared.path).intensity("train")
    records = [prepared.load(entry).records for entry in prepared.split("train")]
    for name in BOTH:
        assert found[name]["low"] == pytest.approx(sum(r[name].low for r in records) / len(records))
        assert found[name]["high"] == pytest.approx(sum(r[name].high for r in records) / len(records))
        assert found[name]["n"] == len(records)
    assert Masks(source="image").open(prepared.path).intensity("train") == {}


def test_a_report_learns_what_the_cohort_is(uneven):
    found = Volumes().open(uneven).describe()
    assert (found["spacing_mm"], found["shape"]) == (3.0, list(SHAPE))
    assert found["splits"]["train"] == {
        "subjects": 6, "sessions": 6, "modalities": {"T1w": 5, "T2w": 4, "FLAIR": 2}, "sites": {"unknown": 6},
    }  # fmt: skip
    assert found["splits"]["test"] == {"subjects": 0, "sessions": 0, "modalities": {}, "sites": {}}
    assert Store.open(uneven).subjects("train") == tuple(ALL)
