"""A tokenizer without codes, style and translation, from config to report: what it lacks is said, not failed on."""

import json
from pathlib import Path

import pytest

from neurotome.cli.main import main
from tests.toy import names

pytestmark = pytest.mark.usefixtures("toys")

CONFIG = """# A plain VAE with an adversary.
method:
  class_path: TokenizerTraining
  init_args:
    tokenizer: {{class_path: PlainVAE, init_args: {{latent_channels: 2, pooled: {pooled}}}}}
    term_weights: {{kl: 1.0e-4}}
    adversarial: {{weight: 0.01, start: 2, lead: 1, channels: 4, norm_groups: 4, adaptive: true}}
    perceptual: {{weight: 0.01, slices: 0.1}}
    spike_guard: {{warmup: 3, window: 10}}
    augmentation: {{mixup_prob: 0.2, cutmix_prob: 0.2, halvings: 1}}
    window_steps: 4
data: {{batch_sessions: 2, crop: 16, whole_fraction: 0.2, slice_prob: 0.2}}
trainer: {{max_steps: 8, val_every_steps: 4, checkpoint_every_steps: 4, log_every_steps: 2, ema_decay: 0.9}}
optimizer: {{lr: 1e-2}}
seed: 3
"""


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.mark.parametrize("pooled", ["false", "true"])
def test_a_plain_vae_from_config_to_report(tmp_path: Path, toy_store: Path, toy_raw: Path, pooled: str) -> None:
    config, out = tmp_path / "vae.yaml", tmp_path / "run"
    config.write_text(CONFIG.format(pooled=pooled))
    assert run("train", config, toy_store, "--out", out, "--device", "cpu", "--quiet") == 0
    assert {"worst_batch.safetensors", "model", "metrics.jsonl"} <= set(names(out))
    card = (out / "model" / "README.md").read_text()
    assert "cannot translate" in card
    assert "Perceptual features, SHA-256: " in card
    stats = json.loads((out / "model" / "latent_stats.json").read_text())
    assert (len(stats["mean"]), stats["volumes"]) == (2, 8)
    assert stats["cells"] == (8 if pooled == "true" else 8 * 10 * 12 * 10)

    assert run("evaluate", out / "model", toy_store, "--out", tmp_path / "eval", "--quiet") == 0
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["reconstruction"]["T2w"]["psnr_db"]["mean"] > 5
    assert metrics["translation"] == metrics["codebook"] == {}
    assert set(metrics["not_applicable"]) == {"translation", "split", "codebook"}
    assert metrics["audit"]["probes"]["samples"]["pooled_mean"] == {"train": 8, "test": 2}
    tokens = metrics["audit"]["probes"]["samples"]["token_vector"]["test"]
    assert tokens == 2 if pooled == "true" else tokens > 100

    (out / "metrics.json").write_text(json.dumps(metrics))
    assert run("report", out) == 0
    page = (out / "report.html").read_text()
    assert page.count("Not applicable") >= 4  # headline, translation, codebook, split
    assert "PlainVAE has no style apart from the anatomy" in page
    assert "The training batch with the highest loss" in page
    assert "Not fully measured" not in page

    scan = toy_raw / "sub-00" / "anat" / "sub-00_T1w.nii.gz"
    assert run("reconstruct", out / "model", scan, tmp_path / "back.nii.gz") == 0
    assert run("encode", out / "model", scan, tmp_path / "z.safetensors") == 0
    assert run("decode", out / "model", tmp_path / "z.safetensors", tmp_path / "again.nii.gz") == 0
    assert run("translate", out / "model", scan, tmp_path / "t2.nii.gz", "--to", "T2w") == 2
    assert run("decode", out / "model", tmp_path / "z.safetensors", tmp_path / "t2.nii.gz", "--modality", "T2w") == 2
    assert not (tmp_path / "t2.nii.gz").exists()
