import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from neurotome.errors import InputError, OutputError, UsageError
from neurotome.evaluation.evaluate import evaluate
from neurotome.evaluation.held_out import seen_at_all
from neurotome.metrics.statistics import bootstrap_interval
from neurotome.models.subjects import TrainingSubjects
from tests.evaluation.toy_evaluation import MODALITIES, BlockTokenizer, ToyScans, session_images, toy_store

METRICS = {"psnr_db", "psnr_db_whole", "ssim", "ssim_whole", "ms_ssim", "high_frequency_ratio"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy_store(tmp_path_factory.mktemp("evaluate") / "store")


@pytest.fixture(scope="module")
def folder(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "out"
    evaluate(ToyScans(BlockTokenizer(private=True), trained=("00", "01")), store, out=folder)
    return folder


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def by_hand(subject: int, source: int, target: int, private: bool) -> float:
    """Return the brain PSNR of the toy's output, in numpy."""
    views, mask = session_images(100 * subject)
    x = np.where(views[source] <= -0.9, views[source], -views[source] if source else views[source])
    blocks = x.reshape(8, 2, 10, 2, 8, 2).mean((1, 3, 5))
    level = (np.clip(np.floor((blocks + 1) / 2 * 16), 0, 15) + 0.5) / 16 * 2 - 1
    y = np.repeat(np.repeat(np.repeat(level, 2, 0), 2, 1), 2, 2)
    if private:
        slope = (x[1::2] - x[::2]).reshape(8, 10, 2, 8, 2).mean((2, 4)) > 0
        sign = np.repeat(np.repeat(np.where(slope, 0.1, -0.1), 2, 1), 2, 2)
        y[::2] -= sign
        y[1::2] += sign
    y = np.clip(np.where(y <= -0.9, y, -y if target else y), -1, 1)
    return float(10 * np.log10(4 / ((y - views[target])[mask] ** 2).mean()))


@pytest.mark.parametrize(("source", "target"), [(0, 0), (1, 1), (0, 1), (1, 0)])
def test_scores_equal_those_by_hand(metrics, source, target):
    """An own reconstruction uses the private codes, a translation does not."""
    if source == target:
        entry = metrics["reconstruction"][MODALITIES[source]]
    else:
        entry = metrics["translation"][f"{MODALITIES[source]}->{MODALITIES[target]}"]
    expected = {f"{s:02d}": by_hand(s, source, target, private=source == target) for s in range(6, 10)}
    assert entry["psnr_db"]["values"] == pytest.approx(expected, abs=1e-3)
    interval = bootstrap_interval(list(expected.values()))
    assert entry["psnr_db"]["mean"] == pytest.approx(interval.mean, abs=1e-3)
    assert entry["psnr_db"]["ci95"] == pytest.approx([interval.low, interval.high], abs=1e-3)
    assert entry["psnr_db"]["n"] == 4


def test_scheme(metrics):
    assert set(metrics) == {
        "protocol", "reconstruction", "translation", "structures", "codebook", "bits", "audit", "not_applicable",
        "factors", "speed", "memory",
    }  # fmt: skip
    assert metrics["not_applicable"] == {}
    assert set(metrics["reconstruction"]) == set(MODALITIES)
    assert set(metrics["translation"]) == {"T1w->T2w", "T2w->T1w"}
    own, translated = metrics["reconstruction"]["T1w"], metrics["translation"]["T1w->T2w"]
    assert set(own) == set(translated) == METRICS | {"baselines", "paired"}
    assert set(own["baselines"]) == {"mean_image", "trilinear", "shared_codes_alone"}
    lookups = {"lookup_full_rate", "lookup_equal_rate", "lookup_refitted"}
    assert set(translated["baselines"]) == {"mean_image", *lookups, "monotone_map", "monotone_ceiling"}
    for row in (*own["baselines"].values(), *translated["baselines"].values()):
        assert set(row) == METRICS
        assert set(row["ssim"]) == {"mean", "ci95", "n"}
    for name in ("monotone_map", "monotone_ceiling"):  # T2w is T1w upside down but for noise
        assert translated["baselines"][name]["psnr_db"]["mean"] == pytest.approx(37, abs=1)
        assert len(translated["paired"][f"over_{name}_db"]["ci95"]) == 2
    over = {name: translated["paired"][f"over_{name}_db"]["mean"] for name in ("monotone_map", "monotone_ceiling")}
    assert over["monotone_ceiling"] < over["monotone_map"] < 0
    # T2w is T1w upside down: a lookup of the source fails by the noise of both alone, 0.02 each
    assert translated["baselines"]["lookup_full_rate"]["psnr_db"]["mean"] == pytest.approx(37, abs=0.5)
    coarse = metrics["reconstruction"]["T1w"]["baselines"]["trilinear"]["psnr_db"]["mean"]
    assert translated["baselines"]["lookup_equal_rate"]["psnr_db"]["mean"] == pytest.approx(coarse, abs=0.2)
    gap = translated["paired"]["under_own_reconstruction_db"]["mean"]
    assert gap == pytest.approx(
        metrics["reconstruction"]["T2w"]["psnr_db"]["mean"] - translated["psnr_db"]["mean"], abs=1e-6
    )


def test_protocol_says_what_was_done(metrics, store):
    protocol = metrics["protocol"]
    said = {k: protocol[k] for k in ("split", "subjects", "training_subjects", "data_range", "ssim_window", "noise_sd")}
    assert said == {
        "split": "test", "subjects": 4, "training_subjects": 6, "data_range": 2.0, "ssim_window": 7, "noise_sd": 0.04,
    }  # fmt: skip
    assert protocol["store_sha256"] == store.fingerprint
    assert protocol["trained_on_evaluated"] is False
    assert "training subjects" in protocol["style_source"]
    assert "no bottleneck" in protocol["lookup"]
    assert (protocol["ms_ssim_scales"], protocol["segmenter_sha256"], protocol["truth_sha256"]) == (2, None, None)


def test_bits_of_own_and_translated(metrics):
    """Blocks of 8 voxels: 4 bits shared, 1 private, 16 for the style."""
    style, brain = 16 / (16 * 20 * 16), 16 * 20 * 16 / session_images(0)[1].sum()
    own, translated = 5 / 8 + style, 4 / 8 + style
    expected = {
        "own_per_voxel": own, "own_per_brain_voxel": own * brain, "translated_per_voxel": translated,
        "translated_per_brain_voxel": translated * brain,
    }  # fmt: skip
    assert metrics["bits"] == pytest.approx(expected)


def test_codebook_over_the_split(metrics):
    codebook = metrics["codebook"]
    seen = set()
    for subject in range(6, 10):
        views, _ = session_images(100 * subject)
        for name, view in enumerate(views):
            x = np.where(view <= -0.9, view, -view if name else view)
            blocks = x.reshape(8, 2, 10, 2, 8, 2).mean((1, 3, 5))
            seen |= set(np.clip(np.floor((blocks + 1) / 2 * 16), 0, 15).astype(int).ravel().tolist())
    assert codebook["utilisation"] == len(seen) / 16
    assert codebook["num_codes"] == 16
    assert codebook["perplexity"] == codebook["codebooks"]["anatomy"]["brain"]["perplexity"] > 5
    assert codebook["codebooks"]["anatomy"]["box"]["perplexity"] < codebook["perplexity"]  # background takes few codes
    assert codebook["codebooks"]["private"]["num_codes"] == 2


def test_panels_show_what_was_scored(folder, metrics):
    with safe_open(folder / "panels.safetensors", framework="numpy") as file:
        entries = json.loads(file.metadata()["entries"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    scores = [*metrics["reconstruction"].values(), *metrics["translation"].values()]
    means = {s: np.mean([task["psnr_db"]["values"][s] for task in scores]) for s in ("06", "07", "08", "09")}
    order = sorted(means, key=means.get)
    ranks = {e["subject"]: e["rank"] for e in entries}
    assert ranks == {"06": "", order[1]: "median", order[0]: "worst"}
    assert entries[0]["subject"] == "06"  # the first of the split, whatever the model
    assert {(e["from"], e["to"]) for e in entries} == {(a, b) for a in MODALITIES for b in MODALITIES}
    views, mask = session_images(600)
    for entry in (e for e in entries if e["subject"] == "06"):
        source, target = MODALITIES.index(entry["from"]), MODALITIES.index(entry["to"])
        np.testing.assert_allclose(tensors[entry["source"]], views[source], atol=1e-3)
        np.testing.assert_array_equal(tensors[entry["mask"]], mask)
        assert ("truth" in entry) == (source != target)
        error = (tensors[entry["output"]].astype(np.float64) - views[target])[mask]
        assert entry["note"] == f"{10 * np.log10(4 / (error**2).mean()):.1f} dB in the brain"


def test_report_finds_every_measure(metrics):
    from neurotome.report.audit import read_audit

    found = read_audit(metrics, 2)
    assert found.measured
    assert found.style is not None


def test_aligned_and_opposed_codes_are_distinguished(store, metrics):
    opposed = evaluate(ToyScans(BlockTokenizer(aligned=False)), store)["audit"]
    aligned = metrics["audit"]
    assert aligned["code_gap"]["mean"] < 0.01
    assert opposed["code_gap"]["mean"] > 1.5
    assert aligned["agreement"]["agreement"]["mean"] > 0.9 > 0.2 > opposed["agreement"]["agreement"]["mean"]
    assert aligned["agreement"]["agreement"]["mean"] > aligned["agreement"]["chance"] + 0.5
    assert aligned["agreement"]["self_agreement"] == pytest.approx(0.9, abs=0.05)
    assert aligned["probes"]["token_vector"] == pytest.approx(0.5, abs=0.05)
    assert aligned["probes"]["token_onehot"] == pytest.approx(0.5, abs=0.05)


def test_the_audit_is_of_what_all_contrasts_share(metrics, store):
    """The model of ``metrics`` has a private code beside the same shared one."""
    shared = evaluate(ToyScans(BlockTokenizer()), store)["audit"]
    assert metrics["audit"]["code_gap"] == shared["code_gap"]
    assert metrics["audit"]["probes"]["token_vector"] == shared["probes"]["token_vector"]


def test_is_a_function_of_its_seed(store):
    first, again, other = (
        evaluate(ToyScans(BlockTokenizer()), store, seed=seed) | {"speed": 0, "memory": 0} for seed in (0, 0, 1)
    )
    assert first == again
    assert first["reconstruction"]["T1w"]["psnr_db"]["mean"] == other["reconstruction"]["T1w"]["psnr_db"]["mean"]
    assert first["audit"] != other["audit"]


def test_subjects_of_the_training_are_refused(store):
    scans = ToyScans(BlockTokenizer(), trained=("06", "09"))
    with pytest.raises(InputError, match=r"2 of 4 subjects .* 06, 09.*--allow-train") as error:
        evaluate(scans, store)
    assert error.value.exit_code == 3
    assert evaluate(scans, store, allow_train=True)["protocol"]["trained_on_evaluated"] is True


@pytest.mark.parametrize(("trained", "complete", "said"), [(("00",), False, None), (("06",), False, True)])
def test_a_subject_may_have_been_seen_where_not_all_are_known(store, trained, complete, said):
    scans = ToyScans(BlockTokenizer(), trained=trained)
    scans.training_subjects = TrainingSubjects("s", frozenset("h"), complete=complete)
    entries = store.split("test")
    assert seen_at_all(scans, entries) is said
    if said is None:
        assert evaluate(scans, store)["protocol"]["trained_on_evaluated"] is None


def test_truth_of_a_translation_is_not_read(tmp_path):
    """The same source and codes give the same translation, whatever the target's scan looks like."""
    outputs = []
    for i, noise in enumerate((0.02, 0.3)):
        store = toy_store(tmp_path / str(i), (2, 0, 1), noise=noise)
        entry = store.split("test")[0]
        store.load(entry).image[0] = session_images(200, noise=0.02)[0][0]  # a private copy of the mapped page
        evaluate(ToyScans(BlockTokenizer()), store, out=tmp_path / f"out{i}")
        with safe_open(tmp_path / f"out{i}" / "panels.safetensors", framework="numpy") as file:
            outputs.append((file.get_tensor("0/T1w->T2w"), file.get_tensor("0/T2w->T2w")))
    np.testing.assert_array_equal(outputs[0][0], outputs[1][0])
    assert (outputs[0][1] != outputs[1][1]).any()


def test_missing_views_and_several_visits(tmp_path):
    store = toy_store(tmp_path / "store", (4, 0, 3), missing=("01", "05"), visits=2)
    metrics = evaluate(ToyScans(BlockTokenizer()), store)
    assert metrics["protocol"]["subjects"] == 3
    assert metrics["protocol"]["sessions"] == 6
    assert metrics["reconstruction"]["T1w"]["psnr_db"]["n"] == 3
    assert metrics["reconstruction"]["T2w"]["psnr_db"]["n"] == 2
    assert set(metrics["translation"]["T1w->T2w"]["psnr_db"]["values"]) == {"04", "06"}
    assert metrics["audit"]["code_gap"]["n"] == 2


def test_other_tokenizers(store):
    """No codes, no style, no known size of the codebook: what is not known is null or absent, the rest stands."""

    class Continuous(BlockTokenizer):
        def encode(self, image, modality):
            return replace(super().encode(image, modality), codes={}, style=None)

        def decode(self, encoded, modality):
            return super().decode(replace(encoded, style=torch.zeros(len(modality), 1)), modality)

    metrics = evaluate(ToyScans(Continuous(), styled=False), store)
    assert metrics["codebook"] == {}
    assert metrics["translation"] == {}
    assert set(metrics["not_applicable"]) == {"translation", "split", "codebook"}
    assert metrics["audit"]["code_gap"]["n"] == 4
    assert set(metrics["audit"]["probes"]) == {"token_vector", "pooled_mean", "chance", "samples"}
    assert "agreement" not in metrics["audit"]
    assert set(metrics["factors"]["site"]["T1w"]) == {"anatomy", "chance", "n"}
    assert "Continuous has no style" in metrics["not_applicable"]["translation"]
    assert set(metrics["bits"]) == {"own_per_voxel", "own_per_brain_voxel"}
    assert metrics["reconstruction"]["T1w"]["psnr_db"]["n"] == 4
    network = BlockTokenizer(private=True)
    network.codebook_sizes = {}
    unsized = evaluate(ToyScans(network), store)
    assert unsized["codebook"]["utilisation"] is unsized["codebook"]["num_codes"] is None
    assert unsized["codebook"]["perplexity"] > 5


def test_one_contrast_alone(store):
    metrics = evaluate(ToyScans(BlockTokenizer(modalities=("T1w",))), store)
    assert metrics["translation"] == {}
    assert metrics["audit"]["probes"] == {}
    assert list(metrics["reconstruction"]) == ["T1w"]


def test_progress_and_known_factors(store):
    seen = []
    truth = {f"{i:02d}": {"age": 40.0 + i} for i in range(10)}
    metrics = evaluate(ToyScans(BlockTokenizer()), store, truth=truth, progress=lambda *line: seen.append(line))
    assert seen == [(i + 1, 10, f"sub-{i:02d}") for i in range(10)]
    assert set(metrics["factors"]) == {"site", "age"}
    assert set(metrics["factors"]["age"]["T1w"]) == {"n", "anatomy_r2", "style_r2"}
    assert metrics["factors"]["site"]["T2w"]["chance"] == 0.5


def test_refusals(store, tmp_path):
    with pytest.raises(UsageError, match="admissible are train, val and test"):
        evaluate(ToyScans(BlockTokenizer()), store, split="dev")
    with pytest.raises(UsageError, match="no session in its val split"):
        evaluate(ToyScans(BlockTokenizer()), store, split="val")
    with pytest.raises(UsageError, match="share no contrast"):
        evaluate(ToyScans(BlockTokenizer(modalities=("FLAIR",))), store)
    scans = ToyScans(BlockTokenizer())
    del scans.styles["T2w", "all"]
    with pytest.raises(InputError, match="no mean style for T2w"):
        evaluate(scans, store)
    with pytest.raises(InputError, match="no training mean"):
        evaluate(ToyScans(BlockTokenizer(), styled=False), store)
    odd = toy_store(tmp_path / "odd", (1, 0, 1), shape=(15, 16, 16))
    with pytest.raises(InputError, match="multiple of"):
        evaluate(ToyScans(BlockTokenizer(), shape=(15, 16, 16)), odd)
    with pytest.raises(InputError, match="prepared differently"):
        evaluate(ToyScans(BlockTokenizer()), odd)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        evaluate(ToyScans(BlockTokenizer()), store, out=tmp_path / "file")


class Painted(BlockTokenizer):
    """Fills the brain with its style, so that an output says which style it was decoded with."""

    def decode(self, encoded, modality):
        blocks = super().decode(encoded, modality)
        style = encoded.style[:, 0].view(-1, 1, 1, 1, 1)
        return torch.where(blocks <= -0.9, blocks, style.expand_as(blocks))


def test_a_translation_has_the_mean_style_of_the_target_over_training_subjects(store, tmp_path):
    """Neither the source's style nor that of the very scan it is compared with."""
    scans = ToyScans(Painted())
    scans.styles = {("T1w", "all"): torch.tensor([0.3]), ("T2w", "all"): torch.tensor([-0.6])}
    evaluate(scans, store, out=tmp_path)
    views, mask = session_images(600)
    inside = mask & (views[0] > -0.5) & (views[1] > -0.5)
    with safe_open(tmp_path / "panels.safetensors", framework="numpy") as file:
        for source, target, style in (("T1w", "T2w", -0.6), ("T2w", "T1w", 0.3)):
            output = file.get_tensor(f"0/{source}->{target}")[inside]
            values, counts = np.unique(output, return_counts=True)
            assert values[counts.argmax()] == pytest.approx(style, abs=1e-3)
            assert counts.max() > 0.7 * output.size
        for name, view in zip(MODALITIES, views, strict=True):  # a reconstruction has the scan's own
            output = file.get_tensor(f"0/{name}->{name}")[inside]
            values, counts = np.unique(output, return_counts=True)
            assert values[counts.argmax()] == pytest.approx(view.mean(), abs=1e-3)
