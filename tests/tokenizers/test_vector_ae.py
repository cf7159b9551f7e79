"""VectorAE: the seed's sizes, the two halves, any shape, batch statistics."""

import pytest
import torch
from torch import nn

from neurotome.nn.nd import BatchNorm
from neurotome.tokenizers import VectorAE
from neurotome.tokenizers.vector_ae import CONTENT, STYLE

IDS = torch.tensor([0, 1])
SMALL = {"channels": (8, 16), "decoder_channels": (16, 8, 4)}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts_of_the_text_followed_literally():
    """The report says about 15.5 M and 27.8 M, which no released version has."""
    with torch.device("meta"):
        network = VectorAE()
    assert count(network.encoder) == 23_565_888
    assert count(network.decoder) == 48_941_841
    with torch.device("meta"):
        half = VectorAE(channels=(32, 64, 128, 256, 256))
    assert count(half.decoder) == 47_893_265  # the reference's count for a latent of 256


def test_maps_of_the_seed_and_its_halves():
    with torch.device("meta"):
        network, x = VectorAE(), torch.zeros(1, 1, 91, 109, 91)
        assert network.encoder.maps(x).shape == (1, 512, 3, 4, 3)
        encoded = network.encode(x, torch.zeros(1, dtype=torch.long))
        assert network.decode(encoded, IDS[:1]).shape == x.shape
    assert encoded.latent.shape == (1, 512, 1, 1, 1)
    assert (network.content, network.style) == (CONTENT, STYLE) == (slice(0, 256), slice(256, 512))
    assert network.latent_shape((91, 109, 91)) == (1, 1, 1)
    assert network.bits((91, 109, 91)) == 512 * 16


def test_the_halves_are_named_channels_of_the_latent():
    network = VectorAE(**SMALL, content_channels=4)
    encoded = network.encode(torch.randn(2, 1, 16, 16, 16), IDS)
    assert torch.equal(torch.cat([encoded.aux["content"], encoded.aux["style"]], dim=1), encoded.latent)
    assert encoded.aux["content"].shape[1] == 4
    with pytest.raises(ValueError, match="content_channels is 17 of 16"):
        VectorAE(**SMALL, content_channels=17)


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 15, 13), (1, 16, 16), (16, 16, 1), (3, 2, 5)])
def test_any_shape_is_admissible(shape):
    network, x = VectorAE(**SMALL).eval(), torch.randn(2, 1, *shape)
    assert network.decode(network.encode(x, IDS), IDS).shape == x.shape


def test_the_norm_is_an_argument():
    batch, group = VectorAE(**SMALL), VectorAE(**SMALL, norm="group")
    assert sum(isinstance(m, BatchNorm) for m in batch.modules()) == 2 + 3 + 2  # stages of both, the refinement
    assert not any(isinstance(m, BatchNorm) for m in group.modules())
    assert count(batch) == count(group)


def test_batch_statistics_carry_one_scan_into_another_and_groups_do_not():
    """Trap of the seed: both contrasts of a session share a batch, so that batch statistics leak between the views."""
    x = torch.randn(2, 1, 16, 16, 16)
    other = torch.stack([x[0], 5 * x[1]])
    for norm, leaks in (("batch", True), ("group", False)):
        network = VectorAE(**SMALL, norm=norm).train()
        first, second = network.encode(x, IDS).latent[0], network.encode(other, IDS).latent[0]
        assert torch.allclose(first, second, atol=1e-5) is not leaks


def test_the_mean_over_space_is_single_precision_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        encoded = VectorAE(**SMALL).encode(torch.randn(2, 1, 16, 16, 16), IDS)
    assert encoded.latent.dtype == torch.float32
