import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from neurotome.cli.main import main
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.build import prepare
from neurotome.data.stores.store import Store
from tests import toy
from tests.cli.toy_training import train
from tests.toy import ToyTokenizer, names

pytestmark = pytest.mark.usefixtures("toys")


def test_a_run_from_start_to_model_folder(
    tmp_path: Path, config: str, toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(config, toy_store, run, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["step"], summary["already_finished"]) == (4, False)
    assert {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "status.json",
        "checkpoints",
        "model",
        "data.json",
    } <= set(names(run))
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 4
    model = toy.read(run / "model")
    assert len(model.training_subjects.subjects) == len(Store.open(toy_store).subjects("train"))
    assert "- Steps: 4" in model.card
    counts = json.loads((run / "data.json").read_text())["splits"]
    assert sum(part["subjects"] for part in counts.values()) == 6
    assert counts["train"]["modalities"]["T2w"] == counts["train"]["sessions"]

    before = {p: p.stat().st_mtime_ns for p in (run / "model").iterdir()}
    assert train(config, toy_store, run) == 0
    assert "already finished" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in (run / "model").iterdir()} == before


def test_the_averaged_weights_are_exported_and_a_lost_model_folder_comes_back(
    tmp_path: Path, config: str, toy_store: Path
) -> None:
    run = tmp_path / "run"
    assert train(config, toy_store, run, "--quiet") == 0
    averaged = {f.name: f.read_bytes() for f in (run / "model").iterdir()}
    shutil.rmtree(run / "model")
    assert train(config, toy_store, run, "--quiet") == 0
    assert {f.name: f.read_bytes() for f in (run / "model").iterdir()} == averaged
    assert train(config, toy_store, tmp_path / "last", "--quiet", "--trainer.ema_decay", "null") == 0
    mean, last = (toy.read(r / "model").network.weight for r in (run, tmp_path / "last"))
    assert not torch.equal(mean, last)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path, config: str, toy_store: Path) -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert train(config, toy_store, tmp_path / name, "--quiet", "--seed", seed) == 0
    a, b, c = ((tmp_path / n / "model" / "model.safetensors").read_bytes() for n in "abc")
    assert a == b
    assert a != c


def test_another_config_does_not_continue_a_run(
    tmp_path: Path, config: str, toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config, toy_store, tmp_path / "run", "--quiet") == 0
    capsys.readouterr()
    assert train(config, toy_store, tmp_path / "run", "--optimizer.lr", "0.5") == 2
    assert "optimizer.lr" in capsys.readouterr().err
    assert train(config, toy_store, tmp_path / "run", "--optimizer.lr", "0.5", "--overwrite", "--quiet") == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["optimizer"]["lr"] == 0.5


def test_a_dry_run_writes_nothing(
    tmp_path: Path, config: str, toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config, toy_store, tmp_path / "run", "--dry-run", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 4
    assert facts["config"]["method"]["init_args"]["tokenizer"]["init_args"]["modalities"] == ["T1w", "T2w"]
    assert facts["training_sessions"] == len(Store.open(toy_store).split("train"))
    assert names(tmp_path) == ["toy.yaml"]


def test_training_starts_from_a_model(tmp_path: Path, config: str, toy_store: Path) -> None:
    assert train(config, toy_store, tmp_path / "a", "--quiet") == 0
    start = [
        "--init-from",
        str(tmp_path / "a" / "model"),
        "--quiet",
        "--optimizer.lr",
        "1e-12",
        "--trainer.max_steps",
        "1",
    ]
    assert train(config, toy_store, tmp_path / "b", *start) == 0
    a, b = (toy.read(tmp_path / n / "model").network.weight for n in "ab")
    assert torch.allclose(a, b, atol=1e-6)
    assert not torch.equal(a, ToyTokenizer().weight)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--init-from", "MODEL", "--method.tokenizer.width", "5"], "weight"),
        (["--init-from", "MODEL", "--method.tokenizer.modalities", "[T2w, T1w]"], "knows T1w, T2w, the run T2w, T1w"),
        (["--init-from", "nowhere"], "no such model folder"),
        (["--data.crop", "64"], "larger than the prepared grid"),
        (["--data.crop", "[4, 4, 64]"], "larger than the prepared grid"),
        (["--data.batch_sessions", "0"], "batch_sessions"),
        (["--optimizer.lr", "-1"], "optimizer.lr is -1"),
        (["--trainer.max_steps", "0"], "max_steps"),
        (["--method.tokenizer.modalities", "[T1w]"], "the store holds T1w, T2w"),
        (["--device", "cuda"], "--device cuda: this machine has none"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    tmp_path: Path,
    config: str,
    toy_store: Path,
    toy_model: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    text: str,
) -> None:
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("this machine has an accelerator")
    flags = [str(toy_model) if f == "MODEL" else f for f in flags]
    assert train(config, toy_store, tmp_path / "run", *flags) == 2
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


VAE = """
method:
  class_path: TokenizerTraining
  init_args:
    tokenizer:
      class_path: VQVAE
      init_args:
        channels: [4]
        num_res_blocks: 1
        quantizer: {class_path: EMAQuantizer, init_args: {num_codes: 8, dim: 4, reservoir: 64}}
data: {batch_sessions: 2, crop: 8, whole_fraction: 0.0}
trainer: {max_steps: 2, val_every_steps: 2}
"""


@pytest.fixture
def vae(tmp_path: Path) -> str:
    """A small discrete tokenizer, whose codebook starts after the first step."""
    path = tmp_path / "vae.yaml"
    path.write_text(VAE)
    return str(path)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--method.tokenizer.in_channels", "3"], "in_channels is 3, but the images of a store have 1 channel"),
        (["--data.crop", "7"], 'the next admissible is --data.crop "[8, 8, 8]"'),
        (["--data.crop", "[8, 9, 1]"], 'the next admissible is --data.crop "[8, 10, 1]"'),
        (["--data.class_path", "Masks"], "TokenizerTraining is trained on voxels, the data block gives masks"),
        (["--data.class_path", "Masks", "--method.segmentation", "{}"], "sessions of the store have none"),
        (["--method.segmentation", "{}"], "is trained on masks, the data block gives voxels"),
        (["--method.augmentation.mixup_prob", "0.2", "--data.batch_sessions", "1"], "give --data.batch_sessions 2"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_images_that_the_tokenizer_cannot_take_are_named_before_anything_is_written(
    tmp_path: Path,
    vae: str,
    toy_store: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    text: str,
    dry: bool,
) -> None:
    assert train(vae, toy_store, tmp_path / "run", *flags, *(["--dry-run"] if dry else [])) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_store_is_not_taken_for_latents(tmp_path: Path, vae: str, toy_store: Path, capsys) -> None:
    assert train(vae, toy_store, tmp_path / "run", "--data", "{class_path: LatentVolumes}") == 2
    capsys.readouterr()
    path = tmp_path / "latents.yaml"
    plain = "data: {batch_sessions: 2, crop: 8, whole_fraction: 0.0}"
    path.write_text(Path(vae).read_text().replace(plain, "data: {class_path: LatentVolumes}"))
    assert train(str(path), toy_store, tmp_path / "run") == 2
    assert "encode MODEL STORE OUT --shards" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_term_without_a_weight_is_named_before_anything_is_written(
    tmp_path: Path, vae: str, toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signs = ["--method.tokenizer.quantizer", "{class_path: LookupFreeQuantizer, init_args: {num_codes: 8, dim: 4}}"]
    assert train(vae, toy_store, tmp_path / "run", *signs, "--quiet") == 0  # its entropy has a default weight
    bare = ["--method.term_weights", "{commitment: 0.25}"]
    for flags in ([], ["--dry-run"]):
        assert train(vae, toy_store, tmp_path / "other", *signs, *bare, *flags) == 2
        err = capsys.readouterr().err
        assert "has the terms entropy" in err
    assert not (tmp_path / "other").exists()
    remedy = err.strip().rsplit(": ", 1)[1].split()
    assert remedy == ["--method.term_weights.entropy", "0.1"]
    assert train(vae, toy_store, tmp_path / "other", *signs, *bare, *remedy, "--quiet") == 0


def test_a_codebook_that_has_not_started_is_said_everywhere_and_used_nowhere(
    tmp_path: Path, vae: str, toy_store: Path, toy_raw: Path, capsys: pytest.CaptureFixture[str], caplog
) -> None:
    run, late = tmp_path / "run", ["--method.tokenizer.quantizer.reservoir", "4000", "--trainer.max_steps", "13"]
    waits = "a codebook starts after 0 of them (start_after) and once it has collected 4000 latent cells"
    for _ in range(2):  # also where the finished run is asked for again
        caplog.clear()
        assert train(vae, toy_store, run, *late, "--json") == 0
        assert json.loads(capsys.readouterr().out)["unready"] != ""
        assert waits in caplog.text
        status = json.loads((run / "status.json").read_text())
        assert (status["state"], status["step"]) == ("finished", 13)
        assert waits in status["message"]
    assert waits in json.loads((run / "model" / "config.json").read_text())["unready"]
    assert "NOT READY" in (run / "model" / "README.md").read_text()
    scan, model = toy_raw / "sub-00" / "anat" / "sub-00_T1w.nii.gz", str(run / "model")
    out = str(tmp_path / "out")
    for words in (
        ["reconstruct", model, str(scan), f"{out}.nii.gz"],
        ["encode", model, str(scan), f"{out}.safetensors"],
        ["encode", model, str(toy_store), out, "--shards"],
        ["evaluate", model, str(toy_store), "--out", out],
    ):
        assert main([*words, "--device", "cpu"]) == 3
        assert waits in capsys.readouterr().err
    assert names(tmp_path) == ["run", "vae.yaml"]
    assert train(vae, toy_store, tmp_path / "more", "--init-from", model) == 3
    assert waits in capsys.readouterr().err
    assert train(vae, toy_store, run, *late, "--extend-to", "30", "--json") == 0
    assert json.loads(capsys.readouterr().out)["unready"] == ""
    assert "unready" not in json.loads((run / "model" / "config.json").read_text())
    words = ["reconstruct", model, str(scan), f"{out}.nii.gz"]
    assert main([*words, "--device", "cpu", "--quiet"]) == 0


@pytest.mark.parametrize("name", ["identity", "space-to-depth", "haar-wavelet"])
def test_a_method_without_parameters_is_exported_without_a_step(
    tmp_path: Path, toy_store: Path, toy_raw: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = tmp_path / "run"
    assert train(name, toy_store, run, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["step"], summary["already_finished"]) == (0, False)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 0)
    assert not (run / "checkpoints").exists()
    model = toy.read(run / "model")
    assert len(model.stats["mean"]) == model.network.latent_channels
    assert model.stats["volumes"] == 2 * len(Store.open(toy_store).split("train"))
    assert "- Steps: 0" in model.card
    scan = toy_raw / "sub-00" / "anat" / "sub-00_T1w.nii.gz"
    assert main(["reconstruct", str(run / "model"), str(scan), str(tmp_path / "o.nii.gz"), "--device", "cpu"]) == 0
    before = (run / "model" / "config.json").stat().st_mtime_ns
    capsys.readouterr()
    assert train(name, toy_store, run, "--json") == 0
    assert json.loads(capsys.readouterr().out)["already_finished"] is True
    assert (run / "model" / "config.json").stat().st_mtime_ns == before
    assert train(name, toy_store, run, "--seed", "9") == 2  # another configuration, as everywhere
    other = tmp_path / "other"
    prepare(toy_raw, other, preparation=Preparation(4.0, (16, 16, 16)), modalities=["T1w", "T2w"], seed=0)
    assert train(name, other, run) == 2
    assert "made from other data" in capsys.readouterr().err
    assert (run / "model" / "config.json").stat().st_mtime_ns == before


def test_a_call_that_cannot_work_costs_no_run(tmp_path: Path, vae: str, toy_store: Path) -> None:
    run = tmp_path / "run"
    assert train(vae, toy_store, run, "--quiet") == 0
    weights = (run / "model" / "model.safetensors").read_bytes()
    assert train(vae, toy_store, run, "--overwrite", "--data.crop", "7") == 2
    assert (run / "model" / "model.safetensors").read_bytes() == weights
    assert train(vae, toy_store, run, "--overwrite", "--quiet", "--seed", "5") == 0
    assert (run / "model" / "model.safetensors").read_bytes() != weights


def test_folders_that_are_no_run_are_left_alone(
    tmp_path: Path, config: str, toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    for flags in ([], ["--overwrite"]):
        assert train(config, toy_store, tmp_path / "full", *flags) == 2
        assert "holds no run" in capsys.readouterr().err
    assert names(tmp_path / "full") == ["thesis.txt"]
    assert train(config, toy_store, tmp_path / "full" / "thesis.txt") == 2
    assert train(config, tmp_path / "no-store", tmp_path / "run") == 2
    assert "no such store" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert train(config, tmp_path / "empty", tmp_path / "run") in (2, 3)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_while_exporting_leaves_no_model_and_the_next_call_finishes(
    tmp_path: Path, config: str, toy_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from neurotome.files import atomic

    real = os.fsync

    def full(handle: int) -> None:
        if "model" in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(28, "No space left on device", "model")
        real(handle)

    monkeypatch.setattr(atomic.os, "fsync", full)
    assert train(config, toy_store, tmp_path / "run", "--quiet") == 1
    assert "No space left" in capsys.readouterr().err
    monkeypatch.setattr(atomic.os, "fsync", real)
    assert not (tmp_path / "run" / "model").exists()
    assert train(config, toy_store, tmp_path / "run", "--quiet") == 0
    assert toy.read(tmp_path / "run" / "model").network.latent_channels == 3


def test_a_store_without_bounds_is_refused(tmp_path: Path, config: str, toy_raw: Path, capsys) -> None:
    from neurotome.data.preparation.preparation import Preparation
    from neurotome.data.stores.build import prepare

    free = Preparation(3.0, (20, 24, 20), intensity="zscore")
    prepare(toy_raw, tmp_path / "store", preparation=free, modalities=["T1w", "T2w"])
    assert train(config, tmp_path / "store", tmp_path / "run") == 2
    assert "--clip 5" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
