"""The one way through the network: what an image's code is does not depend on what it is computed with."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from neurotome.nn.quantize import EMAQuantizer
from neurotome.scans.codec import Codec
from neurotome.tokenizers import KLVAE, VQVAE
from tests.toy import ToyTokenizer

SHAPE = (16, 16, 16)
NAMES = ("T1w", "T2w", "T2w", "T1w", "T2w")


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, 1, (1, *SHAPE)).astype(np.float32) for _ in NAMES]


def codec(kind: str, **given: object) -> Codec:
    torch.manual_seed(0)
    small = {"channels": (8, 16), "attention_levels": (False, False), "num_res_blocks": 1, "norm_groups": 4}
    networks = {
        "kl": lambda: KLVAE(**small),
        "vq": lambda: VQVAE(channels=(8, 8), num_res_blocks=1, quantizer=EMAQuantizer(16, 3)),
        "toy": ToyTokenizer,
    }
    return Codec(networks[kind](), SHAPE, **given)


@pytest.mark.parametrize("kind", ["kl", "vq", "toy"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_image_has_the_same_bytes_alone_in_a_pair_and_in_a_list_of_five(kind: str, precision: str) -> None:
    model, given = codec(kind, precision=precision), images()
    alone = [model.encode([image], [name])[0] for image, name in zip(given, NAMES, strict=True)]
    decoded = [model.decode([code], [name])[0] for code, name in zip(alone, NAMES, strict=True)]
    for group in ((0, 1), (1, 0), (3, 3), (0, 1, 2, 3, 4), (4, 2, 0, 1, 3)):
        names = [NAMES[i] for i in group]
        for place, code in zip(group, model.encode([given[i] for i in group], names), strict=True):
            assert {k: v.numpy().tobytes() for k, v in code.named()} == {
                k: v.numpy().tobytes() for k, v in alone[place].named()
            }
        for place, image in zip(group, model.decode([alone[i] for i in group], names), strict=True):
            assert torch.equal(image, decoded[place])
    assert model.encode([], []) == model.decode([], []) == []


def test_codes_of_other_tensors_are_decoded_apart_and_come_back_in_their_order() -> None:
    model, given = codec("toy"), images()
    codes = model.encode(given, NAMES)
    mixed = [replace(code, codes={}) if place % 2 else code for place, code in enumerate(codes)]
    for image, code, name in zip(model.decode(mixed, NAMES), codes, NAMES, strict=True):
        assert torch.equal(image, model.decode([code], [name])[0])


def test_images_of_other_shapes_are_computed_apart_and_come_back_in_their_order() -> None:
    model, given = codec("kl"), images()
    rng = np.random.default_rng(1)
    mixed = [
        rng.uniform(-1, 1, (1, 20, 16, 16)).astype(np.float32) if i in (1, 3, 4) else g for i, g in enumerate(given)
    ]
    codes = model.encode(mixed, NAMES)
    decoded = model.decode(codes, NAMES)
    for one, name, code, image in zip(mixed, NAMES, codes, decoded, strict=True):
        (alone,) = model.encode([one], [name])
        assert torch.equal(alone.latent, code.latent)
        assert code.shape == one.shape[1:] == tuple(image.shape[1:])
        assert torch.equal(model.decode([alone], [name])[0], image)


def test_a_contrast_that_the_network_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="knows T1w, T2w, not FLAIR"):
        codec("toy").encode(images()[:1], ["FLAIR"])
    with pytest.raises(ValueError, match="zip"):
        codec("toy").encode(images(), NAMES[:1])
