"""Contrasts of one session that do not lie on each other are found, then refused or registered."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from neurotome.data.imaging.geometry import Geometry
from neurotome.data.imaging.reader import read_volume
from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation import extras, registration
from neurotome.data.preparation.brain_box import Brain
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.record import Record
from neurotome.errors import InputError, UsageError
from tests.data.scans import affine_of, rotation_of

SHAPE, SPACING = (40, 46, 36), 3.0
REAL = os.environ.get("NEUROTOME_TEST_DATA")
PREPARATION = Preparation(3.0, (44, 50, 40))
REGISTERED = Preparation(3.0, (44, 50, 40), register=True)


def volume_of(array, affine):
    return Volume(array, Geometry(array.shape, affine))


def anatomy(seed=0):
    """Two contrasts of one brain: an ellipsoid with folds; what is bright in one is dark in the other."""
    rng = np.random.default_rng(seed)
    axes = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    radius = (axes**2).sum(axis=0)
    folds = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.2)
    share = np.clip(0.5 + 0.25 * folds / folds.std(), 0.05, 0.95)
    inside = radius < 0.6
    return (
        np.where(inside, 400 * share, 0).astype(np.float32),
        np.where(inside, 900 * (1 - share) ** 2 + 20, 0).astype(np.float32),
    )


def centred():
    affine = affine_of((SPACING,) * 3)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(SHAPE) - 1) / 2
    return affine


def motion_of(degrees, shift):
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = rotation_of(degrees), shift
    return motion


def session(motion):
    """T1w, and T2w whose header says the head lies elsewhere: ``motion`` leads from T1w's world to T2w's."""
    one, two = anatomy()
    return {"T1w": volume_of(one, centred()), "T2w": volume_of(two, motion @ centred())}


def brain_of(volume):
    return Brain(volume.array > 0, volume.geometry.affine)


def error_mm(found, true, volume):
    """The mean distance of two motions over the brain."""
    points = np.argwhere(volume.array > 0) @ volume.geometry.affine[:3, :3].T + volume.geometry.affine[:3, 3]
    gap = points @ (found - true)[:3, :3].T + (found - true)[:3, 3]
    return np.linalg.norm(gap, axis=1).mean()


MOTIONS = [
    ((0, 0, 0), (0, 0, 0)),
    ((4, 0, 0), (0, 0, 0)),
    ((0, 0, 0), (0, 3, 0)),
    ((5, -8, 10), (12, -9, 7)),
]


@pytest.mark.parametrize(("degrees", "shift"), MOTIONS)
def test_the_motion_between_two_contrasts_is_found_to_a_millimetre(degrees, shift):
    motion = motion_of(degrees, shift)
    views = session(motion)
    found = registration.estimate(views["T1w"], brain_of(views["T1w"]), views["T2w"])
    assert error_mm(found.matrix, motion, views["T1w"]) < 1.0
    assert found.is_displaced == (any(degrees) or any(shift))


def test_an_estimate_is_the_same_each_time():
    views = session(motion_of((2, 3, -4), (3, 0, -5)))
    one, two = (registration.estimate(views["T1w"], brain_of(views["T1w"]), views["T2w"]) for _ in range(2))
    np.testing.assert_array_equal(one.matrix, two.matrix)


def test_a_session_that_does_not_overlay_is_refused_with_the_way_out():
    views = session(motion := motion_of((0, 6, 0), (4, 0, 0)))
    with pytest.raises(InputError, match=r"T2w does not lie on T1w.* mm apart.*--register") as error:
        PREPARATION.apply(views)
    assert "pip install SimpleITK" in str(error.value)
    distance = float(str(error.value).split("seem ")[1].split(" mm")[0])
    assert distance == pytest.approx(error_mm(motion, np.eye(4), views["T1w"]), abs=1.0)


def test_the_same_world_on_another_grid_is_no_displacement():
    views = session(np.eye(4))
    grid = centred() @ np.array([[0, -1, 0, 38.0], [1.25, 0, 0, -2], [0, 0, 1.0, 0.4], [0, 0, 0, 1]])
    values = ndimage.affine_transform(
        views["T2w"].array, (np.linalg.inv(centred()) @ grid)[:3, :3], (np.linalg.inv(centred()) @ grid)[:3, 3],
        output_shape=(38, 40, 36), order=1,
    )  # fmt: skip
    prepared = PREPARATION.apply({"T1w": views["T1w"], "T2w": volume_of(values, grid)})
    assert all(record.motion is None for record in prepared.records.values())
    inner = ndimage.binary_erosion(prepared.mask, iterations=4)
    assert np.corrcoef(prepared.image[0][inner], prepared.image[1][inner])[0, 1] < -0.8


def test_a_ball_can_be_turned_without_being_displaced():
    """Many motions of a symmetric body share the same information; none of them is a finding."""
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) - (np.array(SHAPE) - 1) / 2
    ball = np.maximum(100 - (index**2).sum(axis=-1) / 4, 0).astype(np.float32)
    views = {"T1w": volume_of(ball, centred()), "T2w": volume_of(ball, motion_of((10, 0, 10), (0, 0, 0)) @ centred())}
    assert not registration.estimate(views["T1w"], brain_of(views["T1w"]), views["T2w"]).is_displaced


def test_a_view_of_a_part_of_the_brain_is_refused():
    views = session(np.eye(4))
    slab = volume_of(views["T2w"].array[..., 22:27], centred() @ motion_of((0, 0, 0), (0, 0, 22)))
    with pytest.raises(InputError, match=r"T2w holds only \d+% of the brain of T1w"):
        PREPARATION.apply({"T1w": views["T1w"], "T2w": slab})


def test_without_simpleitk_registration_names_the_command(monkeypatch):
    monkeypatch.setattr(extras, "SIMPLEITK", "a_package_that_is_not_there")
    for preparation in (REGISTERED, Preparation(3.0, SHAPE, bias_field="n4")):
        with pytest.raises(UsageError, match=r"needs the package .*`pip install "):
            preparation.check_installed()
    with pytest.raises(UsageError, match="registration needs the package"):
        REGISTERED.apply(session(motion_of((0, 6, 0), (4, 0, 0))))
    PREPARATION.check_installed()


@pytest.fixture(scope="module")
def registered():
    pytest.importorskip("SimpleITK", reason="the optional package SimpleITK is not installed")
    motion = motion_of((5, -8, 10), (12, -9, 7))
    views = session(motion)
    return views, motion, REGISTERED.apply(views)


def test_registered_views_overlay(registered):
    views, motion, prepared = registered
    record = prepared.records["T2w"]
    assert error_mm(record.motion, motion, views["T1w"]) < 0.5
    assert prepared.records["T1w"].motion is None
    still = PREPARATION.apply(session(np.eye(4)))
    inner = ndimage.binary_erosion(prepared.mask, iterations=2)

    def likeness(one):
        return np.corrcoef(one.image[0][inner], one.image[1][inner])[0, 1]

    # what is bright in one is dark in the other; interpolation costs a little of it
    assert likeness(prepared) == pytest.approx(likeness(still), abs=0.1)


def test_a_registered_view_returns_to_its_own_grid(registered):
    views, motion, prepared = registered
    for index, (name, view) in enumerate(views.items()):
        record = Record.from_json(prepared.records[name].to_json())
        restored = record.restore(prepared.image[index], prepared.mask)
        assert restored.geometry == view.geometry
        gap = np.array(ndimage.center_of_mass(restored.array)) - ndimage.center_of_mass(view.array)
        assert np.abs(gap).max() < 0.1
    # a point of the brain, through the grid, lands where the motion puts it; the record kept the motion
    record = Record.from_json(prepared.records["T2w"].to_json())
    np.testing.assert_array_equal(record.motion, prepared.records["T2w"].motion)
    point = np.array([10.0, -20.0, 15.0, 1.0])
    grid = np.linalg.inv(prepared.affine) @ point
    assert np.linalg.norm((record.affine @ grid - motion @ point)[:3]) < 1.0
    np.testing.assert_allclose(record.affine @ grid, record.motion @ point, atol=3e-3)


def test_masks_and_labels_move_with_the_view_they_belong_to(registered, monkeypatch):
    views, motion, prepared = registered
    known = registration.Motion(prepared.records["T2w"].motion, 15.0, 1.0, 1.0)
    monkeypatch.setattr(registration, "register", lambda *_: known)
    labels = (anatomy()[0] > 200).astype(np.uint8)
    on_first = prepared.labels(volume_of(labels, centred()))
    on_second = prepared.labels(volume_of(labels, motion @ centred()))
    assert (on_first != on_second).mean() < 0.02
    mask = volume_of((views["T2w"].array > 0).astype(np.uint8), motion @ centred())
    again = REGISTERED.apply(views, mask)
    assert (again.mask != prepared.mask).sum() < 0.1 * prepared.mask.sum()


def test_registration_gives_the_same_bytes_twice(registered):
    views, _, prepared = registered
    again = registration.register(views["T1w"], brain_of(views["T1w"]), views["T2w"])
    np.testing.assert_array_equal(again.matrix, prepared.records["T2w"].motion)


def test_a_view_that_lies_there_already_is_not_interpolated(registered):
    views = session(np.eye(4))
    prepared = REGISTERED.apply(views)
    assert prepared.records["T2w"].motion is None
    np.testing.assert_array_equal(prepared.image, PREPARATION.apply(views).image)


def test_what_cannot_be_registered_is_refused(monkeypatch, registered):
    monkeypatch.setattr(registration, "register", lambda *_: registration.Motion(np.eye(4), 0.0, 1.0, 0.0))
    with pytest.raises(InputError, match="could not be registered to T1w: they still seem"):
        REGISTERED.apply(session(motion_of((0, 6, 0), (4, 0, 0))))


@pytest.mark.skipif(not REAL, reason="NEUROTOME_TEST_DATA is not set")
def test_real_contrasts_of_one_visit_lie_on_each_other_and_of_two_visits_do_not():
    folder = Path(REAL) / "paired" / "openms_raw" / "sub-L01"
    first, second = ({m: read_volume(folder / f"ses-{n}" / f"sub-L01_ses-{n}_{m}.nii.gz") for m in ("T1w", "FLAIR")}
                     for n in (1, 2))  # fmt: skip
    brain = Brain(first["T1w"].array > 50, first["T1w"].geometry.affine)
    same = registration.estimate(first["T1w"], brain, first["FLAIR"])
    other = registration.estimate(first["T1w"], brain, second["FLAIR"])
    assert not same.is_displaced
    assert other.is_displaced
    assert other.displacement_mm > 5
