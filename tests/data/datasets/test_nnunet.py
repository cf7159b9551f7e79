import json

import pytest

from neurotome.data.checking.check import check
from neurotome.data.datasets.manifest import scan
from neurotome.errors import InputError
from tests.data.scans import brain_array, write_nifti


def nnunet(root, names, **more):
    for name in names:
        write_nifti(root / name, brain_array())
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {}, **more}))
    return root


def test_every_case_has_its_own_labels(tmp_path):
    cases = ("P01", "P01.post", "P01.post.2")
    names = [
        f"{folder}/{case}{tail}.nii.gz" for case in cases for folder, tail in (("imagesTr", "_0000"), ("labelsTr", ""))
    ]
    assert {s.subject: s.labels.name for s in scan(nnunet(tmp_path, names)).sessions} == {
        case: f"{case}.nii.gz" for case in cases
    }


def test_two_label_maps_of_a_case_cost_the_case(tmp_path):
    names = ["imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii", "labelsTr/a.nii.gz"]
    root = nnunet(tmp_path, names)
    a, b = scan(root).sessions
    assert "a second label map" in a.damage["T1w"].reason
    assert b.damage == {}
    assert [f.subject for f in check(root).findings if f.code == "not-prepared"] == ["a"]
    nnunet(tmp_path, names, file_ending=".nii.gz")  # the dataset says which one counts
    assert [(s.labels and s.labels.name, s.damage) for s in scan(root).sessions] == [("a.nii.gz", {}), (None, {})]


def test_a_case_of_both_parts_is_prepared_from_neither(tmp_path):
    root = nnunet(
        tmp_path, ["imagesTr/a_0000.nii", "imagesTr/b_0000.nii", "imagesTs/a_0001.nii", "imagesTs/c_0000.nii"]
    )
    manifest = scan(root)
    assert {s.subject: sorted(s.damage) for s in manifest.sessions} == {"a": ["FLAIR", "T1w"], "b": [], "c": []}
    assert manifest.splits == {"c": "test"}


def test_the_layout_of_the_decathlon_is_named(tmp_path):
    root = nnunet(tmp_path, ["imagesTr/BRATS_001.nii.gz"])
    with pytest.raises(InputError, match=r"no name of its images has a channel.*BRATS_001.*split them"):
        scan(root)


def test_a_channel_is_named_once(tmp_path):
    root = nnunet(tmp_path, ["imagesTr/a_0000.nii"], channel_names={"0": "T1", "00": "FLAIR"})
    with pytest.raises(InputError, match="channel 0 is named twice"):
        scan(root)


def test_other_formats_are_named(tmp_path):
    root = nnunet(tmp_path, [], file_ending=".mha")
    (root / "imagesTr").mkdir()
    (root / "imagesTr/a_0000.mha").touch()
    with pytest.raises(InputError, match=r"1 \.mha file, which is not read: convert to \.nii\.gz"):
        scan(root)


def test_an_unfetched_description_is_named(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "dataset.json").symlink_to(".git/annex/objects/K.json")
    with pytest.raises(InputError, match=r"dataset\.json.*datalad get"):
        scan(tmp_path)
