import itertools

import pytest
import torch
from torch.nn import functional

from neurotome.metrics import windows
from neurotome.metrics.windows import BoxWindow, GaussianWindow, apply_bands, gaussian_band

SHAPES = [(9, 8, 11), (1, 9, 8), (7, 7, 7), (20, 12, 9)]


def brute_force_mean(maps, window, weights):
    """Sum over the window's places, one by one."""
    out = torch.zeros(len(maps), *window.valid, dtype=maps.dtype)
    for k in itertools.product(*(range(w) for w in window.sizes)):
        weight = torch.stack([weights[w][i] for w, i in zip(window.sizes, k, strict=True)]).prod()
        x, y, z = (slice(i, i + v) for i, v in zip(k, window.valid, strict=True))
        out += weight * maps[:, x, y, z]
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7])
def test_box_mean_is_the_mean_over_every_place(shape, size):
    maps = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    window = BoxWindow(shape, size)
    weights = {w: torch.full((w,), 1 / w, dtype=torch.float64) for w in (1, size)}
    torch.testing.assert_close(window.mean(maps), brute_force_mean(maps, window, weights))


@pytest.mark.parametrize("bytes_", [1, 20_000, 1 << 30])
def test_box_does_not_depend_on_the_pieces(monkeypatch, bytes_):
    """One plane at a time, groups of maps, and all at once."""
    maps = torch.randn(5, 30, 9, 8, generator=torch.Generator().manual_seed(0))
    window = BoxWindow(maps.shape[1:], 7)
    expected = functional.avg_pool3d(maps[:, None], 7, 1)[:, 0]
    back = torch.autograd.functional.vjp(lambda m: functional.avg_pool3d(m[:, None], 7, 1)[:, 0], maps, expected)[1]
    monkeypatch.setattr(windows, "PIECE_BYTES", bytes_)
    torch.testing.assert_close(window.mean(maps), expected)
    torch.testing.assert_close(window.adjoint(expected), back)


def test_box_of_constant_maps_is_exact():
    assert (BoxWindow((12, 9, 8), 7).mean(torch.full((1, 12, 9, 8), -1.0)) == -1).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "make", [lambda s: BoxWindow(s, 7), lambda s: GaussianWindow(s, 5, 1.5, torch.zeros(1).double())]
)
def test_adjoint_is_the_transpose(shape, make):
    generator = torch.Generator().manual_seed(1)
    window = make(shape)
    m = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    g = torch.randn(2, *window.valid, dtype=torch.float64, generator=generator)
    torch.testing.assert_close((window.mean(m) * g).sum(), (m * window.adjoint(g)).sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_mean_is_the_weighted_mean_over_every_place(shape):
    maps = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    window = GaussianWindow(shape, 5, 1.5, maps)
    k = torch.exp(-0.5 * (torch.arange(-2.0, 3.0, dtype=torch.float64) / 1.5) ** 2)
    weights = {1: torch.ones(1, dtype=torch.float64), 5: k / k.sum()}
    torch.testing.assert_close(window.mean(maps), brute_force_mean(maps, window, weights))


def test_bands_act_on_their_own_axis():
    maps = torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    a, b, c = torch.randn(3, 4).double(), torch.randn(2, 5).double(), torch.randn(7, 6).double()
    torch.testing.assert_close(apply_bands(maps, [a, b, c]), torch.einsum("nxyz,ax,by,cz->nabc", maps, a, b, c))
    torch.testing.assert_close(apply_bands(maps, [None, None, None]), maps)
    assert torch.allclose(gaussian_band(9, 5, 1.5).sum(1), torch.ones(5).double())


def test_a_window_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"window of 7 does not fit into an axis of length 6.*same"):
        BoxWindow((9, 6, 9), 7)
    with pytest.raises(ValueError, match="at least 1"):
        BoxWindow((9, 6, 9), 0)
