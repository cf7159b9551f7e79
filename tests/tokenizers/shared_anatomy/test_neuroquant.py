"""NeuroQuant: the published sizes, its streams, and the published bugs that are not here."""

import math
from dataclasses import replace

import pytest
import torch

from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.tokenizers import NeuroQuant
from neurotome.tokenizers.shared_anatomy.parts import Appearance, Trunk, pooled
from neurotome.training.averages import EMA
from tests.tokenizers.test_battery import DEMO_APPEARANCE, IDS, aligned, demo, image, neuroquant


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
    tokenizer = neuroquant().eval()
    encoded = tokenizer.encode(image(3), IDS)
    with torch.no_grad():
        assert torch.equal(tokenizer.decode(encoded, IDS), tokenizer.decode(encoded, IDS.flip(0)))


def test_a_slice_goes_through_the_very_network_of_a_volume():
    """The published 2-D path replaced the strided convolution by interpolation: other features, same weights."""
    tokenizer = neuroquant().eval()
    slab = image(3)[..., 8:9]
    kept = []
    for stage in tokenizer.encoder.stages:
        stage.down.register_forward_hook(lambda module, args, out: kept.append(out.shape[2:]))
    tokenizer.encode(slab, IDS)
    assert kept == [(8, 8, 1), (4, 4, 1)]


def test_averaged_weights_carry_the_live_codebook():
    """The published average copied no buffers, so that averaged checkpoints kept a random codebook."""
    tokenizer = demo()
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
    tokenizer = aligned().eval()
    tokenizer.private.reservoir.mark_started()
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
        tokenizer = neuroquant(recompute=recompute)
        calls = []
        tokenizer.decoder.stages[0].register_forward_pre_hook(lambda *args, calls=calls: calls.append(1))
        tokenizer.decode(tokenizer.encode(image(3), IDS), IDS).square().sum().backward()
        assert len(calls) == 1 + recompute
        gradients.append([p.grad for name, p in tokenizer.named_parameters() if not name.startswith("adversary")])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def gained() -> tuple[NeuroQuant, torch.Tensor]:
    tokenizer = demo(appearance=replace(DEMO_APPEARANCE, gain_factor=2)).eval()
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
    plain = demo()
    cells = math.prod(tokenizer.gain.cells(tokenizer.latent_shape((16, 16, 16))))
    assert tokenizer.bits((16, 16, 16)) == plain.bits((16, 16, 16)) + 16 * cells
    encoded = tokenizer.encode(x, IDS)
    assert torch.equal(tokenizer.shared(encoded).gain, encoded.gain)
    assert torch.equal(encoded.take(torch.tensor([1, 0])).gain, encoded.gain[[1, 0]])


def test_an_adopted_state_is_the_loaded_one():
    source = demo().eval()
    with torch.device("meta"):
        empty = demo()
    empty.eval().adopt(dict(source.exported_state()))
    assert not any(t.is_meta for t in (*empty.parameters(), *empty.buffers()))
    assert count(empty.adversary) == count(source.adversary)
    encoded = empty.encode(image(3), IDS)
    assert torch.equal(empty.decode(encoded, IDS), source.decode(source.encode(image(3), IDS), IDS))


def test_a_state_that_lacks_a_weight_is_not_adopted():
    with torch.device("meta"):
        empty = demo()
    state = demo().exported_state()
    state.pop("embedding.weight")
    with pytest.raises(ValueError, match=r"embedding\.weight"):
        empty.adopt(state)


def test_without_gradients_an_image_is_encoded_as_with_them_and_whatever_contrast_lies_beside_it():
    """Without them only the stems asked for are computed, and sums and activations take the memory of their input."""
    torch.manual_seed(0)
    tokenizer = demo(contrast_in_encoder=True).eval()
    x, before = image(3), image(3)
    tall = tokenizer.encode(x, IDS)
    with torch.no_grad():
        mixed, first, second = (tokenizer.encode(x, ids) for ids in (IDS, IDS[:1].expand(2), IDS[1:].expand(2)))
    assert torch.equal(x, before)
    for anatomy in (lambda encoded: encoded.aux["anatomy"], tokenizer.anatomy):
        assert torch.allclose(anatomy(mixed), anatomy(tall), atol=1e-5)
        assert torch.equal(anatomy(mixed)[0], anatomy(first)[0])
        assert torch.equal(anatomy(mixed)[1], anatomy(second)[1])
    assert not torch.allclose(first.aux["anatomy"][1], second.aux["anatomy"][1])


@pytest.mark.parametrize(
    ("group", "arguments", "match"),
    [
        (
            Trunk,
            {"channels": (8, 8)},
            "channels has 2 levels, attention_levels 4, downsample 2; give one entry per level",
        ),
        (Trunk, {"downsample": (True,)}, "downsample 1; give one entry per level"),
        (Appearance, {"film_sites": "none", "gain_factor": 2}, "gain_factor is 2 with film_sites none"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(group, arguments, match):
    with pytest.raises(ValueError, match=match):
        group(**arguments)


def test_a_handed_in_codebook_decides_the_channels_and_a_seed_the_weights():
    made = []
    for early in (True, False):
        quantizer = EMAQuantizer(16, 3) if early else None
        torch.manual_seed(0)
        made.append(demo(quantizer=quantizer or EMAQuantizer(16, 3), private=EMAQuantizer(4, 2)))
    assert (made[0].anatomy_channels, made[0].latent_channels) == (3, 5)
    states = [network.state_dict() for network in made]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert made[0].quantizer.codebook.any()
    assert made[0].private.codebook.any()


def test_a_slice_along_x_goes_around_the_depth_where_the_released_code_does():
    tokenizer = neuroquant(trunk=replace(neuroquant().arguments["trunk"], skip_depth=True)).eval()
    volume, slab = image(3), image(3)[:, :, 8:9]
    before = [tokenizer.respond({"image": x, "modality": IDS}) for x in (volume, slab)]
    depths = [m for name, m in tokenizer.named_modules() if name.endswith((".depth", ".down")) and hasattr(m, "weight")]
    assert any(name.endswith(".depth") for name, _ in tokenizer.named_modules())
    for module in depths:
        torch.nn.init.normal_(module.weight)
    after = [tokenizer.respond({"image": x, "modality": IDS}) for x in (volume, slab)]
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[0], after[0], atol=1e-4)
    central = neuroquant().eval()
    central.load_state_dict(tokenizer.state_dict())
    assert not torch.allclose(central.respond({"image": slab, "modality": IDS}), after[1], atol=1e-4)


def test_a_latent_axis_of_one_cell_is_attended_and_a_slice_is_not():
    tokenizer = neuroquant().eval()
    seen = []
    for module in tokenizer.modules():
        if type(module).__name__ == "AxisAttention":
            module.register_forward_hook(lambda m, inputs, output: seen.append(m.axis))
    x = image(3)
    tokenizer.encode(x[:, :, : tokenizer.factor[0]], IDS)  # one cell along x
    assert 0 in seen
    seen.clear()
    tokenizer.encode(x[:, :, :1], IDS)
    assert set(seen) == {1, 2}
