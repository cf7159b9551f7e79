"""What a model folder states of its training: statistics over the training subjects, and the card."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from neurotome.data.stores.store import Store
from neurotome.data.stores.volumes import Volumes
from neurotome.errors import UsageError
from neurotome.scans.export import export, training_statistics
from neurotome.tasks import SegResNet
from neurotome.training.base import Frozen
from tests import toy
from tests.toy import ToyTokenizer

pytestmark = pytest.mark.usefixtures("toys")


def test_statistics_equal_a_brute_force_count(toy_store: Path) -> None:
    store, network = Store.open(toy_store), ToyTokenizer()
    reader = Volumes().open(toy_store)
    found, intensity = training_statistics(network.eval(), reader).to_json(), reader.intensity("train")
    latents, ranges = [], []
    for entry in store.split("train"):
        session = store.load(entry)
        for i, name in enumerate(store.modalities):
            image = torch.from_numpy(np.array(session.image[i : i + 1]))
            encoded = network.encode(image, torch.tensor([network.modality_id(name)]))
            latents.append(encoded.latent[0].flatten(1).detach().numpy())
            ranges.append((name, session.records[name].low))
    cells = np.concatenate(latents, axis=1).astype(np.float64)
    assert np.allclose(found["mean"], cells.mean(axis=1))
    assert np.allclose(found["std"], cells.std(axis=1))
    assert found["cells"] == cells.shape[1]
    assert intensity["T2w"]["low"] == pytest.approx(np.mean([low for name, low in ranges if name == "T2w"]))
    assert intensity["T2w"]["low"] == pytest.approx(3 * intensity["T1w"]["low"], rel=1e-3)
    assert intensity["T2w"]["n"] == len(store.split("train"))


def test_styles_are_moments_per_contrast_and_site(toy_store: Path) -> None:
    store, network = Store.open(toy_store), ToyTokenizer().eval()
    means, covariances = training_statistics(network, Volumes().open(toy_store)).style_moments()
    vectors: dict = {}
    for entry in store.split("train"):
        session = store.load(entry)
        vectors.setdefault(entry.site, []).append([float(np.mean(session.image[1])), 1.0])
    pooled = np.array([v for group in vectors.values() for v in group])
    assert np.allclose(means["T2w", "all"], pooled.mean(axis=0), atol=5e-4)
    assert np.allclose(covariances["T2w", "all"], np.cov(pooled.T), atol=1e-5)
    for site, group in vectors.items():
        assert np.allclose(means["T2w", site], np.mean(group, axis=0), atol=5e-4)
    assert {s for m, s in means if m == "T1w"} == {"all", *vectors}


def test_only_training_subjects_are_looked_at(toy_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, seen, load = Volumes().open(toy_store), [], Store.load
    monkeypatch.setattr(Store, "load", lambda self, entry: seen.append(entry.subject) or load(self, entry))
    training_statistics(ToyTokenizer().eval(), reader)
    assert sorted(seen) == sorted(reader.subjects("train"))
    reader.intensity("train")
    assert sorted(seen) == sorted(2 * reader.subjects("train"))


def test_the_folder_states_preparation_subjects_and_limits(tmp_path: Path, toy_store: Path) -> None:
    reader, network = Volumes().open(toy_store), ToyTokenizer().train()
    lines: list = []
    export(
        network,
        reader,
        tmp_path / "model",
        facts={"Config": "toy", "Steps": 4},
        frozen={"teacher": Frozen(None, "d" * 64)},
        progress=lambda *line: lines.append(line),
    )
    assert network.training
    sessions = reader.sessions("train", network.modalities)
    assert lines == [
        (number + 1, len(sessions), f"sub-{sessions[number].subject[0]}") for number in range(len(sessions))
    ]
    content = toy.read(tmp_path / "model")
    assert content.preparation == reader.preparation
    assert content.frozen == {"teacher": "d" * 64}
    assert content.stats["intensity"] == reader.intensity("train")
    assert len(content.training_subjects.subjects) == len(reader.subjects("train"))
    assert "- Steps: 4" in content.card
    volumes = json.loads((tmp_path / "model" / "latent_stats.json").read_text())["volumes"]
    assert f"per channel, over {volumes} training volumes; these are few" in content.card
    line = re.search(r"- Bits: ([\d.]+) per voxel of the grid, ([\d.]+) per brain voxel, mean over", content.card)
    assert 0 < float(line[1]) < float(line[2])
    assert "not for clinical use" in content.card
    assert not any(s in content.card for s in (str(tmp_path), "sub-"))
    assert set(load_file(tmp_path / "model" / "styles.safetensors")) == {
        f"{m}/{s}/{what}" for m in ("T1w", "T2w") for s in ("all", "site0", "site1") for what in ("mean", "covariance")
    }


def test_a_store_without_training_subjects_is_refused(
    tmp_path: Path, toy_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Volumes().open(toy_store)
    monkeypatch.setattr(reader.store, "split", lambda name: [])
    with pytest.raises(UsageError, match="no training session"):
        export(ToyTokenizer(), reader, tmp_path / "model", facts={})


def test_a_segmenter_has_no_statistics_and_is_not_run_over_the_store(
    tmp_path: Path, toy_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "load", lambda self, entry: pytest.fail("a session was read"))
    groups = {"structures": ("bright",), "label_ids": ((1,),)}
    toy.exported(SegResNet(channels=8, blocks_down=(1, 1), blocks_up=(1,), **groups), toy_store, tmp_path / "model")
    content = toy.read(tmp_path / "model")
    assert (content.stats, content.styles) == ({}, {})
    assert content.capabilities["family"] == "segmenter"
    assert "Latent statistics" not in content.card
