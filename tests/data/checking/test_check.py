"""The check of a dataset: every finding has a case that shows it and a clean dataset that does not."""

import gzip
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from neurotome.data.checking import scan_findings as check_scan
from neurotome.data.checking.between_files import compare_grids
from neurotome.data.checking.check import check
from neurotome.data.checking.dataset_files import Case
from neurotome.data.checking.finding import FINDINGS, Finding
from neurotome.data.checking.scan_findings import content_sha256, examine
from neurotome.data.datasets.fingerprint import in_ras, orientation
from neurotome.data.datasets.manifest import scan
from neurotome.data.imaging.geometry import Geometry
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.build import prepare
from neurotome.data.stores.store_fingerprint import fingerprint_of_store
from neurotome.errors import InputError, UsageError
from tests.data.scans import affine_of, brain_array, rotation_of, write_bids, write_gzip, write_nifti


@pytest.fixture
def raw(tmp_path):
    return write_bids(tmp_path / "raw", ["01", "02", "03"])


def scan_of(root, subject="01", modality="T1w"):
    return Path(root) / f"sub-{subject}/anat/sub-{subject}_{modality}.nii.gz"


def found(report, code, file=""):
    return [f for f in report.findings if f.code == code and f.file.endswith(file)]


def graver(report):
    return {f.code for f in report.findings if f.severity != "note"}


@pytest.fixture(autouse=True)
def small_brains(monkeypatch):
    """The scans of these tests are smaller than any brain, on purpose."""
    monkeypatch.setattr(check_scan, "MIN_BRAIN_ML", 0.0)


# --- the table -----------------------------------------------------------------------------------------------------


def test_every_finding_is_in_the_table_and_can_be_made():
    source = Path(check_scan.__file__).parent
    made = set()
    for file in source.glob("*.py"):
        made |= set(re.findall(r'"([a-z]+(?:-[a-z]+)*)"', file.read_text()))
    assert set(FINDINGS) <= made
    with pytest.raises(ValueError, match="is no finding"):
        Finding("no-such-code", "", "x")


def test_a_clean_dataset_has_nothing_to_report(raw):
    report = check(raw)
    assert report.findings == ()
    assert report.kind == "bids"
    assert len(report.files) == 6
    assert not report.fails(strict=True)


def test_the_same_input_gives_the_same_json_and_is_left_untouched(raw):
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(raw.rglob("*")) if p.is_file()}
    first = check(raw).to_json()
    assert check(raw).to_json() == first
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(raw.rglob("*")) if p.is_file()} == before


@pytest.mark.slow
def test_processes_find_the_same(raw, monkeypatch):
    monkeypatch.undo()  # it does not reach them
    scan_of(raw).write_bytes(b"broken")
    assert check(raw, workers=2).to_json() == check(raw).to_json()


def test_nothing_at_the_path_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="nothing is there"):
        check(tmp_path / "no")


# --- one file ------------------------------------------------------------------------------------------------------


def damage_crc(path):
    block = bytearray(path.read_bytes())
    block[-8] ^= 1
    path.write_bytes(block)


def make_fifo(path):
    path.unlink()
    os.mkfifo(path)


def make_folder(path):
    path.unlink()
    path.mkdir()


def link_to_nothing(path):
    path.unlink()
    path.symlink_to("gone.nii.gz")


@pytest.mark.parametrize(
    "damage",
    [
        damage_crc,
        lambda p: p.write_bytes(p.read_bytes()[:-100]),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"text"),
        lambda p: p.write_bytes(gzip.decompress(p.read_bytes())),
        make_fifo,
        make_folder,
        link_to_nothing,
    ],
    ids=["crc", "truncated", "empty", "text", "plain", "pipe", "folder", "link"],
)
def test_a_file_that_cannot_be_read_is_an_error_and_the_others_go_on(raw, damage):
    bad = scan_of(raw, "02")
    damage(bad)
    scan_of(raw, "03").write_bytes(b"also broken")
    report = check(raw)
    assert len(found(report, "unreadable", bad.name)) == 1
    assert len(found(report, "unreadable")) == 2
    assert all(f.remedy for f in report.findings if f.severity == "error")
    assert report.fails()
    assert sum(one["content"] is not None for one in report.files) == 4


def voxels(value=None, **changes):
    array = brain_array()
    if value is not None:
        array[:] = value
    for place, number in changes.items():
        array[tuple(int(n) for n in place[1:].split("_"))] = number
    return array


@pytest.mark.parametrize(
    ("code", "array"),
    [
        ("nonfinite", voxels(p10_12_9=np.nan)),
        ("nonfinite", voxels(p10_12_9=np.inf)),
        ("nonfinite", voxels(value=np.nan)),
        ("empty", voxels(value=0.0)),
        ("constant", voxels(value=7.0)),
        ("nearly-empty", voxels(value=0.0, p3_3_3=5.0)),
        ("extreme-voxels", voxels(p10_12_9=1e5)),
        ("extreme-voxels", voxels(p10_12_9=-1e5)),
        ("absurd-voxels", voxels(p10_12_9=1e30)),
        ("background", brain_array() + 5),
        ("negative-foreground", np.where(brain_array() > 0, brain_array() - 60, 0)),
        ("whole-head", brain_array() + np.random.default_rng(1).random((20, 24, 18)).astype(np.float32) + 0.1),
        ("single-slice", brain_array((20, 24, 18))[:, :, 9:10]),
    ],
)
def test_voxels(raw, code, array):
    write_nifti(scan_of(raw, "02"), array.astype(np.float32))
    report = check(raw)
    assert [f.file for f in found(report, code)] == ["sub-02/anat/sub-02_T1w.nii.gz"]
    others = {"grids-differ", "grid-spacing", "grids-apart", "brains-apart"}
    # prepare takes such a background for brain, and refuses it
    others |= {"whole-head"} if code == "background" else set()
    assert graver(report) - others == ({code} if FINDINGS[code][0] != "note" else set())


HEAD = brain_array() + np.random.default_rng(1).random((20, 24, 18)).astype(np.float32) + np.float32(0.1)


@pytest.mark.parametrize(
    ("array", "masked", "code"),
    [
        (HEAD, False, "whole-head"),
        (HEAD, True, "unstripped"),
        (brain_array() + 5, False, "whole-head"),
        (brain_array(seed=5) + 5, True, ""),
        (brain_array(seed=5), False, ""),
    ],
    ids=["head", "head with a mask", "bright background", "bright background with a mask", "brain"],
)
def test_a_head_is_an_error_where_prepare_refuses_it(raw, tmp_path, array, masked, code):
    write_nifti(scan_of(raw, "02"), array)
    if masked:
        mask = raw / "derivatives/bet/sub-02/anat/sub-02_desc-brain_mask.nii.gz"
        write_nifti(mask, (brain_array() > 0).astype(np.uint8))
    report = check(raw)
    assert {f.code for f in report.findings} - {"background"} == ({code} if code else set())
    assert not check(raw, allow_head=True).fails()
    refused = prepare(raw, tmp_path / "store", preparation=Preparation(3.0, (20, 24, 16))).failures
    assert [f.subject for f in refused] == (["02"] if report.fails() else [])


def test_a_head_that_prepare_does_not_read_is_a_matter_of_privacy(raw):
    write_nifti(scan_of(raw).with_name("sub-01_run-2_T1w.nii.gz"), HEAD)
    (one,) = found(check(raw), "unstripped")
    assert one.severity == "warning"
    assert "deface" in one.remedy


def test_one_image_is_judged_like_that_of_a_dataset(tmp_path):
    assert check(write_nifti(tmp_path / "a_T1w.nii.gz", HEAD)).fails()


def test_how_far_voxels_are_is_said_beyond_the_stored_type(raw):
    array = brain_array(scale=300.0).astype(np.int16)
    array[:3] = -32768  # its absolute value does not fit
    write_nifti(scan_of(raw, "02"), array)
    (extreme,) = found(check(raw), "extreme-voxels")
    assert extreme.reason.endswith("at most 3.28e+04")


def test_a_bright_vessel_is_no_extreme_voxel(raw):
    write_nifti(scan_of(raw, "02"), voxels(p10_12_9=2000.0))  # 20 times the range
    assert not check(raw).findings


def test_ambiguous_files_are_read_as_asked(raw):
    write_nifti(scan_of(raw), np.stack([brain_array(seed=8), brain_array(seed=9)], axis=-1))
    (finding,) = found(check(raw), "unreadable")
    assert "series of 2 volumes" in finding.reason
    assert "--volume K" in finding.remedy
    content = [{one["file"]: one["content"] for one in check(raw, volume=k).files} for k in (0, 1)]
    assert [name for name in content[0] if content[0][name] != content[1][name]] == ["sub-01/anat/sub-01_T1w.nii.gz"]
    assert not graver(check(raw, volume=1))
    assert "no volume 2" in found(check(raw, volume=2), "unreadable")[0].reason


def test_a_brain_too_small_to_be_one(raw, monkeypatch):
    monkeypatch.undo()
    write_nifti(scan_of(raw), brain_array(), affine_of((7.9, 7.9, 7.9)))  # 659 ml
    small = found(check(raw), "brain-size")
    assert len(small) == 5
    assert not any(f.file.endswith("sub-01_T1w.nii.gz") for f in small)
    assert "36.1 ml" in small[0].reason
    assert "other units" in small[0].remedy


def test_a_rim_that_is_not_brain(raw):
    array, dilated = brain_array(), ndimage.binary_dilation(brain_array() > 0)
    skull = np.where((array == 0) & dilated, np.float32(5.0), array)
    write_nifti(scan_of(raw), skull)
    (finding,) = found(check(raw), "dim-rim")
    assert finding.file.endswith("sub-01_T1w.nii.gz")
    share = 1 - np.count_nonzero(array) / np.count_nonzero(skull)
    assert f"{share:.0%} of what is taken for brain" in finding.reason
    # a dark ventricle is no rim
    array[8:12, 10:14, 7:11] = 1.0
    write_nifti(scan_of(raw), array)
    assert not graver(check(raw))


def test_no_pair_is_a_warning(raw):
    for subject, modality in (("01", "T2w"), ("02", "T1w"), ("03", "T2w")):
        scan_of(raw, subject, modality).unlink()
    (finding,) = found(check(raw), "unpaired")
    assert finding.severity == "warning"


def test_thick_slices_are_noted(raw):
    write_nifti(scan_of(raw, "02"), brain_array(), affine_of((1, 1, 5)))
    assert found(check(raw), "thick-slices", "sub-02_T1w.nii.gz")


def test_facts_hold_no_voxels(raw):
    facts = examine(Case(scan_of(raw), "x", "scan", "01", "", "T1w"))
    assert len(pickle.dumps(facts)) < 5000


# --- content -------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.permutations([0, 1, 2]), st.tuples(*[st.booleans()] * 3), st.sampled_from(["f4", "f8", "i4"]))
def test_content_does_not_depend_on_axis_order_and_type(order, flips, dtype):
    array = np.random.default_rng(0).integers(0, 1000, (4, 5, 6)).astype("i2")
    affine = affine_of((1, 2, 3), rotation_of((5, 10, -7)))
    stored = array.transpose(order)[tuple(slice(None, None, -1 if f else 1) for f in flips)].astype(dtype)
    to_array = np.zeros((4, 4))  # stored index to index of the original
    for axis, (source, flip) in enumerate(zip(order, flips, strict=True)):
        to_array[source, axis] = -1 if flip else 1
        to_array[source, 3] = array.shape[source] - 1 if flip else 0
    to_array[3, 3] = 1
    geometry, moved = Geometry((4, 5, 6), affine), Geometry(stored.shape, affine @ to_array)
    want = content_sha256(np.asfortranarray(array), geometry)
    assert content_sha256(np.asfortranarray(stored), moved) == want
    assert in_ras(moved).same_grid(geometry)
    assert compare_grids(geometry, moved)[0] == ("" if stored.shape == array.shape and not any(flips) else "grid-order")
    stored = stored.copy()
    stored[0, 0, 0] += 1
    assert content_sha256(stored, moved) != want


def test_orientation_is_nibabels():
    import nibabel

    rng = np.random.default_rng(0)
    for _ in range(30):
        affine = affine_of(rng.uniform(1, 3, 3) * rng.choice([-1, 1], 3), rotation_of(rng.uniform(-40, 40, 3)))
        affine = affine[:, [*rng.permutation(3), 3]]
        assert orientation(Geometry((5, 6, 7), affine)) == "".join(nibabel.aff2axcodes(affine))


# --- one session ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift_mm", "code"),
    [
        (0.0, ""),
        (0.14, ""),
        (0.16, "grids-differ"),
        (25.0, "grids-differ"),
        (34.0, "grids-apart"),
        (500, "grids-apart"),
    ],
)
def test_grids_are_compared_by_corners_in_mm(shift_mm, code):
    # 20 voxels of 3 mm: the tolerance is 0.15 mm, half of the field of view is 30 mm
    a = Geometry((20, 24, 18), affine_of())
    assert compare_grids(a, Geometry((20, 24, 18), affine_of(origin=(shift_mm, 0, 0))))[0] == code


def test_rounding_of_a_header_is_no_difference():
    a = Geometry((182, 218, 182), affine_of((1, 1, 1), rotation_of((10, 20, 5)), (91.123, -17, 8)))
    assert compare_grids(a, Geometry(a.shape, a.affine.astype(np.float32).astype(float)))[0] == ""


def test_one_field_of_view_with_other_voxels():
    a = Geometry((20, 24, 18), affine_of())
    b = Geometry((40, 48, 36), affine_of((1.5, 1.5, 1.5), origin=(-0.75, -0.75, -0.75)))
    assert np.allclose(a.corners_mm(), b.corners_mm())
    assert compare_grids(a, b)[0] == compare_grids(b, a)[0] == "grid-spacing"


@pytest.mark.parametrize(
    ("origin", "code", "severity"), [((9, 0, 0), "grids-differ", "warning"), ((60, 0, 0), "grids-apart", "error")]
)
def test_a_session_off_one_grid(raw, origin, code, severity):
    write_nifti(scan_of(raw, "02", "T2w"), brain_array(seed=77), affine_of(origin=origin))
    report = check(raw)
    (one,) = found(report, code)
    assert (one.file, one.subject, one.severity) == ("sub-02/anat/sub-02_T2w.nii.gz", "02", severity)
    assert "mm" in one.reason
    assert "register" in one.remedy


def test_brains_apart_on_one_grid(raw):
    array = np.zeros((20, 24, 18), dtype=np.float32)
    array[:12] = brain_array()[8:]
    write_nifti(scan_of(raw, "02", "T2w"), array)
    (one,) = found(check(raw), "brains-apart")
    assert one.file.endswith("sub-02_T2w.nii.gz")


def test_contrasts_that_are_missing_or_rare(raw):
    scan_of(raw, "02", "T2w").unlink()
    write_nifti(scan_of(raw, "03", "FLAIR"), brain_array(seed=99))
    report = check(raw)
    assert [(f.subject, f.reason) for f in found(report, "missing-contrast")] == [("02", "T2w missing; T1w there")]
    assert [f.reason for f in found(report, "rare-contrast")] == ["FLAIR in 1 of 3 sessions"]


# --- duplicates and splits -----------------------------------------------------------------------------------------


def test_two_subjects_with_the_same_bytes(raw):
    shutil.copy(scan_of(raw, "01"), scan_of(raw, "02"))
    (one,) = found(check(raw), "duplicate-subjects")
    assert (one.subject, one.severity) == ("02", "error")
    assert "the same bytes as sub-01/anat/sub-01_T1w.nii.gz (sub-01)" in one.reason


def test_two_subjects_with_the_same_voxels_stored_otherwise(raw):
    flipped = affine_of((-3, 3, 3), origin=(19 * 3, 0, 0))
    write_nifti(scan_of(raw, "02"), brain_array()[::-1].astype(np.float64), flipped)
    (one,) = found(check(raw), "duplicate-subjects")
    assert "the same voxels, other bytes" in one.reason


def test_duplicates_within_a_subject(raw):
    shutil.copy(scan_of(raw, "01"), scan_of(raw, "01", "T2w"))
    run = scan_of(raw, "02").with_name("sub-02_run-2_T1w.nii.gz")
    shutil.copy(scan_of(raw, "02"), run)
    report = check(raw)
    assert [f.file for f in found(report, "duplicate-contrasts")] == ["sub-01/anat/sub-01_T2w.nii.gz"]
    assert [f.file for f in found(report, "duplicate-names")] == [run.relative_to(raw).as_posix()]


def test_duplicate_sessions(tmp_path):
    for session in ("1", "2"):
        write_nifti(tmp_path / f"sub-01/ses-{session}/anat/sub-01_ses-{session}_T1w.nii.gz", brain_array())
    (one,) = found(check(tmp_path), "duplicate-sessions")
    assert (one.session, one.severity) == ("2", "warning")


def test_broken_twins_and_constant_images(raw):
    for subject in ("01", "02"):
        scan_of(raw, subject).write_bytes(b"the same broken bytes")
        write_nifti(scan_of(raw, subject, "T2w"), np.zeros((20, 24, 18), dtype=np.float32))
    report = check(raw)
    assert [f.file for f in found(report, "duplicate-subjects")] == ["sub-02/anat/sub-02_T1w.nii.gz"]


def test_empty_files_are_no_duplicates(raw):
    for subject in ("01", "02"):
        scan_of(raw, subject).write_bytes(b"")
    assert graver(check(raw)) == {"unreadable"}


def test_the_same_content_in_two_splits_is_a_leak(raw, tmp_path):
    shutil.copy(scan_of(raw, "01"), scan_of(raw, "02"))
    shutil.copy(scan_of(raw, "01", "T2w"), scan_of(raw, "03", "T2w"))
    (tmp_path / "s.tsv").write_text("participant_id\tsplit\nsub-01\ttrain\n02\ttest\n03\ttrain\n")
    report = check(raw, splits=tmp_path / "s.tsv")
    assert [f.subject for f in found(report, "leak")] == ["02"]
    assert [f.subject for f in found(report, "duplicate-subjects")] == ["03"]


@pytest.mark.parametrize(
    ("table", "codes"),
    [
        ("participant_id\tsplit\n01\ttrain\n02\tval\n03\ttest\n", set()),
        ("participant_id\tsplit\n01\ttrain\nsub-01\ttest\n02\tval\n03\ttest\n", {"two-splits"}),
        ("participant_id\tsplit\n01\ttrain\n1\ttest\n02\tval\n03\ttest\n", {"two-splits"}),
        ("participant_id\tsplit\n01\ttrain\n1\ttrain\n02\tval\n03\ttest\n", {"similar-ids"}),
        ("participant_id\tsplit\n01\ttrain\n02\tval\n", {"no-split"}),
        ("participant_id\tsplit\n01\ttrian\n02\tval\n03\ttest\n", {"splits", "no-split"}),
        ("participant_id\tpart\n01\ttrain\n", {"splits"}),
        ("", {"splits"}),
    ],
)
def test_tables_of_splits(raw, tmp_path, table, codes):
    (tmp_path / "s.tsv").write_text(table)
    assert graver(check(raw, splits=tmp_path / "s.tsv")) == codes


@pytest.mark.parametrize("twin", ["be\u03011", "B\u00e91", "b\u00e9001"], ids=["composition", "case", "zeros"])
def test_ids_that_differ_in_spelling_only(tmp_path, twin):
    for n, subject in enumerate(("b\u00e91", twin, "b\u00e92")):
        write_nifti(tmp_path / f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz", brain_array(seed=n))
    (one,) = found(check(tmp_path), "similar-ids")
    assert one.severity == "warning"
    assert twin in one.reason


# --- tables and folders --------------------------------------------------------------------------------------------


def test_every_bad_line_of_a_table_is_a_finding_and_the_good_ones_are_read(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", brain_array())
    (tmp_path / "b.nii.gz").write_bytes(b"broken")
    lines = [
        "participant_id\tsession_id\tmodality\tpath\tsplit",
        "1\tn/a\tT1w\ta.nii.gz\ttrain",
        "2\tn/a\tT1w\tb.nii.gz\ttest",
        "3\tn/a\tT1w\tgone.nii.gz\ttest",
        "4\tn/a\tT9w\ta.nii.gz\ttest",
        "5\tn/a\tT1w\t../../etc/passwd\ttest",
        "1\tn/a\tT2w\tb.nii.gz\ttest",
    ]
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    report = check(tmp_path / "t.tsv")
    lines = {int(re.match(r"line (\d+)", f.reason)[1]) for f in found(report, "manifest")}
    assert {4, 5, 6, 7} <= lines
    assert [one["file"] for one in report.files] == ["a.nii.gz", "b.nii.gz"]
    assert found(report, "unreadable", "b.nii.gz")
    assert [f.subject for f in found(report, "two-splits")] == ["1"]


def test_a_table_that_is_no_table(tmp_path):
    (tmp_path / "t.tsv").write_bytes(b"\0\xff")
    report = check(tmp_path / "t.tsv")
    assert graver(report) == {"manifest"}


@pytest.mark.parametrize(
    "content",
    [
        "participant_id\tsite\nsub-01\tK\xf6ln\n".encode("latin-1"),
        "participant_id\tsite\nsub-01\tA\n".encode("utf-16"),
        b"participant_id\tparticipant_id\nsub-01\tsub-01\n",
        b"participant_id,site\nsub-01,A\n",
        b"participant_id\tsite\nsub-01\tA\tB\n",
        b"\x1b[31m\tsite\nsub-01\tA\n",
        b"/annex/objects/MD5E-s3--0f.tsv\n",
    ],
)
def test_a_damaged_table_of_participants_is_named(raw, content):
    (raw / "participants.tsv").write_bytes(content)
    (finding,) = found(check(raw), "manifest")
    assert finding.file == "participants.tsv"
    assert finding.remedy
    with pytest.raises(InputError) as error:
        scan(raw)
    assert str(error.value).isprintable()


def test_a_broken_sidecar_does_not_stop_the_check(raw):
    scan_of(raw).with_name("sub-01_T1w.json").write_text('{"Site": ')
    scan_of(raw, "02").write_bytes(b"broken")
    write_nifti(scan_of(raw, "03", "T2w"), brain_array(seed=77), affine_of(origin=(60, 0, 0)))
    scan_of(raw, "01", "T2w").unlink()
    report = check(raw)
    assert graver(report) == {
        "bids-sidecar",
        "unreadable",
        "grids-apart",
        "missing-contrast",
        "brains-apart",
    }
    assert len(report.files) == 5
    assert report.fingerprint["subjects"] == 3


def test_a_folder_that_cannot_be_listed(raw, monkeypatch):
    scandir = os.scandir

    def denied(place="."):
        if str(place).endswith("sub-02/anat"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", denied)
    report = check(raw)
    assert {(f.code, f.file) for f in report.findings if f.severity == "error"} == {
        ("unreadable", "sub-02/anat"),
    }
    assert len(report.files) == 4


def test_bids_oddities(raw):
    (raw / "dataset_description.json").unlink()
    write_nifti(raw / "sub-04/anat/sub-01_T1w.nii.gz", brain_array(seed=5))
    write_nifti(raw / "sub-01/anat/other_T1w.nii.gz", brain_array(seed=6))
    write_nifti(raw / "sub-01/anat/sub-01_T1w.nii", brain_array(seed=7))
    (raw / "sub-05/anat").mkdir(parents=True)
    write_nifti(raw / "sub-01/func/sub-01_bold.nii.gz", np.zeros((4, 4, 4, 3), dtype=np.int16))
    report = check(raw)
    assert found(report, "bids-ids", "sub-04/anat/sub-01_T1w.nii.gz")
    assert found(report, "bids-description")
    assert found(report, "bids-name", "other_T1w.nii.gz")
    assert found(report, "bids-name", "sub-01_T1w.nii.gz")
    assert found(report, "bids-empty", "sub-05")
    assert {f.subject for f in found(report, "bids-participants")} == {"04", "05"}
    assert "1 images in func/ folders" in [f.reason for f in found(report, "not-checked")]


def test_a_plain_folder_is_read_whole(tmp_path):
    write_nifti(tmp_path / "p1_T1.nii.gz", brain_array(seed=1))
    write_nifti(tmp_path / "what.nii.gz", brain_array(seed=2))
    write_nifti(tmp_path / "series.nii.gz", np.zeros((4, 4, 4, 3), dtype=np.int16))
    (tmp_path / "old.nrrd").write_text("x")
    report = check(tmp_path)
    assert report.kind == "folder"
    assert found(report, "unused", "what.nii.gz")
    assert "series of 3 volumes" in found(report, "unreadable", "series.nii.gz")[0].reason
    assert found(report, "not-checked")


def test_one_image(tmp_path):
    file = write_nifti(tmp_path / "odd name; rm -rf x.nii.gz", voxels(p10_12_9=np.nan))
    report = check(file)
    assert (report.kind, [one["file"] for one in report.files]) == ("image", [file.name])
    assert graver(report) == {"nonfinite"}


def test_a_link_out_of_the_dataset(raw, tmp_path):
    away = write_nifti(tmp_path / "away/sub-09_T1w.nii.gz", brain_array(seed=9))
    scan_of(raw, "02").unlink()
    scan_of(raw, "02").symlink_to(away)
    assert found(check(raw), "outside", "sub-02_T1w.nii.gz")
    assert not found(check(raw, roots=[tmp_path / "away"]), "outside")


# --- labels --------------------------------------------------------------------------------------------------------


def with_labels(raw, subject, array, affine=None):
    return write_nifti(raw / f"derivatives/truth/sub-{subject}/anat/sub-{subject}_dseg.nii.gz", array, affine)


def label_map(*labels):
    array = np.zeros((20, 24, 18), dtype=np.int16)
    for n, label in enumerate(labels):
        array[5 + n, 5:9, 5:9] = label
    return array


def test_whole_labels_on_the_grid_are_clean(raw):
    for n, subject in enumerate(("01", "02", "03")):
        with_labels(raw, subject, label_map(1, 2, *range(3, 3 + n)).astype(np.float32))
    report = check(raw)
    assert report.findings == ()
    assert report.files[0]["labels"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("code", "array", "affine"),
    [
        ("label-values", label_map(1, 2) + 0.9999, None),
        ("label-values", np.where(label_map(1) > 0, np.nan, 0.0), None),
        ("label-range", label_map(1, -2), None),
        ("label-empty", label_map(), None),
        ("label-grid", label_map(1), affine_of(origin=(6, 0, 0))),
        ("label-apart", label_map(1), affine_of(origin=(600, 0, 0))),
    ],
)
def test_label_maps(raw, code, array, affine):
    with_labels(raw, "02", np.asarray(array, dtype=np.float32), affine)
    report = check(raw)
    assert [f.file for f in found(report, code)] == ["derivatives/truth/sub-02/anat/sub-02_dseg.nii.gz"]
    assert graver(report) == ({code} if code != "label-empty" else set())


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("i1", -1, 127), ("i1", -128, 127), ("i2", -32768, 600), ("i2", -32768, 32767), ("u1", 0, 255),
        ("u2", 1, 65535), ("i4", -(2**31), 2**31 - 1), ("i8", -(2**63), 2**63 - 1), ("u8", 2**64 - 3, 2**64 - 1),
    ],
)  # fmt: skip
def test_the_labels_of_a_map_do_not_depend_on_its_type(dtype, low, high):
    array = np.full((4, 5, 6), low, dtype=dtype)
    array[1:3] = high
    assert check_scan._distinct(array) == (low, high)
    assert check_scan._distinct(array[:, ::-1].T) == (low, high)


def test_labels_below_zero_in_small_integers(raw):
    with_labels(raw, "02", np.where(label_map(1) > 0, 127, -1).astype(np.int8))
    (finding,) = found(check(raw), "label-range")
    assert "labels from -1 to 127" in finding.reason


def test_declared_labels(raw):
    with_labels(raw, "01", label_map(1, 2))
    with_labels(raw, "02", label_map(1, 5))
    report = check(raw, labels=[0, 1, 2, 3])
    (unknown,) = found(report, "label-unknown")
    assert unknown.subject == "02"
    assert unknown.reason == "label 5 not among the declared labels 0, 1, 2, 3"
    assert [f.reason for f in found(report, "label-missing")] == ["label 3 in none of 2 label maps"]


def test_nnunet_declares_its_labels(tmp_path):
    for case in ("a", "b"):
        write_nifti(tmp_path / f"imagesTr/{case}_0000.nii.gz", brain_array(seed=ord(case)))
        write_nifti(tmp_path / f"labelsTr/{case}.nii.gz", label_map(1, 7 if case == "b" else 2))
    (tmp_path / "dataset.json").write_text(
        '{"channel_names": {"0": "T1w"}, "labels": {"background": 0, "whole": [1, 2]}, "file_ending": ".nii.gz"}'
    )
    report = check(tmp_path)
    assert report.kind == "nnunet"
    assert [f.file for f in found(report, "label-unknown")] == ["labelsTr/b.nii.gz"]


def test_an_odd_set_of_labels(tmp_path):
    for n in range(6):
        labels = (1, 2, 3) if n else (1, 3, 9)
        write_nifti(tmp_path / f"sub-{n}_dseg.nii.gz", label_map(*labels) * (n + 1 > 0))
    (one,) = found(check(tmp_path), "label-odd")
    assert (one.file, one.reason) == (
        "sub-0_dseg.nii.gz",
        "label 9 occurs in few other maps; label 2 missing, which the others have (6 maps)",
    )


def test_masks(raw):
    mask = raw / "derivatives/x/sub-02/anat/sub-02_desc-brain_mask.nii.gz"
    write_nifti(mask, np.zeros((20, 24, 18), dtype=np.uint8))
    assert graver(check(raw)) == {"mask-empty"}
    write_nifti(mask, (brain_array() > 0).astype(np.float32) * 0.7)
    assert not check(raw).findings


# --- the whole -----------------------------------------------------------------------------------------------------


def test_an_outlier_of_its_contrast(tmp_path):
    raw = write_bids(tmp_path / "raw", [f"{n:02d}" for n in range(12)], modalities=("T1w",))
    assert check(raw).findings == ()
    write_nifti(scan_of(raw, "05"), brain_array(seed=3), affine_of((2, 3, 3)))
    write_nifti(scan_of(raw, "06"), brain_array(seed=4, scale=1e5))
    report = check(raw)
    assert {f.subject: f.reason.split(" (")[0] for f in found(report, "outlier")} == {
        "05": "voxel size in x",
        "06": "intensity range 9.85e+04",
    } or {f.subject for f in found(report, "outlier")} == {"05", "06"}
    assert "voxel size in x (mm) 2 (usually 3)" in found(report, "outlier")[0].reason


def test_the_fingerprint_of_a_dataset_and_of_its_store_agree(dataset, prepared):
    report = check(dataset)
    mine, stored = report.fingerprint, fingerprint_of_store(prepared)
    assert check(prepared.path).fingerprint == stored
    assert (mine["digest"], mine["subjects"], mine["sessions"], mine["complete_sessions"]) == (
        stored["digest"], 12, 12, 12,
    )  # fmt: skip
    assert mine["sites"] == stored["sites"] == [["a", 6], ["b", 6]]
    one = mine["contrasts"]["T2w"]
    assert one["scans"] == 12
    assert one["shapes"] == [["20x24x18", 12]]
    assert one["spacings_mm"] == [["3x3x3", 12]]
    assert one["orientations"] == [["RAS", 12]]
    assert one["extent_mm"][1] == {"min": 72.0, "median": 72.0, "max": 72.0}
    array = brain_array(seed=1, scale=200.0)
    report_of_first = next(f for f in report.files if f["file"] == "sub-00/anat/sub-00_T2w.nii.gz")
    assert report_of_first["percentiles"]["p50"] == pytest.approx(np.median(array[array > 0]))
    assert report_of_first["foreground_ml"] == pytest.approx(np.count_nonzero(array) * 27 / 1000)
    assert set(one) == set(stored["contrasts"]["T2w"])


@pytest.mark.skipif("NEUROTOME_TEST_DATA" not in os.environ, reason="NEUROTOME_TEST_DATA is not set")
def test_real_hostile_files(tmp_path):
    root = Path(os.environ["NEUROTOME_TEST_DATA"]) / "hostile"
    if not (root / "derived").is_dir():
        pytest.skip("the folder has no hostile/derived")
    report = check(root / "derived")
    assert {(f.code, f.file) for f in report.findings if f.severity == "error"} >= {
        ("unreadable", "truncated.nii.gz"),
        ("unreadable", "not_nifti.nii.gz"),
        ("unreadable", "no_qform_sform.nii.gz"),
        ("nonfinite", "nan_block.nii.gz"),
        ("nonfinite", "inf_voxels.nii.gz"),
        ("constant", "constant.nii.gz"),
    }
    fine = {"float64.nii", "nifti2.nii.gz", "trailing_dim.nii.gz", "qform_only.nii.gz", "oblique23deg.nii.gz"}
    assert not {f.file for f in report.findings if f.severity == "error"} & fine
    # one brain in five files and in six axis orders
    assert len({one["content"] for one in report.files if one["file"] in fine}) == 1
    assert len({one["content"] for one in check(root / "orient").files}) == 1


def test_gzip_members_do_not_matter(raw):
    path = scan_of(raw)
    content = gzip.decompress(path.read_bytes())
    write_gzip(path, content[:500])
    path.write_bytes(path.read_bytes() + gzip.compress(content[500:]))
    assert not check(raw).findings
