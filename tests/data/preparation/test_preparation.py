import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from neurotome.data.imaging.geometry import Geometry
from neurotome.data.imaging.reader import read_volume
from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation.brain_box import largest_component, share_on_faces
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.presets import preset
from neurotome.data.preparation.record import Record
from neurotome.errors import InputError, UsageError
from tests.data.preparation.test_resample import flip_affine, orientations
from tests.data.scans import affine_of, brain_array, rotation_of


def volume_of(array, affine):
    return Volume(array, Geometry(array.shape, affine))


def blob(shape, affine, centre_mm, sigma_mm=7.0):
    """A Gaussian blob at a place in the world, zero far away, its peak 100."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    values = 100 * np.exp(-((world - centre_mm) ** 2).sum(axis=-1) / (2 * sigma_mm**2))
    return np.where(values > 1, values, 0).astype(np.float32)


def centroid(array):
    return np.array(ndimage.center_of_mass(np.maximum(array.astype(float), 0)))


def stored(order, signs, degrees, spacing):
    """An affine and shape of a field of view of about 84 mm, stored in one of 48 ways, tilted, anisotropic."""
    affine = affine_of((1, 1, 1), rotation_of(degrees)) @ (flip_affine(order, signs) / 2)
    affine[3, 3] = 1
    affine[:3, :3] *= np.asarray(spacing)
    shape = tuple(round(84 / s) for s in spacing)
    affine[:3, 3] = np.array([3.0, -20.0, 11.0]) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine, shape


@pytest.mark.parametrize(("order", "signs"), orientations())
def test_landmarks_and_blobs_return_in_all_48_orientations(order, signs):
    rng = np.random.default_rng([*order, *(s + 1 for s in signs)])
    degrees, spacing = rng.uniform(-30, 30, 3), rng.uniform((1.5, 1.5, 2.0), (2.5, 2.5, 3.5))
    affine, shape = stored(order, signs, degrees, spacing)
    centre = np.array([3.0, -20.0, 11.0]) + rng.uniform(-6, 6, 3)
    scan = volume_of(blob(shape, affine, centre), affine)
    prepared = Preparation(2.0, (48, 48, 48), percentiles=(0, 100)).apply({"T1w": scan})
    record = prepared.records["T1w"]

    landmarks = rng.uniform(-30, 30, (20, 3)) + np.array([3.0, -20.0, 11.0])
    source = np.c_[landmarks, np.ones(20)] @ np.linalg.inv(affine).T
    grid = source @ np.linalg.inv(record.grid_to_source).T
    back = grid @ record.affine.T
    assert np.abs(back[:, :3] - landmarks).max() < 0.01
    # the prepared axes are those of the scan in RAS+ order
    assert (np.diag(record.affine)[:3] > 0).all()

    place = record.affine @ [*centroid((prepared.image[0] + 1) * prepared.mask), 1]
    assert np.abs(place[:3] - centre).max() < 0.2
    restored = record.restore(prepared.image[0], prepared.mask)
    assert restored.geometry == scan.geometry
    assert np.abs(centroid(restored.array) - centroid(scan.array)).max() < 0.1


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.floats(-30, 30)] * 3), st.tuples(*[st.floats(1.5, 3.5)] * 3), st.sampled_from(list(orientations()))
)
def test_transforms_compose_for_any_tilt_and_spacing(degrees, spacing, orientation):
    affine, shape = stored(*orientation, degrees, spacing)
    scan = volume_of(blob(shape, affine, np.array([3.0, -20.0, 11.0]), 6.0), affine)
    prepared = Preparation(2.5, (36, 36, 36), percentiles=(0, 100)).apply({"T1w": scan})
    record = Record.from_json(json.loads(json.dumps(prepared.records["T1w"].to_json())))
    np.testing.assert_allclose(np.linalg.norm(record.affine[:3, :3], axis=0), 2.5, rtol=1e-3)
    restored = record.restore(prepared.image[0], prepared.mask)
    assert np.abs(centroid(restored.array) - centroid(scan.array)).max() < 0.1


def test_right_spacing_is_a_pure_crop():
    array = brain_array((20, 24, 18))
    affine = affine_of() @ np.array([[0, -1, 0, 19], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    scan = volume_of(array, affine)
    prepared = Preparation(3.0, (30, 20, 22), percentiles=(0, 100)).apply({"T1w": scan})
    record = prepared.records["T1w"]
    np.testing.assert_array_equal(record.grid_to_source, np.round(record.grid_to_source))
    values = (prepared.image[0][prepared.mask].astype(float) + 1) / 2 * (record.high - record.low) + record.low
    np.testing.assert_allclose(np.sort(values), np.sort(array[array > 0]), rtol=2e-6)
    assert (prepared.image[0][~prepared.mask] == -1).all()
    restored = record.restore(prepared.image[0], prepared.mask)
    np.testing.assert_allclose(restored.array, array, rtol=1e-5, atol=1e-4)
    assert (restored.array[array == 0] == 0).all()


def test_bits_survive_a_crop():
    """Intensities that map to themselves come back bit for bit."""
    array = brain_array((16, 16, 16))
    array[array > 0] = np.round(array[array > 0])
    array[8, 8, 8], array[8, 8, 7] = 0.0, 256.0
    array[array > 256] = 256
    scan = volume_of(array, affine_of())
    prepared = Preparation(3.0, (16, 16, 16), percentiles=(0, 100)).apply({"T1w": scan})
    record = prepared.records["T1w"]
    assert (record.low, record.high) == (0.0, 256.0)
    np.testing.assert_array_equal(record.restore(prepared.image[0], prepared.mask).array, array)


def test_views_on_different_grids_land_on_one():
    centre = np.array([3.0, -20.0, 11.0])
    first = stored((0, 1, 2), (1, 1, 1), (0, 0, 0), (2, 2, 2))
    second = stored((2, 0, 1), (-1, 1, -1), (8, -5, 12), (1.5, 2, 3))
    views = {
        m: volume_of(blob(s, a, centre, 8.0), a) for m, (a, s) in zip(("T1w", "T2w"), (first, second), strict=True)
    }
    prepared = Preparation(2.0, (40, 40, 40), percentiles=(0, 100)).apply(views)
    one, two = (centroid(prepared.image[i] + 1) for i in range(2))
    assert np.abs(one - two).max() < 0.1
    assert np.corrcoef(prepared.image[0][prepared.mask], prepared.image[1][prepared.mask])[0, 1] > 0.99
    for index, (name, view) in enumerate(views.items()):
        restored = prepared.records[name].restore(prepared.image[index], prepared.mask)
        assert restored.array.shape == view.array.shape
        assert np.abs(centroid(restored.array) - centroid(view.array)).max() < 0.1


def test_a_box_too_large_names_the_shape_that_works():
    scan = volume_of(brain_array((20, 24, 18)), affine_of())
    with pytest.raises(InputError, match="more than 8 x 32 x 8") as error:
        Preparation(3.0, (8, 32, 8)).apply({"T1w": scan})
    shape = tuple(int(n) for n in error.value.remedy.split("--shape ")[1].split(",")[0].split())
    prepared = Preparation(3.0, shape).apply({"T1w": scan})
    assert prepared.mask.sum() == (scan.array > 0).sum()
    smaller = (shape[0] - 1, *shape[1:])
    with pytest.raises(InputError, match="brain box"):
        Preparation(3.0, smaller).apply({"T1w": scan})


def test_whole_heads_need_a_mask():
    noise = volume_of(np.random.default_rng(0).random((20, 20, 20)).astype(np.float32) + 1, affine_of())
    mask = volume_of((brain_array((20, 20, 20)) > 0).astype(np.uint8), affine_of())
    preparation = Preparation(3.0, (24, 24, 24))
    with pytest.raises(InputError, match=r"T1w looks like a whole head.*brain mask"):
        preparation.apply({"T1w": noise})
    masked = preparation.apply({"T1w": noise}, mask)
    assert masked.mask.sum() == mask.array.sum()
    assert (masked.image[0][~masked.mask] == -1).all()
    assert preparation.apply({"T1w": noise}, allow_head=True).mask.sum() == 8000
    large = volume_of(brain_array((60, 60, 60)), affine_of((5, 5, 5)))
    with pytest.raises(InputError, match="ml lie above"):
        Preparation(5.0, (64, 64, 64)).apply({"T1w": large})


@pytest.mark.parametrize(
    ("views", "says"),
    [
        ({}, "without views"),
        ({"T1w": volume_of(np.zeros((9, 9, 9), np.float32), affine_of())}, "T1w is empty"),
        ({"T1w": volume_of((brain_array((20, 24, 18)) > 0).astype(np.uint8), affine_of())}, "T1w is constant"),
        (
            {
                "T1w": volume_of(brain_array(), affine_of()),
                "T2w": volume_of(brain_array(), affine_of(origin=(500.0, 0, 0))),
            },
            "brain box|does not overlap",
        ),
    ],
)
def test_sessions_that_cannot_be_prepared(views, says):
    with pytest.raises(InputError, match=says):
        Preparation(3.0, (40, 40, 40)).apply(views)


def test_a_view_out_of_sight_is_refused_although_a_mask_is_given():
    mask = volume_of((brain_array() > 0).astype(np.uint8), affine_of())
    views = {
        "T1w": volume_of(brain_array(), affine_of()),
        "T2w": volume_of(brain_array(), affine_of(origin=(500.0, 0, 0))),
    }
    with pytest.raises(InputError, match="T2w does not overlap"):
        Preparation(3.0, (40, 40, 40)).apply(views, mask)


def test_outliers_are_clipped():
    array = brain_array()
    array[10, 12, 9] = 1e30
    prepared = Preparation(3.0, (24, 24, 24)).apply({"T1w": volume_of(array, affine_of())})
    assert prepared.image.max() == 1.0
    assert np.median(prepared.image[0][prepared.mask]) == pytest.approx(0, abs=0.1)


def test_restore_undoes_outside_and_intensity():
    """Source intensities 10 + 5 v with a background of 3 come back, background included."""
    array = np.where(brain_array() > 0, 10 + 5 * brain_array(), 3).astype(np.float32)
    scan = volume_of(array, affine_of())
    prepared = Preparation(3.0, (16, 20, 14), mask_threshold=5.0, percentiles=(0, 100)).apply({"T1w": scan})
    record = prepared.records["T1w"]
    assert record.background == 3.0
    np.testing.assert_allclose(record.restore(prepared.image[0], prepared.mask).array, array, rtol=1e-5)
    with pytest.raises(ValueError, match="prepared grid"):
        record.restore(np.zeros((2, 2, 2), np.float32))


def test_labels_travel_with_the_nearest_neighbour():
    labels = np.arange(20 * 24 * 18).reshape(20, 24, 18) % 7
    scan = volume_of(brain_array(), affine_of())
    prepared = Preparation(3.0, (20, 24, 16)).apply({"T1w": scan})
    got = prepared.labels(volume_of(labels.astype(np.int16), affine_of()))
    shift = prepared.records["T1w"].grid_to_source[:3, 3].astype(int)
    assert got.dtype == np.int16
    for p in itertools.islice(np.argwhere(prepared.mask), 0, None, 97):
        assert got[tuple(p)] == labels[tuple(p + shift)]


def test_largest_component_is_filled_and_alone():
    mask = np.zeros((12, 12, 12), bool)
    mask[2:9, 2:9, 2:9] = True
    mask[4, 4, 4] = False
    mask[11, 11, 11] = True
    got = largest_component(mask)
    assert got.sum() == 343
    assert not got[11, 11, 11]
    np.testing.assert_array_equal(largest_component(np.asfortranarray(mask)), got)
    assert share_on_faces(got) == 0
    assert share_on_faces(np.ones((4, 5, 6), bool)) == 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"spacing_mm": 0.0}, "spacing_mm is 0"),
        ({"spacing_mm": float("nan")}, "spacing_mm is nan"),
        ({"shape": (0, 5, 5)}, "shape is"),
        ({"percentiles": (50, 50)}, "percentiles are"),
        ({"percentiles": (-1, 50)}, "percentiles are"),
        ({"mask_threshold": float("inf")}, "mask_threshold"),
        ({"version": 2}, "version 2"),
        ({"spacing_mm": (1, 2)}, "spacing_mm has 2 numbers"),
        ({"spacing_mm": (1, 2, 90)}, "spacing_mm is 1 x 2 x 90"),
        ({"crop": "left"}, "crop is 'left'; admissible are brain, centre"),
        ({"intensity": "mean"}, "intensity is 'mean'"),
        ({"bias_field": "n5"}, "bias_field is 'n5'"),
        ({"clip": 3}, "only zscore"),
        ({"intensity": "zscore", "clip": -3}, "clip is -3"),
        ({"intensity": "zscore", "percentiles": (1, 99)}, "intensity is zscore"),
        ({"background": -1.5}, "background is -1.5; admissible is -1 to 1"),
        ({"background": float("nan")}, "background is nan"),
    ],
)
def test_preparation_refuses_bad_values(values, says):
    with pytest.raises(UsageError, match=says):
        Preparation(**({"spacing_mm": 3.0, "shape": (4, 4, 4)} | values))


def test_preparation_survives_json_and_has_a_digest():
    one = Preparation(3, (48, 64, 56))
    two = Preparation.from_json(json.loads(json.dumps(one.to_json())))
    assert one == two
    assert one.digest == two.digest != Preparation(3, (48, 64, 57)).digest
    with pytest.raises(UsageError, match="not a preparation"):
        Preparation.from_json({**one.to_json(), "colour": 1})
    for shape in ([math.inf, 64, 56], ["x", 64, 56]):
        with pytest.raises(UsageError, match="not a preparation"):
            Preparation.from_json({**one.to_json(), "shape": shape})


SCAN = volume_of(np.where(brain_array() > 0, 10 + 5 * brain_array(), 3).astype(np.float32), affine_of())


@pytest.mark.parametrize(
    "kind",
    [
        {"intensity": "percentile", "percentiles": (0, 100)},
        {"intensity": "minmax"},
        {"intensity": "zscore"},
        {"intensity": "zscore", "background": -7.5},
        {"intensity": "zscore", "clip": 8.0},
        {"intensity": "minmax", "background": 0.25},
    ],
)
def test_every_kind_of_intensity_is_undone(kind):
    """Nothing is clipped here, so that all voxels come back, the background's included."""
    preparation = Preparation(3.0, (16, 20, 14), mask_threshold=5.0, **kind)
    prepared = preparation.apply({"T1w": SCAN})
    record = Record.from_json(json.loads(json.dumps(prepared.records["T1w"].to_json())))
    assert (prepared.image[0][~prepared.mask] == np.float32(preparation.outside)).all()
    np.testing.assert_allclose(record.restore(prepared.image[0], prepared.mask).array, SCAN.array, rtol=1e-4)
    if preparation.window is not None:
        low, high = preparation.window
        assert low <= prepared.image.min()
        assert prepared.image.max() <= high


def test_intensities_follow_their_formulas():
    values = SCAN.array[SCAN.array > 5].astype(np.float64)

    def prepared(**kind):
        one = Preparation(3.0, (16, 20, 14), mask_threshold=5.0, **kind).apply({"T1w": SCAN})
        return np.sort(one.image[0][one.mask].astype(np.float64))

    zscore = (values - values.mean()) / values.std()
    np.testing.assert_allclose(prepared(intensity="zscore"), np.sort(zscore), atol=1e-5)
    np.testing.assert_allclose(prepared(intensity="zscore", clip=1.5), np.sort(np.clip(zscore / 1.5, -1, 1)), atol=1e-5)
    minmax = 2 * (values - values.min()) / (values.max() - values.min()) - 1
    np.testing.assert_allclose(prepared(intensity="minmax"), np.sort(minmax), atol=1e-5)


def test_windows_and_backgrounds():
    assert Preparation(3.0, (4, 4, 4)).window == (-1.0, 1.0)
    assert Preparation(3.0, (4, 4, 4)).outside == -1.0
    free = Preparation(3.0, (4, 4, 4), intensity="zscore")
    assert (free.window, free.outside) == (None, 0.0)
    clipped = Preparation(3.0, (4, 4, 4), intensity="zscore", clip=5)
    assert (clipped.window, clipped.outside) == ((-1.0, 1.0), -1.0)
    # one declaration, one digest
    assert Preparation(3.0, (4, 4, 4), background=-1).digest == Preparation(3.0, (4, 4, 4)).digest
    assert Preparation((3, 3, 3), (4, 4, 4)).digest == Preparation(3.0, (4, 4, 4)).digest


def test_the_first_declaration_keeps_its_digest():
    """Stores and model folders of the first release hold these bytes; a new choice must not change them."""
    one = Preparation(3.0, (48, 64, 56))
    assert one.to_json() == {
        "spacing_mm": 3.0, "shape": [48, 64, 56], "percentiles": [0.5, 99.5], "mask_threshold": 0.0, "version": 1,
    }  # fmt: skip
    assert one.digest == "2c99accc1e316ef1c642b052244f99ef89d221099ad7de352ab1607794f415a7"
    record = one.apply({"T1w": SCAN}, allow_head=True).records["T1w"]
    assert list(record.to_json()) == ["geometry", "grid_to_source", "shape", "low", "high", "background"]


def test_spacing_may_differ_between_the_axes():
    prepared = Preparation((3.0, 6.0, 4.5), (24, 16, 16)).apply({"T1w": SCAN}, allow_head=True)
    record = prepared.records["T1w"]
    np.testing.assert_allclose(np.linalg.norm(record.affine[:3, :3], axis=0), (3.0, 6.0, 4.5))
    # smoothed before it is thinned: noise of one voxel is averaged, a step of two voxels halves its variance
    noise = np.random.default_rng(0).standard_normal((60, 60, 60)).astype(np.float32) + 100
    thick = Preparation((3.0, 3.0, 12.0), (60, 60, 15)).apply({"T1w": volume_of(noise, affine_of())}, allow_head=True)
    spread = (thick.image[0] + 1) / 2 * (thick.records["T1w"].high - thick.records["T1w"].low)
    assert spread[5:-5, 5:-5, 2:-2].std() < 0.6


def test_the_grid_may_be_centred_on_the_field_of_view():
    array = np.zeros((30, 30, 30), np.float32)
    array[2:14, 4:18, 3:13] = brain_array((12, 14, 10)) + 50
    scan = volume_of(array, affine_of())
    brain = Preparation(3.0, (20, 20, 20)).apply({"T1w": scan}).records["T1w"]
    centre = Preparation(3.0, (30, 32, 30), crop="centre").apply({"T1w": scan})
    np.testing.assert_array_equal(centre.records["T1w"].grid_to_source[:3, 3], (0, -1, 0))
    np.testing.assert_array_equal(brain.grid_to_source[:3, 3], (-2, 1, -2))
    np.testing.assert_allclose(centre.records["T1w"].restore(centre.image[0], centre.mask).array[array == 0], 0)
    with pytest.raises(InputError, match="brain box needs 26 x 22 x 24 voxels") as error:
        Preparation(3.0, (20, 20, 20), crop="centre").apply({"T1w": scan})
    assert "--crop brain" in error.value.remedy
    Preparation(3.0, (26, 22, 24), crop="centre").apply({"T1w": scan})


REAL = os.environ.get("NEUROTOME_TEST_DATA")


@pytest.mark.skipif(not REAL, reason="NEUROTOME_TEST_DATA is not set")
def test_real_scans_come_back_on_their_grid():
    folder = Path(REAL) / "paired" / "brats" / "sub-DU7294"
    views = {m: read_volume(folder / f"sub-DU7294_{m}.nii.gz") for m in ("T1w", "T2w")}
    prepared = Preparation(1.0, (160, 192, 160)).apply(views)
    for index, (name, view) in enumerate(views.items()):
        record = prepared.records[name]
        restored = record.restore(prepared.image[index], prepared.mask)
        brain = (view.array > record.low) & (view.array < record.high) & (restored.array != record.background)
        assert brain.sum() > 1_000_000
        np.testing.assert_allclose(
            restored.array[brain], view.array[brain], atol=0.01 * (record.high - record.low) / 100
        )


@pytest.mark.skipif(not REAL, reason="NEUROTOME_TEST_DATA is not set")
def test_one_brain_in_six_orientations_is_prepared_to_one_image():
    folder = Path(REAL) / "hostile" / "orient"
    images = []
    for name in ("RAS", "LPS", "LAS", "ASR", "PIL", "SPR"):
        scan = read_volume(folder / f"{name}.nii.gz")
        images.append(Preparation(3.0, (64, 80, 64)).apply({"T1w": scan}, allow_head=True).image)
    assert max(float(np.abs(image - images[0]).max()) for image in images) < 1e-5


def z_scored(background=0.0):
    """A brain as z-scores: half of it below 0, on a background of one value."""
    array = brain_array(seed=3).astype(np.float64)
    inside = array > 0
    values = (array - array[inside].mean()) / array[inside].std()
    return np.where(inside, values, background).astype(np.float32), inside


@pytest.mark.parametrize("background", [0.0, -9.0])
@pytest.mark.parametrize("values", [{}, {"intensity": "minmax"}, {"mask_threshold": 0.2}])
def test_a_z_scored_brain_is_refused_not_cut(background, values):
    array, _ = z_scored(background)
    with pytest.raises(InputError, match=r"T1w seems to be z-scored: \d\d% .* lie below 0") as error:
        Preparation(3.0, (20, 24, 18), **values).apply({"T1w": volume_of(array, affine_of())})
    assert "--intensity zscore" in error.value.remedy


@pytest.mark.parametrize("background", [0.0, -9.0])
@pytest.mark.parametrize("clip", [None, 5.0])
def test_a_z_scored_brain_is_prepared_on_purpose(background, clip):
    array, inside = z_scored(background)
    scan = volume_of(array, affine_of())
    preparation = Preparation(3.0, (20, 24, 18), intensity="zscore", clip=clip)
    prepared = preparation.apply({"T1w": scan})
    filled = largest_component(inside)
    assert prepared.mask.sum() == filled.sum()
    brain = prepared.image[0][prepared.mask]
    np.testing.assert_allclose(np.sort(brain) * (clip or 1.0), np.sort(array[filled]), atol=1e-3)
    restored = prepared.records["T1w"].restore(prepared.image[0], prepared.mask)
    np.testing.assert_allclose(restored.array, array, atol=1e-3)
    # a mask says what the brain is, for any intensity
    mask = volume_of(inside.astype(np.uint8), affine_of())
    assert Preparation(3.0, (20, 24, 18)).apply({"T1w": scan}, mask).mask.sum() == inside.sum()


def test_what_is_not_z_scored_is_not_taken_for_it():
    array, inside = z_scored()
    raw = np.where(inside, array * 10 + 100, 0).astype(np.float32)
    for scan in (
        raw,
        np.where(inside & (raw < 88), -1.0, raw),  # a tenth of overshoot, as interpolation leaves it
        np.where(inside, raw, -1000.0),  # a background below everything
    ):
        prepared = Preparation(3.0, (20, 24, 18)).apply({"T1w": volume_of(scan.astype(np.float32), affine_of())})
        assert prepared.mask.sum() > 0.85 * inside.sum()
    # a threshold below all of the brain cuts nothing
    low = volume_of(z_scored(-9.0)[0], affine_of())
    prepared = Preparation(3.0, (20, 24, 18), mask_threshold=-8.0).apply({"T1w": low})
    assert prepared.mask.sum() == largest_component(inside).sum()


def with_a_hole():
    """A brain whose mask left out the ventricles: zeros inside, which belong to the filled brain."""
    rng = np.random.default_rng(0)
    radius = np.sqrt(sum(axis**2 for axis in np.ogrid[-16:16, -16:16, -16:16]))
    array = np.where(radius < 14, rng.normal(150, 25, radius.shape).clip(1), 0)
    array[radius < 5] = 0
    return np.asfortranarray(array.astype(np.float32))


def test_the_range_of_the_neuroquant_preset_is_that_of_voxels_above_0():
    array = with_a_hole()
    values = preset("neuroquant") | {"shape": (32, 32, 32)}
    record = Preparation(**values).apply({"T1w": volume_of(array, affine_of((1, 1, 1)))}).records["T1w"]
    assert (record.low, record.high) == tuple(np.percentile(array[array > 0], (0.5, 99.5)))
    # the default, and a preparation recorded before there was a choice, take all of the brain
    recorded = Preparation(**values).to_json()
    assert recorded.pop("measured") == "positive"
    record = Preparation.from_json(recorded).apply({"T1w": volume_of(array, affine_of((1, 1, 1)))}).records["T1w"]
    assert record.low == 0.0
    assert Preparation.from_json(recorded) == Preparation(1.0, (32, 32, 32))
    assert Preparation.from_json(recorded).digest != Preparation(**values).digest


@pytest.mark.parametrize("kind", ["percentile", "minmax", "zscore"])
def test_holes_do_not_count_where_positive_voxels_are_measured(kind):
    array = with_a_hole()
    scan = volume_of(array, affine_of((1, 1, 1)))
    preparation = Preparation(1.0, (32, 32, 32), intensity=kind, measured="positive")
    record = preparation.apply({"T1w": scan}).records["T1w"]
    values = array[array > 0].astype(np.float64)
    expected = {
        "percentile": np.percentile(values, (0.5, 99.5)),
        "minmax": (values.min(), values.max()),
        "zscore": (values.mean() - values.std(), values.mean() + values.std()),
    }
    np.testing.assert_allclose((record.low, record.high), expected[kind], rtol=1e-5)
    assert "above 0" in preparation.describe()


def test_positive_voxels_are_not_measured_where_much_is_negative():
    array, inside = z_scored()
    mask = volume_of(inside.astype(np.uint8), affine_of())
    preparation = Preparation(3.0, (20, 24, 18), measured="positive")
    with pytest.raises(InputError, match=r"T1w: the range .* \d\d% of the brain lie below") as error:
        preparation.apply({"T1w": volume_of(array, affine_of())}, mask)
    assert "--measured brain" in error.value.remedy
    with pytest.raises(UsageError, match="measured is 'all'"):
        Preparation(1.0, (8, 8, 8), measured="all")


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("intensity", ["percentile", "minmax", "zscore"])
def test_the_result_does_not_depend_on_the_type_of_the_voxels(dtype, intensity):
    """Values up to the largest of a type: sums, differences and means of them do not fit into it."""
    top = min(float(np.finfo(dtype).max if dtype[0] == "f" else np.iinfo(dtype).max), 60000.0)
    array = np.round(brain_array() / brain_array().max() * top)
    array[array == 0] = np.round(top / 100)  # a background, which is restored
    array[0, 0, 0] = 0
    mask = volume_of((brain_array() > 0).astype(np.uint8), affine_of())
    prepared = [
        Preparation(4.0, (18, 20, 16), intensity=intensity).apply({"T1w": volume_of(a, affine_of())}, mask)
        for a in (array.astype(dtype), array.astype(np.float64))
    ]
    np.testing.assert_array_equal(prepared[0].image, prepared[1].image)
    a, b = (p.records["T1w"] for p in prepared)
    assert (a.low, a.high, a.background) == (b.low, b.high, b.background)
    assert a.background > 0
