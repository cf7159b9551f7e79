"""VQVAE2: the seed's sizes and maps, one latent of many levels, and codes that stay where the data is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from neurotome.nn.quantize import EMAQuantizer
from neurotome.tokenizers import VQVAE2
from neurotome.tokenizers.base import codebook_sizes
from neurotome.tokenizers.vq_vae2 import ReZero

IDS = torch.tensor([0, 1])
SMALL = {"channels": 16, "res_channels": 8, "num_res_blocks": 1, "code_channels": 4, "num_codes": 16, "reservoir": 64}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts_of_the_seed():
    with torch.device("meta"):
        network = VQVAE2()
    assert count(network) == 2_935_149
    assert [count(part) for part in network.encoders] == [465_762, 408_226, 408_226]
    assert [count(part) for part in network.to_code] == [3_104, 3_104, 2_080]
    assert [count(part) for part in network.decoders] == [520_771, 491_138, 435_842]
    assert [count(part) for part in network.scalers] == [65_632, 131_264]


def test_maps_of_the_seed():
    """Strided convolutions of width 4 round down; the raw output is 88x108x88 and is resized."""
    network = VQVAE2(channels=4, res_channels=2, num_res_blocks=1, code_channels=2, num_codes=8).eval()
    x = torch.randn(1, 1, 91, 109, 91)
    maps = [(22, 27, 22), (11, 13, 11), (5, 6, 5)]
    with torch.no_grad():
        encoded = network.encode(x, IDS[:1])
        raw = network.decoders[0](encoded.latent, (False, False, False))
        assert network.decode(encoded, IDS[:1]).shape == x.shape
    assert [tuple(encoded.aux[f"level{i}"].shape[2:]) for i in range(3)] == maps
    assert [tuple(codes.shape[1:]) for codes in encoded.codes.values()] == maps[::-1]
    assert network.map_shapes((91, 109, 91)) == maps
    assert tuple(raw.shape[2:]) == (88, 108, 88)
    assert network.bits((91, 109, 91)) == 3 * (22 * 27 * 22 + 11 * 13 * 11 + 5 * 6 * 5)


def test_names_sizes_and_latent():
    network = VQVAE2(**{**SMALL, "num_codes": (16, 32, 64)}).eval()
    encoded = network.encode(torch.randn(2, 1, 32, 16, 24), IDS)
    assert list(encoded.codes) == ["level2", "level1", "level0"]
    assert codebook_sizes(network, tuple(encoded.codes)) == {"level2": 64, "level1": 32, "level0": 16}
    assert encoded.latent.shape == (2, 12, 8, 4, 6)
    # the finest level's own codes come first
    assert torch.allclose(encoded.latent[:, :4], network.books[0].lookup(encoded.codes["level0"]), atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 15, 13), (16, 1, 16), (3, 2, 5)])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_codes_alone_decode_to_the_same_image(dims, shape):
    if dims == 2 and 1 in shape[:2]:
        pytest.skip("a network of slices takes them along z")
    torch.manual_seed(0)
    network = VQVAE2(dims, **SMALL).eval()
    x = torch.randn(2, 1, *shape)
    with torch.no_grad():
        encoded = network.encode(x, IDS)
        assert torch.allclose(network.lookup(list(encoded.codes.values()), shape), encoded.latent, atol=1e-5)


@pytest.mark.parametrize("rates", [(2,), (4, 2), (2, 2, 2, 2), (8, 4)])
def test_any_number_of_levels_and_rates(rates):
    network = VQVAE2(scaling_rates=rates, **{**SMALL, "norm": "group"})
    x = torch.randn(2, 1, 32, 32, 32)
    encoded = network.encode(x, IDS)
    assert list(encoded.codes) == [f"level{i}" for i in reversed(range(len(rates)))]
    out = network.decode(encoded, IDS)
    assert out.shape == x.shape
    (out.square().sum() + encoded.terms["commitment"]).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_rezero_starts_as_the_identity_and_follows_the_formula():
    block, x = ReZero(3, 4, 2, "none"), torch.randn(2, 4, 3, 4, 5)
    assert torch.equal(block(x), x)
    block.alpha.data.fill_(0.5)
    inner = F.relu(F.conv3d(x, block.body[0].weight, padding=1))
    expected = x + 0.5 * F.relu(F.conv3d(inner, block.body[3].weight, padding=1))
    assert torch.allclose(block(x), expected, atol=1e-6)


def published_step(vectors, codes, counts, sums, decay=0.99, eps=1e-5):
    """One update as published: Laplace-smoothed counts, which start at 0, under sums that start at the codes."""
    found = torch.cdist(vectors, codes).argmin(1)
    hits = torch.bincount(found, minlength=len(codes)).float()
    counts = decay * counts + (1 - decay) * hits
    sums = decay * sums + (1 - decay) * torch.zeros_like(codes).index_add_(0, found, vectors)
    n = counts.sum()
    smoothed = (counts + eps) / (n + len(codes) * eps) * n
    return sums / smoothed[:, None], counts, sums, len(found.unique())


def test_codes_are_not_flung_away():
    """The trap: counts of 0 under full sums fling unvisited codes to norms of 1e5, and a handful of codes remain."""
    torch.manual_seed(0)
    data = torch.randn(2048, 32) @ torch.diag(torch.linspace(0.1, 1, 32))
    codes = torch.randn(512, 32)
    counts, sums = torch.zeros(512), codes.clone()
    for _ in range(3):
        codes, counts, sums, used = published_step(data, codes, counts, sums)
    assert codes.norm(dim=1).max() > 1e4
    assert used < 10

    book = EMAQuantizer(512, 32, revive_below=0, reservoir=2048)
    latent = data.t().reshape(1, 32, 16, 16, 8)
    for _ in range(20):
        found = book(latent)
    assert book.codebook.norm(dim=1).max() <= data.norm(dim=1).max()
    assert len(found.codes.unique()) > 0.8 * 512


def test_every_level_of_the_network_starts_from_its_data():
    torch.manual_seed(0)
    network = VQVAE2(**{**SMALL, "norm": "none", "scaling_rates": (2, 2), "reservoir": 128})
    x = torch.randn(2, 1, 16, 16, 16)
    for _ in range(6):
        encoded = network.encode(x, IDS)
    for i, book in enumerate(network.books):
        assert book.started
        z = book.lookup(encoded.codes[f"level{i}"])
        assert book.codebook.norm(dim=1).max() < 4 * z.flatten(2).norm(dim=1).max()
        assert len(encoded.codes[f"level{i}"].unique()) >= 13  # 80 %


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"scaling_rates": (3, 2)}, "power of 2"),
        ({"scaling_rates": ()}, "power of 2"),
        ({"num_codes": (16, 16)}, "num_codes has 2 entries for 3 levels"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        VQVAE2(**{**SMALL, **arguments})
