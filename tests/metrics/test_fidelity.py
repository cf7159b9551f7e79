import math

import numpy as np
import pytest
import torch
from monai.losses import SSIMLoss
from monai.metrics import PSNRMetric
from monai.metrics.regression import SSIMMetric, compute_ssim_and_cs
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from neurotome.metrics import fidelity as reconstruction
from neurotome.metrics.fidelity import fine_detail, high_frequency_ratio, psnr, ssim, ssim_map


def pair(shape, seed=0, dtype=torch.float32):
    """Return a truth with flat background and an output near it."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.rand(shape, dtype=dtype, generator=generator) * 2 - 1
    y[..., :3] = -1
    x = (y + 0.2 * torch.randn(shape, dtype=dtype, generator=generator)).clamp(-1, 1)
    return x, y


def test_psnr_closed_form():
    x = torch.zeros(2, 1, 4, 4, 4)
    y = x.clone()
    y[1] = 0.2
    assert psnr(x, y)[0] == math.inf
    assert psnr(x, y)[1].item() == pytest.approx(20.0, abs=1e-4)  # 10 log10(4 / 0.04)
    assert psnr(x, y, data_range=1.0)[1].item() == pytest.approx(20 - 20 * math.log10(2), abs=1e-4)


def test_psnr_agrees_with_others_and_falls_with_noise():
    x, y = pair((3, 1, 9, 8, 7))
    peers = [peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=2) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(psnr(x, y).numpy(), peers, rtol=1e-5)
    np.testing.assert_allclose(psnr(x, y).numpy(), PSNRMetric(2.0)(x, y)[:, 0].numpy(), rtol=1e-5)
    assert (psnr(2 * x - y, y) < psnr(x, y)).all()


def test_psnr_of_a_mask_sees_nothing_else():
    x, y = pair((2, 1, 8, 8, 8))
    mask = torch.zeros(2, 1, 8, 8, 8, dtype=torch.bool)
    mask[..., 3:6] = True
    spoilt = torch.where(mask, x, 5.0)
    torch.testing.assert_close(psnr(spoilt, y, mask=mask), psnr(x[..., 3:6], y[..., 3:6]))
    assert psnr(x, y, mask=torch.zeros_like(mask)).isnan().all()


@pytest.mark.parametrize(("window", "size"), [("uniform", 7), ("uniform", 4), ("gaussian", 11), ("gaussian", 7)])
def test_ssim_agrees_with_monai(window, size):
    x, y = pair((2, 2, 18, 15, 14))
    expected, _ = compute_ssim_and_cs(x, y, 3, (size,) * 3, (1.5,) * 3, 2.0, window)
    torch.testing.assert_close(ssim_map(x, y, window=window, size=size), expected, atol=1e-5, rtol=0)
    metric = SSIMMetric(3, 2.0, window, size)(x, y)[:, 0]
    torch.testing.assert_close(ssim(x, y, window=window, size=size), metric, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", ["uniform", "gaussian"])
def test_ssim_loss_has_monais_gradient(window):
    x, y = pair((2, 1, 14, 13, 12))
    x.requires_grad_()
    ours = torch.autograd.grad((1 - ssim(x, y, window=window)).mean(), x)[0]
    peer = torch.autograd.grad(SSIMLoss(3, 2.0, window, 7)(x, y), x)[0]
    torch.testing.assert_close(ours, peer, atol=1e-5 * float(peer.abs().max()), rtol=0)


def test_ssim_agrees_with_skimage():
    x, y = pair((1, 1, 12, 11, 10))
    _, full = structural_similarity(
        x[0, 0].numpy(), y[0, 0].numpy(), win_size=7, data_range=2.0, use_sample_covariance=False, full=True
    )
    np.testing.assert_allclose(ssim_map(x, y)[0, 0].numpy(), full[3:-3, 3:-3, 3:-3], atol=1e-5)


@pytest.mark.parametrize("window", ["uniform", "gaussian"])
def test_ssim_keeps_its_precision_on_a_flat_background(window):
    """Covariances of a flat region are differences of nearly equal numbers."""
    x, y = pair((1, 1, 24, 24, 24))
    y[..., :10] = -1
    x[..., :10] = x[..., :10].clamp(-1, -0.9)

    def value_and_gradient(v):
        v = v.detach().requires_grad_()
        value = ssim(v, y.to(v), window=window).mean()
        return value.detach(), torch.autograd.grad(value, v)[0]

    (value, gradient), (exact, slope) = value_and_gradient(x), value_and_gradient(x.double())
    assert abs(value - exact) < 5e-6
    assert (gradient - slope).abs().max() < 2e-5 * slope.abs().max()


@pytest.mark.parametrize("window", ["uniform", "gaussian"])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_ssim_gradcheck(window, wanted):
    x, y = pair((2, 1, 4, 3, 7), dtype=torch.float64)
    x, y = (v[..., 1:5].contiguous().requires_grad_(w) for v, w in zip((x, y), wanted, strict=True))
    assert torch.autograd.gradcheck(lambda a, b: ssim_map(a, b, window=window, size=3), (x, y))


def test_ssim_extremes():
    x, y = pair((1, 1, 10, 10, 10))
    assert (ssim_map(y, y) == 1).all()
    torch.testing.assert_close(ssim(x, y), ssim(y, x))
    assert ssim(x, y) > ssim((2 * x - y), y)
    checkers = (torch.stack(torch.meshgrid(*[torch.arange(10)] * 3, indexing="ij")).sum(0) % 2 * 2.0 - 1)[None, None]
    assert ssim(-checkers, checkers) < -0.9  # equal contrast, opposite sign, no mean: the worst there is
    constant = torch.zeros(1, 1, 8, 8, 8)
    c1 = 0.02**2
    assert ssim(constant, constant + 0.5).item() == pytest.approx(c1 / (0.25 + c1), rel=1e-4)


def test_a_slice_is_a_volume_with_one_place():
    x, y = pair((2, 1, 12, 11, 4))
    x, y = x[..., 3:], y[..., 3:]
    expected, _ = compute_ssim_and_cs(x[..., 0], y[..., 0], 2, (7, 7), (1.5, 1.5), 2.0, "uniform")
    torch.testing.assert_close(ssim_map(x, y)[..., 0], expected, atol=1e-5, rtol=0)


def test_ssim_over_a_mask_averages_its_window_centres():
    x, y = pair((2, 1, 11, 12, 13))
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) > 0.7
    values = ssim_map(x, y)
    inner = mask[:, :, 3:-3, 3:-3, 3:-3]
    expected = torch.stack([values[i][inner[i]].mean() for i in range(2)])
    torch.testing.assert_close(ssim(x, y, mask=mask), expected)
    assert ssim(x, y, mask=torch.zeros_like(mask)).isnan().all()


def test_same_border_gives_one_value_per_voxel():
    x, y = pair((1, 1, 5, 9, 8))
    values = ssim_map(x, y, border="same", size=6)
    assert values.shape == x.shape
    inner = ssim_map(x[:, :, :], y, border="same", size=5)[:, :, 2:-2, 2:-2, 2:-2]
    torch.testing.assert_close(inner, ssim_map(x, y, size=5))


def test_ssim_computes_in_single_precision_whatever_the_input():
    x, y = pair((1, 1, 12, 12, 12))
    half = ssim(x.bfloat16(), y.bfloat16(), window="gaussian")
    assert half.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(ssim(x, y, window="gaussian"), ssim(x, y, window="gaussian"))
        inside = ssim(x, y, window="gaussian")
        inside_fine = fine_detail(x)
    torch.testing.assert_close(inside, ssim(x, y, window="gaussian"), rtol=0, atol=0)
    torch.testing.assert_close(inside_fine, fine_detail(x), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(2, 1, 8, 9, 7), (2, 1, 8, 9, 1)])
def test_zero_border_is_a_convolution_padded_with_zeros(shape):
    x, y = pair(shape)
    line = torch.exp(-((torch.arange(7.0) - 3) ** 2) / (2 * 1.5**2))
    line = line / line.sum()
    kernel = torch.einsum("i,j,k->ijk", line, line, line if shape[-1] > 1 else torch.ones(1))[None, None]

    def mean(image):
        return torch.nn.functional.conv3d(image, kernel.to(image), padding=[k // 2 for k in kernel.shape[2:]])

    m_x, m_y = mean(x), mean(y)
    s_x, s_y, s_xy = mean(x * x) - m_x**2, mean(y * y) - m_y**2, mean(x * y) - m_x * m_y
    c1, c2 = 0.02**2, 0.06**2
    expected = (2 * m_x * m_y + c1) * (2 * s_xy + c2) / ((m_x**2 + m_y**2 + c1) * (s_x + s_y + c2))
    found = ssim(x, y, window="gaussian", border="zero")
    assert torch.allclose(found, expected.mean((1, 2, 3, 4)).to(found), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": "box"}, "uniform.*gaussian"),
        ({"border": "wrap"}, "valid.*same.*zero"),
        ({"size": 9}, "does not fit"),
    ],
)
def test_ssim_refuses(change, message):
    x, y = pair((1, 1, 8, 8, 8))
    with pytest.raises(ValueError, match=message):
        ssim(x, y, **change)
    with pytest.raises(ValueError, match=r"output has shape .* truth .* they must be equal"):
        reconstruction._same_shape(x, y[..., 1:])  # behind the shape check of the tests


@pytest.mark.parametrize("shape", [(9, 8, 7), (3, 12, 10), (1, 9, 8)])
def test_fine_detail_is_what_scipy_blurs_away(shape):
    x, _ = pair((2, 1, *shape), dtype=torch.float64)
    expected = np.stack([v[0].numpy() - gaussian_filter(v[0].numpy(), 1.0) for v in x])
    np.testing.assert_allclose(fine_detail(x)[:, 0].numpy(), expected, atol=1e-12)


def test_high_frequency_ratio_measures_blur_and_noise():
    generator = torch.Generator().manual_seed(3)
    truth = torch.randn(1, 1, 16, 16, 16, generator=generator)
    blurred = torch.from_numpy(gaussian_filter(truth[0, 0].numpy(), 0.7))[None, None]
    mask = torch.zeros(truth.shape, dtype=torch.bool)
    mask[..., 4:12] = True
    assert high_frequency_ratio(truth, truth, mask).item() == 1
    assert high_frequency_ratio(blurred, truth, mask).item() < 0.5
    assert high_frequency_ratio(0.5 * truth, truth, mask).item() == pytest.approx(0.25, rel=1e-5)
    noisy = truth + torch.randn(truth.shape, generator=generator)
    assert high_frequency_ratio(noisy, truth, mask).item() == pytest.approx(2.0, rel=0.1)
    spoilt = torch.where(mask | (torch.arange(16) > 2), truth, 9.0)  # far outside the mask and the blur's reach
    spoilt[..., :2] = 9.0
    torch.testing.assert_close(
        high_frequency_ratio(spoilt, truth, mask & (torch.arange(16) > 6)), torch.ones(1), rtol=1e-4, atol=0
    )
