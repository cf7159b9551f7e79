"""What a training says first, and the budgets that it refuses."""

import pytest
import torch

from neurotome.errors import UsageError
from neurotome.experiments.config import load_config
from neurotome.experiments.experiment import check_experiment
from neurotome.experiments.outlook import check_budget, codebooks_start, is_full_size, outlook
from neurotome.nn.quantize import EMAQuantizer
from neurotome.tokenizers import VQVAE, TokenizerTraining
from neurotome.training.fit import TrainerConfig


def method(start_after: int = 30, reservoir: int = 64) -> TokenizerTraining:
    quantizer = EMAQuantizer(num_codes=8, dim=4, start_after=start_after, reservoir=reservoir)
    return TokenizerTraining(VQVAE(3, modalities=["T1w"], channels=[4], num_res_blocks=1, quantizer=quantizer))


def test_a_budget_that_ends_before_the_codebook_starts_is_refused() -> None:
    with pytest.raises(UsageError, match="max_steps is 30, and the codebook starts in step 31 at the earliest"):
        check_budget(method(), 30)
    check_budget(method(), 31)
    with pytest.raises(UsageError, match="step 13 at the earliest"):  # so many passes fill 4096 tokens
        check_budget(method(0, 4096), 12)
    started = method()
    for module in started.modules():
        if isinstance(module, EMAQuantizer):
            module.reservoir.mark_started()
    check_budget(started, 1)  # one that goes on from a model waits for nothing


def test_steps_device_memory_and_the_start_of_the_codebook_are_said() -> None:
    text = "\n".join(outlook(method(), TrainerConfig(max_steps=400, device="cpu", threads=2)))
    weights = sum(p.numel() for p in method().parameters())
    assert f"training {weights:,} weights for 400 steps on cpu, 2 threads, fp32" in text
    assert "MB for weights, gradients and optimiser" in text
    assert "the codebook starts in step 31 at the earliest; the loss jumps there" in text
    assert "warning" not in text
    assert "for an accelerator, and none is used" in "\n".join(outlook(method(), TrainerConfig(10**8, device="cpu")))
    assert "warning" not in "\n".join(outlook(method(), TrainerConfig(10**8, device="cuda")))


def test_shipped_configs_are_full_size_unless_they_are_made_for_a_cpu() -> None:
    for name in ("vector-ae-demo", "neuroquant-aligned-demo", "neuroquant-demo", "vq-vae2-2d", "kl-vae", "neuroquant"):
        experiment = check_experiment(load_config(name), ("T1w", "T2w"))
        with torch.device("meta"):
            weights = sum(p.numel() for p in experiment.build_method().parameters())
        assert is_full_size(weights, experiment.trainer.build().max_steps) != name.endswith("-demo"), name


def test_every_shipped_config_outlasts_the_start_of_its_codebook() -> None:
    for name in ("vq-vae-demo", "vq-vae2-demo", "anatome-demo", "neuroquant-demo"):
        experiment = check_experiment(load_config(name), ("T1w", "T2w"))
        assert 0 < codebooks_start(experiment.build_method()) < experiment.trainer.build().max_steps / 2
