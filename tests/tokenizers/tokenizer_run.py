"""A training with all that makes a resume hard: two networks, a codebook, a guard, mixed images, averages."""

import torch

from neurotome.losses.adversarial import Adversarial
from neurotome.losses.perceptual import Perceptual
from neurotome.losses.spikes import SpikeGuard
from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.tokenizers import NeuroQuant, TokenizerTraining
from neurotome.tokenizers.shared_anatomy.parts import Appearance, Trunk
from neurotome.training import OptimizerConfig
from neurotome.training.augment import Augmentation


def small_network(num_codes: int = 8, start_after: int = 2, norm_groups: int = 0) -> NeuroQuant:
    trunk = Trunk(
        channels=(4,), attention_levels=(False,), downsample=(False,), mid_blocks=False, num_res_blocks=1,
        decoder_res_blocks=1, norm_groups=norm_groups, factored=False, stem_factor=2,
    )  # fmt: skip
    appearance = Appearance(
        channels=4, stages=(4,), foreground_above=-5.0, embedding_channels=4, film_hidden=8, film_layers=1,
        film_sites="block",
    )  # fmt: skip
    quantizer = EMAQuantizer(num_codes, 4, start_after=start_after)
    return NeuroQuant(trunk=trunk, appearance=appearance, quantizer=quantizer, output="clamp", adversary=False)


def method() -> TokenizerTraining:
    torch.manual_seed(7)
    made = TokenizerTraining(
        small_network(),
        OptimizerConfig(name="muon", lr=1e-2, weight_decay=0.01),
        adversarial=Adversarial(0.1, channels=4, num_layers=1, norm_groups=2, start=4, lead=2, adaptive=True),
        perceptual=Perceptual(0.1, start=3),
        augmentation=Augmentation(mixup_prob=0.3, cutmix_prob=0.3),
        spike_guard=SpikeGuard(deviations=1.0, window=6, warmup=3, budget=100),
        edge=("encoder.conv_in", "decoder.conv_out"),
        window_steps=8,
    )
    made.tokenizer.quantizer.start(0.1 * torch.randn(8, 4), torch.full((8,), 50.0))
    return made
