"""The worked example of CONTRIBUTING is true: a tokenizer is two files and a line."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

import neurotome

CONTRIBUTING = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


def fenced(language: str, start: str) -> str:
    """Return the code block of a language that begins with ``start``."""
    blocks = re.findall(rf"```{language}\n(.*?)```", CONTRIBUTING, re.DOTALL)
    return next(block for block in blocks if block.startswith(start))


def test_the_example_of_a_tokenizer_trains_and_is_read_back(
    tmp_path: Path, toy_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import neurotome.tokenizers as folder
    from neurotome.models.folder import read_folder
    from neurotome.tokenizers.base import Tokenizer

    file, config = tmp_path / "block_average.py", tmp_path / "block-average.yaml"
    file.write_text(fenced("python", '"""BlockAverage'))
    config.write_text(fenced("yaml", "# A linear autoencoder"))
    spec = importlib.util.spec_from_file_location("block_average", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "block_average", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(folder, "BlockAverage", module.BlockAverage, raising=False)
    monkeypatch.setattr(folder, "__all__", [*folder.__all__, "BlockAverage"])

    tiny = {"trainer.max_steps": 2, "data.crop": 8, "data.batch_sessions": 2}
    done = neurotome.train(config, toy_store, tmp_path / "run", overrides=tiny, device="cpu")
    model = read_folder(done.model, Tokenizer)
    assert len(model.stats["mean"]) == 4
    image = torch.rand(2, 1, 20, 24, 20) * 2 - 1
    output = model.network.decode(model.network.encode(image, torch.arange(2)), torch.arange(2))
    assert output.shape == image.shape
    head = config.read_text().split("method:")[0]
    assert f"{sum(p.numel() for p in module.BlockAverage().parameters())} parameters" in head
    assert "not yet measured here" in head  # as tests/test_configs.py wants it
    metrics = neurotome.evaluate(done.model, toy_store, device="cpu")
    assert metrics["reconstruction"]["T1w"]["psnr_db"]["n"] >= 1
