"""VectorAE: the seed's sizes, the two halves, any shape, batch statistics."""

import pytest
import torch
import torch.nn.functional as F
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


def seed_forward(w: dict[str, torch.Tensor], x, down: int, up: int):
    """The seed's text in plain functions, of volumes in evaluation; ``w`` are the network's weights by their names.

    Returns the vector after ``down`` stages and the image after ``up`` stages.
    """

    def conv(name, h):
        return F.conv3d(h, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)

    def norm(name, h):
        return F.batch_norm(h, *(w[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))

    def group(name, h):
        return F.group_norm(h, 16, w[f"{name}.weight"], w[f"{name}.bias"])

    def residual(name, h):
        inner = F.relu(group(f"{name}.1", conv(f"{name}.0", h)))
        return h + F.relu(group(f"{name}.4", conv(f"{name}.3", inner)))

    h = x
    for at in (f"encoder.stages.{i}" for i in range(down)):
        h = residual(f"{at}.block", F.relu(norm(f"{at}.norm", conv(f"{at}.conv", h))))
        h = F.max_pool3d(h, kernel_size=3, stride=2, padding=1)
    z = h.mean(dim=(2, 3, 4))
    h = F.relu(F.linear(z, w["decoder.project.weight"], w["decoder.project.bias"])).view(len(x), -1, 2, 2, 2)
    for at in (f"decoder.stages.{i}" for i in range(up)):
        h = F.conv_transpose3d(h, w[f"{at}.conv.weight"], w[f"{at}.conv.bias"], stride=2, padding=1)
        h = residual(f"{at}.block", F.leaky_relu(norm(f"{at}.norm", h), 0.2))
    for i in (0, 3):
        h = F.leaky_relu(norm(f"decoder.refine.{i + 1}", conv(f"decoder.refine.{i}", h)), 0.2)
    h = conv("decoder.refine.6", h)
    return z, F.interpolate(h, size=x.shape[2:], mode="trilinear", align_corners=False)


def test_the_network_is_the_text_of_the_seed():
    """Vector and image, with the running statistics of one batch."""
    torch.manual_seed(0)
    network, x = VectorAE(channels=(16, 32, 48), decoder_channels=(32, 16, 16)), torch.randn(2, 1, 19, 22, 17)
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.momentum = 1.0
    network.decode(network.encode(x, IDS), IDS)
    network.eval()
    with torch.no_grad():
        encoded = network.encode(x, IDS)
        z, expected = seed_forward(network.state_dict(), x, down=3, up=3)
        assert torch.allclose(encoded.latent.flatten(1), z, atol=1e-5)
        assert torch.allclose(network.decode(encoded, IDS), expected.clamp(-1, 1), atol=1e-5)
    assert z.std() > 0.05
    assert expected.std() > 0.05
    assert (expected.abs() < 1).float().mean() > 0.5


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
