"""NeuroQuant: the published sizes, its streams, and the published bugs that are not here."""

import math
from dataclasses import replace

import pytest
import torch

from neurotome.tokenizers import NeuroQuant
from neurotome.tokenizers.shared_anatomy.aligned_training import take
from neurotome.tokenizers.shared_anatomy.parts import pooled
from neurotome.training.ema import EMA
from tests.tokenizers.test_battery import DEMO, IDS, NEUROQUANT, image


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_sizes():
    with torch.device("meta"):
        tokenizer = NeuroQuant(spatial_dims=3)
    assert count(tokenizer) == 36_432_611
    parts = {
        "encoder": count(tokenizer.encoder) + count(tokenizer.anatomy_head) + count(tokenizer.modality_head),
        "decoder": count(tokenizer.decoder), "film": count(tokenizer.film),
        "adversary": count(tokenizer.adversary), "embedding": count(tokenizer.embedding),
    }  # fmt: skip
    assert parts == {
        "encoder": 16_600_608, "decoder": 19_230_721, "film": 575_872, "adversary": 25_346, "embedding": 64
    }  # fmt: skip
    assert tokenizer.quantizer.codebook.numel() == 262_144
    assert "quantizer.codebook" not in dict(tokenizer.named_parameters())


def test_published_latent():
    with torch.device("meta"):
        tokenizer = NeuroQuant(spatial_dims=3)
    assert tokenizer.latent_shape((144, 192, 144)) == (9, 12, 9)
    assert tokenizer.latent_shape((1, 192, 144)) == (1, 12, 9)
    assert tokenizer.bits((144, 192, 144)) == 972 * 12 + 16 * 32


def test_the_image_does_not_depend_on_the_contrast_at_the_start():
    tokenizer = NeuroQuant(**NEUROQUANT).eval()
    encoded = tokenizer.encode(image(3), IDS)
    with torch.no_grad():
        assert torch.equal(tokenizer.decode(encoded, IDS), tokenizer.decode(encoded, IDS.flip(0)))


def test_a_slice_goes_through_the_very_network_of_a_volume():
    """The published 2-D path replaced the strided convolution by interpolation: other features, same weights."""
    tokenizer = NeuroQuant(**NEUROQUANT).eval()
    slab = image(3)[..., 8:9]
    kept = []
    for stage in tokenizer.encoder.stages:
        stage.down.register_forward_hook(lambda module, args, out: kept.append(out.shape[2:]))
    tokenizer.encode(slab, IDS)
    assert kept == [(8, 8, 1), (4, 4, 1)]


def test_averaged_weights_carry_the_live_codebook():
    """The published average copied no buffers, so that averaged checkpoints kept a random codebook."""
    tokenizer = NeuroQuant(**DEMO)
    average = EMA({"tokenizer": tokenizer}, decay=0.5)
    tokenizer.train()
    for _ in range(40):
        tokenizer.encode(torch.rand(8, 1, 16, 16, 16), torch.arange(8) % 2)
    with torch.no_grad():
        tokenizer.anatomy_head.weight.add_(1.0)
    live = tokenizer.quantizer.codebook.clone()
    average.update()
    with average.averaged():
        assert torch.equal(tokenizer.quantizer.codebook, live)
        averaged = tokenizer.anatomy_head.weight.clone()
    assert not torch.equal(averaged, tokenizer.anatomy_head.weight)


def test_style_is_pooled_over_the_foreground():
    x = image(3)
    brain = torch.full((2, 1, 24, 16, 16), -1.0)
    brain[:, :, :16] = x
    z = torch.randn(2, 4, 6, 4, 4)
    near, far = pooled(z[:, :, :4], x, above=-0.95), pooled(z, brain, above=-0.95)
    assert torch.allclose(near, far, atol=1e-6)


def test_shared_code_has_nothing_private():
    tokenizer = NeuroQuant(**DEMO, tell_encoder=True, private_codes=4).eval()
    tokenizer.private.state[2] = 1
    encoded = tokenizer.encode(image(3), IDS)
    shared = tokenizer.shared(encoded)
    assert set(encoded.codes) == {"anatomy", "private"}
    assert set(shared.codes) == {"anatomy"}
    assert torch.equal(shared.latent[:, :4], encoded.latent[:, :4])
    assert not shared.latent[:, 4:].any()


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        tokenizer = NeuroQuant(**NEUROQUANT, recompute=recompute)
        calls = []
        tokenizer.decoder.stages[0].register_forward_pre_hook(lambda *args, calls=calls: calls.append(1))
        tokenizer.decode(tokenizer.encode(image(3), IDS), IDS).square().sum().backward()
        assert len(calls) == 1 + recompute
        gradients.append([p.grad for name, p in tokenizer.named_parameters() if not name.startswith("adversary")])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def gained() -> tuple[NeuroQuant, torch.Tensor]:
    tokenizer = NeuroQuant(**DEMO | {"gain_factor": 2}).eval()
    torch.nn.init.normal_(tokenizer.gain.head.weight, std=1.0)
    return tokenizer, image(3)


def test_the_gain_is_a_bounded_field_without_a_mean():
    tokenizer, x = gained()
    x[..., :8] = -1  # no brain on one side
    encoded = tokenizer.encode(x, IDS)
    cells = tokenizer.gain.cells(tokenizer.latent_shape(x.shape[2:]))
    assert encoded.gain.shape == (len(x), 1, *cells)
    assert 0 < encoded.gain.abs().max() < 2 * tokenizer.gain.limit
    brain = torch.nn.functional.adaptive_avg_pool3d((x > tokenizer.foreground_above).float(), cells)
    mean = (encoded.gain * brain).sum((2, 3, 4)) / brain.sum((2, 3, 4))
    assert torch.allclose(mean, torch.zeros_like(mean), atol=1e-5)


def test_the_gain_multiplies_the_brightness():
    tokenizer, x = gained()
    encoded = tokenizer.encode(x, IDS)
    dim = replace(encoded, gain=torch.full_like(encoded.gain, -math.log(4)))  # dark enough that nothing is clamped
    darker = replace(encoded, gain=torch.full_like(encoded.gain, -math.log(8)))
    a, b = (tokenizer.train(False).decode(e, IDS) for e in (dim, darker))
    inside = (a < 1) & (a > -1)
    assert inside.any()
    assert torch.allclose((a + 1)[inside], 2 * (b + 1)[inside], atol=1e-5)


def test_the_gain_is_counted_in_bits_and_travels_with_the_scan():
    tokenizer, x = gained()
    plain = NeuroQuant(**DEMO)
    cells = math.prod(tokenizer.gain.cells(tokenizer.latent_shape((16, 16, 16))))
    assert tokenizer.bits((16, 16, 16)) == plain.bits((16, 16, 16)) + 16 * cells
    encoded = tokenizer.encode(x, IDS)
    assert torch.equal(tokenizer.shared(encoded).gain, encoded.gain)
    assert torch.equal(take(encoded, torch.tensor([1, 0])).gain, encoded.gain[[1, 0]])


def test_an_adopted_state_is_the_loaded_one():
    arguments = DEMO | {"adversary": True}
    source = NeuroQuant(**arguments).eval()
    with torch.device("meta"):
        bare = NeuroQuant(**arguments)
    bare.eval().adopt(dict(source.exported_state()))
    assert not any(t.is_meta for t in (*bare.parameters(), *bare.buffers()))
    assert count(bare.adversary) == count(source.adversary)
    encoded = bare.encode(image(3), IDS)
    assert torch.equal(bare.decode(encoded, IDS), source.decode(source.encode(image(3), IDS), IDS))


def test_a_state_that_lacks_a_weight_is_not_adopted():
    with torch.device("meta"):
        bare = NeuroQuant(**DEMO)
    state = NeuroQuant(**DEMO).exported_state()
    state.pop("embedding.weight")
    with pytest.raises(ValueError, match=r"embedding\.weight"):
        bare.adopt(state)


def test_without_gradients_an_image_is_encoded_as_with_them_and_whatever_contrast_lies_beside_it():
    """Without them only the stems asked for are computed, and sums and activations take the memory of their input."""
    torch.manual_seed(0)
    tokenizer = NeuroQuant(**DEMO, tell_encoder=True).eval()
    x, before = image(3), image(3)
    tall = tokenizer.encode(x, IDS)
    with torch.no_grad():
        mixed, first, second = (tokenizer.encode(x, ids) for ids in (IDS, IDS[:1].expand(2), IDS[1:].expand(2)))
    assert torch.equal(x, before)
    for name in ("anatomy", "anatomy_q"):
        assert torch.allclose(mixed.aux[name], tall.aux[name], atol=1e-5)
        assert torch.equal(mixed.aux[name][0], first.aux[name][0])
        assert torch.equal(mixed.aux[name][1], second.aux[name][1])
    assert not torch.allclose(first.aux["anatomy"][1], second.aux["anatomy"][1])
