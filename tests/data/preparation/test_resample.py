import itertools

import nibabel
import numpy as np
import pytest

from neurotome.data.preparation import resample as module
from neurotome.data.preparation.resample import inside, nearest, ras_to_index, resample, tidy
from tests.data.scans import affine_of, rotation_of

RNG = np.random.default_rng(0)
ARRAY = RNG.random((9, 7, 8)).astype(np.float32)


def orientations():
    """The 48 ways to store a volume: axis orders and flips."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            yield order, signs


def flip_affine(order, signs):
    affine = np.zeros((4, 4))
    for world, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * 2.0
    affine[3, 3] = 1
    return affine


@pytest.mark.parametrize(("order", "signs"), orientations())
def test_ras_order_agrees_with_nibabel(order, signs):
    affine = affine_of((1, 1, 1), rotation_of((10, -12, 8))) @ flip_affine(order, signs)
    image = nibabel.Nifti1Image(ARRAY, affine)
    matrix = ras_to_index(affine, ARRAY.shape)
    canonical = nibabel.as_closest_canonical(image)
    np.testing.assert_array_equal(resample(ARRAY, matrix, canonical.shape), np.asarray(canonical.dataobj))
    np.testing.assert_allclose(affine @ matrix, canonical.affine, atol=1e-9)


def brute_linear(array, matrix, shape, fill):
    """Linear interpolation by its definition, one voxel at a time."""
    out = np.full(shape, fill, dtype=float)
    for target in np.ndindex(*shape):
        place = (matrix @ [*target, 1.0])[:3]
        if (place < -0.5).any() or (place >= np.array(array.shape) - 0.5).any():
            continue
        low = np.floor(place).astype(int)
        value = 0.0
        for corner in itertools.product((0, 1), repeat=3):
            weight = np.prod([1 - abs(p - (b + c)) for p, b, c in zip(place, low, corner, strict=True)])
            index = tuple(int(np.clip(b + c, 0, n - 1)) for b, c, n in zip(low, corner, array.shape, strict=True))
            value += weight * array[index]
        out[target] = value
    return out


SCALED = np.array([[0, -0.8, 0, 7.3], [0.6, 0, 0, -1.2], [0, 0, 0.9, 0.4], [0, 0, 0, 1.0]])
OBLIQUE = affine_of((0.8, 0.9, 0.7), rotation_of((15, 5, -20)), (0.5, 2.0, -1.0))


@pytest.mark.parametrize("matrix", [SCALED, OBLIQUE], ids=["separable", "oblique"])
def test_linear_interpolation_by_definition(matrix):
    got = resample(ARRAY, matrix, (8, 9, 10), fill=-3.0)
    np.testing.assert_allclose(got, brute_linear(ARRAY, matrix, (8, 9, 10), -3.0), atol=1e-5)


def test_both_paths_smooth_alike():
    matrix = np.array([[2.5, 0, 0, 1.0], [0, 0, 3.0, 0.5], [0, -2.0, 0, 19.0], [0, 0, 0, 1.0]])
    array = RNG.random((25, 24, 22)).astype(np.float32)
    separable = resample(array, matrix, (9, 9, 7))
    np.testing.assert_allclose(separable, module._resample_oblique(array, matrix, (9, 9, 7), 0.0, True), atol=2e-5)
    assert np.abs(separable - resample(array, matrix, (9, 9, 7), smooth=False)).max() > 0.05


def test_down_sampling_does_not_alias():
    """A wave finer than the target grid would come out as a slow one; smoothing removes it."""
    wave = np.cos(np.arange(64) * 2 * np.pi / 2.2)[:, None, None] * np.ones((1, 8, 8), dtype=np.float32)
    matrix = affine_of((4, 1, 1))
    assert np.abs(resample(wave, matrix, (16, 8, 8))[2:-2]).max() < 0.05
    assert np.abs(resample(wave, matrix, (16, 8, 8), smooth=False)).max() > 0.5


def test_whole_shifts_copy_bit_for_bit():
    array = RNG.normal(size=(6, 5, 4)).astype(np.float32) * 1e30
    matrix = np.array([[0, 1, 0, -2.0], [-1, 0, 0, 3.0], [0, 0, 1, 1.0], [0, 0, 0, 1.0]])
    got = resample(array, matrix, (7, 9, 6), fill=7.0)
    for target in np.ndindex(*got.shape):
        source = (matrix @ [*target, 1]).astype(int)[:3]
        there = all(0 <= s < n for s, n in zip(source, array.shape, strict=True))
        assert got[target] == (array[tuple(source)] if there else 7.0)
    assert (resample(array, affine_of((1, 1, 1), origin=(50, 0, 0)), (3, 3, 3), fill=7.0) == 7.0).all()


@pytest.mark.parametrize("matrix", [SCALED, OBLIQUE], ids=["separable", "oblique"])
def test_nearest_labels_by_definition(matrix):
    labels = RNG.integers(1, 9, ARRAY.shape).astype(np.uint8)
    got = nearest(labels, np.diag([1.0, -1.0, 1.0, 1.0]), matrix, (8, 9, 10))
    seen = inside(labels.shape, matrix, (8, 9, 10))
    assert got.dtype == np.uint8
    for target in np.ndindex(*got.shape):
        place = (matrix @ [*target, 1.0])[:3]
        source = np.floor(place + 0.5 + module.SNAP_VOXELS).astype(int)
        source[1] = np.ceil(place[1] - 0.5 - module.SNAP_VOXELS)  # this axis runs to the back
        there = all(0 <= s < n for s, n in zip(source, labels.shape, strict=True))
        assert there == seen[target]
        assert got[target] == (labels[tuple(source)] if there else 0)


@pytest.mark.parametrize(("order", "signs"), orientations())
@pytest.mark.parametrize("tilt", [(0, 0, 0), (10, -12, 8)], ids=["along the axes", "tilted"])
def test_labels_of_one_head_do_not_move_with_the_order_of_storage(order, signs, tilt):
    """Half the resolution: every target voxel lies half-way between two source voxels on each axis."""
    ras = RNG.integers(0, 9, (12, 8, 10)).astype(np.int16)
    world = affine_of((2, 2, 2), rotation_of(tilt), (5.0, -7.0, 3.0))
    # stored[i] = ras[to_ras i]: axis ``order[w]`` of the file runs along axis w of the head
    to_ras = np.eye(4)
    to_ras[:3, :3] = flip_affine(order, signs)[:3, :3] / 2.0
    to_ras[:3, 3] = [0 if sign > 0 else n - 1 for sign, n in zip(signs, ras.shape, strict=True)]
    stored = ras[tuple(slice(None, None, s) for s in signs)].transpose(np.argsort(order))
    affine = world @ to_ras
    half = world @ affine_of((2, 2, 2), origin=(0.5, 0.5, 0.5))
    got = nearest(stored, affine, tidy(np.linalg.inv(affine) @ half, (6, 4, 5)), (6, 4, 5))
    np.testing.assert_array_equal(got, ras[1::2, 1::2, 1::2])
    # and on the way back onto the grid of the file, from half-way between prepared voxels
    shifted = world @ affine_of((1, 1, 1), origin=(0.5, 0.5, 0.5))
    back = nearest(ras, shifted, tidy(np.linalg.inv(shifted) @ affine, stored.shape), stored.shape)
    expected = ras[tuple(slice(None, None, s) for s in signs)].transpose(np.argsort(order))
    np.testing.assert_array_equal(back, expected)


def test_tidy_rounds_what_moves_nothing():
    matrix = affine_of((1 + 1e-7, 1 - 1e-7, 1.001), origin=(1e-6, 2.0, 0.5))
    got = tidy(matrix, (200, 200, 200))
    np.testing.assert_array_equal(got, affine_of((1, 1, 1.001), origin=(0, 2.0, 0.5)))
