"""The two verbs of the data path, called in this process."""

import argparse
import json

import pytest
from scans import brain_array, write_bids, write_nifti

from neurotome.cli import inspect, prepare
from neurotome.errors import InputError, UsageError


def call(*words):
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(dest="verb")
    inspect.add_parser(subparsers)
    prepare.add_parser(subparsers)
    args = parser.parse_args([str(w) for w in words])
    return {"inspect": inspect, "prepare": prepare}[args.verb].run(args)


def test_inspect_says_what_was_found_and_what_would_be_done(dataset, prepared, capsys):
    assert call("inspect", dataset) == 0
    text = capsys.readouterr().out
    assert "T1w 12, T2w 12" in text
    assert "train 8, val 2, test 2" in text
    assert call("inspect", dataset, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["found"][0]["scans"]["T1w"] == "sub-00/anat/sub-00_T1w.nii.gz"
    assert result["sites"] == ["a", "b"]
    assert call("inspect", prepared.path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == prepared.fingerprint
    assert call("inspect", dataset / "sub-00/anat/sub-00_T1w.nii.gz", "--json") == 0
    image = json.loads(capsys.readouterr().out)
    assert (image["modality"], image["shape"], image["spacing_mm"]) == (["T1w"], [20, 24, 18], [3.0, 3.0, 3.0])


def test_inspect_escapes_hostile_ids(tmp_path, capsys):
    write_nifti(tmp_path / "x\x1b[31m_T1w.nii.gz", brain_array())
    call("inspect", tmp_path)
    assert "\x1b" not in capsys.readouterr().out


def test_prepare_writes_a_store_and_says_so(dataset, tmp_path, capsys):
    words = (
        "prepare",
        dataset,
        tmp_path / "store",
        "--spacing",
        3,
        "--shape",
        20,
        24,
        16,
        "--modalities",
        "t1",
        "--json",
    )
    assert call(*words) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["built"], result["failed"], result["modalities"]) == (12, [], ["T1w"])
    assert result["subjects"] == {"train": 8, "val": 2, "test": 2}
    assert call(*words) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 12


def test_prepare_stores_the_good_and_fails_for_the_bad(tmp_path, capsys):
    root = write_bids(tmp_path / "data", ["1", "2", "3"])
    (root / "sub-2/anat/sub-2_T2w.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1 of 3 sessions.*sub-2_T2w\.nii\.gz") as error:
        call("prepare", root, tmp_path / "store", "--spacing", 3, "--shape", 20, 24, 16, "--quiet")
    assert error.value.exit_code == 3
    assert "2 sessions" in capsys.readouterr().out
    assert (tmp_path / "store" / "index.json").exists()


def test_wrong_use(dataset, tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        call("inspect", tmp_path / "none")
    with pytest.raises(UsageError, match="spacing_mm"):
        call("prepare", dataset, tmp_path / "store", "--spacing", -1)
    with pytest.raises(UsageError, match="splits table"):
        call("prepare", dataset, tmp_path / "store", "--splits", tmp_path / "none.tsv")
    assert not (tmp_path / "store").exists()
