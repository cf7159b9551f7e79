import dataclasses

import numpy as np
import pytest

from neurotome.data.phantom import contrast as pc

# Signal relative to white matter of a five-class phantom that looked right, and of real scans where they were measured.
ORDER = ("sulcal_csf", "ventricle", "cortex", "deep_grey", "white", "necrosis", "oedema", "rim")
RATIOS = {
    "T1w": (0.33, 0.28, 0.72, 0.80, 1, 0.48, 0.70, 0.75),
    "T1c": (0.36, 0.28, 0.74, 0.82, 1, 0.45, 0.70, 1.55),
    "T2w": (3.5, 3.9, 1.45, 1.22, 1, 2.9, 2.2, 1.6),
    "FLAIR": (0.55, 0.42, 1.25, 1.12, 1, 1.2, 1.85, 1.5),
    "PDw": (1.35, 1.45, 1.22, 1.14, 1, 1.4, 1.4, 1.25),
}
TISSUE = np.array([pc.TISSUES[name] for name in pc.TISSUE_NAMES], dtype=float)


@pytest.mark.parametrize("modality", RATIOS)
def test_the_equations_give_the_tabled_ratios(modality):
    assert pc.TISSUE_NAMES == ORDER
    signals = pc.signal(pc.SEQUENCES[modality], TISSUE)
    np.testing.assert_allclose(signals / signals[4], RATIOS[modality], rtol=0.18)


def test_spin_echo_is_saturation_recovery():
    row = np.array([[1000.0, 80.0, 0.9, 0.0]])
    got = pc.signal(pc.Sequence(2000, 40, 0, 90), row)
    assert got == pytest.approx(0.9 * (1 - np.exp(-2)) * np.exp(-0.5))


def test_inversion_nulls_a_tissue_at_t1_times_log_two():
    row = np.array([[1000.0, 80.0, 1.0, 0.0]])
    assert pc.signal(pc.Sequence(1e9, 10, 1000 * np.log(2), 90), row) == pytest.approx(0, abs=1e-12)


def test_gadolinium_shortens_t1_in_the_contrast_scan_only():
    plain, enhanced = (pc.signal(pc.SEQUENCES[m], TISSUE) for m in ("T1w", "T1c"))
    rim, white = pc.TISSUE_NAMES.index("rim"), pc.TISSUE_NAMES.index("white")
    assert plain[rim] < plain[white]
    assert enhanced[rim] > 1.4 * enhanced[white]


@pytest.mark.parametrize("modality", RATIOS)
def test_sensitivities_have_their_closed_forms(modality):
    """S is proportional to PD, and to exp(-TE/T2): dS/dlogPD = S, dS/dlogT2 = S TE/T2."""
    sequence = pc.SEQUENCES[modality]
    slopes, signals = pc.sensitivities(sequence, TISSUE), pc.signal(sequence, TISSUE)
    np.testing.assert_allclose(slopes[:, 2], signals, rtol=1e-3)
    np.testing.assert_allclose(slopes[:, 1], signals * sequence.echo_ms / TISSUE[:, 1], rtol=5e-3)


def test_contrasts_order_the_tissues_differently():
    """Deep grey lies between cortex and white on T1w but iron takes it below white on T2w."""
    with_iron = TISSUE.copy()
    with_iron[3, 1] *= 0.7
    t1, t2 = (pc.signal(pc.SEQUENCES[m], with_iron) for m in ("T1w", "T2w"))
    assert t1[2] < t1[3] < t1[4]
    assert t2[3] < t2[4] < t2[2]


def test_a_site_is_a_fixed_point_and_subjects_jitter_by_two_per_cent():
    rng = np.random.default_rng(0)
    scans = {site: [pc.site_scan("T2w", site, rng) for _ in range(60)] for site in range(4)}
    for site, drawn in scans.items():
        for name in ("gamma", "blur_mm", "snr", "bias_amplitude", "echo_factor", "repetition_factor"):
            values = np.array([getattr(s, name) for s in drawn])
            assert 0.005 < values.std() / values.mean() < 0.03
        assert {s.slice_mm for s in drawn} == {(1.0, 1.0, 3.0, 5.0)[site]}
    means = np.array([[np.mean([getattr(s, n) for s in d]) for n in ("gamma", "snr")] for d in scans.values()])
    assert np.ptp(means[:, 0]) > 0.15
    assert np.ptp(means[:, 1]) > 12


def test_many_sites_stay_inside_their_ranges():
    rng = np.random.default_rng(0)
    drawn = [pc.site_scan("FLAIR", site, rng) for site in range(40)]
    assert all(0.78 < s.gamma < 1.3 and 0.3 < s.blur_mm < 0.9 and 20 < s.snr < 60 for s in drawn)
    assert len({round(s.gamma, 3) for s in drawn}) > 30


def test_the_style_vector_holds_every_continuous_factor():
    scan = dataclasses.replace(pc.site_scan("T1w", 2, np.random.default_rng(0)), noise_sd=0.02)
    base = scan.vector()
    for name in ("repetition_factor", "echo_factor", "third_factor", "gamma", "blur_mm", "noise_sd", "slice_mm"):
        moved = dataclasses.replace(scan, **{name: getattr(scan, name) * 1.1}).vector()
        assert (moved != base).sum() == 1


def ball(n=40, radius=15):
    index = np.indices((n, n, n)) - (n - 1) / 2
    return np.linalg.norm(index, axis=0) < radius


def still(**changes):
    scan = pc.site_scan("T1w", 0, np.random.default_rng(0))
    return dataclasses.replace(scan, gamma=1.0, bias_amplitude=0.0, **changes)


def test_noise_has_the_snr_it_says():
    mask = ball()
    scan = still(snr=25.0)
    image, noise = pc.acquire(mask * 0.5, mask, mask, mask.astype(float), scan, 1.0, np.random.default_rng(1))
    assert image[~mask].max() == 0
    assert image[mask].min() > 0
    assert image[mask].mean() / image[mask].std() == pytest.approx(25, rel=0.05)
    assert image[mask].std() == pytest.approx(noise, rel=0.05)
    assert np.percentile(image[mask], 99.5) == pytest.approx(1, abs=1e-3)


def test_blur_does_not_darken_the_border():
    mask = ball()
    scan = still(snr=1e6, blur_mm=2.0)
    image, _ = pc.acquire(mask * 0.5, mask, mask, mask.astype(float), scan, 1.0, np.random.default_rng(1))
    np.testing.assert_allclose(image[mask], 1, atol=1e-3)


def test_thick_slices_blur_along_z_only():
    mask = np.ones((20, 20, 20), dtype=bool)
    point = np.full(mask.shape, 0.01)
    point[10, 10, 10] = 1
    scan = still(snr=1e9, blur_mm=0.1, slice_mm=5.0)
    image, _ = pc.acquire(point, mask, mask, mask.astype(float), scan, 1.0, np.random.default_rng(1))
    assert image[10, 10, 12] > 3 * image[10, 12, 10]


def test_the_bias_field_is_the_size_it_says():
    mask = ball()
    field = pc.bias_field(mask, tuple(np.random.default_rng(0).standard_normal(9)))
    assert np.mean(field) == pytest.approx(0, abs=1e-9)
    assert np.mean(np.abs(field) < 1) == pytest.approx(0.95, abs=0.01)
