import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from neurotome.data.datasets.manifest import scan
from neurotome.data.phantom.cohort import SyntheticCohort
from neurotome.data.phantom.dataset import write_dataset
from neurotome.data.phantom.labelmaps import _canonical, find_labelmaps
from neurotome.errors import InputError, UsageError

SHAPE = (75, 80, 70)


def small_brain():
    """Nested balls in FreeSurfer's numbers with a left-right mark, a plexus hole, and a skull, 2 mm, RAS."""
    x, y, z = 2.0 * (np.indices(SHAPE) - np.array([37, 40, 35])[:, None, None, None])
    radius = np.sqrt(x**2 + y**2 + z**2)
    labels = np.zeros(SHAPE, dtype=np.int32)
    labels[radius < 66] = 515
    labels[radius < 60] = 24
    labels[radius < 54] = 42
    labels[(radius < 54) & (x < 0)] = 3
    labels[radius < 46] = 41
    labels[(radius < 46) & (x < 0)] = 2
    labels[np.sqrt((x - 20) ** 2 + y**2 + z**2) < 8] = 52
    labels[np.sqrt((x + 20) ** 2 + y**2 + z**2) < 8] = 13
    hollow = np.sqrt(x**2 + (y + 10) ** 2 + z**2)
    labels[hollow < 12] = 4
    labels[hollow < 4] = 0  # the plexus, left out
    return labels


def save(path, labels, axes="RAS", dtype=np.int32):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-74, -97, -66)
    image = nibabel.Nifti1Image(labels.astype(dtype), affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(tuple(axes))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image.as_reoriented(turn), path)


def cohort(folder, **changes):
    return SyntheticCohort(
        **({"num_subjects": 1, "spacing_mm": 4.0, "lesion_fraction": 0.0, "labelmaps": str(folder)} | changes)
    )


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    save(folder / "a_dseg.nii.gz", small_brain())
    return cohort(folder).subject(0)


def test_volumes_are_those_of_the_map(rendered):
    labels = small_brain()
    voxels = {"white": (2, 41), "cortex": (3, 42), "deep_grey": (13, 52), "sulcal_csf": (24,)}
    for name, ids in voxels.items():
        # the outermost voxels, half outside, are cut at one half, and the nuclei are a few voxels wide
        near = 0.04 if name in ("white", "cortex") else 0.08
        assert rendered.volumes_ml[name] == pytest.approx(np.isin(labels, ids).sum() * 0.008, rel=near), name
    # the plexus inside the ventricle is CSF too
    assert rendered.volumes_ml["ventricle"] == pytest.approx(4 / 3 * np.pi * 1.2**3, rel=0.12)
    assert rendered.jacobian_min == pytest.approx(1)
    assert rendered.factors.source == "a_dseg.nii.gz"
    assert rendered.factors.sex == "n/a"
    assert np.isnan(rendered.factors.age)


def test_the_skull_is_dropped_and_borders_are_soft(rendered):
    assert rendered.volumes_ml["brain"] == pytest.approx(4 / 3 * np.pi * 6.0**3, rel=0.04)
    # the shell of CSF goes with the skull
    assert rendered.mask.sum() * 0.064 < 0.95 * rendered.volumes_ml["brain"]
    assert not rendered.images["T1w"][~rendered.mask].any()


def test_contrast_is_that_of_the_tissues(rendered):
    t1 = {k: rendered.images["T1w"][rendered.labels == k].mean() for k in (2, 3, 4, 5)}
    t2 = {k: rendered.images["T2w"][rendered.labels == k].mean() for k in (2, 3, 4, 5)}
    assert t1[2] < t1[3] < t1[5]
    assert t2[5] < t2[3] < t2[2]


@pytest.mark.parametrize(("axes", "dtype"), [("LIA", np.float32), ("PSR", np.uint16)])
def test_storage_does_not_matter(rendered, tmp_path, axes, dtype):
    save(tmp_path / "a_dseg.nii.gz", small_brain(), axes, dtype)
    again = cohort(tmp_path).subject(0)
    np.testing.assert_array_equal(again.labels, rendered.labels)
    np.testing.assert_allclose(again.images["T1w"], rendered.images["T1w"], atol=1e-4)


def test_after_the_maps_come_warped_copies_that_differ_and_stay_invertible(tmp_path):
    save(tmp_path / "a_dseg.nii.gz", small_brain())
    both = cohort(tmp_path, num_subjects=3)
    plain, first, second = (both.subject(i) for i in range(3))
    assert plain.jacobian_min == pytest.approx(1)
    assert 0 < first.jacobian_min < 1
    assert (plain.labels != first.labels).mean() > 0.005
    assert (first.labels != second.labels).mean() > 0.005


def test_a_map_without_csf_gets_some_in_its_folds(tmp_path):
    labels = small_brain()
    labels[labels == 24] = 0
    labels[36:39, :, 48:] = 0  # a fissure
    save(tmp_path / "a_dseg.nii.gz", labels)
    subject = cohort(tmp_path).subject(0)
    assert subject.volumes_ml["sulcal_csf"] > 2


def test_what_is_no_label_map_is_refused(tmp_path):
    with pytest.raises(InputError, match="no label map"):
        find_labelmaps(str(tmp_path))
    with pytest.raises(UsageError, match="no such folder"):
        SyntheticCohort(labelmaps=str(tmp_path / "absent"))
    save(tmp_path / "half" / "a.nii.gz", small_brain() * 0.5, dtype=np.float32)
    with pytest.raises(InputError, match="whole numbers"):
        cohort(tmp_path / "half").subject(0)
    save(tmp_path / "strange" / "a.nii.gz", np.where(small_brain() == 2, 9999, small_brain()))
    with pytest.raises(InputError, match="9999"):
        cohort(tmp_path / "strange").subject(0)
    save(tmp_path / "empty" / "a.nii.gz", np.where(small_brain() == 515, 515, 0))
    with pytest.raises(InputError, match="no cortex"):
        cohort(tmp_path / "empty").subject(0)
    with pytest.raises(ValueError, match="exclude"):
        cohort(tmp_path / "empty", confound=("age", "site", 0.5))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_labels_are_the_same_whatever_type_they_are_stored_in(tmp_path, dtype):
    labels = np.arange(24).reshape(2, 3, 4) * 5  # up to 115
    labels[1, 2, 3] = 127
    image = nibabel.Nifti1Image(labels.astype(dtype), np.diag([-2.0, 2.0, 2.0, 1.0]), dtype=np.dtype(dtype))
    nibabel.save(image, tmp_path / "a.nii.gz")
    found, affine = _canonical(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(found, labels[::-1])
    assert affine[0, 0] == 2.0


@pytest.mark.parametrize("name", ["synthseg/sub-05_dseg.nii.gz", "synthsr/sub-01_dseg.nii.gz"])
def test_real_label_maps(name, tmp_path):
    root = os.environ.get("NEUROTOME_TEST_DATA")
    if not root:
        pytest.skip("NEUROTOME_TEST_DATA is not set: no real label maps")
    source = Path(root) / "labelmaps" / name
    if not source.is_file():
        pytest.skip(f"{source} is missing")
    (tmp_path / source.name).symlink_to(source)
    subject = cohort(tmp_path, spacing_mm=3.0).subject(0)
    labels = np.asarray(nibabel.load(source).dataobj)
    for tissue, ids in {"white": (2, 7, 16, 41, 46, 77, 85), "cortex": (3, 8, 17, 18, 42, 47, 53, 54)}.items():
        assert subject.volumes_ml[tissue] == pytest.approx(np.isin(labels, ids).sum() / 1000, rel=0.06)
    assert 1000 < subject.volumes_ml["brain"] < 1800
    assert subject.volumes_ml["sulcal_csf"] > 60
    assert subject.images["T2w"][subject.labels == 2].mean() > 2 * subject.images["T2w"][subject.labels == 5].mean()


def test_a_map_that_does_not_fit_costs_its_subject_alone(tmp_path):
    save(tmp_path / "maps/a_dseg.nii.gz", small_brain())
    large = nibabel.load(tmp_path / "maps/a_dseg.nii.gz")
    nibabel.save(nibabel.Nifti1Image(large.dataobj, np.diag([6.0, 6.0, 6.0, 1.0])), tmp_path / "maps/b_dseg.nii.gz")
    pair = cohort(tmp_path / "maps", num_subjects=2, modalities=("T1w",))
    with pytest.raises(InputError, match=r"1 of 2 subjects.*b_dseg.*field of view.*the others are written"):
        write_dataset(pair, tmp_path / "out")
    assert scan(tmp_path / "out").subjects == ("001",)
    assert (tmp_path / "out/participants.tsv").read_text().count("sub-") == 1
    (tmp_path / "maps/a_dseg.nii.gz").unlink()
    with pytest.raises(InputError, match="field of view"):
        write_dataset(pair, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
