"""A training with all that makes a resume hard: two players, a codebook, a guard, mixed images, averages.

Run as a module it is the process that the test stops:
``python -m tests.tokenizers.tokenizer_run RUN MAX_STEPS SECONDS_PER_STEP``.
"""

import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from neurotome.errors import NeurotomeError
from neurotome.losses.adversarial import Adversarial
from neurotome.losses.perceptual import Perceptual
from neurotome.losses.spikes import SpikeGuard
from neurotome.tokenizers import NeuroQuant, TokenizerTraining
from neurotome.training import OptimizerConfig, fit
from neurotome.training.augment import Augmentation
from neurotome.types import Batch
from tests.training.toy_run import ToyData, toy_config

NETWORK = {
    "channels": (4,), "attention_levels": (False,), "downsample": (False,), "mid_blocks": False, "num_res_blocks": 1,
    "decoder_res_blocks": 1, "anatomy_channels": 4, "modality_channels": 4, "embedding_channels": 4, "num_codes": 8,
    "film_hidden": 8, "film_layers": 1, "norm_groups": 0, "factored": False, "stem_factor": 2, "film_sites": "block",
    "appearance_channels": (4,), "foreground_above": -5.0, "output": "clamp", "start_after": 2, "adversary": False,
}  # fmt: skip


class Slow(TokenizerTraining):
    """Waits in every step."""

    pause = 0.0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        time.sleep(self.pause)
        return super().loss(batch)


def method(pause: float = 0.0) -> Slow:
    torch.manual_seed(7)
    made = Slow(
        NeuroQuant(**NETWORK),
        OptimizerConfig(name="muon", lr=1e-2, weight_decay=0.01),
        adversarial=Adversarial(0.1, channels=4, num_layers=1, norm_groups=2, start=4, lead=2, adaptive=True),
        perceptual=Perceptual(0.1, start=3),
        augmentation=Augmentation(mixup_prob=0.3, cutmix_prob=0.3, seed=5),
        spike_guard=SpikeGuard(deviations=1.0, window=6, warmup=3, budget=100),
        edge=("encoder.conv_in", "decoder.conv_out"),
        window_steps=8,
    )
    made.tokenizer.quantizer._start(0.1 * torch.randn(8, 4), torch.full((8,), 50.0))
    made.pause = pause
    return made


def main() -> int:
    run_dir, max_steps, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    try:
        fit(method(pause), ToyData(max_steps), run_dir, toy_config(max_steps))
    except NeurotomeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
