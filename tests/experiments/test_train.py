"""Training and evaluation from Python, on every kind of data a config may name."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import neurotome
from neurotome.cli.main import main
from neurotome.errors import UsageError
from neurotome.nn.exported import Exportable
from neurotome.training.base import Frozen, Method, Needs
from neurotome.types import Batch
from tests import toy

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(toy.CONFIG)
    return path


def test_python_and_the_command_line_train_the_same_weights(tmp_path: Path, config: Path, toy_store: Path) -> None:
    changes = {"optimizer.lr": 0.02, "data.crop": [8, 8, 8], "method.tokenizer.width": 2}
    done = neurotome.train(config, toy_store, tmp_path / "a", overrides=changes, seed=5, device="cpu")
    assert (done.step, done.already_finished, done.unready) == (4, False, "")
    words = ["--optimizer.lr", "0.02", "--data.crop", "[8, 8, 8]", "--method.tokenizer.width", "2", "--seed", "5"]
    assert main(["train", str(config), str(toy_store), "--out", str(tmp_path / "b"), "--quiet", *words]) == 0
    first, second = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "ab")
    assert first == second
    assert neurotome.train(config, toy_store, tmp_path / "a", overrides=changes, seed=5, device="cpu").already_finished
    metrics = neurotome.evaluate(done.model, toy_store, device="cpu")
    assert metrics["protocol"]["split"] == "test"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"overrides": {"trainer.max_step": 3}}, "did you mean max_steps"),
        ({"overrides": {"data.crop": 64}}, "larger than the prepared grid"),
        ({"device": "tpu"}, "this machine has none"),
        ({"init_from": "nowhere"}, "no such model folder"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": True}, "seed"),
        ({"precision": "fp16"}, "give fp32 or bf16"),
        ({"overrides": [("optimizer.lr", 1)]}, "give a mapping"),
        ({"overrides": {3: 1}}, "key 3 is not text"),
        ({"overrides": {"optimizer.lr": float("nan")}}, "no value of a config"),
        ({"overrides": {"data.crop": {1, 2}}}, "no value of a config"),
        ({"overrides": {"method.tokenizer.modalities": ["T1w", "\U0001f600"]}}, "modalities"),
        ({"overrides": {"data.batch_sessions": 10**30}}, r"batch_sessions is 10+; give a number in \[1, 4096\]"),
        ({"overrides": {"trainer.max_steps": 10**30}}, "max_steps"),
        ({"overrides": {"optimizer": []}}, "optimizer: give a block"),
        ({"overrides": {"trainer.max_steps": 20}, "extend_to": 10}, "extend-to 10 and trainer.max_steps 20 contradict"),
        ({"overrides": {"trainer": {"max_steps": 20}}, "extend_to": 10}, "trainer.max_steps 20 contradict"),
        ({"overrides": {"trainer.max_steps": "many"}, "extend_to": 10}, "trainer.max_steps many contradict"),
        ({"overrides": {"trainer.max_steps": 4}, "extend_to": 10}, "holds no run to extend"),
        ({"overrides": {"trainer.max_steps": 10}, "extend_to": 10}, "holds no run to extend"),
        ({"overrides": {"seed": 3}, "seed": 4}, "seed 4 and seed 3 contradict"),
        (
            {"overrides": {"trainer.precision": "32-true"}, "precision": "bf16"},
            "--precision bf16-mixed and trainer.prec",
        ),
        ({"workers": -1}, "workers is -1"),
        ({"threads": "2"}, "threads is '2'"),
        ({"data": None}, "data is None"),
        ({"out": "a\0b"}, "give a path"),
    ],
)
def test_python_users_get_the_same_checks(tmp_path: Path, config: Path, toy_store: Path, changes, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        neurotome.train(**{"config": config, "data": toy_store, "out": tmp_path / "run", "device": "cpu", **changes})
    assert not (tmp_path / "run").exists()


def test_values_of_other_libraries_are_values(tmp_path: Path, config: Path, toy_store: Path) -> None:
    changes = {"data.crop": np.int64(8), "optimizer.lr": np.float32(0.5), "method.tokenizer.width": torch.tensor(2)}
    done = neurotome.train(config, toy_store, tmp_path / "run", overrides=changes, device="cpu")
    assert "lr: 0.5" in (done.run / "config.yaml").read_text()


HOLDER = """
import sys, time
from pathlib import Path
from neurotome.training.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).alone():
    print("holds", flush=True)
    time.sleep(60)
"""


def test_a_run_that_another_process_trains_is_not_overwritten(tmp_path: Path, config: Path, toy_store: Path) -> None:
    run = neurotome.train(config, toy_store, tmp_path / "run", device="cpu").run
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "holds\n"
        with pytest.raises(UsageError, match="another process is training"):
            neurotome.train(config, toy_store, run, device="cpu", overwrite=True)
        holder.kill()
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    assert not neurotome.train(config, toy_store, run, device="cpu", overwrite=True).already_finished


def test_a_run_of_an_earlier_version_is_said_to_be_one(tmp_path: Path, config: Path, toy_store: Path) -> None:
    run = neurotome.train(config, toy_store, tmp_path / "run", device="cpu").run
    tree = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**tree, "data": tree["data"]["init_args"]}))
    with pytest.raises(UsageError, match="earlier version of neurotome, whose runs cannot be resumed"):
        neurotome.train(config, toy_store, run, device="cpu")


def test_a_method_without_parameters_refuses_other_data_before_it_writes(tmp_path: Path, toy_store: Path) -> None:
    run = neurotome.train("identity", toy_store, tmp_path / "run", device="cpu").run
    facts = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps({**facts, "fingerprint": "other"}))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match="was made from other data"):
        neurotome.train("identity", toy_store, run, device="cpu")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"precision": "fp16"}, "give fp32 or bf16"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"regions": "volumes.tsv"}, "give a list of both"),
        ({"out": ""}, "give a path"),
    ],
)
def test_an_evaluation_refuses_what_it_cannot_take(toy_model: Path, toy_store: Path, changes, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        neurotome.evaluate(toy_model, toy_store, **{"device": "cpu", **changes})


def test_metrics_that_are_there_stay(tmp_path: Path, toy_model: Path, toy_store: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(UsageError, match="is there already"):
        neurotome.evaluate(toy_model, toy_store, tmp_path, device="cpu", allow_train=True)
    with pytest.raises(UsageError, match="no such table"):
        neurotome.evaluate(toy_model, toy_store, tmp_path / "out", truth=tmp_path / "none.tsv")


class Denoiser(Exportable):
    """A network on latents: one gain per channel."""

    family = "denoiser"

    def __init__(self, channels: int = 3, modalities=toy.MODALITIES) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.gain = nn.Parameter(torch.zeros(channels))

    def forward(self, latent: Tensor) -> Tensor:
        return latent * self.gain.view(1, -1, 1, 1, 1)

    def example(self) -> dict[str, Tensor]:
        return {"latent": torch.ones(1, len(self.gain), 2, 2, 2)}

    def respond(self, example) -> Tensor:
        return self(example["latent"])


class DenoiserTraining(Method):
    """Least squares on raw latents."""

    def __init__(self, network: Denoiser, optimizer=None, tokenizer: str | None = None) -> None:
        super().__init__(optimizer)
        self.network, self.tokenizer_digest = network, tokenizer

    def product(self) -> Denoiser:
        return self.network

    def frozen(self):
        return {"tokenizer": Frozen(None, self.tokenizer_digest)} if self.tokenizer_digest else {}

    @property
    def needs(self) -> Needs:
        return Needs(space="latents", tokenizer=self.tokenizer_digest)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        latent, _ = batch.flat()
        return {"loss": (self.network(latent) - latent).square().mean()}


LATENTS = """
method: {class_path: DenoiserTraining, init_args: {network: {class_path: Denoiser}}}
data: {class_path: LatentVolumes, init_args: {batch_sessions: 2}}
trainer: {max_steps: 5}
optimizer: {name: adamw, lr: 0.1}
"""


@pytest.fixture
def latents(tmp_path: Path, toy_model: Path, toy_store: Path) -> Path:
    out = tmp_path / "latents"
    assert main(["encode", str(toy_model), str(toy_store), str(out), "--shards", "--draws", "2", "--quiet"]) == 0
    return out


@pytest.fixture
def _denoisers(monkeypatch: pytest.MonkeyPatch) -> None:
    import neurotome.tokenizers as folder

    for cls in (Denoiser, DenoiserTraining):
        monkeypatch.setattr(folder, cls.__name__, cls, raising=False)
    monkeypatch.setattr(folder, "__all__", [*folder.__all__, "Denoiser", "DenoiserTraining"])


@pytest.mark.usefixtures("_denoisers")
def test_a_new_model_family_is_trained_on_latents_exported_and_read(
    tmp_path: Path, latents: Path, toy_model: Path, toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own class and a config: nothing of export, folder or command line knows it."""
    path = tmp_path / "latents.yaml"
    path.write_text(LATENTS)
    made_by = toy.read(toy_model).digest
    changes = {"method.tokenizer": made_by}
    done = neurotome.train(path, latents, tmp_path / "run", overrides=changes, device="cpu")
    model = toy.read(done.model)
    assert isinstance(model.network, Denoiser)
    assert bool((model.network.gain > 0.2).all())
    assert (model.images.space, model.images.tokenizer) == ("latents", made_by)
    assert dict(model.frozen) == {"tokenizer": made_by}
    assert json.loads((tmp_path / "run" / "data.json").read_text())["tokenizer"] == made_by
    assert main(["doctor", str(done.model)]) == 0
    assert main(["reconstruct", str(done.model), str(tmp_path / "x_T1w.nii.gz"), str(tmp_path / "o.nii.gz")]) != 0
    with pytest.raises(UsageError, match="the latents were made by model"):
        neurotome.train(path, latents, tmp_path / "other", overrides={"method.tokenizer": "0" * 64}, device="cpu")
    with pytest.raises(UsageError, match="is trained on latents, the data block gives voxels"):
        neurotome.train(path, toy_store, tmp_path / "other", overrides={"data": {"batch_sessions": 2}}, device="cpu")
    with pytest.raises(UsageError, match="holds neurotome latent shards, no store"):
        neurotome.train("kl-vae-demo", latents, tmp_path / "other", device="cpu")
    again = neurotome.train(path, latents, tmp_path / "next", overrides=changes, device="cpu", init_from=done.run)
    assert toy.read(again.model).origin == (model.digest,)  # a run's folder stands for its model
    capsys.readouterr()
    assert not (tmp_path / "other").exists()
    neurotome.train(path, latents, tmp_path / "further", overrides=changes, device="cpu", init_from=done.run)


@pytest.mark.usefixtures("_denoisers")
def test_a_run_on_latents_resumes_bit_by_bit(tmp_path: Path, latents: Path) -> None:
    path = tmp_path / "latents.yaml"
    path.write_text(LATENTS)
    weights = []
    for name, lengths in (("whole", [5]), ("cut", [5])):
        for _ in lengths:
            done = neurotome.train(path, latents, tmp_path / name, seed=3, device="cpu")
        weights.append((done.model / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize("data", ["Pairs", "Volumes"])
def test_data_blocks_name_their_class_in_the_run(tmp_path: Path, config: Path, toy_store: Path, data: str) -> None:
    import yaml

    done = neurotome.train(config, toy_store, tmp_path / "run", overrides={"data.class_path": data}, device="cpu")
    block = yaml.safe_load((done.run / "config.yaml").read_text())["data"]
    assert block["class_path"] == data
    assert block["init_args"]["batch_sessions"] == 2
    assert block["init_args"]["modalities_per_session"] == (2 if data == "Pairs" else None)


def test_the_seed_of_a_run_moves_mixed_images_too(tmp_path: Path, toy_store: Path, monkeypatch) -> None:
    from neurotome.training.augment import Augmentation

    seen = []
    mixed = Augmentation.mixed
    monkeypatch.setattr(
        Augmentation, "mixed", lambda self, *given: seen.append(given[2:]) or mixed(self, *given)
    )  # (image, modality, seed, step)
    changes = {
        "trainer": {"max_steps": 2, "precision": "32-true"},
        "data": {"batch_sessions": 2, "crop": 8, "whole_fraction": 0.0},
        "method.augmentation": {"mixup_prob": 0.5},
    }
    for seed in (3, 4):
        neurotome.train(
            "kl-vae-demo", toy_store, tmp_path / str(seed), overrides=changes, seed=seed, device="cpu", threads=1
        )
    assert seen == [(3, 0), (3, 1), (4, 0), (4, 1)]
