import dataclasses
import hashlib

import numpy as np
import pytest
from scipy import ndimage

from neurotome.data.phantom.cohort import LABELS, SyntheticCohort
from neurotome.data.phantom.template import load_template

DEFAULT = SyntheticCohort()
COARSE = SyntheticCohort(num_subjects=6, spacing_mm=6.0)
VENTRICLE, DEEP_GREY, WHITE = (LABELS.index(n) for n in ("ventricle", "deep_grey", "white"))
CORE = tuple(LABELS.index(n) for n in ("necrosis", "rim"))

# --- version 1 of the default cohort: a change here is version 2, and all figures in the docs are measured again

FINGERPRINTS = {0: "aefc06627b973784", 1: "3ae4f970600ca103", 3: "49276cd13b2a7233"}
# Mean, deviation, smallest and largest volume in ml of the first 8 and of all 48 subjects at 6 mm. Real, of 20 label
# maps: brain 1514 +- 106, white 487 +- 57, all grey 604 +- 89, ventricles 41 +- 25 (8-91), sulcal CSF 382 +- 88.
VOLUMES = {
    8: {
        "brain": (1494.72, 78.80, 1322.57, 1595.81),
        "white": (518.50, 31.23, 461.36, 564.23),
        "cortex": (523.13, 39.55, 441.26, 576.94),
        "deep_grey": (35.57, 3.01, 30.20, 41.00),
        "ventricle": (39.88, 11.26, 16.63, 58.77),
        "sulcal_csf": (375.68, 41.58, 291.20, 445.44),
        "lesions": (1.95, 4.49, 0.00, 13.75),
    },
    48: {
        "brain": (1514.31, 89.53, 1292.98, 1712.45),
        "white": (524.08, 32.84, 449.39, 590.87),
        "cortex": (545.34, 67.75, 392.32, 701.26),
        "deep_grey": (37.17, 4.62, 26.21, 45.71),
        "ventricle": (40.31, 13.86, 16.63, 76.32),
        "sulcal_csf": (365.42, 48.01, 256.00, 451.63),
        "lesions": (1.98, 5.95, 0.00, 33.32),
    },
}


def fingerprint(subject):
    """A hash of block means in steps of 1/100, which the last bit of another processor does not reach."""
    digest = hashlib.sha256()
    for name in sorted(subject.images):
        padded = np.pad(subject.images[name].astype(np.float64), [(0, -n % 16) for n in subject.images[name].shape])
        nx, ny, nz = (n // 16 for n in padded.shape)
        means = padded.reshape(nx, 16, ny, 16, nz, 16).mean(axis=(1, 3, 5))
        digest.update(np.rint(means * 100).astype("<i4").tobytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="module")
def subjects():
    return {i: DEFAULT.subject(i) for i in (0, 1, 3)}


def test_the_default_cohort_is_version_1(subjects):
    assert {i: fingerprint(s) for i, s in subjects.items()} == FINGERPRINTS


def test_the_fingerprint_sees_half_a_per_cent(subjects):
    brighter = {name: image * 1.005 for name, image in subjects[0].images.items()}
    assert fingerprint(dataclasses.replace(subjects[0], images=brighter)) != FINGERPRINTS[0]


def extents(mask):
    return [int(np.ptp(np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != k))))) + 1 for k in range(3)]


@pytest.mark.parametrize("count", [8, pytest.param(48, marks=pytest.mark.slow)])
def test_the_default_cohort_as_a_whole(count):
    cohort = dataclasses.replace(DEFAULT, spacing_mm=6.0)
    brains = [cohort.anatomy(i) for i in range(count)]
    volumes = [b.volumes_ml() for b in brains]
    for name, expected in VOLUMES[count].items():
        values = np.array([v[name] for v in volumes])
        got = (values.mean(), values.std(), values.min(), values.max())
        assert got == pytest.approx(expected, rel=0.002, abs=0.02), name
    assert min(b.jacobian_min for b in brains) > 0.02
    assert 0.15 * count <= sum(bool(b.lesions) for b in brains) <= 0.4 * count
    ages = [cohort.factors(i).age for i in range(count)]
    assert np.corrcoef(ages, [v["ventricle"] for v in volumes])[0, 1] > 0.4
    assert np.corrcoef(ages, [v["cortex"] / v["brain"] for v in volumes])[0, 1] < -0.4
    # the largest along each axis decide whether all fit into the prepared box of 48 x 64 x 56 voxels
    order = np.argsort([extents(b.mask) for b in brains], axis=0)
    for index in set(order[-count // 16 :].ravel().tolist()):
        x, y, z = extents(DEFAULT.anatomy(index).mask)
        assert (x <= 48, y <= 64, z <= 56) == (True, True, True), index


# --- purity --------------------------------------------------------------------------------------


def assert_same(a, b):
    assert a.factors == b.factors
    assert a.lesions == b.lesions
    np.testing.assert_array_equal(a.labels, b.labels)
    for name in a.images.keys() & b.images.keys():
        assert a.scans[name] == b.scans[name]
        np.testing.assert_array_equal(a.images[name], b.images[name])


def test_a_subject_is_a_function_of_seed_and_index():
    alone = COARSE.subject(4)
    other = dataclasses.replace(COARSE, num_subjects=5, modalities=("T2w", "FLAIR"))
    other.subject(2)
    in_another_order = other.subject(4)
    assert_same(alone, in_another_order)
    assert alone.images.keys() & in_another_order.images.keys() == {"T2w"}
    reseeded = dataclasses.replace(COARSE, seed=1).subject(4)
    assert reseeded.factors != alone.factors
    assert np.abs(reseeded.images["T1w"] - alone.images["T1w"]).mean() > 0.01


def test_another_spacing_shows_the_same_brain():
    cohort = SyntheticCohort(num_subjects=1, lesion_fraction=1.0)
    fine, coarse = cohort.subject(0), dataclasses.replace(cohort, spacing_mm=6.0).subject(0)
    assert fine.lesions == coarse.lesions
    for name in ("brain", "white", "ventricle", "cortex"):
        assert coarse.volumes_ml[name] == pytest.approx(fine.volumes_ml[name], rel=0.03)
    assert fine.images["T1w"].shape == (61, 73, 61)
    for subject in (fine, coarse):
        middle = subject.affine[:3, :3] @ ((np.array(subject.mask.shape) - 1) / 2) + subject.affine[:3, 3]
        assert middle == pytest.approx([0, -17, 4])


# --- swap pairs ----------------------------------------------------------------------------------


def test_the_same_brain_at_another_site_is_an_exact_swap_target():
    own = COARSE.subject(1)
    elsewhere = COARSE.render(1, site=3, modalities=("T1w", "T2w", "T1c"))
    np.testing.assert_array_equal(own.labels, elsewhere.labels)
    np.testing.assert_array_equal(own.mask, elsewhere.mask)
    assert own.volumes_ml == elsewhere.volumes_ml
    assert own.scans["T1w"].site == own.factors.site == elsewhere.factors.site
    assert elsewhere.scans["T1w"].site == 3
    assert np.abs(own.images["T1w"] - elsewhere.images["T1w"])[own.mask].mean() > 0.02
    assert_same(own, COARSE.render(1, site=own.factors.site))


def test_background_is_exactly_zero_and_the_brain_is_not(subjects):
    for subject in subjects.values():
        for image in subject.images.values():
            assert image.dtype == np.float32
            assert not image[~subject.mask].any()
            assert (image[subject.mask] > 0).all()
            assert np.isfinite(image).all()
        np.testing.assert_array_equal(subject.labels > 0, subject.mask)


def test_the_outer_rim_of_fluid_is_stripped():
    anatomy = COARSE.anatomy(1)
    assert not (anatomy.stripped & ~anatomy.mask).any()
    assert 1000 < anatomy.stripped.sum() * 6**3 / 1000 < 0.95 * anatomy.mask.sum() * 6**3 / 1000
    white = anatomy.spread(anatomy.shares[WHITE - 1]) > 0.5
    assert anatomy.stripped[white].mean() > 0.999


# --- contrast ------------------------------------------------------------------------------------


def lookup(source, target, bins=150):
    """The best function of the source's intensity: the target's mean in each quantile."""
    prediction = np.empty_like(target)
    for part in np.array_split(np.argsort(source), bins):
        prediction[part] = target[part].mean()
    return prediction


@pytest.mark.parametrize("index", [0, 1, 3])
def test_t2_is_no_function_of_t1_yet_both_show_the_anatomy(subjects, index):
    subject = subjects[index]
    t1, t2 = (subject.images[m][subject.mask] for m in ("T1w", "T2w"))
    left_over = np.sqrt(np.mean((t2 - lookup(t1, t2)) ** 2))
    assert left_over > 4 * subject.scans["T2w"].noise_sd
    # not only because T1w is noisy: the same lookup from a smoother T1w
    smooth = ndimage.gaussian_filter(subject.images["T1w"], 0.5)[subject.mask]
    assert np.sqrt(np.mean((t2 - lookup(smooth, t2)) ** 2)) > 4 * subject.scans["T2w"].noise_sd
    for image in (t1, t2):
        labels = subject.labels[subject.mask]
        between = np.var([image[labels == k].mean() for k in range(1, 6)])
        within = np.mean([image[labels == k].var() for k in range(1, 6)])
        assert between > 1.5 * within
    assert np.corrcoef(t1, t2)[0, 1] < -0.6


def test_deep_grey_and_cortex_change_places_with_white_between_contrasts():
    subject = COARSE.render(2, modalities=("T1w", "T2w"))
    iron = load_template().iron
    assert iron.max() > 0.9
    deep = subject.labels == DEEP_GREY
    white = subject.labels == WHITE
    t1, t2 = subject.images["T1w"], subject.images["T2w"]
    assert np.percentile(t1[deep], 50) < np.percentile(t1[white], 50)
    assert np.percentile(t2[deep], 5) < np.percentile(t2[white], 50) < np.percentile(t2[deep], 60)


def test_all_five_contrasts_come_with_their_style(subjects):
    subject = COARSE.render(0, modalities=("T1w", "T2w", "FLAIR", "PDw", "T1c"))
    assert all(s.vector().shape == (17,) and s.noise_sd > 0 for s in subject.scans.values())
    bright = {name: image[subject.labels == VENTRICLE].mean() for name, image in subject.images.items()}
    assert bright["T2w"] > 0.6 > 0.5 > bright["T1w"]
    assert bright["FLAIR"] < 0.6 * bright["T2w"]
    assert "T1c" in COARSE.render(0, modalities=("t1ce",)).images


# --- causes --------------------------------------------------------------------------------------


def drawn(cohort, count=1200):
    many = dataclasses.replace(cohort, num_subjects=count)
    return [many.factors(i) for i in range(count)]


def test_causes_are_independent_and_sex_shifts_size_and_grey_matter():
    people = drawn(DEFAULT)
    age, male, site = (
        np.array([f(p) for p in people]) for f in (lambda p: p.age, lambda p: p.sex == "M", lambda p: p.site)
    )
    for a, b in ((age, male), (age, site), (male, site)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.08
    assert age.min() >= 20
    assert age.max() <= 85
    for name, sign in (("head_scale", 1), ("grey_mm", -1)):
        values = np.array([getattr(p, name) for p in people])
        pooled = np.sqrt((values[male].var() + values[~male].var()) / 2)
        assert sign * (values[male].mean() - values[~male].mean()) / pooled == pytest.approx(0.8, abs=0.17)
    assert np.corrcoef(age, [p.atrophy for p in people])[0, 1] > 0.8
    assert np.mean([p.has_lesions for p in people]) == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize(("first", "second"), [("site", "age"), ("age", "sex")])
def test_confound_correlates_the_named_pair_only(first, second):
    people = drawn(dataclasses.replace(DEFAULT, confound=(first, second, 0.8)))
    values = {"age": [p.age for p in people], "sex": [p.sex == "M" for p in people], "site": [p.site for p in people]}
    third = ({"age", "sex", "site"} - {first, second}).pop()
    # four sites or two sexes hide a part of the correlation of the numbers behind them
    assert 0.55 < np.corrcoef(values[first], values[second])[0, 1] < 0.85
    assert abs(np.corrcoef(values[first], values[third])[0, 1]) < 0.08


def test_lesions_stay_off_the_deep_nuclei():
    cohort = SyntheticCohort(num_subjects=4, lesion_fraction=1.0)
    for i in range(4):
        anatomy = cohort.anatomy(i)
        labels = anatomy.labels()
        core = np.isin(labels, CORE)
        near = ndimage.binary_dilation(core, iterations=1)
        assert anatomy.lesions
        assert core.any() or max(one.diameter_mm for one in anatomy.lesions) < 9
        assert not (near & (labels == DEEP_GREY)).any()
        truth = sum(np.pi / 6 * (one.diameter_mm / 10) ** 3 for one in anatomy.lesions)
        assert anatomy.shares[[5, 7]].sum() * 0.027 == pytest.approx(truth, rel=0.3)
        np.testing.assert_array_equal(anatomy.lesion_map() > 0, labels > 5)


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_subjects": 0}, "num_subjects is 0"),
        ({"spacing_mm": 0.1}, "0.5 to 12 mm"),
        ({"num_sites": 0}, "num_sites is 0"),
        ({"lesion_fraction": 1.5}, "probability"),
        ({"seed": -1}, "seed is -1"),
        ({"modalities": ()}, "at least one"),
        ({"modalities": ("T1w", "t1")}, "each contrast once"),
        ({"modalities": ("T3w",)}, "unknown modality"),
        ({"confound": ("age", "age", 0.5)}, "two different"),
        ({"confound": ("age", "height", 0.5)}, "age, sex, site"),
        ({"confound": ("age", "site", 1.5)}, "correlation"),
    ],
)
def test_arguments_outside_their_range_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        SyntheticCohort(**changes)


def test_a_missing_subject_or_site_is_named():
    with pytest.raises(ValueError, match="subject 6 does not exist"):
        COARSE.subject(6)
    with pytest.raises(ValueError, match="site 4 does not exist"):
        COARSE.render(0, site=4)


def test_iteration_and_length_agree():
    cohort = SyntheticCohort(num_subjects=2, spacing_mm=12.0, modalities=("T1w",))
    assert len(cohort) == 2
    assert [s.id for s in cohort] == ["sub-001", "sub-002"]
