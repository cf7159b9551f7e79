"""The preparations of two published systems, on phantoms and, where there are any, on real scans."""

import os
from pathlib import Path

import numpy as np
import pytest

from neurotome.data.imaging.geometry import Geometry
from neurotome.data.imaging.reader import read_volume
from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.presets import PRESETS, preset
from neurotome.errors import UsageError
from tests.data.scans import affine_of, brain_array

REAL = os.environ.get("NEUROTOME_TEST_DATA")


def head(spacing, shape, floor=100.0):
    array = brain_array(shape)
    values = np.where(array > 0, array + floor, 20.0).astype(np.float32)  # 20: above 0, below the threshold of 50
    return Volume(values, Geometry(shape, affine_of((spacing,) * 3)))


def test_adni_2mm_is_cut_to_91_109_91_masked_above_50_and_z_scored():
    preparation = Preparation(**preset("adni-2mm"))
    prepared = preparation.apply({"T1w": head(2.0, (100, 120, 80))})
    assert prepared.image.shape == (1, 91, 109, 91)
    brain = prepared.image[0][prepared.mask].astype(np.float64)
    assert brain.mean() == pytest.approx(0, abs=1e-4)
    assert brain.std() == pytest.approx(1, abs=1e-4)
    assert (prepared.image[0][~prepared.mask] == 0).all()
    # the middle of the field of view stays the middle: 100 -> 91 and 120 -> 109 are cut, 80 -> 91 is padded
    start = prepared.records["T1w"].grid_to_source[:3, 3]
    np.testing.assert_allclose(start, (4.5, 5.5, -5.5), atol=0.51)
    assert preparation.window is None


def test_adni_2mm_leaves_out_what_lies_below_50():
    scan = head(2.0, (60, 60, 60))
    low = np.where(scan.array > 50, scan.array, 49.0).astype(np.float32)
    mask = Preparation(**preset("adni-2mm")).apply({"T1w": Volume(low, scan.geometry)}).mask
    assert mask.sum() == (scan.array > 50).sum()


def test_neuroquant_lays_the_brain_box_into_144_192_144():
    array = np.zeros((150, 120, 110), np.float32)
    array[20:140, 5:100, 30:100] = brain_array((120, 95, 70))
    prepared = Preparation(**preset("neuroquant")).apply(
        {"T1w": Volume(array, Geometry(array.shape, affine_of((1,) * 3)))}
    )
    assert prepared.image.shape == (1, 144, 192, 144)
    box = np.argwhere(prepared.mask)
    middle = (box.min(axis=0) + box.max(axis=0)) / 2
    np.testing.assert_allclose(middle, (71.5, 95.5, 71.5), atol=0.5)
    assert (prepared.image.min(), prepared.image.max()) == (-1.0, 1.0)


def test_a_preset_is_a_plain_set_of_arguments():
    for name in PRESETS:
        assert Preparation(**preset(name)) == Preparation.from_json(Preparation(**preset(name)).to_json())
    changed = preset("adni-2mm")
    changed["shape"] = (1, 1, 1)
    assert preset("adni-2mm")["shape"] == (91, 109, 91)
    with pytest.raises(UsageError, match="no preset 'adni'; admissible are adni-2mm, neuroquant"):
        preset("adni")


@pytest.mark.skipif(not REAL, reason="NEUROTOME_TEST_DATA is not set")
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_real_scans_fit_the_presets_and_come_back(name):
    folder = Path(REAL) / "paired" / "brats" / "sub-DU7294"
    views = {m: read_volume(folder / f"sub-DU7294_{m}.nii.gz") for m in ("T1w", "FLAIR")}
    prepared = Preparation(**preset(name)).apply(views)
    volume_ml = prepared.mask.sum() * abs(np.linalg.det(prepared.affine[:3, :3])) / 1000
    assert 1000 < volume_ml < 1600
    # the contrasts overlay: where one has an edge the other has one
    edges = [np.linalg.norm(np.gradient(image.astype(float)), axis=0)[prepared.mask] for image in prepared.image]
    assert np.corrcoef(*edges)[0, 1] > 0.3
    for index, (modality, view) in enumerate(views.items()):
        restored = prepared.records[modality].restore(prepared.image[index], prepared.mask)
        assert restored.geometry == view.geometry
        inner = (restored.array != 0) & (view.array > 0)
        assert np.corrcoef(restored.array[inner], view.array[inner])[0, 1] > (0.9 if name == "adni-2mm" else 0.98)
