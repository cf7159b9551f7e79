"""What is computed in slabs is what the whole gives."""

import gc
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurotome.nn.attention import FullAttention, MultiAxisAttention
from neurotome.nn.linear_attention import EfficientViTBlock
from neurotome.nn.nd import Conv, FactoredConv, channels_last, depth_to_space, space_to_depth, upsample
from neurotome.nn.rescale import Downsample, TransposedConv, Upsample
from neurotome.nn.residual import ResidualBlock
from neurotome.nn.shortcut import PostNormBlock, ShortcutDownsample, ShortcutUpsample
from neurotome.nn.slabs import maps as slab_maps
from neurotome.nn.slabs.computing import Deferred, Slabs, computing

FLAT = (False, False, False)
BLOCKS = {
    "conv": lambda: Conv(3, 4, 6),
    "conv 1": lambda: Conv(3, 4, 6, 1),
    "conv 5": lambda: Conv(3, 4, 6, 5),
    "strided conv": lambda: Conv(3, 4, 6, stride=2),
    "strided conv 4": lambda: Conv(3, 4, 6, 4, stride=2),
    "grouped conv": lambda: Conv(3, 4, 8, groups=4),
    "factored conv": lambda: FactoredConv(3, 4, 6),
    "transposed conv": lambda: Bound(TransposedConv(3, 4, 6), FLAT),
    "nearest": lambda: Bound(Upsample(3, 4), FLAT),
    "down": lambda: Downsample(3, 4),
    "fold": lambda: ShortcutDownsample(3, 4, 16, (2, 2, 2)),
    "unfold": lambda: Unfolded(),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "batch norm": lambda: nn.BatchNorm3d(4),
    "residual": lambda: ResidualBlock(3, 4, 4, 2),
    "residual, wider": lambda: ResidualBlock(3, 4, 8, 2),
    "residual, no norm": lambda: ResidualBlock(3, 4, 2, 0, factored=True),
    "post-norm": lambda: PostNormBlock(3, 4),
    "axis attention": lambda: MultiAxisAttention(3, 4, 2, 2),
    "full attention": lambda: FullAttention(4, 2, 2),
    "linear attention": lambda: EfficientViTBlock(3, 4, 2),
}


class Bound(nn.Module):
    """A block with its further arguments."""

    def __init__(self, block: nn.Module, *further: object) -> None:
        super().__init__()
        self.block, self.further = block, further

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x, *self.further)


class Unfolded(nn.Module):
    """Its second argument is the shape it leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.block = ShortcutUpsample(3, 4, 2, (2, 2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x, [2 * n for n in x.shape[2:]])


def difference(function, x, planes, small=0):
    """Return the largest difference of slabs from the whole, relative to the whole's largest value."""
    with torch.inference_mode():
        whole, ours = function(x), Slabs(planes, small)(function, x)
    assert type(ours) is torch.Tensor
    assert ours.shape == whole.shape
    assert ours.dtype == whole.dtype
    return float((ours.double() - whole.double()).abs().max() / whole.double().abs().max().clamp(min=1e-6))


@pytest.mark.parametrize("name", BLOCKS)
@settings(max_examples=8, deadline=None)
@given(planes=st.integers(1, 9), halves=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)))
def test_a_block_in_slabs_is_the_block(name, planes, halves):
    torch.manual_seed(0)
    block = nn.Sequential(Conv(3, 4, 4), BLOCKS[name](), nn.SiLU()).eval()
    x = torch.randn(2, 4, *(2 * n for n in halves))
    assert difference(block, x, planes) < 1e-5


@pytest.mark.parametrize("name", [n for n in BLOCKS if n not in ("transposed conv", "nearest", "unfold", "fold")])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_pass_in_slabs(name, axis):
    torch.manual_seed(0)
    block = nn.Sequential(Conv(3, 4, 4), BLOCKS[name]()).eval()
    shape = [6, 6, 6]
    shape[axis] = 1
    assert difference(block, torch.randn(1, 4, *shape), 2) < 1e-5


@pytest.mark.parametrize("planes", [1, 3, 5, 40])
def test_resizing_and_blocks_of_voxels(planes):
    conv = Conv(3, 8, 8)
    for function in (
        lambda h: conv(upsample(h, (27, 5, 9))),
        lambda h: conv(upsample(h, (14, 5, 9))),  # not a multiple: taken whole
        lambda h: depth_to_space(conv(h), (2, 2, 1), (18, 10, 6)),
        lambda h: depth_to_space(conv(h[:, :, :1]), (2, 2, 2), (1, 10, 12)),
        lambda h: space_to_depth(conv(h)[:, :, :8, :4], (4, 2, 2)),
        lambda h: F.pad(conv(h), (1, 0, 0, 2, 2, 3)).narrow(2, 1, 7),
        lambda h: torch.cat([conv(h), h], 1).chunk(2, dim=1)[1] * 2 - h,
        lambda h: 1 - conv(h).clamp(-1, 1).float(),
        lambda h: conv(h).mean((2, 3, 4)),  # a reduction over the volume: taken whole
    ):
        torch.manual_seed(1)
        assert difference(function, torch.randn(1, 8, 9, 5, 6), planes) < 1e-5


def test_statistics_hold_far_from_zero():
    norm = nn.GroupNorm(2, 4)
    conv = Conv(3, 4, 4, 1)
    nn.init.dirac_(conv.weight)
    nn.init.constant_(conv.bias, 1000.0)
    x = torch.randn(1, 4, 12, 8, 8)
    x[:, :, :6] += 5  # slabs of different means
    with torch.inference_mode():
        ours = Slabs(5, 0)(lambda v: norm(conv(v)), x)
        exact = F.group_norm(conv(x).double(), 2, eps=1e-5)
    assert float((ours - exact).abs().max()) < 2e-3  # single precision at 1000 has steps of 6e-5


def test_bfloat16_stays_within_its_precision():
    torch.manual_seed(0)
    block = nn.Sequential(ResidualBlock(3, 8, 8, 2), MultiAxisAttention(3, 8, 2, 2), ResidualBlock(3, 8, 4, 2)).eval()
    x = torch.randn(2, 8, 10, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert difference(block, x, 3) < 2**-6
        with torch.inference_mode():
            assert Slabs(3, 0)(block, x).dtype == block(x).dtype


def test_what_is_deferred_under_autocast_is_computed_under_it():
    conv, other = Conv(3, 4, 4), Conv(3, 4, 4)

    def function(x):
        h = conv(x)
        with torch.autocast("cpu", enabled=False):
            return other(h.float())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert difference(function, torch.randn(1, 4, 8, 6, 6), 3) < 1e-6


def test_a_map_that_is_read_again_later_is_still_there():
    a, b, c = Conv(3, 4, 4), Conv(3, 4, 4), Conv(3, 4, 4)

    def function(x):
        h = a(x)
        y = b(F.relu(h))
        z = float(y.sum())  # forces y while h is held
        return c(h) + y * z

    assert difference(function, torch.randn(1, 4, 9, 6, 6), 2) < 1e-5


def test_changes_in_place_are_followed():
    conv = Conv(3, 4, 4)

    def function(x):
        h = conv(x)
        kept = h * 1
        F.relu(h, inplace=True)
        return h.add_(x).mul_(2) + kept

    x = torch.randn(1, 4, 9, 6, 6)
    before = x.clone()
    assert difference(function, x, 2) < 1e-5
    assert torch.equal(x, before)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="know zero in place"):
        Slabs(2, 0)(lambda v: conv(v).zero_(), x)


def test_a_tensor_that_slabs_still_read_is_not_changed_under_them():
    conv = Conv(3, 4, 4)

    def function(x):
        h = conv(x)
        x.add_(1)
        return h

    with torch.inference_mode(), pytest.raises(RuntimeError, match="still to read"):
        Slabs(2, 0)(function, torch.randn(1, 4, 9, 6, 6))

    def harmless(x):
        y = x + 1
        return conv(x) + y.mul_(2)

    assert difference(harmless, torch.randn(1, 4, 9, 6, 6), 2) < 1e-5


def test_memory_is_given_up_while_the_next_map_is_made(monkeypatch):
    """Of a chain of ten convolutions hardly more than one map is ever held."""
    held, most = {}, 0
    from neurotome.nn.slabs.memory import Blocks

    take, give = Blocks.take, Blocks.give

    def taking(self, shape, dtype, device):
        nonlocal most
        planes = take(self, shape, dtype, device)
        held[planes.data_ptr()] = planes.numel()
        most = max(most, sum(held.values()))
        return planes

    def giving(self, planes):
        del held[planes.data_ptr()]
        give(self, planes)

    monkeypatch.setattr("neurotome.nn.slabs.memory.BLOCK_BYTES", 4 * 4 * 8 * 8 * 4)  # four planes
    monkeypatch.setattr(Blocks, "take", taking)
    monkeypatch.setattr(Blocks, "give", giving)
    layers = nn.Sequential(*(nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), Conv(3, 4, 4)) for _ in range(10)))
    one = 4 * 64 * 8 * 8
    layers = nn.Sequential(Conv(3, 4, 4), layers, Conv(3, 4, 1))
    with torch.inference_mode():
        Slabs(4, small=one * 2)(layers, torch.randn(1, 4, 64, 8, 8))
    assert one <= most <= 1.3 * one
    gc.collect()
    assert not held


def test_a_very_deep_network_does_not_exhaust_the_stack():
    layers = nn.Sequential(*(Conv(3, 2, 2) for _ in range(sys.getrecursionlimit())))
    with torch.inference_mode():
        assert Slabs(2, 0)(layers, torch.randn(1, 2, 3, 2, 2)).shape == (1, 2, 3, 2, 2)


def test_channels_may_lie_beside_each_other_in_memory():
    network = nn.Sequential(Conv(3, 4, 8), nn.SiLU(), Conv(3, 8, 4))
    channels_last(network)
    assert difference(network, torch.randn(1, 4, 9, 6, 6), 4) < 1e-5


def test_small_maps_are_computed_at_once():
    seen = []

    def function(x):
        seen.append(type(Conv(3, 1, 1)(x)))
        return x

    with torch.inference_mode():
        Slabs()(function, torch.randn(1, 1, 8, 8, 8))
        Slabs(small=0)(function, torch.randn(1, 1, 8, 8, 8))
    assert seen == [torch.Tensor, Deferred]


def test_gradients_and_bad_thickness_are_refused():
    with pytest.raises(RuntimeError, match="inference_mode"):
        Slabs()(lambda x: x, torch.zeros(1))
    with pytest.raises(ValueError, match="at least 1"):
        Slabs(0)


def test_the_choice_follows_the_volume():
    assert isinstance(computing("auto", (144, 192, 144)), Slabs)
    assert computing(7, (8, 8, 8)) == Slabs(7)
    for choice, shape in (("auto", (64, 64, 64)), ("off", (144, 192, 144))):
        compute = computing(choice, shape)
        assert not isinstance(compute, Slabs)
        assert compute(max, 1, 2) == 2


def test_a_window_that_lacks_a_neighbour_is_noticed(monkeypatch):
    """The tests above can fail: without the plane before the slab nothing agrees."""
    read = slab_maps.Map.read

    def shifted(self, lo, hi):
        return read(self, max(lo, 1), max(lo, 1) + hi - lo) if hi < self.shape[2] else read(self, lo, hi)

    monkeypatch.setattr(slab_maps.Map, "read", shifted)
    assert difference(nn.Sequential(Conv(3, 4, 4), Conv(3, 4, 4)), torch.randn(1, 4, 9, 6, 6), 3) > 1e-3
