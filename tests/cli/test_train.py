import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from toy import CONFIG, ToyTokenizer, names

from neurotome.apply.model_folder import read_model_folder
from neurotome.cli.main import main
from neurotome.data.store import Store

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "toy.yaml"
    path.write_text(CONFIG)
    return str(path)


def train(config: str, store: Path, out: Path, *flags: str) -> int:
    return main(["train", config, str(store), "--out", str(out), "--device", "cpu", *flags])


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
    model = read_model_folder(run / "model")
    assert len(model.training_subjects[1]) == len(Store.open(toy_store).subjects("train"))
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
    mean, last = (read_model_folder(r / "model").network.weight for r in (run, tmp_path / "last"))
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
    a, b = (read_model_folder(tmp_path / n / "model").network.weight for n in "ab")
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
    from neurotome.apply import model_folder

    real = os.fsync

    def full(handle: int) -> None:
        if "model" in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(28, "No space left on device", "model")
        real(handle)

    monkeypatch.setattr(model_folder.os, "fsync", full)
    assert train(config, toy_store, tmp_path / "run", "--quiet") == 1
    assert "the disk is full" in capsys.readouterr().err
    monkeypatch.setattr(model_folder.os, "fsync", real)
    assert not (tmp_path / "run" / "model").exists()
    assert train(config, toy_store, tmp_path / "run", "--quiet") == 0
    assert read_model_folder(tmp_path / "run" / "model").network.latent_channels == 3


def test_a_store_without_bounds_is_refused(tmp_path: Path, config: str, toy_raw: Path, capsys) -> None:
    from neurotome.data.prepare import prepare
    from neurotome.data.transforms import Preparation

    free = Preparation(3.0, (20, 24, 20), intensity="zscore")
    prepare(toy_raw, tmp_path / "store", preparation=free, modalities=["T1w", "T2w"])
    assert train(config, tmp_path / "store", tmp_path / "run") == 2
    assert "--clip 5" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
