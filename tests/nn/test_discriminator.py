"""Sizes, shapes and reach of the discriminator."""

import pytest
import torch

from neurotome.nn.discriminator import PatchDiscriminator


@pytest.mark.parametrize(("dims", "channels", "size"), [(2, 64, 2_763_585), (3, 64, 11_048_769), (3, 32, 2_771_873)])
def test_the_published_sizes(dims, channels, size):
    monai = pytest.importorskip("monai.networks.nets")
    with torch.device("meta"):
        own = PatchDiscriminator(dims, channels=channels)
        other = monai.PatchDiscriminator(dims, channels=channels, in_channels=1, out_channels=1, num_layers_d=3)
    assert sum(p.numel() for p in own.parameters()) == sum(p.numel() for p in other.parameters()) == size


@pytest.mark.parametrize("shape", [(16, 16, 16), (24, 16, 20), (1, 16, 16), (16, 1, 16), (16, 16, 1), (5, 6, 7)])
def test_volumes_and_slices_share_the_weights(shape):
    discriminator = PatchDiscriminator(3, 1, channels=4, norm_groups=2)
    assert discriminator(torch.rand(2, 1, *shape)).shape[:2] == (2, 1)


@pytest.mark.parametrize("dims", [2, 3])
def test_gradient_reaches_every_parameter(dims):
    discriminator = PatchDiscriminator(dims, 2, channels=4, norm_groups=2)
    discriminator(torch.rand(2, 2, 32, 32, 32 if dims == 3 else 1)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in discriminator.parameters())


def test_a_patch_is_seventy_voxels_wide():
    discriminator = PatchDiscriminator(2, 1, channels=2, norm_groups=0)
    x = torch.rand(1, 1, 112, 112, 1, requires_grad=True)
    y = discriminator(x)
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2, 0].backward()
    seen = x.grad[0, 0, ..., 0].nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]


def test_one_image_does_not_discriminator_another():
    discriminator = PatchDiscriminator(3, 1, channels=4, norm_groups=2)
    x = torch.rand(2, 1, 16, 16, 16)
    assert torch.allclose(discriminator(x)[:1], discriminator(x[:1]), atol=1e-6)


def test_no_layer_is_refused():
    with pytest.raises(ValueError, match="num_layers is 0"):
        PatchDiscriminator(num_layers=0)
