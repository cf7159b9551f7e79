"""Every term by an independent way, and what is refused."""

import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter, minimum_filter

from neurotome.losses.reconstruction import ReconstructionLoss, boundaries, boundary_error, pairwise, spectral

SHAPES = [(6, 5, 4), (1, 7, 6), (6, 1, 5), (5, 6, 1)]


def pair(shape=(6, 5, 4), n: int = 3):
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(n, 2, *shape, generator=generator) * 2 - 1 for _ in range(2))


@pytest.mark.parametrize("shape", SHAPES)
def test_pairwise_is_the_published_sum_of_distances(shape):
    y, x = pair(shape)
    flat = y.flatten(1), x.flatten(1)
    expected = sum(torch.nn.PairwiseDistance(p, eps=1e-6)(*flat).mean() for p in (1, 2))
    assert pairwise(y, x).item() == pytest.approx(expected.item(), rel=1e-6)
    # a sum over voxels, not a mean: the L1 part of a constant offset is offset times voxels
    offset = pairwise(torch.full((1, 1, 10, 10, 10), 0.5), torch.zeros(1, 1, 10, 10, 10))
    assert offset.item() == pytest.approx(500 + 0.5 * 1000**0.5, rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_spectral_by_parseval_and_blind_to_shifts(shape):
    y, x = pair(shape)
    assert spectral(torch.zeros_like(x), x).item() == pytest.approx(x.square().mean().item(), rel=1e-5)
    assert spectral(x.roll((2, 1), (2, 3)), x).item() == pytest.approx(0, abs=1e-9)
    magnitudes = [np.abs(np.fft.fftn(v.numpy(), axes=(2, 3, 4), norm="ortho")) for v in (y, x)]
    assert spectral(y, x).item() == pytest.approx(float(np.square(magnitudes[0] - magnitudes[1]).mean()), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_boundaries_are_the_morphological_gradient(shape):
    _, x = pair(shape)
    size = (1, 1, *(1 if s == 1 else 3 for s in shape))
    # beyond the border there is nothing, so it can be neither highest nor lowest
    highest = maximum_filter(x.numpy(), size=size, mode="constant", cval=-9)
    lowest = minimum_filter(x.numpy(), size=size, mode="constant", cval=9)
    assert np.allclose(boundaries(x).numpy(), highest - lowest)


def test_boundary_error_by_hand():
    x, y = torch.zeros(1, 1, 6, 1, 1), torch.zeros(1, 1, 6, 1, 1)
    x[..., 3:, :, :] = 1  # the boundary is voxels 2 and 3
    y[0, 0, :, 0, 0] = torch.tensor([9.0, 9, 0.5, 1, 9, 9])
    assert boundary_error(y, x).item() == pytest.approx(0.25)
    assert boundary_error(y, torch.zeros_like(x)).item() == 0


def test_the_loss_is_the_weighted_sum_of_its_terms():
    y, x = pair((9, 8, 8))
    y.requires_grad_()
    weights = {
        "l1_weight": 0.5, "l2_weight": 2.0, "gradient_weight": 0.25, "ssim_weight": 0.75, "pairwise_weight": 1e-3,
        "spectral_weight": 3.0, "boundary_weight": 0.125,
    }  # fmt: skip
    terms = ReconstructionLoss(**weights)(y, x)
    total = 0.75 + sum(
        (-1 if name == "ssim" else 1) * weights[f"{name}_weight"] * value.item()
        for name, value in terms.items()
        if name != "loss"
    )
    assert terms["loss"].item() == pytest.approx(total, rel=1e-5)
    assert set(terms) == {"loss", "l1", "l2", "gradient", "ssim", "pairwise", "spectral", "boundary"}
    terms["loss"].backward()
    assert torch.isfinite(y.grad).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_small_images_and_slices_take_every_term(shape):
    y, x = pair(shape)
    loss = ReconstructionLoss(l2_weight=1, gradient_weight=1, pairwise_weight=1, spectral_weight=1, boundary_weight=1)
    assert torch.isfinite(loss(y, x)["loss"])
    perfect = loss(x, x)
    assert perfect["loss"].item() == pytest.approx(perfect["pairwise"].item(), abs=1e-5)  # its eps remains


def test_weights_out_of_range_are_refused():
    with pytest.raises(ValueError, match="spectral_weight is -1"):
        ReconstructionLoss(spectral_weight=-1)
    with pytest.raises(ValueError, match="every weight"):
        ReconstructionLoss(l1_weight=0, ssim_weight=0)


def test_the_foreground_weight_has_mean_one():
    """Heavier foreground, same scale of the term: a constant error costs what it is, whatever share is foreground."""
    y, x = pair()
    loss = ReconstructionLoss(ssim_weight=0, foreground_weight=5, foreground_above=0.2)
    weight = np.where(x.numpy() > 0.2, 5.0, 1.0)
    assert weight.mean() > 2
    expected = (weight * np.abs((y - x).numpy())).sum() / weight.sum()
    assert loss(y, x)["l1"].item() == pytest.approx(expected, rel=1e-5)
    assert loss(x + 0.25, x)["l1"].item() == pytest.approx(0.25, rel=1e-5)
