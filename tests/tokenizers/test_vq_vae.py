"""VQVAE: sizes and outputs of an independent implementation, quantizers as an argument, code names and bits."""

import pytest
import torch
from torch import nn

from neurotome.nn.quantize import (
    BinarySphericalQuantizer,
    EMAQuantizer,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    ResidualQuantizer,
)
from neurotome.tokenizers import VQVAE

IDS = torch.tensor([0, 1])


def small(**changes) -> VQVAE:
    return VQVAE(**{"channels": (8, 16), "num_res_blocks": 1, "quantizer": EMAQuantizer(16, 4, reservoir=64)} | changes)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def theirs(dims: int, channels, latent: int, res_blocks: int = 2, codes: int = 512) -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets")
    steps = len(channels)
    return nets.VQVAE(
        dims, 1, 1, channels, res_blocks, channels, ((2, 4, 1, 1),) * steps, ((2, 4, 1, 1, 0),) * steps, codes, latent
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_parameter_counts(dims):
    channels, latent, expected = ((64, 128), 4, 5_510_021) if dims == 3 else ((64, 128, 128), 3, 3_452_804)
    with torch.device("meta"):
        network = VQVAE() if dims == 3 else VQVAE(2, channels=channels, quantizer=EMAQuantizer(512, 3))
        other = theirs(dims, channels, latent)
    assert network.latent_channels == latent
    codebook = 512 * latent  # theirs is a parameter without gradient, ours a buffer
    assert count(network) == expected == count(other) - codebook


@pytest.mark.parametrize("dims", [2, 3])
def test_the_same_weights_give_the_image_of_monai(dims):
    torch.manual_seed(0)
    ours, other = VQVAE(dims, channels=(8, 16), quantizer=EMAQuantizer(16, 4)), theirs(dims, (8, 16), 4, codes=16)
    codebook = other.quantizer.quantizer.embedding.weight
    weights = [p for p in other.parameters() if p is not codebook]
    for a, b in zip(in_order(ours), weights, strict=True):
        a.data.copy_(b.data.view_as(a))
    ours.quantizer.codebook.copy_(codebook)
    ours.eval()
    other.eval()
    x = torch.rand(2, 1, 8, 12, 8) if dims == 3 else torch.rand(2, 1, 8, 12, 1)
    seen = x if dims == 3 else x[..., 0]
    with torch.no_grad():
        encoded = ours.encode(x, IDS)
        assert torch.equal(encoded.codes["anatomy"].view(2, *seen[0, 0, ::4, ::4, ...].shape[:2], -1).flatten(),
                           other.index_quantize(seen).flatten())  # fmt: skip
        image = ours.decoder(encoded.latent, x.shape[2:])
        assert torch.allclose(image.view_as(seen), other(seen)[0], atol=1e-5)


def in_order(network: VQVAE) -> list[nn.Parameter]:
    """Return the parameters in the order of the forward pass; the decoder's up-steps stand between its units."""
    decoder = network.decoder
    steps = [p for pair in zip(decoder.units, decoder.up, strict=True) for part in pair for p in part.parameters()]
    return [*network.encoder.parameters(), *decoder.conv_in.parameters(), *steps]


def test_codes_decode_to_the_same_image():
    torch.manual_seed(0)
    for quantizer in (
        EMAQuantizer(16, 4, reservoir=64),
        ResidualQuantizer(16, 4, 3, reservoir=64),
        FiniteScalarQuantizer((8, 8, 8), 4),
    ):
        network = small(quantizer=quantizer)
        x = torch.randn(2, 1, 16, 16, 16)
        for _ in range(3):
            network.encode(x, IDS)
        network.eval()
        with torch.no_grad():
            encoded = network.encode(x, IDS)
            assert torch.allclose(network.lookup(encoded.codes, encoded.shape), encoded.latent, atol=1e-5)


def test_codebooks_are_named_coarse_to_fine():
    network = small(quantizer=ResidualQuantizer(16, 4, 3, reservoir=64))
    encoded = network.encode(torch.randn(2, 1, 8, 8, 8), IDS)
    assert list(encoded.codes) == ["anatomy", "residual1", "residual2"]
    assert network.codebook_sizes == {"anatomy": 16, "residual1": 16, "residual2": 16}
    assert network.bits((8, 8, 8)) == 8 * 3 * 4  # 2x2x2 cells, three codebooks, 4 bits


def test_sign_codes_bring_their_entropy():
    for kind in (LookupFreeQuantizer, BinarySphericalQuantizer):
        terms = small(quantizer=kind(16, 4)).encode(torch.randn(2, 1, 8, 8, 8), IDS).terms
        assert set(terms) == {"commitment", "entropy"}


def test_no_collapse_while_it_learns():
    """Every code of a small codebook is in use after some steps on one image."""
    torch.manual_seed(0)
    network = small(channels=(16,), quantizer=EMAQuantizer(16, 4, reservoir=256))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    x = torch.randn(2, 1, 2, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    x = x + 0.3 * torch.randn_like(x)
    for _ in range(25):
        encoded = network.encode(x, IDS)
        loss = (network.decode(encoded, IDS) - x).square().mean() + 0.25 * encoded.terms["commitment"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert network.quantizer.started
    assert len(network.encode(x, IDS).codes["anatomy"].unique()) >= 13  # 80 %


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"res_channels": (8,)}, "res_channels has 1"),
        ({"attention_levels": (True,), "blocks": "residual"}, "attention_levels has 1"),
        ({"mid_blocks": True}, "belong to blocks: residual"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        small(**arguments)
