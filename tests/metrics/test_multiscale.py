"""Multi-scale structural similarity: a naive one with loops, closed forms, and what does not fit."""

import itertools

import numpy as np
import pytest
import torch

from neurotome.metrics.fidelity import SCALE_WEIGHTS, ms_ssim, num_scales, ssim

RNG = np.random.default_rng(0)


def naive(x: np.ndarray, y: np.ndarray, mask: np.ndarray, size: int, scales: int, data_range: float = 2.0) -> float:
    """The formula with a loop over windows."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    weights = np.array(SCALE_WEIGHTS[:scales]) / sum(SCALE_WEIGHTS[:scales])
    value = 1.0
    for scale, weight in enumerate(weights):
        if scale:
            x, y, share = (halved(v) for v in (x, y, mask.astype(float)))
            mask = share >= 0.5
        windows = [1 if s == 1 else size for s in x.shape]
        places = []
        for start in itertools.product(*(range(s - w + 1) for s, w in zip(x.shape, windows, strict=True))):
            if not mask[tuple(a + (w - 1) // 2 for a, w in zip(start, windows, strict=True))]:
                continue
            box = tuple(slice(a, a + w) for a, w in zip(start, windows, strict=True))
            a, b = x[box].ravel(), y[box].ravel()
            contrast = (2 * np.cov(a, b, bias=True)[0, 1] + c2) / (a.var() + b.var() + c2)
            luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
            places.append(contrast * (luminance if scale == scales - 1 else 1))
        value *= max(np.mean(places), 0) ** weight
    return float(value)


def halved(x: np.ndarray) -> np.ndarray:
    for axis, length in enumerate(x.shape):
        if length > 1:
            pairs = np.take(x, range(length // 2 * 2), axis)
            x = (np.take(pairs, range(0, length - 1, 2), axis) + np.take(pairs, range(1, length, 2), axis)) / 2
    return x


@pytest.mark.parametrize(("shape", "scales"), [((13, 12, 14), 3), ((12, 13, 1), 3), ((6, 6, 6), 2), ((5, 4, 3), 1)])
def test_equals_a_loop_over_windows(shape: tuple[int, int, int], scales: int) -> None:
    y = RNG.uniform(-1, 1, shape)
    x = np.clip(0.7 * y + 0.3 * RNG.uniform(-1, 1, shape), -1, 1)
    mask = RNG.uniform(size=shape) > 0.2
    assert num_scales(shape, 3) == scales
    images = [torch.from_numpy(v)[None, None] for v in (x, y)]
    found = ms_ssim(*images, mask=torch.from_numpy(mask)[None, None], size=3)
    assert found.item() == pytest.approx(naive(x, y, mask, 3, scales), rel=1e-9)


def test_one_scale_is_ssim_and_equal_images_are_one() -> None:
    x, other = torch.rand(2, 3, 1, 9, 9, 9, generator=torch.Generator().manual_seed(1)) * 2 - 1
    y = 0.8 * x + 0.2 * other  # unrelated images may be below 0, which is taken as 0
    mask = torch.rand(3, 1, 9, 9, 9, generator=torch.Generator().manual_seed(2)) > 0.3
    torch.testing.assert_close(ms_ssim(x, y, mask=mask, size=3, scales=1), ssim(x, y, mask=mask, size=3))
    torch.testing.assert_close(ms_ssim(x, x, size=3), torch.ones(3))


def test_a_shift_of_all_values_is_seen_by_the_coarsest_scale_alone() -> None:
    """Contrast is unchanged by a constant, so what is left is the luminance to the power of the last weight."""
    x = torch.rand(1, 1, 14, 14, 14, generator=torch.Generator().manual_seed(2)).double() - 0.5
    y = x + 0.4
    constant = torch.full_like(x, 0.1)
    flat = ms_ssim(constant, constant + 0.4)  # two scales of a window of 7; all variances are 0, so only luminance acts
    c1, weight = 0.02**2, SCALE_WEIGHTS[1] / (SCALE_WEIGHTS[0] + SCALE_WEIGHTS[1])
    expected = ((2 * 0.1 * 0.5 + c1) / (0.1**2 + 0.5**2 + c1)) ** weight
    assert flat.item() == pytest.approx(expected, rel=1e-9)
    assert ms_ssim(x, y).item() < 1


def test_opposed_images_are_zero_not_nan() -> None:
    x = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(3)) - 0.5
    assert ms_ssim(x, -x, size=7).item() == 0


def test_blur_costs_more_than_nothing_and_less_than_noise() -> None:
    """The metric falls as an image gets worse."""
    y = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(4)) * 2 - 1
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    values = [ms_ssim(y + s * noise, y, size=3).item() for s in (0.0, 0.1, 0.4, 1.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("shape", "expected"), [((32, 40, 40), 3), ((7, 9, 9), 1), ((14, 40, 1), 2), ((144, 192, 144), 5), ((999,) * 3, 5)]
)
def test_number_of_scales(shape: tuple[int, ...], expected: int) -> None:
    assert num_scales(shape) == expected


def test_what_does_not_fit_is_named() -> None:
    x = torch.zeros(1, 1, 8, 8, 8)
    with pytest.raises(ValueError, match="window of 9"):
        ms_ssim(x, x, size=9)
    with pytest.raises(ValueError, match="admits 1 to 2"):
        ms_ssim(x, x, size=3, scales=3)
