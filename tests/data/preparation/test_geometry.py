"""Where voxels lie, from the file that is read to the file that is written: nothing moves, in any orientation."""

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from neurotome.data.imaging.geometry import Geometry
from neurotome.data.imaging.reader import read_volume
from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.record import Record
from neurotome.data.preparation.resample import ras_to_index, resample, tidy
from neurotome.scans.tokenizer import ScanTokenizer
from neurotome.tokenizers.base import Encoded, Tokenizer
from tests.data.imaging.test_nifti import fields_of
from tests.data.preparation.test_resample import flip_affine, orientations
from tests.data.scans import affine_of, rotation_of

CENTRE = np.array([3.0, -20.0, 11.0])
FIELD_MM = 84.0
ALL_48 = list(orientations())


class Identity(Tokenizer):
    """A tokenizer that loses nothing: what moves was moved by the way there and back."""

    def __init__(self):
        super().__init__()
        self.modalities, self.factor, self.latent_channels = ("T1w",), (1, 1, 1), 1

    def encode(self, image, modality):
        x, y, z = image.shape[2:]
        return Encoded(image, {}, None, {}, (x, y, z))

    def decode(self, encoded, modality):
        return encoded.latent

    def bits(self, shape):
        return 16.0 * float(np.prod(shape))

    def parameters(self, recurse=True):
        import torch

        yield torch.zeros(1)  # says which device it is on


def identity(preparation):
    return ScanTokenizer(Identity(), preparation, {}, {}, {}, ("salt", frozenset()), "0" * 64)


def stored(orientation, degrees, spacing, field_mm=FIELD_MM):
    """A grid about CENTRE, stored in one of 48 ways, tilted, anisotropic."""
    affine = affine_of((1, 1, 1), rotation_of(degrees)) @ (flip_affine(*orientation) / 2)
    affine[3, 3] = 1
    affine[:3, :3] *= np.asarray(spacing)
    x, y, z = (max(round(field_mm / s), 4) for s in spacing)
    affine[:3, 3] = CENTRE - affine[:3, :3] @ (np.array([x, y, z]) - 1) / 2
    return affine, (x, y, z)


def blob(affine, shape, centre_mm, sigma_mm=7.0):
    """A Gaussian on zero."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    values = 1000 * np.exp(-((world - centre_mm) ** 2).sum(axis=-1) / (2 * sigma_mm**2))
    return np.where(values > 5, values, 0).astype(np.float32)


def write_blob(path, affine, shape, centre_mm):
    """Written by nibabel, with both transforms."""
    image = nibabel.Nifti1Image(blob(affine, shape, centre_mm), affine)
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)
    return path


def centroid(path):
    return np.array(ndimage.center_of_mass(np.asarray(nibabel.load(path).dataobj, dtype=float)))


def round_trip(folder, orientation, seed):
    """Encode, decode and save a blob; return the two files."""
    rng = np.random.default_rng(seed)
    degrees, spacing = rng.uniform(-30, 30, 3), rng.uniform((1.5, 1.5, 2.0), (2.5, 2.5, 4.0))
    affine, shape = stored(orientation, degrees, spacing)
    source = write_blob(folder / "a_T1w.nii.gz", affine, shape, CENTRE + rng.uniform(-6, 6, 3))
    model = identity(Preparation(2.0, (48, 48, 48)))
    model.decode(model.encode(read_volume(source))).save(folder / "b.nii.gz")
    return source, folder / "b.nii.gz"


@pytest.mark.parametrize("orientation", ALL_48)
def test_a_blob_survives_encode_decode_save_in_all_48_orientations(tmp_path, orientation):
    source, result = round_trip(tmp_path, orientation, ALL_48.index(orientation))
    assert np.linalg.norm(centroid(result) - centroid(source)) < 0.1
    assert fields_of(result) == fields_of(source)


def test_the_blob_notices_a_fifth_of_a_voxel(tmp_path, monkeypatch):
    restore = Record.restore

    def shifted(self, *args):
        volume = restore(self, *args)
        return Volume(ndimage.shift(volume.array, (0.2, 0, 0), order=1), volume.geometry)

    monkeypatch.setattr(Record, "restore", shifted)
    source, result = round_trip(tmp_path, ALL_48[7], 7)
    assert np.linalg.norm(centroid(result) - centroid(source)) > 0.1


def landmark_error_mm(orientation, degrees, spacing, prepared_mm):
    """How far landmarks come back from where they were, along the transforms as they are recorded and used."""
    affine, shape = stored(orientation, degrees, spacing, 40.0)
    # as a file holds it: single precision
    affine = affine.astype(np.float32).astype(np.float64)
    array = np.zeros(shape, dtype=np.float32)
    array[1:-1, 1:-1, 1:-1] = np.random.default_rng(0).uniform(1, 2, tuple(n - 2 for n in shape))
    size = int(80 / prepared_mm)
    prepared = Preparation(prepared_mm, (size, size, size)).apply({"T1w": Volume(array, Geometry(shape, affine))})
    record = Record.from_json(json.loads(json.dumps(prepared.records["T1w"].to_json())))
    world = np.random.default_rng(1).uniform(-40, 40, (20, 3)) + CENTRE
    landmarks = np.c_[world, np.ones(20)]
    grid = landmarks @ np.linalg.inv(record.affine).T
    # the way back is resampled with the tidied inverse
    to_grid = tidy(np.linalg.inv(record.grid_to_source), shape)
    back = grid @ np.linalg.inv(to_grid).T @ affine.T
    return float(np.linalg.norm((back - landmarks)[:, :3], axis=1).max())


# tilts from none over those of rounding errors to 30 degrees
ANGLE = st.one_of(st.floats(-30, 30), st.builds(lambda e, s: s * 10.0**e, st.floats(-8, 0), st.sampled_from([-1, 1])))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(ALL_48),
    st.tuples(ANGLE, ANGLE, ANGLE),
    st.tuples(*[st.one_of(st.floats(1.0, 6.0), st.sampled_from([1.00001, 2.0, 3.0]))] * 3),
    st.sampled_from([2.0, 3.0, 2.5]),
)
def test_landmarks_return_to_a_hundredth_of_a_millimetre(orientation, degrees, spacing, prepared_mm):
    assert landmark_error_mm(orientation, degrees, spacing, prepared_mm) < 0.01


def test_the_landmarks_notice_coarser_rounding(monkeypatch):
    case = (ALL_48[3], (0.0034, 0.0002, 0.0102), (5.0019, 5.0014, 2.0), 2.5)
    assert landmark_error_mm(*case) < 0.01
    monkeypatch.setattr("neurotome.data.preparation.resample.SNAP_VOXELS", 0.02)
    assert landmark_error_mm(*case) > 0.01


@pytest.mark.parametrize("number", [0, 13, 22, 31, 40, 47])
def test_two_views_say_the_same_place_for_every_prepared_voxel(number):
    rng = np.random.default_rng(number)
    views = {}
    for name, orientation, tilt in (("T1w", ALL_48[number], 0.0), ("T2w", ALL_48[-1 - number], 30.0)):
        affine, shape = stored(orientation, rng.uniform(-tilt, tilt, 3), rng.uniform(1.5, 3.5, 3))
        # a shape without symmetry: its orientation can be seen in the image
        places = np.array([[0, 0, 0], [16, 3, -4], [-5, 18, 6], [3, -8, 14], [-12, -10, -9]])
        array = sum(blob(affine, shape, CENTRE + at, 4.0 + n) for n, at in enumerate(places))
        views[name] = Volume(array, Geometry(shape, affine))
    records = Preparation(3.0, (32, 32, 32)).apply(views).records
    corners = np.array([[i, j, k, 1.0] for i in (0, 31) for j in (0, 31) for k in (0, 31)])
    gap = corners @ (records["T1w"].affine - records["T2w"].affine).T
    assert np.linalg.norm(gap[:, :3], axis=1).max() < 0.01


@pytest.mark.parametrize("orientation", ALL_48)
def test_labels_come_back_as_the_numbers_they_were(tmp_path, orientation):
    """Whole voxels there and back: every label of the brain is where it was; thick slices: where the map says."""
    rng = np.random.default_rng(ALL_48.index(orientation))
    affine, shape = stored(orientation, rng.uniform(-30, 30, 3), (2.0, 2.0, 2.0), 40.0)
    array = np.zeros(shape, dtype=np.float32)
    array[2:-2, 2:-2, 2:-2] = rng.uniform(1, 2, tuple(n - 4 for n in shape))
    labels = np.where(array > 0, rng.integers(1, 12176, shape), 0).astype(np.int32)
    prepared = Preparation(2.0, (24, 24, 24)).apply({"T1w": Volume(array, Geometry(shape, affine))})
    there = prepared.labels(Volume(labels, Geometry(shape, affine)))
    back = prepared.records["T1w"].restore_labels(there)
    assert back.array.dtype == np.int32
    np.testing.assert_array_equal(back.array, labels)
    back.save(tmp_path / "dseg.nii.gz")
    written = nibabel.load(tmp_path / "dseg.nii.gz")
    assert written.get_data_dtype() == np.int32
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels)
    np.testing.assert_allclose(written.affine, affine, atol=1e-4)


def test_labels_of_thick_slices_are_never_mixed():
    rng = np.random.default_rng(0)
    affine, shape = stored(ALL_48[11], (12, -7, 25), (1.3, 0.9, 3.7), 40.0)
    array = np.zeros(shape, dtype=np.float32)
    array[2:-2, 2:-2, 2:-2] = rng.uniform(1, 2, tuple(n - 4 for n in shape))
    labels = rng.choice([0, 17, 12175], shape).astype(np.int32)
    prepared = Preparation(2.0, (26, 26, 26)).apply({"T1w": Volume(array, Geometry(shape, affine))})
    record = prepared.records["T1w"]
    there = prepared.labels(Volume(labels, Geometry(shape, affine)))
    back = record.restore_labels(there)
    to_grid = np.linalg.inv(record.grid_to_source)
    checked = 0
    for voxel in np.argwhere(array > 0)[::7]:
        place = (to_grid @ [*voxel, 1.0])[:3]
        if np.abs(place % 1 - 0.5).min() < 1e-2:  # half-way between two
            continue
        checked += 1
        assert back.array[tuple(voxel)] == there[tuple(np.floor(place + 0.5).astype(int))]
    assert checked > 300
    assert set(np.unique(back.array)) == {0, 17, 12175}
    with pytest.raises(ValueError, match=r"shape \(3, 4, 5\), the prepared grid \(26, 26, 26\)"):
        record.restore_labels(np.zeros((3, 4, 5), dtype=np.int32))


REAL = os.environ.get("NEUROTOME_TEST_DATA")


@pytest.mark.skipif(not REAL, reason="NEUROTOME_TEST_DATA is not set")
def test_one_brain_in_six_orientations_agrees_voxel_by_voxel():
    arrays, affines = [], []
    for name in ("RAS", "LPS", "LAS", "ASR", "PIL", "SPR"):
        scan = read_volume(Path(REAL) / "hostile" / "orient" / f"{name}.nii.gz")
        assert "".join(nibabel.aff2axcodes(scan.geometry.affine)) == name
        to_index = ras_to_index(scan.geometry.affine, scan.geometry.shape)
        arrays.append(resample(scan.array, to_index, (64, 79, 67)))
        affines.append(scan.geometry.affine @ to_index)
    for array, affine in zip(arrays, affines, strict=True):
        np.testing.assert_array_equal(array, arrays[0])
        np.testing.assert_allclose(affine, affines[0], atol=1e-3)
