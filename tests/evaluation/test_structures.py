"""Structure Dice of an evaluation, with a segmenter that is a threshold: every number by hand."""

import numpy as np
import pytest
import torch

from neurotome.data.stores.batches import StepPlan, VolumeBatches
from neurotome.errors import InputError
from neurotome.evaluation.evaluate import evaluate
from tests.evaluation.toy_evaluation import BlockTokenizer, ToyScans, session_images, toy_store


class Threshold:
    """Bright and dark; T2w is upside down. Of the truth, label 2 is nothing where ``blind``."""

    digest = "threshold"
    structures = ("bright", "dark")

    def __init__(self, modalities=("T1w", "T2w"), trained=()) -> None:
        self.modalities, self.trained = modalities, trained
        self.seen: list[str] = []

    def trained_on(self, subject: str, scans=()) -> bool:
        return subject in self.trained

    def check_store(self, store) -> None:
        if store.preparation.shape[0] != 16:
            raise InputError("other preparation")

    def __call__(self, image, modality):
        self.seen.append(modality)
        sign = -1 if modality == "T2w" else 1
        return torch.where(sign * image[:, 0] > 0, 1, 2)

    def classes(self, labels):
        return labels.long()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    return toy_store(tmp_path_factory.mktemp("structures") / "store", labelled=True)


@pytest.fixture(scope="module")
def metrics(store):
    return evaluate(ToyScans(BlockTokenizer()), store, segmenter=Threshold())


def dice(a: np.ndarray, b: np.ndarray, label: int) -> float:
    return 2 * ((a == label) & (b == label)).sum() / ((a == label).sum() + (b == label).sum())


def by_hand(subject: int) -> tuple[dict[str, float], float, float]:
    """Dice of the toy's T1w reconstruction per structure with the scan's, its mean with the truth, T2w's ceiling."""
    views, mask = session_images(100 * subject)
    blocks = views[0].reshape(8, 2, 10, 2, 8, 2).mean((1, 3, 5))
    level = (np.clip(np.floor((blocks + 1) / 2 * 16), 0, 15) + 0.5) / 16 * 2 - 1
    output = np.repeat(np.repeat(np.repeat(level, 2, 0), 2, 1), 2, 2)
    found, scan, other = (np.where(mask, np.where(x > 0, 1, 2), 0) for x in (output, views[0], -views[1]))
    each = {name: dice(found, scan, k) for k, name in enumerate(("bright", "dark"), 1)}
    # the labels are those of the T1w scan itself
    truth = np.mean([dice(found, scan, k) for k in (1, 2)])
    return each, float(truth), float(np.mean([dice(other, scan, k) for k in (1, 2)]))


def test_overlaps_equal_those_by_hand(metrics) -> None:
    row = metrics["structures"]["T1w"]
    for i in range(6, 10):
        each, truth, ceiling = by_hand(i)
        subject = f"{i:02d}"
        for name, value in each.items():
            assert row["dice"][name]["values"][subject] == pytest.approx(value, abs=1e-3)
        assert row["dice"]["mean"]["values"][subject] == pytest.approx(np.mean(list(each.values())), abs=1e-3)
        assert row["truth_dice"]["mean"]["values"][subject] == pytest.approx(truth, abs=1e-3)
        assert row["ceiling"]["mean"]["values"][subject] == 1
        assert metrics["structures"]["T2w"]["ceiling"]["mean"]["values"][subject] == pytest.approx(ceiling)
    own = metrics["reconstruction"]["T1w"]
    assert own["structure_dice"]["values"] == row["dice"]["mean"]["values"]
    assert own["structure_dice_truth"]["mean"] == pytest.approx(row["truth_dice"]["mean"]["mean"])
    assert own["structure_dice"]["n"] == 4
    assert own["structure_dice"]["ci95"] is not None


def test_translations_and_the_trilinear_baseline_are_segmented_too(metrics) -> None:
    assert set(metrics["structures"]) == {"T1w", "T2w", "T1w->T2w", "T2w->T1w"}
    assert set(metrics["structures"]["T1w->T2w"]) == {"dice", "truth_dice", "volume_error"}
    baselines = metrics["reconstruction"]["T1w"]["baselines"]
    assert (
        0
        < baselines["trilinear"]["structure_dice"]["mean"]
        < metrics["reconstruction"]["T1w"]["structure_dice"]["mean"]
    )
    assert "structure_dice" not in baselines["mean_image"]
    assert metrics["protocol"]["segmenter_sha256"] == "threshold"
    assert metrics["protocol"]["structures"] == ["bright", "dark"]


def test_label_maps_are_cut_and_flipped_as_the_images_are(store) -> None:
    plan = StepPlan(batch_sessions=3, crop=(6, 8, 4), slice_prob=0.3, whole_fraction=0.2, slice_sessions=2)
    batches = VolumeBatches(store, plan, 12, seed=0)
    for step in range(12):
        batch = batches[step]
        expected = torch.where(batch.image[:, 0, 0] > 0, 1, 2) * batch.mask[:, 0]
        assert torch.equal(batch.label.long(), expected)


def test_without_label_maps_there_is_no_truth_and_no_ceiling(tmp_path) -> None:
    metrics = evaluate(ToyScans(BlockTokenizer()), toy_store(tmp_path / "store"), segmenter=Threshold())
    assert set(metrics["structures"]["T1w"]) == {"dice", "volume_error"}
    assert "structure_dice_truth" not in metrics["reconstruction"]["T1w"]


def test_a_contrast_the_segmenter_does_not_know_is_left_out(store) -> None:
    reader = Threshold(modalities=("T1w",))
    metrics = evaluate(ToyScans(BlockTokenizer()), store, segmenter=reader)
    assert set(metrics["structures"]) == {"T1w", "T2w->T1w"}
    assert set(reader.seen) == {"T1w"}
    assert "structure_dice" not in metrics["reconstruction"]["T2w"]


def test_a_segmenter_that_does_not_fit_is_refused(store, tmp_path) -> None:
    scans = ToyScans(BlockTokenizer())
    with pytest.raises(InputError, match=r"1 of 4 subjects .* the segmenter's training: 07"):
        evaluate(scans, store, segmenter=Threshold(trained=("07",)))
    assert evaluate(scans, store, segmenter=Threshold(trained=("07",)), allow_train=True)["structures"]
    with pytest.raises(InputError, match="the segmenter knows FLAIR"):
        evaluate(scans, store, segmenter=Threshold(modalities=("FLAIR",)))
    with pytest.raises(InputError, match="other preparation"):
        evaluate(scans, toy_store(tmp_path / "other", (1, 0, 1), shape=(20, 20, 16)), segmenter=Threshold())
