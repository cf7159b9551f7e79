import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from skimage.measure import marching_cubes

from neurotome.metrics import regional
from neurotome.metrics.regional import feret_mm, label_volumes, lesion_summary, lesion_table, voxel_ml


def grid(spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def brute_feret(index, affine):
    """The definition: all pairs of all face centres of all voxels."""
    points = []
    for voxel in index:
        for axis, sign in itertools.product(range(3), (-0.5, 0.5)):
            place = voxel.astype(float)
            place[axis] += sign
            points.append(affine[:3, :3] @ place)
    points = np.array(points)
    return max(np.linalg.norm(p - points, axis=1).max() for p in points)


def ball(diameter_mm, spacing, centre=(0.0, 0.0, 0.0)):
    half = [int(np.ceil(diameter_mm / 2 / s)) + 2 for s in spacing]
    axes = [np.arange(-h, h + 1) * s - c for h, s, c in zip(half, spacing, centre, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 <= (diameter_mm / 2) ** 2


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.tuples(*[st.floats(0.3, 6)] * 3), st.floats(-0.4, 0.4))
def test_feret_is_that_of_all_pairs(seed, spacing, shear):
    rng = np.random.default_rng(seed)
    index = np.argwhere(rng.random(rng.integers(1, 7, 3)) < rng.uniform(0.05, 1))
    if not len(index):
        index = np.zeros((1, 3), dtype=int)
    affine = grid(spacing) @ np.array([[1, shear, 0, 0], [0, 1, shear, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert feret_mm(index, affine) == pytest.approx(brute_feret(index, affine), rel=1e-9)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 2.0, 3.0)])
def test_feret_is_that_of_the_surface_by_marching_cubes(spacing):
    rng = np.random.default_rng(0)
    blob = ball(9, spacing)
    blob &= rng.random(blob.shape) < 0.8
    surface, *_ = marching_cubes(np.pad(blob, 1).astype(float), 0.5, spacing=spacing)
    assert feret_mm(np.argwhere(blob), grid(spacing)) == pytest.approx(pdist(surface).max(), rel=1e-5)


def test_closed_forms():
    assert feret_mm(np.array([[4, 5, 6]]), grid((1.0, 2.0, 3.0))) == pytest.approx(3.0)
    rod = np.stack([np.arange(7), np.zeros(7, int), np.zeros(7, int)], axis=1)
    assert feret_mm(rod, grid((1.5, 1, 1))) == pytest.approx(10.5)
    assert feret_mm(rod[::-1], grid((-1.5, 1, 1))) == pytest.approx(10.5)
    with pytest.raises(ValueError, match="at least one voxel"):
        feret_mm(np.zeros((0, 3), dtype=int), grid())


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.8, 0.8, 3.0), (3, 3, 3)])
def test_a_ball_is_measured_to_its_diameter(spacing):
    rng = np.random.default_rng(0)
    measured = []
    for _ in range(20):
        one = ball(20.0, spacing, rng.uniform(-0.5, 0.5, 3) * spacing)
        (lesion,) = lesion_table(one, grid(spacing))
        measured.append((lesion.feret_mm, lesion.volume_ml))
    feret, volume = np.mean(measured, axis=0)
    assert 20.0 < feret < 20.0 + max(spacing)  # the farthest of many points of a rough surface lies outside
    assert volume == pytest.approx(np.pi / 6 * 20**3 / 1000, rel=0.05)


def test_volumes_in_ml_of_freesurfer_ids():
    labels = np.zeros((10, 10, 10), dtype=np.int32)
    labels[:2], labels[5, 5], labels[9, 9, 9] = 12175, 17, 2_000_000_000
    expected = {17: 10 * 0.006, 12175: 200 * 0.006, 2_000_000_000: 0.006}
    assert label_volumes(labels, grid((1, 2, 3))) == pytest.approx(expected)
    small = np.where(labels > 20_000, 0, labels)
    assert label_volumes(small, grid((1, -2, 3))) == pytest.approx({17: 0.06, 12175: 1.2})
    assert label_volumes(small, grid((1, 2, 3)), background=-1)[0] == pytest.approx(790 * 0.006)
    assert label_volumes(np.zeros((2, 2, 2), np.uint8), grid()) == {}
    for dtype in "bBhHiIlL":
        assert label_volumes(np.full((2, 2, 2), 127, dtype), grid((1, 1, 1))) == pytest.approx({127: 0.008})
    with pytest.raises(ValueError, match="ids from 0 on, got -3"):
        label_volumes(labels - 3, grid())


def test_volumes_and_diameters_do_not_depend_on_how_the_image_is_stored():
    rng = np.random.default_rng(3)
    mask = ndimage_blobs(rng)
    affine = grid((0.7, 1.3, 2.9), (5, -6, 7))
    expected = lesion_table(mask, affine)
    assert len(expected) > 3
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            to_source = np.zeros((4, 4))
            to_source[3, 3] = 1
            stored = mask.transpose(order)
            for axis, (source, flip) in enumerate(zip(order, flips, strict=True)):
                to_source[source, axis] = -1 if flip else 1
                to_source[source, 3] = mask.shape[source] - 1 if flip else 0
                stored = np.flip(stored, axis) if flip else stored
            got = lesion_table(stored, affine @ to_source)
            assert [g.num_voxels for g in got] == [e.num_voxels for e in expected]
            np.testing.assert_allclose([g.feret_mm for g in got], [e.feret_mm for e in expected], rtol=1e-9)
            np.testing.assert_allclose([g.centre_mm for g in got], [e.centre_mm for e in expected], atol=1e-9)


def ndimage_blobs(rng):
    mask = np.zeros((20, 18, 16), dtype=bool)
    for _ in range(5):
        a = rng.integers(1, 12, 3)
        b = a + rng.integers(1, 4, 3)
        mask[a[0] : b[0], a[1] : b[1], a[2] : b[2]] = True
    mask[18, 16, 14] = True
    return mask


def test_what_touches_is_one_lesion():
    mask = np.zeros((5, 5, 5), dtype=np.uint8)
    mask[1, 1, 1] = mask[2, 2, 1] = mask[3, 3, 2] = 1  # an edge, then a corner
    assert [len(lesion_table(mask, grid(), connectivity=c)) for c in (6, 18, 26)] == [3, 2, 1]
    mask[0, 4, 4] = 2
    assert [one.num_voxels for one in lesion_table(mask, grid())] == [3, 1]
    assert [one.num_voxels for one in lesion_table(mask, grid(), min_voxels=2)] == [3]
    with pytest.raises(ValueError, match="6, 18, 26"):
        lesion_table(mask, grid(), connectivity=8)
    with pytest.raises(ValueError, match="at least 1"):
        lesion_table(mask, grid(), min_voxels=0)


def test_the_class_changes_at_10_mm():
    mask = np.zeros((30, 5, 5), dtype=bool)
    mask[0:9, 0, 0] = mask[15:25, 2, 2] = True
    table = lesion_table(mask, grid(origin=(1, 2, 3)))
    assert [(one.number, one.feret_mm, one.rano_bm) for one in table] == [
        (1, pytest.approx(10.0), "measurable"),
        (2, pytest.approx(9.0), "non-measurable"),
    ]
    assert table[0].centre_mm == (20.5, 4.0, 5.0)
    assert table[0].to_json()["rano_bm"] == "measurable"
    assert lesion_summary(table) == {
        "count": 2,
        "measurable": 1,
        "volume_ml": pytest.approx(0.019),
        "largest_mm": pytest.approx(10.0),
    }
    assert lesion_summary(lesion_table(mask & False, grid())) == {
        "count": 0,
        "measurable": 0,
        "volume_ml": 0,
        "largest_mm": 0.0,
    }


def test_many_hull_corners_are_compared_in_parts(monkeypatch):
    index = np.argwhere(ball(15, (1, 1, 1)))
    expected = feret_mm(index, grid())
    monkeypatch.setattr(regional, "_ROWS", 7)
    assert feret_mm(index, grid()) == expected


REAL = os.environ.get("NEUROTOME_TEST_DATA")


@pytest.mark.skipif(REAL is None, reason="NEUROTOME_TEST_DATA is not set")
def test_real_lesions_and_regions():
    from neurotome.data.imaging.reader import read_volume
    from neurotome.data.preparation.labels import whole_labels

    mask = read_volume(Path(REAL) / "paired/openms/sub-07/sub-07_space-MNI_label-lesion_mask.nii.gz")
    table = lesion_table(mask.array, mask.geometry.affine)
    assert sum(one.num_voxels for one in table) == np.count_nonzero(mask.array)
    assert lesion_summary(table)["volume_ml"] == pytest.approx(np.count_nonzero(mask.array) / 1000)
    assert table[0].feret_mm > 10
    aseg = whole_labels(read_volume(Path(REAL) / "hostile/niivue_aparc.a2009s+aseg.mgz"))
    assert aseg.array.dtype == np.int32
    volumes = label_volumes(aseg.array, aseg.geometry.affine)
    assert max(volumes) == 12175
    assert 2.0 < volumes[17] < 6.0  # the left hippocampus of an adult
    assert sum(volumes.values()) == pytest.approx(np.count_nonzero(aseg.array) * voxel_ml(aseg.geometry.affine))
