import os

from neurotome.data.checking.check import check
from neurotome.data.datasets.manifest import scan
from tests.data.scans import brain_array, write_bids, write_nifti


def test_the_suffix_alone_says_what_an_image_is(tmp_path):
    root = write_bids(tmp_path, ["01"], ("T1w",))
    anat = root / "sub-01/anat"
    for name in ("acq-mprage_T1map", "mod-T1w_defacemask", "acq-mprage_dseg", "acq-mprage_UNIT1", "T1w_brain"):
        write_nifti(anat / f"sub-01_{name}.nii.gz", brain_array())
    write_nifti(anat / "T1.nii.gz", brain_array())
    manifest = scan(root)
    assert [row.path.name for row in manifest.rows] == ["sub-01_T1w.nii.gz"]
    assert "4 images of other kinds are left out" in manifest.notes
    assert sorted(n.split(":")[0] for n in manifest.notes if "not a name of BIDS" in n) == [
        "left out sub-01/anat/T1.nii.gz",
        "left out sub-01/anat/sub-01_T1w_brain.nii.gz",
    ]
    used = {one["file"]: one["role"] for one in check(root).files}
    assert sorted(name for name, role in used.items() if role == "scan") == [
        "sub-01/anat/T1.nii.gz",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T1w_brain.nii.gz",
    ]


def test_links_that_lead_nowhere_cost_their_subject_alone(tmp_path):
    root = write_bids(tmp_path, ["01"], ("T1w",))
    (root / "sub-98").symlink_to("gone")
    (root / "sub-99").symlink_to("sub-99")
    (root / "sub-97").mkdir()
    (root / "sub-97/anat").symlink_to("anat")
    (root / "sub-96_note.txt").touch()
    manifest = scan(root)
    assert manifest.subjects == ("01",)
    assert sum("leads nowhere" in note for note in manifest.notes) == 3
    assert {f.file for f in check(root).findings if f.code == "bids-empty"} == {"sub-97", "sub-98", "sub-99"}


def test_a_folder_that_cannot_be_listed_costs_its_subject_alone(tmp_path, monkeypatch):
    root, scandir = write_bids(tmp_path, ["01", "02"], ("T1w",)), os.scandir

    def denied(place):
        if str(place).endswith("sub-02"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", denied)
    manifest = scan(root)
    assert manifest.subjects == ("01",)
    assert any("sub-02" in note and "Permission denied" in note for note in manifest.notes)


def test_ids_with_control_characters_stay_on_their_line(tmp_path):
    for subject in ("a\tb", "a\nb", b"\xff".decode("utf-8", "surrogateescape")):
        write_nifti(tmp_path / f"sub-{subject}/anat/sub-{subject}_T1w.nii", brain_array())
    manifest = scan(tmp_path)
    assert manifest.subjects == (r"\udcff", r"a\nb", r"a\tb")
    assert len(manifest.to_tsv().encode().splitlines()) == 4


def test_several_masks_of_a_session_are_noted(tmp_path):
    root = write_bids(tmp_path, ["1"])
    anat = root / "derivatives/bet/sub-1/anat"
    write_nifti(root / "sub-1/anat/sub-1_acq-x_FLAIR.nii.gz", brain_array())
    write_nifti(anat / "sub-1_desc-brain_mask.nii.gz", brain_array())
    write_nifti(anat / "sub-1_acq-x_desc-brain_mask.nii.gz", brain_array())
    (session,) = scan(root).sessions
    assert session.mask.name == "sub-1_desc-brain_mask.nii.gz"
    assert (
        "several masks: sub-1_desc-brain_mask.nii.gz is used, sub-1_acq-x_desc-brain_mask.nii.gz is not"
        in session.notes
    )
