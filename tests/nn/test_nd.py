"""Slices and volumes through one code path."""

import pytest
import torch
import torch.nn.functional as F

from neurotome.nn.nd import Conv, FactoredConv, depth_to_space, per_axis, space_to_depth, upsample


def test_volume_convolution_equals_torch():
    conv = Conv(3, 2, 3, stride=2)
    x = torch.randn(2, 2, 6, 5, 4)
    assert torch.allclose(conv(x), F.conv3d(x, conv.weight, conv.bias, stride=2, padding=1), atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_sees_the_central_slice_of_the_kernel(axis):
    conv = Conv(3, 2, 3)
    x = torch.randn(2, 2, 6, 6, 6).narrow(2 + axis, 0, 1)
    plane = F.conv2d(x.squeeze(2 + axis), conv.weight.select(2 + axis, 1), conv.bias, padding=1)
    assert torch.allclose(conv(x).squeeze(2 + axis), plane, atol=1e-6)
    # what zero padding would give, so that a slice and a padded slab of one voxel agree
    assert torch.allclose(conv(x), F.conv3d(x, conv.weight, conv.bias, padding=1), atol=1e-6)


def test_stride_skips_a_flat_axis():
    assert Conv(3, 1, 1, stride=2)(torch.randn(1, 1, 1, 8, 6)).shape == (1, 1, 1, 4, 3)


def test_two_dimensional_kernels_have_depth_one():
    conv = Conv(2, 1, 4, stride=2)
    assert conv.weight.shape == (4, 1, 3, 3, 1)
    assert conv(torch.randn(1, 1, 8, 8, 1)).shape == (1, 4, 4, 4, 1)


def test_factored_convolution_starts_in_the_plane():
    conv = FactoredConv(3, 2, 3)
    x = torch.randn(1, 2, 5, 6, 7)
    assert torch.allclose(conv(x), conv.plane(x), atol=1e-6)


def test_upsampling_leaves_a_flat_axis_alone():
    x = torch.randn(1, 2, 1, 3, 4)
    assert torch.allclose(
        upsample(x, (1, 6, 8)).squeeze(2), F.interpolate(x.squeeze(2), scale_factor=2, mode="bilinear"), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(4, 6, 8), (1, 6, 8), (4, 1, 8), (4, 6, 1)])
def test_space_to_depth_round_trip(shape):
    x = torch.randn(2, 3, *shape)
    packed = space_to_depth(x, (2, 2, 2))
    assert packed.shape == (2, 24, *(max(s // 2, 1) for s in shape))
    assert torch.allclose(depth_to_space(packed, (2, 2, 2), shape), x, atol=1e-6)


def test_space_to_depth_keeps_neighbours_together():
    x = torch.arange(64.0).view(1, 1, 4, 4, 4)
    assert space_to_depth(x, (2, 2, 2))[0, :, 0, 0, 0].tolist() == [0, 1, 4, 5, 16, 17, 20, 21]


def test_refusals_name_what_is_admissible():
    with pytest.raises(ValueError, match=r"2 .slices. or 3"):
        per_axis(3, 4)
    with pytest.raises(ValueError, match="positive"):
        Conv(3, 1, 1, kernel_size=0)


@pytest.mark.parametrize(("stride", "size"), [(2, 4), (1, 7)])
def test_an_even_kernel_is_padded_alike_on_both_sides(stride, size):
    conv, x = Conv(3, 2, 3, 4, stride=stride), torch.randn(1, 2, 8, 8, 8)
    assert torch.allclose(conv(x), F.conv3d(x, conv.weight, conv.bias, stride, padding=1), atol=1e-5)
    assert conv(x).shape[2:] == (size,) * 3
    flat = conv(x[..., :1])
    plane = F.conv2d(x[..., 0], conv.weight[..., 1], conv.bias, stride, padding=1)
    assert torch.allclose(flat[..., 0], plane, atol=1e-5)
