"""Down and up by two: sizes, brute force, slices inside volumes, and a fault of bfloat16 that is worked around."""

import pytest
import torch
import torch.nn.functional as F

from neurotome.nn.attention import FullAttention
from neurotome.nn.nd import BatchNorm, Conv, flat_axes
from neurotome.nn.rescale import Downsample, MaxPool, Slicewise, TransposedConv, Upsample

SHAPES = [(4, 6, 8), (1, 6, 8), (4, 1, 8), (4, 6, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_down_and_up_skip_flat_axes(shape):
    x, flat = torch.randn(2, 3, *shape), flat_axes(shape)
    half = tuple(max(s // 2, 1) for s in shape)
    assert Downsample(3, 3)(x).shape[2:] == half
    assert MaxPool(3)(x).shape[2:] == half
    twice = tuple(s if f else 2 * s for s, f in zip(shape, flat, strict=True))
    assert Upsample(3, 3)(x, flat).shape[2:] == twice
    assert TransposedConv(3, 3, 5)(x, flat).shape == (2, 5, *twice)


def test_an_axis_that_was_halved_to_one_is_doubled_again():
    x = torch.randn(1, 2, 1, 1, 1)
    assert TransposedConv(3, 2, 2)(x, (False, False, True)).shape[2:] == (2, 2, 1)
    assert Upsample(3, 2)(x, (False, False, True)).shape[2:] == (2, 2, 1)


def test_downsampling_window_opens_at_its_voxel():
    down, x = Downsample(3, 2), torch.randn(1, 2, 4, 6, 8)
    padded = F.pad(x, (0, 1, 0, 1, 0, 1))
    expected = F.conv3d(padded, down.conv.weight, down.conv.bias, stride=2)
    assert torch.allclose(down(x), expected, atol=1e-6)
    flat = x[..., :1]
    expected = F.conv3d(padded[..., :1], down.conv.weight[..., 1:2], down.conv.bias, stride=(2, 2, 1))
    assert torch.allclose(down(flat), expected, atol=1e-6)


def test_transposed_convolution_on_a_slice_is_the_mean_of_the_two_slices_it_would_make():
    up, x = TransposedConv(3, 3, 2), torch.randn(2, 3, 4, 5, 1)
    both = up(x, (False, False, False))  # (2, 2, 8, 10, 2)
    assert torch.allclose(up(x, (False, False, True)), both.mean(-1, keepdim=True), atol=1e-6)


def test_full_attention_equals_a_loop():
    layer, x = FullAttention(4, 2, norm_groups=2), torch.randn(1, 4, 2, 2, 3)
    tokens = layer.norm(x).flatten(2)[0].t()  # (n, c)
    q, k, v = layer.qkv(tokens).split(4, dim=1)
    heads = [torch.softmax(q[:, s] @ k[:, s].t() / 2**0.5, dim=1) @ v[:, s] for s in (slice(0, 2), slice(2, 4))]
    expected = x + layer.out(torch.cat(heads, dim=1)).t().view_as(x)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    with pytest.raises(ValueError, match="multiple of num_heads"):
        FullAttention(4, 3)


@pytest.mark.parametrize("z", [1, 4])
def test_slices_are_folded_and_come_back(z):
    x = torch.randn(2, 3, 4, 5, z)
    alone, whole = Slicewise(2), Slicewise(3)
    folded = alone.fold(x)
    assert folded.shape == (2 * z, 3, 4, 5, 1)
    assert torch.equal(folded[z - 1, ..., 0], x[0, ..., z - 1])
    assert torch.equal(alone.unfold(folded, 2), x)
    assert whole.fold(x) is x
    alone.check(x.shape[2:])
    with pytest.raises(ValueError, match=r"takes slices \(x, y, 1\)"):
        alone.check((1, 8, 8))


def test_batch_norm_keeps_one_set_of_statistics():
    norm = BatchNorm(2)
    norm(torch.randn(2, 2, 4, 4, 4) + 3)
    norm(torch.randn(2, 2, 4, 4, 1) + 3)
    assert norm.num_batches_tracked == 2


def test_bfloat16_gradients_are_right_where_the_window_is_longer_than_the_axis():
    """torch 2.13 leaves parts of this gradient unwritten; memory full of NaN makes that seen."""
    torch.manual_seed(0)
    conv, x = Conv(3, 16, 16), torch.randn(4, 16, 2, 2, 2)
    (expected,) = torch.autograd.grad(conv(x).square().sum(), conv.weight)
    for _ in range(10):
        poison = [torch.full((size,), float("nan"), dtype=torch.bfloat16) for size in (1000, 7000, 10000)]
        del poison
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x)
        (grad,) = torch.autograd.grad(y.float().square().sum(), conv.weight)
        assert torch.allclose(grad, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def test_upsampling_interpolates_where_asked():
    up, x = Upsample(3, 2, "trilinear"), torch.randn(1, 2, 4, 5, 6)
    finer = F.interpolate(x, scale_factor=2, mode="trilinear")
    expected = F.conv3d(finer, up.conv.weight, up.conv.bias, padding=1)
    assert torch.allclose(up(x, (False,) * 3), expected, atol=1e-5)
    assert not torch.allclose(Upsample(3, 2)(x, (False,) * 3), expected, atol=1e-2)
    plane = up(x[..., :1], (False, False, True))
    finer = F.interpolate(x[..., 0], scale_factor=2, mode="bilinear")
    expected = F.conv2d(finer, up.conv.weight[..., 1], up.conv.bias, padding=1)
    assert torch.allclose(plane[..., 0], expected, atol=1e-5)
    with pytest.raises(ValueError, match="admissible are nearest and trilinear"):
        Upsample(3, 2, "cubic")
