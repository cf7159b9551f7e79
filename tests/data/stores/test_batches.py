import gc
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch

from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.batches import StepPlan, VolumeBatches, batch_of
from neurotome.data.stores.build import prepare
from neurotome.data.stores.store import Store
from tests.data.scans import brain_array, write_nifti

SHAPE = (20, 24, 16)


def same(a, b):
    assert a.subject == b.subject
    for name in ("image", "modality", "present", "site", "mask"):
        assert torch.equal(getattr(a, name), getattr(b, name))


def test_a_batch_is_a_pure_function_of_seed_step_and_rank(prepared):
    plan = StepPlan(crop=8, slice_prob=0.3)
    one, two = (VolumeBatches(Store.open(prepared.path), plan, 50, seed=3) for _ in range(2))
    for step in (49, 7, 0, 7):
        same(one[step], two[step])
    assert not torch.equal(one[1].image[0], one[2].image[0])
    other = VolumeBatches(prepared, plan, 50, seed=4)
    assert [one.sessions(s) for s in range(5)] != [other.sessions(s) for s in range(5)]


def test_every_session_is_seen_once_an_epoch_over_all_ranks(prepared):
    plan = StepPlan(batch_sessions=2, crop=8, whole_fraction=0.0)
    ranks = [VolumeBatches(prepared, plan, 100, 0, rank=r, world_size=2) for r in range(2)]
    for epoch in range(5):
        seen = Counter(e.subject for s in range(epoch * 2, epoch * 2 + 2) for one in ranks for e in one.sessions(s))
        assert seen == dict.fromkeys(prepared.subjects("train"), 1)
    orders = {
        tuple(e.subject for s in range(2 * n, 2 * n + 2) for one in ranks for e in one.sessions(s)) for n in range(5)
    }
    assert len(orders) == 5


def test_crops_are_voxels_of_the_store_at_one_place_for_all_views(prepared):
    batches = VolumeBatches(prepared, StepPlan(crop=(6, 7, 5), flip_prob=0.5, whole_fraction=0.0), 20, 0)
    by_subject = {e.subject: prepared.load(e) for e in prepared.sessions}
    flips = 0
    for step in range(10):
        batch = batches[step]
        assert batch.image.shape == (6, 2, 1, 6, 7, 5)
        assert batch.mask.shape == (6, 1, 6, 7, 5)
        for row, subject in enumerate(batch.subject):
            loaded = by_subject[subject]
            windows = np.lib.stride_tricks.sliding_window_view(loaded.image[0, 0], (6, 7, 5))
            found = None
            for flipped in (False, True):
                crop = batch.image[row, 0, 0].numpy()[::-1] if flipped else batch.image[row, 0, 0].numpy()
                places = np.argwhere((windows == crop).all(axis=(-1, -2, -3)))
                if len(places):
                    found, flips = (places[0], flipped), flips + flipped
            (x, y, z), flipped = found
            place = (slice(x, x + 6), slice(y, y + 7), slice(z, z + 5))
            order = slice(None, None, -1 if flipped else 1)
            np.testing.assert_array_equal(batch.image[row, 1, 0].numpy(), loaded.image[1, 0][place][order])
            np.testing.assert_array_equal(batch.mask[row, 0].numpy(), loaded.mask[place][order])
            assert batch.site[row] == prepared.sites.index("ab"[int(subject) % 2])
    assert 15 < flips < 45


def test_brain_prob_centres_crops_on_the_brain(prepared):
    def share(brain_prob):
        plan = StepPlan(crop=5, brain_prob=brain_prob, flip_prob=0.0, whole_fraction=0.0)
        batches = VolumeBatches(prepared, plan, 40, 0)
        return np.mean([batches[s].mask[:, 0, 2, 2, 2].float().mean() for s in range(40)])

    assert share(1.0) == 1.0
    assert share(0.0) < 0.7


def test_the_last_share_of_steps_sees_whole_volumes(prepared):
    batches = VolumeBatches(prepared, StepPlan(crop=8, whole_fraction=0.25, whole_sessions=2, flip_prob=0), 40, 0)
    kinds = [batches.kind(s)[0] for s in range(40)]
    assert kinds == ["crop"] * 30 + ["whole"] * 10
    whole = batches[35]
    assert whole.image.shape == (2, 2, 1, *SHAPE)
    same(whole, batch_of(prepared, batches.sessions(35)))
    assert all(VolumeBatches(prepared, StepPlan(crop=None), 9, 0).kind(s)[0] == "whole" for s in range(9))


def test_slices_have_an_axis_of_one_inside_the_margin(prepared):
    plan = StepPlan(crop=8, slice_prob=0.5, slice_sessions=3, flip_prob=0.0, whole_fraction=0.0)
    batches = VolumeBatches(prepared, plan, 400, 0)
    kinds = Counter(batches.kind(s) if batches.kind(s)[0] == "slice" else "crop" for s in range(400))
    assert set(kinds) == {"crop", ("slice", 0), ("slice", 1), ("slice", 2)}
    assert all(40 < n < 95 for k, n in kinds.items() if k != "crop")
    by_subject = {e.subject: prepared.load(e) for e in prepared.sessions}
    for step in range(60):
        kind, axis = batches.kind(step)
        if kind != "slice":
            continue
        batch = batches[step]
        assert batch.image.shape == (3, 2, 1, *(1 if a == axis else n for a, n in enumerate(SHAPE)))
        for row, subject in enumerate(batch.subject):
            volume = np.moveaxis(by_subject[subject].image[1, 0], axis, 0)
            plane = np.take(batch.image[row, 1, 0].numpy(), 0, axis)
            places = np.flatnonzero((volume == plane).all(axis=(1, 2)))
            margin = int(0.1 * SHAPE[axis])
            assert len(places) >= 1
            assert margin <= places[-1]
            assert places[0] < SHAPE[axis] - margin


def test_views_can_be_drawn_and_missing_ones_come_last(tmp_path):
    for subject in range(6):
        for modality in ("T1w", "T2w", "FLAIR") if subject else ("T2w",):
            name = f"sub-{subject}/anat/sub-{subject}_{modality}.nii.gz"
            write_nifti(tmp_path / "data" / name, brain_array(seed=subject))
    store = prepare(
        tmp_path / "data", tmp_path / "store", preparation=Preparation(3.0, SHAPE), sizes=(1.0, 0.0, 0.0)
    ).store
    batches = VolumeBatches(store, StepPlan(crop=8, modalities_per_session=1), 60, 0)
    seen = Counter()
    for step in range(30):
        batch = batches[step]
        assert batch.image.shape[1] == 1
        assert batch.present.all()
        for subject, index in zip(batch.subject, batch.modality[:, 0].tolist(), strict=True):
            seen[subject == "0", store.modalities[index]] += 1
    assert {m for first, m in seen if first} == {"T2w"}
    assert {m for first, m in seen if not first} == {"T1w", "T2w", "FLAIR"}
    two = VolumeBatches(store, StepPlan(crop=8, modalities_per_session=2), 60, 0)[0]
    assert (two.modality[:, 0] < two.modality[:, 1]).all()
    ordered = batch_of(store, [store.sessions[0]], modalities=("FLAIR", "T2w"))
    assert ordered.present.tolist() == [[False, True]]
    assert (ordered.image[0, 0] == 0).all()
    with pytest.raises(ValueError, match="but not PDw"):
        batch_of(store, [store.sessions[0]], modalities=("PDw",))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"batch_sessions": 0}, "batch_sessions"),
        ({"brain_prob": 1.5}, "brain_prob"),
        ({"crop": 0}, "crop is 0"),
        ({"modalities_per_session": 0}, "modalities_per_session"),
    ],
)
def test_plans_refuse_bad_values(values, says):
    with pytest.raises(ValueError, match=says):
        StepPlan(**values)


def test_batches_refuse_what_the_store_cannot_give(prepared, tmp_path):
    with pytest.raises(ValueError, match="larger than the prepared grid"):
        VolumeBatches(prepared, StepPlan(crop=32), 10, 0)
    with pytest.raises(ValueError, match="modalities_per_session is 3 of 2"):
        VolumeBatches(prepared, StepPlan(crop=8, modalities_per_session=3), 10, 0)
    with pytest.raises(IndexError):
        VolumeBatches(prepared, StepPlan(crop=8), 10, 0)[10]
    empty = Store(prepared.path, prepared.preparation, prepared.modalities, prepared.split("val"))
    with pytest.raises(ValueError, match="train split is empty"):
        VolumeBatches(empty, StepPlan(crop=8), 10, 0)


def test_the_last_stage_sees_slices_alone(prepared):
    batches = VolumeBatches(prepared, StepPlan(crop=8, slice_fraction=0.25, slice_sessions=1), 40, 0)
    kinds = [batches.kind(step)[0] for step in range(40)]
    assert set(kinds[30:]) == {"slice"}
    assert "slice" not in kinds[:30]


@pytest.mark.slow
def test_memory_does_not_grow_from_epoch_to_epoch(prepared):
    """One batch kept each epoch would be 60 KB and more; the slope allows a tenth of that."""
    store = Store.open(prepared.path)
    plan = StepPlan(batch_sessions=4, crop=8, slice_prob=0.2, whole_fraction=0.5)
    batches = VolumeBatches(store, plan, 400, 0)
    used = []
    tracemalloc.start()
    try:
        for epoch in range(8):
            for step in range(16 * epoch, 16 * epoch + 16):
                batches[(step * 37) % 400]  # all kinds in every epoch
            for entry in store.sessions:
                batch_of(store, [entry])
            gc.collect()
            used.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    slope = np.polyfit(np.arange(5), used[3:], 1)[0]
    assert slope < 6_000, f"{slope:.0f} bytes an epoch: {used}"


def test_only_so_many_entries_are_mapped_at_once(prepared, monkeypatch):
    monkeypatch.setattr("neurotome.data.stores.store.MAX_OPEN", 3)
    checked = []
    monkeypatch.setattr("neurotome.data.stores.store.is_intact", lambda file, sha: checked.append(file) or True)
    store = Store.open(prepared.path)
    for _ in range(3):
        images = [store.load(entry).image for entry in store.sessions]
    assert len(store._open) == 3
    assert len(checked) == len(store.sessions)  # mapped again, but verified once
    whole = Store.open(prepared.path)
    assert all((image == whole.load(entry).image).all() for image, entry in zip(images, store.sessions, strict=True))
