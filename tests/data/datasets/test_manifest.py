import json
import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurotome.data.datasets.bids import preference
from neurotome.data.datasets.manifest import scan
from neurotome.errors import InputError, UsageError
from neurotome.modality import candidates
from tests.data.scans import brain_array, write_bids, write_nifti

HEADER = "participant_id\tsession_id\tmodality\tpath\tsite\n"


@pytest.fixture
def folder(tmp_path):
    for name in ("a_T1w.nii.gz", "a_T2w.nii.gz", "b_T1w.nii.gz"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def table(folder, text, name="scans.tsv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_bids_with_sessions_runs_sites_masks_and_truth(tmp_path):
    root = write_bids(tmp_path, ["01", "02"])
    for name in ("sub-03/ses-b/anat/sub-03_ses-b_run-2_T1w", "sub-03/ses-b/anat/sub-03_ses-b_run-1_T1w"):
        write_nifti(root / f"{name}.nii.gz", brain_array())
    write_nifti(root / "sub-03/ses-b/anat/sub-03_ses-b_ce-gadolinium_T1w.nii.gz", brain_array())
    write_nifti(root / "sub-03/ses-b/anat/sub-03_ses-b_T2star.nii.gz", brain_array())
    (root / "sub-03/ses-b/anat/sub-03_ses-b_run-1_T1w.json").write_text('{"Site": "c"}')
    for name in ("truth/sub-03/ses-b/anat/sub-03_ses-b_dseg", "truth/sub-03/ses-b/anat/sub-03_ses-b_desc-lesions_dseg",
                 "masks/sub-03/ses-b/anat/sub-03_ses-b_desc-brain_mask"):  # fmt: skip
        write_nifti(root / f"derivatives/{name}.nii.gz", brain_array())
    manifest = scan(root)
    assert manifest.kind == "bids"
    assert manifest.subjects == ("01", "02", "03")
    assert manifest.modalities == ("T1w", "T2w", "T1c")
    assert manifest.sites == ("a", "b", "c")
    third = manifest.sessions[2]
    assert (third.session, third.site) == ("b", "c")
    assert {m: p.name for m, p in third.scans.items()} == {
        "T1w": "sub-03_ses-b_run-1_T1w.nii.gz",
        "T1c": "sub-03_ses-b_ce-gadolinium_T1w.nii.gz",
    }
    assert third.notes == (
        "several T1w: sub-03_ses-b_run-1_T1w.nii.gz is used, sub-03_ses-b_run-2_T1w.nii.gz is not "
        "(fewest entities, first run)",
    )
    assert len(manifest.rows) == 4 + 3  # every scan is a row, also the one that no session took
    assert third.mask.name == "sub-03_ses-b_desc-brain_mask.nii.gz"
    assert third.labels.name == "sub-03_ses-b_dseg.nii.gz"
    assert manifest.notes == ("1 images of other kinds are left out",)


def test_a_manifest_survives_its_table(tmp_path):
    manifest = scan(write_bids(tmp_path, ["01", "02"]))
    again = scan(table(tmp_path, manifest.to_tsv()))
    assert again.kind == "table"
    assert again.sessions == manifest.sessions


def test_tables_with_byte_order_mark_and_carriage_returns(folder):
    text = b"\xef\xbb\xbf" + HEADER.encode() + b"sub-x\tses-1\tt1\ta_T1w.nii.gz\tn/a\nx\t1\tT2w\t./a_T2w.nii.gz\t\n\n"
    for data, name in ((text, "a.tsv"), (text.replace(b"\n", b"\r\n").replace(b"\t", b","), "a.csv")):
        manifest = scan(table(folder, data, name))
        assert [(s.subject, s.session, s.site, list(s.scans)) for s in manifest.sessions] == [
            ("x", "1", None, ["T1w", "T2w"])
        ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty table"),
        ("participant_id\tpath\n", "line 1: column modality is missing"),
        ("path\tpath\tmodality\tparticipant_id\n", "line 1: column 'path' occurs twice"),
        (HEADER + "x\t1\tT1w\n", "line 2: 3 cells where the header has 5"),
        (HEADER + "x\t1\tT1w\ta_T1w.nii.gz\t\nx\t1\tT2w\ta_T\0\t\n", "line 3: a NUL byte"),
        (HEADER + "\t1\tT1w\ta_T1w.nii.gz\t\n", "line 2, column participant_id: empty"),
        (HEADER + "../x\t1\tT1w\ta_T1w.nii.gz\t\n", "line 2, column participant_id: .* is no id"),
        (HEADER + "x\t1\tT3w\ta_T1w.nii.gz\t\n", "line 2, column modality: unknown modality 'T3w'"),
        (HEADER + "x\t1\tT1w\t\t\n", "line 2, column path: empty"),
        (HEADER + "x\t1\tT1w\tnone.nii.gz\t\n", "line 2, column path: 'none.nii.gz' does not exist"),
        (HEADER + "x\t1\tT1w\t../../etc/passwd\t\n", "leaves the table's folder"),
        (HEADER + "x\t1\tT1w\t/etc/passwd\t\n", "leaves the table's folder"),
        (HEADER + "x\t1\tT1w\tfile:///etc/passwd\t\n", "not a path below"),
        (HEADER + "x\t1\tT1w\thttp://a/b.nii\t\n", "not a path below"),
        (HEADER + "x\t1\tT1w\t\\\\host\\share\\a.nii\t\n", "not a path below"),
        (
            HEADER + "x\t1\tT1w\ta_T1w.nii.gz\t\ny\t1\tT1w\ta_T1w.nii.gz\t\n",
            "line 3, column path: .* already on line 2",
        ),
        (HEADER.encode() + b"\xff\xfe\n", "not UTF-8 text"),
    ],
)
def test_manifest_errors_name_their_place(folder, text, says):
    path = table(folder, text)
    with pytest.raises(InputError, match=says) as error:
        scan(path)
    assert str(path) in str(error.value)


def test_all_errors_of_a_table_are_named_at_once(folder):
    rows = "".join(f"x\t{n}\tT1w\tnone{n}.nii\t\n" for n in range(30))
    with pytest.raises(InputError, match=r"line 2,.*; line 21,.*and 10 more"):
        scan(table(folder, HEADER + rows))


def test_formulas_and_quotes_are_text(folder):
    manifest = scan(table(folder, HEADER + '=cmd()\t"1\tT1w\ta_T1w.nii.gz\t<script>\n'))
    assert [(s.subject, s.session, s.site) for s in manifest.sessions] == [("=cmd()", '"1', "<script>")]


def test_links_out_of_the_root_are_left_out(tmp_path):
    root = write_bids(tmp_path / "data", ["01", "02"])
    secret = write_nifti(tmp_path / "secret.nii.gz", brain_array())
    link = root / "sub-02/anat/sub-02_T1w.nii.gz"
    link.unlink()
    link.symlink_to(secret)
    manifest = scan(root)
    assert list(manifest.sessions[1].scans) == ["T2w"]
    assert "link out of" in manifest.notes[0]
    inner = root / "sub-02/anat/sub-02_T1w.nii.gz"
    inner.unlink()
    inner.symlink_to(root / "sub-01/anat/sub-01_T1w.nii.gz")
    assert "T1w" in scan(root).sessions[1].scans


def test_plain_folders_are_guessed_and_say_so(tmp_path):
    for name in ("IXI012-HH-1211-T1.nii.gz", "IXI012-HH-1211-T2.nii.gz", "x_T1_T2.nii", "p1/flair.nii.gz",
                 "p1/seg.nii.gz", "p1/x_desc-brain_mask.nii.gz", "notes.txt", "sub-7_ses-2_T1w.nii.gz"):  # fmt: skip
        write_nifti(tmp_path / name, brain_array()) if "nii" in name else (tmp_path / name).write_text("")
    manifest = scan(tmp_path)
    assert manifest.kind == "folder"
    found = {(s.subject, s.session): (list(s.scans), s.mask is not None) for s in manifest.sessions}
    assert found == {
        ("IXI012-HH-1211", ""): (["T1w", "T2w"], False),
        ("p1", ""): (["FLAIR"], True),
        ("7", "2"): (["T1w"], False),
    }
    assert manifest.notes == (
        "contrasts and subjects are guessed from the names (2 T1w, 1 T2w, 1 FLAIR); a table states them",
        "1 masks, maps or other images are not taken for scans (p1/seg.nii.gz)",
        "left out x_T1_T2.nii: the name says T1w or T2w",
    )
    assert scan(tmp_path / "IXI012-HH-1211-T1.nii.gz").modalities == ("T1w",)


def test_the_word_space_is_not_a_contrast_agent():
    assert candidates("sub-07_space-MNI_T1w.nii.gz") == ("T1w",)


def test_nothing_to_find(tmp_path):
    with pytest.raises(UsageError, match="nothing is there"):
        scan(tmp_path / "none")
    with pytest.raises(InputError, match="no scan found"):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("[1]", "object is expected"),
        ("[" * 100_000, "not valid JSON"),
        ("/annex/objects/MD5E-s3--0f.json\n", "a placeholder of git-annex"),
        ('{"Site": ["a"]}', "Site is list"),
    ],
)
def test_a_damaged_sidecar_costs_its_scan_alone(tmp_path, text, says):
    root = write_bids(tmp_path, ["01", "02"])
    (root / "sub-01/anat/sub-01_T1w.json").write_text(text)
    first, second = scan(root).sessions
    assert {m: (e.file.name, says in e.reason) for m, e in first.damage.items()} == {"T1w": ("sub-01_T1w.json", True)}
    assert second.damage == {}


def test_two_thousand_rows_are_read_fast(tmp_path):
    for n in range(100):
        (tmp_path / f"d{n}").mkdir()
    rows = []
    for n in range(2_000):
        name = f"d{n % 100}/{n}_T1w.nii.gz"
        os.close(os.open(tmp_path / name, os.O_CREAT))
        rows.append(f"s{n}\t1\tT1w\t{name}\ta")
    path = table(tmp_path, HEADER + "\n".join(rows))
    start = time.process_time()
    assert len(scan(path).sessions) == 2_000
    assert time.process_time() - start < 2.0  # 0.1 s alone; the tests check shapes and run beside others


def test_a_long_table_is_read_or_its_first_faults_named(folder):
    rows = [f"s{n}\t\tT1w\t{'a_T1w.nii.gz' if n == 7 else f'd/{n}.nii'}\t\n" for n in range(20_000)]
    with pytest.raises(InputError, match=r"line 2, column path: 'd/0\.nii' does not exist; line 3.*and 19979 more"):
        scan(table(folder, HEADER + "".join(rows)))


def test_the_rule_for_several_scans_of_one_contrast(tmp_path):
    names = ["acq-hi_run-1_T1w", "run-10_T1w", "run-2_T1w", "run-2_echo-2_T1w", "part-phase_T1w", "acq-a_rec-b_T1w"]
    for name in names:
        write_nifti(tmp_path / f"sub-1/anat/sub-1_{name}.nii.gz", brain_array())
    manifest = scan(tmp_path)
    assert manifest.sessions[0].scans["T1w"].name == "sub-1_run-2_T1w.nii.gz"
    ranked = sorted(("sub-1_" + n for n in names), key=preference)
    assert [n.removeprefix("sub-1_") for n in ranked[:2]] == ["part-phase_T1w", "run-2_T1w"]
    assert "1 phase, real or imaginary images are left out" in manifest.notes
    write_nifti(tmp_path / "sub-1/anat/sub-1_T1w.nii.gz", brain_array())
    assert scan(tmp_path).sessions[0].scans["T1w"].name == "sub-1_T1w.nii.gz"


def test_a_mask_serves_only_scans_of_its_own_space_and_run(tmp_path):
    root = write_bids(tmp_path, ["1"], ("T1w",))
    anat = root / "derivatives/prep/sub-1/anat"
    write_nifti(anat / "sub-1_space-MNI152NLin6Asym_desc-brain_mask.nii.gz", brain_array())
    manifest = scan(root)
    assert manifest.sessions[0].mask is None
    assert any("in another space" in note for note in manifest.notes)
    write_nifti(anat / "sub-1_run-2_desc-brain_mask.nii.gz", brain_array())
    assert scan(root).sessions[0].mask is None
    write_nifti(anat / "sub-1_desc-brain_mask.nii.gz", brain_array())
    write_nifti(root / "sub-1/anat/sub-1_run-2_T2w.nii.gz", brain_array())
    masks = {row.path.name: row.mask.name for row in scan(root).rows}
    assert masks == {
        "sub-1_T1w.nii.gz": "sub-1_desc-brain_mask.nii.gz",
        "sub-1_run-2_T2w.nii.gz": "sub-1_run-2_desc-brain_mask.nii.gz",
    }


def test_sidecars_are_inherited_and_the_nearest_wins(tmp_path):
    root = write_bids(tmp_path, ["1", "2"], sites=("table",))
    (root / "T1w.json").write_text('{"Site": "all"}')
    (root / "acq-x_T1w.json").write_text('{"Site": "never"}')
    (root / "sub-2/sub-2_T1w.json").write_text('{"Site": "two"}')
    sites = {(row.subject, row.modality): row.site for row in scan(root).rows}
    assert sites == {("1", "T1w"): "all", ("2", "T1w"): "two", ("1", "T2w"): "table", ("2", "T2w"): "table"}


def test_visits_in_one_folder_are_one_subject(tmp_path):
    for name in ("p1/study1_T1.nii", "p1/study2_T1.nii", "p1/study2_T2.nii", "p2/t1.nii"):
        write_nifti(tmp_path / name, brain_array())
    manifest = scan(tmp_path)
    assert [(s.subject, s.session, list(s.scans)) for s in manifest.sessions] == [
        ("p1", "study1", ["T1w"]),
        ("p1", "study2", ["T1w", "T2w"]),
        ("p2", "", ["T1w"]),
    ]
    assert any("p1: holds several scans of one contrast" in note for note in manifest.notes)


def test_images_whose_names_state_no_contrast_are_what_the_caller_says(tmp_path):
    for name in ("RAS.nii.gz", "x_T2w.nii.gz", "aparc.a2009s+aseg.mgz"):
        write_nifti(tmp_path / name, brain_array().astype("float32"))
    assert {row.path.name: row.modality for row in scan(tmp_path, default_modality="T1w").rows} == {
        "RAS.nii.gz": "T1w",
        "x_T2w.nii.gz": "T2w",
    }


def nnunet(root, channels, cases=("la_001", "la_002")):
    for folder, ids in (("imagesTr", cases), ("imagesTs", ("la_009",))):
        for case in ids:
            for channel in range(2):
                write_nifti(root / folder / f"{case}_{channel:04d}.nii.gz", brain_array())
    for case in cases:
        write_nifti(root / "labelsTr" / f"{case}.nii.gz", brain_array())
    (root / "dataset.json").write_text(json.dumps(channels))
    return root


@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_the_layout_of_nnunet(tmp_path, key):
    root = nnunet(tmp_path, {key: {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0}})
    (root / "imagesTr" / "stray.nii.gz").touch()
    manifest = scan(root)
    assert manifest.kind == "nnunet"
    assert [(s.subject, sorted(s.scans), s.labels and s.labels.name) for s in manifest.sessions] == [
        ("la_001", ["FLAIR", "T1w"], "la_001.nii.gz"),
        ("la_002", ["FLAIR", "T1w"], "la_002.nii.gz"),
        ("la_009", ["FLAIR", "T1w"], None),
    ]
    assert manifest.splits == {"la_009": "test"}
    assert any("stray.nii.gz" in note for note in manifest.notes)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"labels": {}}, "names no channels"),
        ({"channel_names": {"0": "CT"}}, "no channel is a contrast we know"),
        ({"channel_names": {"0": "T1", "1": "T1w"}}, "two channels are T1w"),
        ([1], "object is expected"),
    ],
)
def test_channels_that_cannot_be_used(tmp_path, content, says):
    with pytest.raises(InputError, match=says) as error:
        scan(nnunet(tmp_path, content))
    assert "dataset.json" in str(error.value)


def test_an_unknown_channel_is_left_out_and_named(tmp_path):
    manifest = scan(nnunet(tmp_path, {"channel_names": {"0": "T1", "1": "CT"}}))
    assert manifest.modalities == ("T1w",)
    assert "channel 1 (CT) is no contrast we know: left out" in manifest.notes


def test_a_table_may_lead_only_into_the_roots_it_is_given(tmp_path):
    (tmp_path / "in").mkdir()
    other = write_nifti(tmp_path / "other/b_T1w.nii.gz", brain_array())
    write_nifti(tmp_path / "otherwise/c_T1w.nii.gz", brain_array())
    path = table(tmp_path / "in", HEADER + f"b\t\tT1w\t{other}\t\n")
    with pytest.raises(InputError, match=r"leaves the table's folder.*--root DIR admits"):
        scan(path)
    manifest = scan(path, [tmp_path / "other"])
    assert manifest.relative(manifest.sessions[0].scans["T1w"]) == "../other/b_T1w.nii.gz"
    table(tmp_path / "in", HEADER + "c\t\tT1w\t../otherwise/c_T1w.nii.gz\t\n")
    with pytest.raises(InputError, match="leaves the table's folder"):
        scan(path, [tmp_path / "other"])  # a name that only begins like a root is none
    with pytest.raises(UsageError, match="no such folder"):
        scan(path, [tmp_path / "none"])


def test_splits_of_a_table(folder):
    head = "participant_id\tmodality\tpath\tsplit\n"
    manifest = scan(
        table(folder, head + "a\tT1w\ta_T1w.nii.gz\ttrain\na\tT2w\ta_T2w.nii.gz\tn/a\nb\tT1w\tb_T1w.nii.gz\ttest")
    )
    assert manifest.splits == {"a": "train", "b": "test"}
    assert scan(table(folder, manifest.to_tsv())).splits == manifest.splits
    for rows, says in (
        ("a\tT1w\ta_T1w.nii.gz\ttrain\na\tT2w\ta_T2w.nii.gz\ttest", "line 3, column split: subject 'a' is in train on"),
        ("a\tT1w\ta_T1w.nii.gz\tholdout", "line 2, column split: 'holdout'; admissible are train"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            scan(table(folder, head + rows))


def test_separators_and_quotation_marks_that_are_wrong_are_named(folder):
    with pytest.raises(InputError, match="seem to be separated by semicolons"):
        scan(table(folder, "participant_id;modality;path\na;T1w;a_T1w.nii.gz\n", "a.csv"))
    with pytest.raises(InputError, match="line 3: unexpected end of data"):
        scan(table(folder, 'participant_id,modality,path\na,T1w,a_T1w.nii.gz\nb,T1w,"b_T1w\n.nii.gz\n', "a.csv"))
    text = 'participant_id,modality,path,site\na,T1w,a_T1w.nii.gz,"one\n two"\nb,T1w,none.nii,x\n'
    with pytest.raises(InputError, match=r"line 4, column path: 'none\.nii' does not exist"):
        scan(table(folder, text, "a.csv"))


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=12) | st.sampled_from(
    ["T1w", "a_T1w.nii.gz", "../x", "/etc/passwd", "file:///x", "\\\\h\\s", "=cmd()", '"', "\0", "n/a", "x" * 5000]
)  # fmt: skip
NAMES = st.sampled_from(["participant_id", "session_id", "modality", "path", "site", "mask", "split", "x", "\x1b[2J"])


@given(
    header=st.lists(NAMES, max_size=8),
    rows=st.lists(st.lists(CELLS, max_size=8), max_size=6),
    ends=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"]),
    name=st.sampled_from(["t.tsv", "t.csv"]),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_table_is_read_or_refused_by_line(folder, header, rows, ends, mark, name):
    sign = "\t" if name.endswith("tsv") else ","
    text = ends.join(sign.join(cells) for cells in [header, *rows])
    path = table(folder, mark + text.encode(), name)
    try:
        said, rows_read = "", scan(path).rows
    except InputError as error:
        said, rows_read = str(error), ()
    assert not said or (str(path) in said and said.isprintable())
    assert all(row.path.resolve().is_relative_to(folder.resolve()) for row in rows_read)


@given(st.binary(max_size=400), st.sampled_from(["t.tsv", "t.csv"]))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused(folder, data, name):
    with pytest.raises(InputError):
        scan(table(folder, data, name))
