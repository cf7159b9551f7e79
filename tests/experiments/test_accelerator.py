"""What must hold where there is a GPU: a stopped training goes on, bf16 trains, and codes are those of the CPU."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import neurotome
from neurotome.data.stores.batches import batch_of
from neurotome.data.stores.store import Store
from neurotome.errors import Interrupted
from neurotome.experiments.config import load_config, shipped
from neurotome.experiments.train import Trained
from neurotome.files.yaml_text import yaml_text
from neurotome.models.folder import read_folder
from neurotome.tokenizers.base import Tokenizer
from neurotome.training.checkpoint import CheckpointFolder, load_file
from neurotome.training.run_folder import RunFolder

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
DEVICE = "cuda"
DEMOS = [name for name in sorted(shipped()) if name.endswith("-demo") and not name.startswith("segmenter")]
STEPS = {"trainer.max_steps": 6, "trainer.log_every_steps": 1, "trainer.checkpoint_every_steps": 100}


@pytest.fixture(autouse=True)
def _single_precision() -> Iterator[None]:
    """TF32 keeps ten bits of a product; the CPU keeps 23."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def train(name: str, store: Path, run: Path, **flags: object) -> Trained:
    """Train the tiny size of a config for six steps."""
    file = run.parent / f"{name}.yaml"
    file.write_text(yaml_text(load_config(name).shrunk().tree))
    return neurotome.train(file, store, run, overrides=STEPS, device=DEVICE, **flags)


def last(run: Path) -> dict[str, torch.Tensor]:
    return load_file(CheckpointFolder(run / "checkpoints").all()[-1] / "tensors.safetensors")


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    append = RunFolder.append

    def stopping(self: RunFolder, row: dict[str, object]) -> None:
        append(self, row)
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "append", stopping)


@pytest.mark.parametrize("name", DEMOS)
def test_a_stopped_training_goes_on(
    name: str, phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(name, phantom_store, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        with pytest.raises(Interrupted):
            train(name, phantom_store, tmp_path / "stopped")
    assert train(name, phantom_store, tmp_path / "stopped").step == whole.step == 6
    mine, theirs = last(tmp_path / "stopped"), last(tmp_path / "whole")
    assert mine.keys() == theirs.keys()
    for key in mine.keys() - {key for key in mine if "journal" in key or "generators" in key}:
        # sums of atomic additions differ in their last bits from run to run
        torch.testing.assert_close(mine[key].float(), theirs[key].float(), rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", DEMOS)
def test_codes_and_images_are_those_of_the_cpu(name: str, phantom_store: Path, tmp_path: Path) -> None:
    done, store = train(name, phantom_store, tmp_path / "run"), Store.open(phantom_store)
    image, ids = batch_of(store, store.split("test"), modalities=("T1w", "T2w")).flat()
    outputs = []
    for device in ("cpu", DEVICE):
        network = read_folder(done.model, Tokenizer).network.to(device).eval()
        with torch.inference_mode():
            encoded = network.encode(image.to(device), ids.to(device))
            outputs.append((encoded.latent.cpu(), network.decode(encoded, ids.to(device)).cpu(), encoded.codes))
    (latent, decoded, codes), (latent_there, decoded_there, codes_there) = outputs
    for key, map_ in codes.items():  # a tie may fall either way
        assert (map_ == codes_there[key].cpu()).float().mean() > 0.99, key
    assert (latent - latent_there).abs().mean() < 1e-2 * latent.abs().mean() + 1e-4
    assert (decoded - decoded_there).abs().mean() < 1e-2


@pytest.mark.parametrize("name", ["vq-vae-demo", "neuroquant-aligned-demo", "anatome-demo"])
def test_bf16_trains_and_memory_is_reported(name: str, phantom_store: Path, tmp_path: Path) -> None:
    done = train(name, phantom_store, tmp_path / "run", precision="bf16")
    assert done.step == 6
    weights = [v for k, v in last(done.run).items() if k.startswith("state_dict/") and v.is_floating_point()]
    assert all(v.dtype == torch.float32 and torch.isfinite(v).all() for v in weights)
    assert json.loads((done.run / "status.json").read_text())["peak_device_mb"] > 1
    assert json.loads((done.run / "environment.json").read_text())["device"].startswith(DEVICE)
