import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from torch.nn import functional

from neurotome.evaluation.baselines import BINS, Baselines, Lookup, down_up, mapped, monotone_ceiling
from tests.evaluation.toy_evaluation import SHAPE, session_images


def images(seed=0, n=1):
    views = [session_images(seed + i) for i in range(n)]
    image = torch.from_numpy(np.stack([v[0] for v in views]))  # (n, 2, x, y, z)
    mask = torch.from_numpy(np.stack([v[1] for v in views]))[:, None]
    return image[:, :1], image[:, 1:], mask


@pytest.mark.parametrize("factor", [(2, 2, 2), (4, 2, 1)])
def test_down_up_is_block_mean_and_trilinear(factor):
    x, _, _ = images()
    coarse = functional.avg_pool3d(x, factor)
    expected = functional.interpolate(coarse, x.shape[2:], mode="trilinear", align_corners=False)
    torch.testing.assert_close(down_up(x, factor), expected)


def test_down_up_of_slices_constants_and_odd_shapes():
    flat = torch.full((1, 1, 8, 4, 1), 0.3)
    torch.testing.assert_close(down_up(flat, (4, 2, 2)), flat)
    # the last block of five voxels in twos is one voxel; cells lie at 0.5, 2.5 and 4.5
    odd = torch.tensor([1.0, 3, 5, 7, 20]).view(1, 1, 5, 1, 1)
    expected = [2, 3, 5, 9.5, 16.5]
    assert down_up(odd, (2, 2, 2)).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("factor", [2, 4])
def test_block_means_are_the_strongest_plain_way_down(factor):
    """Beside an antialiased trilinear filter and plain sampling."""
    x, _, mask = images(3)
    length = x.shape[2]
    place = (torch.arange(length // factor, dtype=torch.float64) + 0.5) * factor - 0.5
    hat = (1 - (place[:, None] - torch.arange(length)).abs() / factor).clamp_min(0)
    hat = (hat / hat.sum(1, keepdim=True)).float()

    def trilinear(v):
        for axis in (2, 3, 4):
            n = v.shape[axis]
            p = (torch.arange(n // factor) + 0.5) * factor - 0.5
            w = (1 - (p[:, None] - torch.arange(n)).abs() / factor).clamp_min(0)
            v = torch.tensordot(v, (w / w.sum(1, keepdim=True)), dims=([axis], [1])).movedim(-1, axis)
        return v

    def error(coarse):
        up = functional.interpolate(coarse, x.shape[2:], mode="trilinear", align_corners=False)
        return float(((up - x)[mask] ** 2).mean())

    ours = float(((down_up(x, (factor,) * 3) - x)[mask] ** 2).mean())
    assert ours < error(trilinear(x))
    assert ours < error(x[:, :, ::factor, ::factor, ::factor])


def test_lookup_recovers_a_known_function():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, 30, 30, 30, generator=generator) * 2 - 1
    mask = torch.rand(x.shape, generator=generator) > 0.3
    function = lambda v: torch.sin(2 * v) * 0.8  # noqa: E731
    target = torch.where(mask, function(x) + 0.05 * torch.randn(x.shape, generator=generator), 0.7)
    lookup = Lookup()
    lookup.update(x, target, mask)
    fresh = torch.linspace(-0.98, 0.98, 8 * 9 * 10).view(1, 1, 8, 9, 10)
    everywhere = torch.ones_like(fresh, dtype=torch.bool)
    assert float((lookup(fresh, everywhere) - function(fresh)).abs().max()) < 0.03
    nowhere = lookup(fresh, ~everywhere)
    assert (nowhere == -1).all()


def test_lookup_fills_what_nobody_saw_from_the_nearest():
    lookup = Lookup()
    x = torch.tensor([-0.9, 0.9]).view(1, 1, 1, 1, 2)
    lookup.update(x, -x / 2, torch.ones_like(x, dtype=torch.bool))
    curve = lookup.curve()
    assert curve.shape == (BINS,)
    assert curve[0] == pytest.approx(0.45)
    assert curve[-1] == pytest.approx(-0.45)
    assert curve[BINS // 2 - 8] == pytest.approx(0.45)
    with pytest.raises(ValueError, match="at least one training session"):
        Lookup().curve()


def test_baselines_of_a_fitted_cohort():
    baselines = Baselines(("T1w", "T2w"), (2, 2, 2))
    sessions = [images(seed) for seed in range(3)]
    for t1, t2, mask in sessions:
        baselines.update({"T1w": t1, "T2w": t2}, mask)
    t1, t2, mask = images(50)
    own = baselines.reconstruct("T1w", t1, mask)
    torch.testing.assert_close(own["mean_image"], torch.stack([s[0] for s in sessions]).mean(0))
    torch.testing.assert_close(own["trilinear"][mask], down_up(t1, (2, 2, 2))[mask])
    assert (own["trilinear"][~mask] == -1).all()
    outputs = baselines.translate("T1w", "T2w", t1, t2, mask)
    error = {name: float(((image - t2)[mask] ** 2).mean()) for name, image in outputs.items()}
    lookups = {"lookup_full_rate", "lookup_equal_rate", "lookup_refitted"}
    assert set(error) == {"mean_image", *lookups, "monotone_map", "monotone_ceiling"}
    assert error["monotone_ceiling"] < error["monotone_map"] < 0.01
    assert error["lookup_full_rate"] < 0.01 < error["lookup_refitted"] < 0.9 * error["lookup_equal_rate"]
    assert (outputs["lookup_full_rate"] != outputs["lookup_equal_rate"]).any()
    # the equal-rate lookup sees nothing of the source but its coarse grid
    same = baselines.translate("T1w", "T2w", down_up(t1, (2, 2, 2)), t2, mask)
    assert tuple(same["lookup_full_rate"].shape) == (1, 1, *SHAPE)
    torch.testing.assert_close(same["lookup_full_rate"], outputs["lookup_equal_rate"])


def test_a_missing_view_is_left_out():
    baselines = Baselines(("T1w", "T2w"), (2, 2, 2))
    t1, t2, mask = images()
    baselines.update({"T1w": t1}, mask)
    assert "mean_image" in baselines.reconstruct("T1w", t1, mask)
    assert set(baselines.reconstruct("T2w", t2, mask)) == {"trilinear"}
    assert set(baselines.translate("T1w", "T2w", t1, t2, mask)) == {"monotone_ceiling"}  # nothing was learned


@pytest.mark.parametrize("sign", [1, -1])
def test_the_ceiling_is_the_best_monotone_curve_of_the_scan(sign):
    """By the library's regression over single voxels, in both directions; equal intensities get one value."""
    x, y, mask = images(7)
    x = (x * 20).round() / 20 if sign > 0 else x
    y = (sign * x + y).clamp(-1, 1)
    output = monotone_ceiling(x, y, mask)
    assert (output[~mask] == -1).all()
    flat, wanted = x[mask].double().numpy(), y[mask].double().numpy()
    fits = [IsotonicRegression(increasing=up).fit(flat, wanted).predict(flat) for up in (True, False)]
    best = min(float(((fit - wanted) ** 2).mean()) for fit in fits)
    assert float(((output[mask].double().numpy() - wanted) ** 2).mean()) == pytest.approx(best, rel=1e-5)
    # no curve of another kind that only falls reaches more
    for power in (0.5, 1.0, 2.0):
        curve = ((1 - x) / 2) ** power * 2 - 1
        assert float(((curve - y)[mask] ** 2).mean()) > best
    assert (monotone_ceiling(x, y, torch.zeros_like(mask)) == -1).all()


def test_the_monotone_map_is_learned_on_training_subjects_and_only_falls():
    lookup = Lookup()
    for seed in range(3):
        x, y, mask = images(seed)
        lookup.update(x, y + 0.3 * torch.sin(9 * x), mask)
    curve = lookup.monotone_curve()
    assert curve.shape == (BINS,)
    assert (curve.diff() <= 0).all()
    assert (lookup.curve().diff() > 0).any()
    pooled = [torch.cat([images(seed)[i].flatten() for seed in range(3)]) for i in range(3)]
    x, y, mask = pooled
    x, y = x[mask].numpy(), (y + 0.3 * torch.sin(9 * x))[mask].numpy()
    fit = IsotonicRegression(increasing=False, out_of_bounds="clip").fit(x, y)
    fresh, _, inside = images(40)
    found = mapped(fresh, curve, inside)
    assert (found[~inside] == -1).all()
    assert np.abs(found[inside].numpy() - fit.predict(fresh[inside].numpy())).mean() < 0.01
