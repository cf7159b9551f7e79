"""KLVAE: sizes and outputs of an independent implementation, the KL's scale, sampling."""

import math

import pytest
import torch
from torch import nn

from neurotome.tokenizers import KLVAE
from neurotome.tokenizers.kl_vae import kl_divergence

IDS = torch.tensor([0, 1])
SLICES = {"channels": (64, 128, 256, 512), "attention_levels": (False, False, False, True), "mid_blocks": True}
MAISI = {"channels": (64, 128, 256), "attention_levels": (False,) * 3, "latent_channels": 4}
SMALL = {"channels": (8, 16), "attention_levels": (False, True), "mid_blocks": True, "norm_groups": 4}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({}, 9_674_248), ({"spatial_dims": 2, **SLICES}, 53_761_000), (MAISI, 20_944_897)],
    ids=["volumes", "slices", "maisi"],
)
def test_parameter_counts(arguments, expected):
    with torch.device("meta"):
        assert count(KLVAE(**arguments)) == expected


def theirs(dims: int, channels, attention, latent: int, mid: bool, groups: int = 32) -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets")
    return nets.AutoencoderKL(
        dims, 1, 1, (2,) * len(channels), channels, attention, latent, groups,
        with_encoder_nonlocal_attn=mid, with_decoder_nonlocal_attn=mid,
    )  # fmt: skip


def test_parameter_counts_are_those_of_monai():
    maisi = pytest.importorskip("monai.apps.generation.maisi.networks.autoencoderkl_maisi")
    with torch.device("meta"):
        assert count(KLVAE()) == count(theirs(3, (32, 64, 128, 128), (False,) * 4, 3, mid=False))
        assert count(KLVAE(2, **SLICES)) == count(theirs(2, *list(SLICES.values())[:2], 3, mid=True))
        other = maisi.AutoencoderKlMaisi(3, 1, 1, (2, 2, 2), (64, 128, 256), (False,) * 3, latent_channels=4)
        assert count(KLVAE(**MAISI)) == count(other)


def layers(network: nn.Module, run) -> dict[str, list[nn.Module]]:
    """Return convolutions of width 3 and of width 1, normalisations and attentions, each in the order they run."""
    found: dict[str, list[nn.Module]] = {"wide": [], "narrow": [], "norm": [], "attention": []}

    def note(module, *_):
        if type(module).__name__ in ("FullAttention", "SABlock"):
            found["attention"].append(module)
        elif isinstance(module, nn.GroupNorm):
            found["norm"].append(module)
        elif type(module).__name__ in ("Conv", "Conv2d", "Conv3d"):
            found["narrow" if module.weight.shape[2] == 1 else "wide"].append(module)

    hooks = [m.register_forward_hook(note) for m in network.modules()]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("dims", [2, 3])
def test_the_same_weights_give_the_image_of_monai(dims):
    torch.manual_seed(0)
    ours = KLVAE(dims, **SMALL)
    other = theirs(dims, (8, 16), (False, True), 3, mid=True, groups=4)
    x = torch.randn(2, 1, 8, 12, 8) if dims == 3 else torch.randn(2, 1, 8, 12, 1)
    seen = x if dims == 3 else x[..., 0]
    mine = layers(ours, lambda: ours.decode(ours.encode(x, IDS), IDS))
    yours = layers(other, lambda: other(seen))
    assert {kind: len(found) for kind, found in mine.items()} == {kind: len(found) for kind, found in yours.items()}
    for kind in ("wide", "narrow", "norm"):
        for a, b in zip(mine[kind], yours[kind], strict=True):
            for p, q in zip(a.parameters(), b.parameters(), strict=True):
                nn.init.normal_(q, std=0.2)
                p.data.copy_(q.data.view_as(p))
    for a, b in zip(mine["attention"], yours["attention"], strict=True):
        a.qkv.weight.data.copy_(torch.cat([p.weight.data for p in (b.to_q, b.to_k, b.to_v)]))
        a.qkv.bias.data.copy_(torch.cat([p.bias.data for p in (b.to_q, b.to_k, b.to_v)]))
        a.out.load_state_dict(b.out_proj.state_dict())
    with torch.no_grad():
        encoded = ours.encode(x, IDS)
        mean, deviation = other.encode(seen)
        assert torch.allclose(encoded.aux["mean"].view_as(mean), mean, atol=1e-4)
        assert torch.allclose((0.5 * encoded.aux["log_variance"]).exp().view_as(mean), deviation, rtol=1e-3)
        image = ours.decoder(ours.from_latent(encoded.aux["mean"]), x.shape[2:])
        assert torch.allclose(image.view_as(seen), other.decode(mean), atol=1e-4)


def test_the_shape_of_stable_diffusion():
    """83 653 863 with its joint 8-channel head; two heads of 4 channels have 18 468 fewer."""
    with torch.device("meta"):
        network = KLVAE(2, 3, channels=(128, 256, 512, 512), mid_blocks=True, latent_channels=4, decoder_res_blocks=3)
    assert count(network) == 83_653_863 - 18_468


def test_kl_by_hand_and_against_torch():
    mean, log_variance = torch.randn(3, 2, 4, 5, 6), torch.randn(3, 2, 4, 5, 6)
    one = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(one, torch.distributions.Normal(0.0, 1.0)).sum() / 3
    assert torch.allclose(kl_divergence(mean, log_variance), expected, rtol=1e-5)
    assert kl_divergence(torch.zeros(2, 1, 1, 1, 1), torch.zeros(2, 1, 1, 1, 1)) == 0


def test_kl_grows_with_the_latent_and_not_with_the_batch():
    """The published three-dimensional trainer took the mean over everything: some 80 000 times too weak."""
    small, large = torch.full((2, 3, 4, 4, 4), 2.0), torch.full((2, 3, 32, 32, 26), 2.0)
    zeros = torch.zeros_like
    assert float(kl_divergence(small, zeros(small))) == 2.0 * 3 * 64  # mu^2 / 2 per dimension
    ratio = float(kl_divergence(large, zeros(large)) / (0.5 * large.square()).mean())
    assert ratio == pytest.approx(3 * 32 * 32 * 26)
    assert ratio > 79_000
    assert torch.equal(kl_divergence(small, zeros(small)), kl_divergence(small[:1], zeros(small[:1])))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_term_is_a_sum_over_an_image_and_a_mean_over_images(dims):
    """Images of a two-dimensional network are slices."""
    torch.manual_seed(0)
    network, x = KLVAE(dims, **SMALL), torch.randn(2, 1, 8, 8, 4)
    encoded = network.encode(x, IDS)
    one = torch.distributions.Normal(encoded.aux["mean"], (0.5 * encoded.aux["log_variance"]).exp())
    total = torch.distributions.kl_divergence(one, torch.distributions.Normal(0.0, 1.0)).sum()
    assert torch.allclose(encoded.terms["kl"], total / (2 if dims == 3 else 8), rtol=1e-5)
    if dims == 2:
        slices = torch.cat([x[..., i : i + 1] for i in range(4)])
        alone = network.encode(slices, torch.zeros(8, dtype=torch.long))
        assert torch.allclose(encoded.terms["kl"], alone.terms["kl"], rtol=1e-4)


def test_training_samples_and_evaluation_takes_the_mean():
    torch.manual_seed(0)
    network, x = KLVAE(**SMALL), torch.randn(2, 1, 4, 4, 4)
    with torch.no_grad():
        draws = torch.stack([network.encode(x, IDS).latent for _ in range(60)])
        encoded = network.encode(x, IDS)
    deviation = (0.5 * encoded.aux["log_variance"]).exp()
    assert (((draws.mean(0) - encoded.aux["mean"]) / deviation).abs().max()) < 5 / math.sqrt(60)
    assert float((draws.std(0) / deviation).mean()) == pytest.approx(1, abs=0.06)
    evaluated = network.eval().encode(x, IDS)
    assert torch.equal(evaluated.latent, evaluated.aux["mean"])
    assert evaluated.codes == {}


def test_an_extreme_variance_stays_finite():
    network = KLVAE(**SMALL)
    nn.init.constant_(network.log_variance.bias, 1e4)
    encoded = network.encode(torch.randn(1, 1, 8, 8, 8), IDS[:1])
    assert encoded.latent.isfinite().all()
    assert encoded.terms["kl"].isfinite()
    assert encoded.aux["log_variance"].max() == 20


def test_recomputing_gives_the_same_gradients():
    torch.manual_seed(0)
    network = KLVAE(**SMALL)
    again = KLVAE(**SMALL, recompute=True)
    again.load_state_dict(network.state_dict())
    x, grads = torch.randn(1, 1, 8, 8, 8), []
    for net in (network, again):
        torch.manual_seed(1)
        net.decode(net.encode(x, IDS[:1]), IDS[:1]).square().sum().backward()
        grads.append([p.grad for name, p in net.named_parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))


def test_levels_must_match_and_slices_along_x_are_refused():
    with pytest.raises(ValueError, match="channels has 2 levels but attention_levels has 3"):
        KLVAE(channels=(32, 64), attention_levels=(False,) * 3)
    with pytest.raises(ValueError, match="move the flat axis to the end"):
        KLVAE(2, **SMALL).encode(torch.zeros(1, 1, 1, 8, 8), IDS[:1])


def test_a_code_that_does_not_fit_is_refused():
    from dataclasses import replace

    network, x = KLVAE(**SMALL).eval(), torch.randn(2, 1, 8, 8, 8)
    encoded = network.encode(x, IDS)
    with pytest.raises(ValueError, match=r"has shape \(4, 4, 4\), that of an image of \(16, 8, 8\) has \(8, 4, 4\)"):
        network.decode(replace(encoded, shape=(16, 8, 8)), IDS)
    with pytest.raises(ValueError, match=r"ids lie in \[0, 1\]"):
        network.decode(encoded, torch.tensor([0, 9]))
    with pytest.raises(ValueError, match="one integer id per image"):
        network.check_input(x, torch.tensor([0.5, 1.0]))
