import pytest

from neurotome.data.datasets.manifest import UNPAIRED, scan
from neurotome.errors import InputError
from tests.data.scans import brain_array, write_nifti


def found(root, *names):
    for name in names:
        write_nifti(root / name, brain_array())
    manifest = scan(root)
    return {(s.subject, s.session): sorted(s.scans) for s in manifest.sessions}, manifest


@pytest.mark.parametrize(
    "layout",
    ["IXI-{c}/IXI0{n}-Guys-043{n}-{c}.nii.gz", "{c}/IXI0{n}-Guys-043{n}_{c}.nii.gz", "IXI0{n}-Guys-043{n}-{c}.nii"],
)
def test_folders_of_one_contrast_do_not_take_people_apart(tmp_path, layout):
    names = [layout.format(c=c, n=n) for c in ("T1", "T2", "PD") for n in (1, 2)]
    sessions, manifest = found(tmp_path, *names)
    assert sessions == {(f"IXI0{n}-Guys-043{n}", ""): ["PDw", "T1w", "T2w"] for n in (1, 2)}
    assert not manifest.is_unpaired


def test_folders_of_one_contrast_of_one_person_are_one_person(tmp_path):
    sessions, _ = found(tmp_path, "anna_T1/T1.nii", "anna_T2/T2.nii", "bert_T1/T1.nii", "bert_T2/T2.nii")
    assert sessions == {("anna", ""): ["T1w", "T2w"], ("bert", ""): ["T1w", "T2w"]}


def test_folders_below_a_subject_are_visits(tmp_path):
    names = ("P01/2010-03/T1.nii", "P01/2015-09/T1.nii", "P02/2010-03/T1.nii", "P02/2015-09/T2.nii", "P03/mri/T1.nii",
             "P03/mri/T2.nii", "P02/2010-03/x_desc-brain_mask.nii")  # fmt: skip
    sessions, manifest = found(tmp_path, *names)
    assert sessions == {
        ("P01", "2010-03"): ["T1w"], ("P01", "2015-09"): ["T1w"], ("P02", "2010-03"): ["T1w"],
        ("P02", "2015-09"): ["T2w"], ("P03", ""): ["T1w", "T2w"],
    }  # fmt: skip
    assert [s.mask is not None for s in manifest.sessions] == [False, False, True, False, False]
    assert [note for note in manifest.notes if "taken for visits" in note and note.startswith("P01")]


def test_visits_of_a_named_subject(tmp_path):
    sessions, _ = found(tmp_path, "sub-1/2010/T1.nii", "sub-1/2015/T1.nii", "sub-2/ses-a/t2.nii", "sub-2/ses-b/t2.nii")
    assert sorted(sessions) == [("1", "2010"), ("1", "2015"), ("2", "a"), ("2", "b")]


def test_dots_belong_to_the_name(tmp_path):
    sessions, _ = found(tmp_path, "P1.2_T1.nii.gz", "P1-2_T1.nii.gz", "P1.post_T2.nii.gz", "sub-3.b_T1w.nii")
    assert sorted(sessions) == [("3.b", ""), ("P1-2", ""), ("P1.2", ""), ("P1.post", "")]


def test_no_pair_is_a_warning(tmp_path):
    _, manifest = found(tmp_path, "a_T1.nii", "b_T2.nii")
    assert manifest.notes[0] == UNPAIRED
    _, manifest = found(tmp_path, "a_T2.nii")
    assert UNPAIRED not in manifest.notes


def test_equal_names_are_told_apart_by_their_folders(tmp_path):
    _, manifest = found(tmp_path, "sub-1/a/anat1/sub-1_T1w.nii", "sub-1/a/anat1/sub-1_T1w.nii.gz")
    assert "several T1w: sub-1_T1w.nii is used, sub-1_T1w.nii.gz is not" in manifest.sessions[0].notes[0]


def test_other_formats_and_links_are_named(tmp_path):
    for name in ("a.mha", "b.mha", "c.nii.zst", "notes.zip"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"1 \.nii\.zst file.*decompress.*2 \.mha files, which are not read: convert"):
        scan(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "loop").symlink_to("loop")
    _, manifest = found(tmp_path, "a_T1.nii")
    assert sum("a link to a folder is not followed" in note and "linked" in note for note in manifest.notes) == 1
