"""``neurotome check``: exit codes, check.json, the table, and where it refuses to write."""

import json
from pathlib import Path

import numpy as np
import pytest

from neurotome.cli.main import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two clean scans, and an empty folder to be in."""
    import nibabel

    rng = np.random.default_rng(0)
    for subject in ("1", "2"):
        array = np.zeros((12, 12, 12), dtype=np.float32)
        array[2:10, 2:10, 2:10] = 50 + 50 * rng.random((8, 8, 8))
        image = nibabel.Nifti1Image(array, np.diag([12.0, 12.0, 12.0, 1.0]))
        image.set_sform(image.affine, 1)
        (tmp_path / "raw").mkdir(exist_ok=True)
        nibabel.save(image, tmp_path / f"raw/sub-{subject}_T1w.nii.gz")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "raw"


def run(*words):
    return main(["check", *map(str, words)])


def written():
    return json.loads(Path("check.json").read_text())


def test_clean_data_leave_0_and_no_file(folder, capsys):
    for _ in range(2):
        assert run(folder) == 0
    assert list(Path.cwd().iterdir()) == []
    assert sorted(p.name for p in folder.iterdir()) == ["sub-1_T1w.nii.gz", "sub-2_T1w.nii.gz"]
    out = capsys.readouterr().out
    assert "0 errors, 0 warnings" in out
    assert "2 scans" in out


def test_errors_leave_3(folder, capsys):
    (folder / "sub-3_T1w.nii.gz").write_bytes(b"x")
    assert run(folder, "--json", "--out", "check.json") == 3
    result = json.loads(capsys.readouterr().out)
    assert result["failed"] is True
    assert result["findings"][0]["code"] == "unreadable"
    assert {k: v for k, v in result.items() if k != "failed"} == written()


def test_warnings_leave_3_only_when_strict(folder):
    (folder / "sub-1_T1w.json").write_text('{"PatientName": "x y"}')
    assert run(folder) == 0
    assert run(folder, "--strict") == 3


def test_an_existing_file_is_kept(folder, capsys):
    Path("check.json").write_text("mine")
    assert run(folder, "--out", "check.json") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert Path("check.json").read_text() == "mine"
    assert run(folder, "--out", "check.json", "--overwrite") == 0


@pytest.mark.parametrize(
    "words",
    [["--out", "no/such/folder.json"], ["--out", "."], ["--splits", "gone.tsv"], ["--labels", "-1"], ["--worker", "2"]],
)
def test_bad_words_leave_2_before_anything_is_read(folder, words, capsys):
    assert run(folder, *words) == 2
    assert "read 1" not in capsys.readouterr().err


def test_a_missing_path_leaves_2(folder, capsys):
    assert run(folder / "gone") == 2
    assert "check the path" in capsys.readouterr().err


def test_hostile_names_stay_on_their_line(folder, capsys):
    names = ["a\x1b[31m\nrm -rf_T1w.nii.gz", "$(reboot);'_T1w.nii.gz", "-dash_T1w.nii.gz", "ü\u202e_T1w.nii.gz"]
    for name in names:
        (folder / name).write_bytes(b"broken " + name.encode())
    (folder / b"\xff_T1w.nii.gz".decode("utf-8", "surrogateescape")).write_bytes(b"broken")
    assert run(folder, "--verbose", "--out", "check.json") == 3
    printed = "".join(capsys.readouterr())
    assert not set(printed) & {"\x1b", "\u202e"}
    assert r"a\x1b[31m\nrm" in printed
    told = {f["file"] for f in written()["findings"] if f["code"] == "unreadable"}
    assert set(names) <= told
    assert len(told) == 5


def test_long_lists_are_cut_and_said_so(folder, capsys):
    for n in range(12):
        (folder / f"{n}_T1w.nii.gz").write_bytes(b"%d" % n)
    run(folder)
    assert "and 4 more" in capsys.readouterr().out
    run(folder, "--verbose")
    assert "more (" not in capsys.readouterr().out
