"""VQVAE2: the seed's sizes and maps, one latent of many levels, and codes that stay where the data is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from neurotome.nn.nd import BatchNorm
from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.tokenizers import VQVAE2
from neurotome.tokenizers.vq_vae2 import ReZero

IDS = torch.tensor([0, 1])


def codebooks(*sizes: int, dim: int = 4, reservoir: int | None = 64) -> list[EMAQuantizer]:
    return [EMAQuantizer(size, dim, reservoir=reservoir) for size in sizes]


def small(**changes) -> VQVAE2:
    arguments = {"channels": 16, "res_channels": 8, "num_res_blocks": 1, "quantizers": codebooks(16, 16, 16)}
    return VQVAE2(**arguments | changes)


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
    network = small(channels=4, res_channels=2, quantizers=codebooks(8, 8, 8, dim=2)).eval()
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
    network = small(quantizers=codebooks(16, 32, 64)).eval()
    encoded = network.encode(torch.randn(2, 1, 32, 16, 24), IDS)
    assert list(encoded.codes) == ["level2", "level1", "level0"]
    assert network.codebook_sizes == {"level2": 64, "level1": 32, "level0": 16}
    assert encoded.latent.shape == (2, 12, 8, 4, 6)
    # the finest level's own codes come first
    assert torch.allclose(encoded.latent[:, :4], network.quantizers[0].lookup([encoded.codes["level0"]]), atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 15, 13), (16, 1, 16), (3, 2, 5)])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_codes_alone_decode_to_the_same_image(dims, shape):
    if dims == 2 and 1 in shape[:2]:
        pytest.skip("a network of slices takes them along z")
    torch.manual_seed(0)
    network = small(spatial_dims=dims).eval()
    x = torch.randn(2, 1, *shape)
    with torch.no_grad():
        encoded = network.encode(x, IDS)
        assert torch.allclose(network.lookup(encoded.codes, shape), encoded.latent, atol=1e-5)


@pytest.mark.parametrize("rates", [(2,), (4, 2), (2, 2, 2, 2), (8, 4)])
def test_any_number_of_levels_and_rates(rates):
    network = small(scaling_rates=rates, norm="group", quantizers=codebooks(*(16 for _ in rates)))
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


def seed_forward(w: dict[str, torch.Tensor], x, halvings=(2, 1, 1), blocks=1):
    """The seed's text in plain functions, of volumes in evaluation; ``w`` are the network's weights by their names.

    Returns maps, code ids and commitments by level, and the image.
    """

    def conv(name, h, stride=1, padding=1):
        return F.conv3d(h, w[f"{name}.weight"], w.get(f"{name}.bias"), stride, padding)

    def norm(name, h):
        return F.batch_norm(h, *(w[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))

    def rezero(name, h):
        inner = F.relu(norm(f"{name}.1", conv(f"{name}.0", h)))
        return F.relu(norm(f"{name}.4", conv(f"{name}.3", inner)))

    def up(name, h):
        h = F.conv_transpose3d(h, w[f"{name}.up.weight"], w[f"{name}.up.bias"], stride=2, padding=1)
        return F.relu(norm(f"{name}.norm", h))

    def resize(h, size):
        return F.interpolate(h, size=tuple(size), mode="trilinear", align_corners=False)

    def encoder(level, h):
        at, n = f"encoders.{level}.layers", 3 * halvings[level]
        for i in range(0, n, 3):  # convolution, normalisation, rectifier
            h = F.relu(norm(f"{at}.{i + 1}", conv(f"{at}.{i}", h, stride=2)))
        h = norm(f"{at}.{n + 1}", conv(f"{at}.{n}", h))
        for i in range(n + 2, n + 2 + blocks):
            h = h + w[f"{at}.{i}.alpha"] * rezero(f"{at}.{i}.body", h)
        return h

    def decoder(level, h):
        at = f"decoders.{level}"
        h = conv(f"{at}.conv_in", h)
        for i in range(blocks):
            h = h + w[f"{at}.blocks.{i}.alpha"] * rezero(f"{at}.blocks.{i}.body", h)
        for i in range(halvings[level]):
            h = up(f"{at}.up.{i}", h)
        return norm(f"{at}.norm", conv(f"{at}.conv_out", h))

    maps, codes, commitments, quantised = {}, {}, {}, {}
    for level in range(len(halvings)):
        maps[level] = encoder(level, maps[level - 1] if level else x)
    for level in reversed(range(len(halvings))):
        size, h = maps[level].shape[2:], maps[level]
        if level + 1 < len(halvings):
            h = torch.cat([h, resize(above, size)], dim=1)
        z, codebook = conv(f"to_code.{level}", h, padding=0), w[f"quantizers.{level}.codebook"]
        codes[level] = (z.movedim(1, -1)[..., None, :] - codebook).square().sum(-1).argmin(-1)
        for coarser in quantised:
            for i in range(halvings[level + 1]):
                quantised[coarser] = up(f"scalers.{coarser - 1}.stages.{coarser - level - 1}.{i}", quantised[coarser])
            quantised[coarser] = resize(quantised[coarser], size)
        quantised[level] = codebook[codes[level]].movedim(-1, 1)
        commitments[level] = (quantised[level] - z).square().mean()
        above = decoder(level, torch.cat([quantised[i] for i in sorted(quantised)], dim=1))
    return maps, codes, commitments, resize(above, x.shape[2:])


def test_the_network_is_the_text_of_the_seed():
    """Maps, codes, commitments and image, with gates that are not 0 and the running statistics of one batch."""
    torch.manual_seed(0)
    network = small(channels=8, res_channels=4, quantizers=codebooks(16, 16, 16, reservoir=None))
    x = torch.randn(2, 1, 33, 36, 40)
    for module in network.modules():
        if isinstance(module, ReZero):
            module.alpha.data.normal_(std=0.5)
        if isinstance(module, BatchNorm):
            module.momentum = 1.0
    network.decode(network.encode(x, IDS), IDS)
    network.eval()
    with torch.no_grad():
        encoded = network.encode(x, IDS)
        maps, codes, commitments, expected = seed_forward(network.state_dict(), x)
        image = network.decode(encoded, IDS)
    for level in range(3):
        assert torch.allclose(encoded.aux[f"level{level}"], maps[level], atol=1e-5)
        assert torch.equal(encoded.codes[f"level{level}"], codes[level])
        assert len(codes[level].unique()) > 2
        assert encoded.aux[f"commitment_level{level}"].item() == pytest.approx(commitments[level].item(), rel=1e-5)
    assert encoded.terms["commitment"].item() == pytest.approx(float(sum(commitments.values())), rel=1e-5)
    assert torch.allclose(image, expected.clamp(-1, 1), atol=1e-5)
    assert (expected.abs() < 1).float().mean() > 0.5


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

    quantizer = EMAQuantizer(512, 32, revive_below=0, reservoir=2048)
    latent = data.t().reshape(1, 32, 16, 16, 8)
    for _ in range(20):
        found = quantizer(latent)
    assert quantizer.codebook.norm(dim=1).max() <= data.norm(dim=1).max()
    assert len(found.codes[0].unique()) > 0.8 * 512


def test_every_level_of_the_network_starts_from_its_data():
    torch.manual_seed(0)
    network = small(norm="none", scaling_rates=(2, 2), quantizers=codebooks(16, 16, reservoir=128))
    x = torch.randn(2, 1, 16, 16, 16)
    for _ in range(6):
        encoded = network.encode(x, IDS)
    for i, quantizer in enumerate(network.quantizers):
        assert quantizer.started
        z = quantizer.lookup([encoded.codes[f"level{i}"]])
        assert quantizer.codebook.norm(dim=1).max() < 4 * z.flatten(2).norm(dim=1).max()
        assert len(encoded.codes[f"level{i}"].unique()) >= 13  # 80 %


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"scaling_rates": (3, 2)}, "power of 2"),
        ({"scaling_rates": ()}, "at least one entry"),
        ({"quantizers": codebooks(16, 16)}, "the dims .4, 4. for 3 levels"),
        ({"quantizers": [*codebooks(16, 16), EMAQuantizer(16, 5)]}, "the dims .4, 4, 5. for 3 levels"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        small(**arguments)


def test_hidden_levels_are_whole_suffixes_in_their_share_and_in_training_alone():
    torch.manual_seed(0)
    network = small(scaling_rates=(2, 2, 2), hide_prob=0.4)
    x, ids = torch.randn(300, 1, 8, 8, 8), torch.zeros(300, dtype=torch.long)
    latent = network.encode(x, ids).latent.unflatten(1, (3, 4))  # image, level, channel
    gone = (latent == 0).flatten(2).all(2)
    assert not gone[:, 2].any(), "the coarsest level always speaks"
    assert not (gone[:, 1] & ~gone[:, 0]).any(), "a level is hidden with all that are finer"
    finest, two = gone[:, 0].float().mean(), gone[:, 1].float().mean()
    assert abs(finest - 0.4) < 0.09
    assert abs(two - 0.2) < 0.07
    assert not (network.eval().encode(x[:30], ids[:30]).latent.unflatten(1, (3, 4)) == 0).flatten(2).all(2).any()


@pytest.mark.parametrize(
    "bad", [{"hide_prob": 1.5}, {"hide_prob": 0.1, "scaling_rates": (4,), "quantizers": codebooks(16)}]
)
def test_a_share_to_hide_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="hide_prob"):
        small(**bad)
