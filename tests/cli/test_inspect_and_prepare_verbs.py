"""The two verbs of the data path, called in this process."""

import argparse
import json
import os
import subprocess

import nibabel
import numpy as np
import pytest

from neurotome.cli import inspect, prepare
from neurotome.data.datasets import dataset_headers
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.store import Store
from neurotome.errors import InputError, UsageError
from tests.data.scans import affine_of, brain_array, header_bytes, write_bids, write_nifti


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


def test_inspect_sees_in_headers_what_stands_in_the_way(tmp_path, capsys):
    root = write_bids(tmp_path, ["1", "2"], shape=(20, 24, 18))
    write_nifti(root / "sub-2/anat/sub-2_T2w.nii.gz", brain_array((40, 40, 5)), affine_of((1.5, 1.5, 6.0)))
    (root / "sub-1/anat/sub-1_T1w.nii.gz").write_bytes(b"no image")
    assert call("inspect", root, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["headers"] == {
        "sessions_looked_at": 2,
        "shapes": {"20 x 24 x 18": 2, "40 x 40 x 5": 1},
        "orientations": {"RAS": 3},
        "finest_edge_mm": 2.25,
        "thick_slices": 1,
        "contrasts_on_different_grids": 1,
        "refused": 1,
    }
    assert result["would_run"].startswith(f"neurotome prepare {root} {root.name}-2.5mm --modalities T1w T2w")
    assert result["would_run"].endswith("--spacing 2.5")
    text = "\n".join(result["notes"])
    for word in ("sub-1_T1w.nii.gz", "different grids (sub-2)", "thick slices", "no brain mask"):
        assert word in text
    assert call("inspect", root, "--headers", 0, "--json") == 0
    assert json.loads(capsys.readouterr().out)["headers"]["sessions_looked_at"] == 0


@pytest.mark.parametrize("name", ["ds", "my data (2)", "-ds", "it's", "a\x1b[31m\nb", "größe"])
def test_the_command_that_inspect_prints_can_be_pasted(tmp_path, monkeypatch, capsys, name):
    root = write_bids(tmp_path / name, ["1", "2", "3"], modalities=("T1w",))
    other = tmp_path / "other folder"
    other.mkdir()
    monkeypatch.chdir(tmp_path)
    given = f"./{name}" if name.startswith("-") else name
    assert call("inspect", given, "--root", other) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.isprintable()
    pasted = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    words = [os.fsdecode(word) for word in pasted.split(b"\0")[:-1]]
    assert words[:3] == ["neurotome", "prepare", given]
    assert words[words.index("--root") + 1] == str(other)
    assert call(*words[1:], "--quiet") == 0
    store = Store.open(tmp_path / words[3])
    assert len(store.sessions) == 3
    assert store.preparation.spacing_mm == 3.0
    assert store.root == root
    # the store is there now: the next command names another
    capsys.readouterr()
    call("inspect", given, "--json")
    assert f" {words[3]}-2 " in json.loads(capsys.readouterr().out)["would_run"]


def test_the_grid_is_fitted_to_the_brains_unless_a_shape_is_given(tmp_path, capsys):
    root = write_bids(tmp_path / "data", ["1", "2", "3"], modalities=("T1w",))
    wide = np.zeros((60, 24, 18), np.float32)
    wide[5:55, 2:22, 3:15] = 40 + np.random.default_rng(0).random((50, 20, 12), np.float32)
    write_nifti(root / "sub-2/anat/sub-2_T1w.nii.gz", wide)
    assert call("prepare", root, tmp_path / "a", "--spacing", 3) == 0
    shown = capsys.readouterr()
    says = "grid 64 x 32 x 16 of 3 mm = 192 x 96 x 48 mm, fitted to the brains; about 0.5 MB for 3 sessions"
    assert says in shown.err
    assert says in shown.out
    assert Store.open(tmp_path / "a").preparation.shape == (64, 32, 16)
    call("prepare", root, tmp_path / "b", "--spacing", 3, "--shape", "auto", "--multiple", 5, "--json", "--quiet")
    result = json.loads(capsys.readouterr().out)
    assert (result["preparation"]["shape"], result["field_mm"]) == ([50, 20, 15], [150.0, 60.0, 45.0])
    assert result["bytes"] == 50 * 20 * 15 * 3 * 5
    # the same command completes the store; a given shape is announced too
    assert call("prepare", root, tmp_path / "a", "--spacing", 3, "--json", "--quiet") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 3
    assert call("prepare", root, tmp_path / "c", "--spacing", 3, "--shape", 56, 24, 16) == 0
    assert "grid 56 x 24 x 16 of 3 mm = 168 x 72 x 48 mm; about" in capsys.readouterr().err


def test_scans_that_do_not_fit_get_one_remedy_and_nothing_blocks_it(tmp_path, capsys):
    root = write_bids(tmp_path / "data", ["1", "2", "3"], modalities=("T1w",))
    small = ("prepare", root, tmp_path / "store", "--spacing", 3, "--quiet", "--shape")
    with pytest.raises(InputError) as error:
        call(*small, 8, 12, 40)
    assert "3 of 3 sessions were left out; nothing was stored. 3 need a larger grid" in str(error.value)
    assert str(error.value).count("Remedy") == 1
    assert error.value.remedy == "give --shape 16 16 40, which holds them all, or leave --shape out"
    assert not (tmp_path / "store").exists()
    assert call(*small, 16, 16, 40) == 0


def test_some_that_do_not_fit(tmp_path, capsys):
    root = write_bids(tmp_path / "data", ["1", "2", "3", "4"], modalities=("T1w",))
    write_nifti(root / "sub-1/anat/sub-1_T1w.nii.gz", brain_array((40, 24, 18)))
    write_nifti(root / "sub-2/anat/sub-2_T1w.nii.gz", brain_array((20, 60, 18)))
    (root / "sub-3/anat/sub-3_T1w.nii.gz").write_bytes(b"no image")
    words = ("prepare", root, tmp_path / "store", "--spacing", 3, "--quiet")
    with pytest.raises(InputError) as error:
        call(*words, "--shape", 20, 24, 16)
    text = str(error.value)
    assert "2 need a larger grid than 20 x 24 x 16 voxels of 3 mm: sub-1 (28 x 16 x 12), sub-2 (14 x 42 x 12) |" in text
    assert "sub-3: " in text
    assert "give --shape 32 48 16, which holds them all, or leave --shape out, with --overwrite" in text
    assert "repair or remove the other sessions" in text
    with pytest.raises(InputError, match="1 of 4 sessions") as error:
        call(*words, "--shape", 32, 48, 16, "--overwrite")
    assert "larger grid" not in str(error.value)
    assert len(Store.open(tmp_path / "store").sessions) == 3


def test_shapes_that_are_none(dataset, tmp_path):
    for words, says in (
        (("--shape", 1, 2), "three positive"),
        (("--shape", "auto", 2, 3), "three whole numbers, or auto"),
        (("--shape", "automatic"), "three whole numbers, or auto"),
        (("--shape", 0, 2, 3), "three positive"),
        (("--shape", 16, 16, 16, "--multiple", 8), "a shape is given"),
        (("--preset", "neuroquant", "--multiple", 8), "a shape is given"),
    ):
        with pytest.raises(UsageError, match=says):
            call("prepare", dataset, tmp_path / "store", *words)
    assert not (tmp_path / "store").exists()


def test_inspect_tells_splits_that_the_dataset_fixes(tmp_path, capsys):
    for name in ("a", "b", "c", "d"):
        write_nifti(tmp_path / f"{name}_T1w.nii", brain_array())
    rows = "".join(
        f"{n}\tT1w\t{n}_T1w.nii\t{s}\n" for n, s in zip("abcd", ("test", "test", "train", "val"), strict=True)
    )
    (tmp_path / "t.tsv").write_text("participant_id\tmodality\tpath\tsplit\n" + rows)
    assert call("inspect", tmp_path / "t.tsv", "--json") == 0
    assert json.loads(capsys.readouterr().out)["would_split"] == {"train": 1, "val": 1, "test": 2}


def test_of_a_long_table_few_headers_are_read(tmp_path, capsys, monkeypatch):
    header = header_bytes(brain_array((4, 4, 4)))
    rows = []
    for n in range(2_500):
        folder = tmp_path / f"sub-{n // 4:04d}"
        if n % 4 == 0:
            folder.mkdir()
        name = f"sub-{n // 4:04d}/{('T1w', 'T2w', 'FLAIR', 'PDw')[n % 4]}.nii"
        (tmp_path / name).write_bytes(header)
        rows.append(f"{n // 4:04d}\t1\t{('T1w', 'T2w', 'FLAIR', 'PDw')[n % 4]}\t{name}\ta")
    (tmp_path / "m.tsv").write_text("participant_id\tsession_id\tmodality\tpath\tsite\n" + "\n".join(rows))
    read = []
    header_of = dataset_headers.read_header
    monkeypatch.setattr(dataset_headers, "read_header", lambda path, **how: read.append(path) or header_of(path, **how))
    assert call("inspect", tmp_path / "m.tsv", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["sessions"], result["headers"]["sessions_looked_at"], len(read)) == (625, 64, 256)
    assert result["headers"]["refused"] == 0
    # spread over the table, first and last included
    assert {read[0].parent.name, read[-1].parent.name} == {"sub-0000", "sub-0624"}


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


def test_a_flag_overrides_a_preset(dataset, tmp_path, capsys):
    words = ("--spacing", 3, "--shape", 24, 26, 20, "--clip", 4, "--json")
    call("prepare", dataset, tmp_path / "a", "--preset", "adni-2mm", *words)
    result = json.loads(capsys.readouterr().out)
    assert result["preparation"] == {
        "spacing_mm": 3.0, "shape": [24, 26, 20], "percentiles": [0.5, 99.5], "mask_threshold": 50.0, "version": 1,
        "crop": "centre", "intensity": "zscore", "clip": 4.0,
    }  # fmt: skip
    call("prepare", dataset, tmp_path / "b", "--preset", "neuroquant", "--shape", 60, 72, 56, "--quiet", "--json")
    result = json.loads(capsys.readouterr().out)
    assert (result["preparation"]["spacing_mm"], result["preparation"]["shape"]) == (1.0, [60, 72, 56])
    assert "crop" not in result["preparation"]


def test_flags_reach_the_preparation_and_the_store_remembers_them(dataset, tmp_path, capsys):
    words = ("--spacing", 3, 3, 6, "--shape", 20, 24, 10, "--intensity", "minmax", "--background", -0.5, "--json")
    call("prepare", dataset, tmp_path / "store", *words)
    store = Store.open(tmp_path / "store")
    assert store.preparation == Preparation((3.0, 3.0, 6.0), (20, 24, 10), intensity="minmax", background=-0.5)
    assert store.load(store.sessions[0]).image.min() == -1.0
    assert "minmax" in json.dumps(json.loads(capsys.readouterr().out)["preparation"])


def test_a_table_leads_to_another_folder_only_where_it_is_admitted(tmp_path, capsys):
    for n in range(3):
        write_nifti(tmp_path / f"scans/{n}.nii.gz", brain_array(seed=n))
    (tmp_path / "lists").mkdir()
    lines = ["participant_id\tmodality\tpath", *(f"{n}\tT1w\t../scans/{n}.nii.gz" for n in range(3))]
    table = tmp_path / "lists/t.tsv"
    table.write_text("\n".join(lines) + "\n")
    grid = ("--spacing", 3, "--shape", 20, 24, 16, "--quiet")
    with pytest.raises(InputError, match="line 2, column path"):
        call("prepare", table, tmp_path / "store", *grid)
    assert call("prepare", table, tmp_path / "store", *grid, "--root", tmp_path / "scans") == 0
    store = Store.open(tmp_path / "store")
    entry = store.sessions[0]
    assert entry.sources == {"T1w": "../scans/0.nii.gz"}
    (tmp_path / "store" / entry.file).write_bytes(b"")
    assert store.load(entry).present.all()  # rebuilt from there


def test_how_ambiguous_files_are_read_is_said_by_flags(tmp_path, capsys):
    root = write_bids(tmp_path / "data", ["0", "1", "2"], modalities=("T1w",))
    write_nifti(root / "sub-1/anat/sub-1_T1w.nii.gz", np.stack([brain_array(), brain_array()], axis=-1))
    image = nibabel.load(root / "sub-2/anat/sub-2_T1w.nii.gz")
    image.set_qform(affine_of(origin=(9.0, 0.0, 0.0)), code=1, update_affine=False)  # three voxels from the matrix
    nibabel.save(image, root / "sub-2/anat/sub-2_T1w.nii.gz")
    flags = ("--volume", 1, "--use-qform")
    assert call("inspect", root, "--json") == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert ["--volume K" in n or "--use-qform" in n for n in notes if n.startswith("refused")] == [True, True]
    assert call("inspect", root, "--json", *flags) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["headers"]["refused"] == 0
    assert result["would_run"].endswith("--volume 1 --use-qform")
    with pytest.raises(InputError, match="a series of 2 volumes"):
        call("inspect", root / "sub-1/anat/sub-1_T1w.nii.gz")
    assert call("inspect", root / "sub-1/anat/sub-1_T1w.nii.gz", "--volume", 1) == 0
    grid = ("--spacing", 3, "--shape", 20, 24, 16, "--quiet")
    with pytest.raises(InputError, match="2 of 3 sessions"):
        call("prepare", root, tmp_path / "a", *grid)
    assert call("prepare", root, tmp_path / "b", *grid, *flags) == 0
    preparation = Store.open(tmp_path / "b").preparation
    assert (preparation.volume, preparation.use_qform) == (1, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--clip", 3), "only zscore is clipped"),
        (("--preset", "adni-2mm", "--percentiles", 1, 99), "percentiles are"),
        (("--spacing", 1, 2), "spacing_mm has 2 numbers"),
        (("--splits", "x", "--split-sizes", 1, 0, 0), "--splits and --split-sizes"),
    ],
)
def test_flags_that_contradict_each_other(dataset, tmp_path, monkeypatch, words, says):
    (tmp_path / "x").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says):
        call("prepare", dataset, tmp_path / "store", *words)
    assert not (tmp_path / "store").exists()


def test_what_needs_a_package_is_refused_before_anything_is_made(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("neurotome.data.preparation.extras.SIMPLEITK", "a_package_that_is_not_there")
    for words in (("--register",), ("--bias-field", "n4")):
        with pytest.raises(UsageError, match=r"`pip install"):
            call("prepare", dataset, tmp_path / "store", *words)
    assert not (tmp_path / "store").exists()


def test_prepare_stores_the_good_and_fails_for_the_bad(tmp_path, capsys):
    root = write_bids(tmp_path / "data", ["1", "2", "3"])
    (root / "sub-2/anat/sub-2_T2w.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1 of 3 sessions.*sub-2_T2w\.nii\.gz") as error:
        call("prepare", root, tmp_path / "store", "--spacing", 3, "--shape", 20, 24, 16, "--quiet")
    assert error.value.exit_code == 3
    assert "2 sessions" in capsys.readouterr().out
    assert (tmp_path / "store" / "index.json").exists()


def test_one_damaged_sidecar_costs_its_session_alone(tmp_path, capsys):
    root = write_bids(tmp_path / "data", ["1", "2", "3"])
    (root / "sub-2/anat/sub-2_T2w.json").symlink_to(".git/annex/objects/K.json")
    assert call("inspect", root) == 0
    streams = capsys.readouterr()
    assert streams.err.count("sub-2_T2w.json") == 1
    assert "sub-2_T2w.json" not in streams.out
    grid = ("--spacing", 3, "--shape", 20, 24, 16, "--quiet")
    with pytest.raises(InputError, match=r"1 of 3 sessions.*sub-2_T2w\.json.*datalad get"):
        call("prepare", root, tmp_path / "store", *grid)
    assert call("prepare", root, tmp_path / "t1", *grid, "--modalities", "T1w") == 0


def test_contrasts_that_are_misspelt_or_absent_are_named(tmp_path, capsys):
    root = write_bids(tmp_path / "data", ["1", "2", "3"])
    grid = ("--spacing", 3, "--shape", 20, 24, 16)
    with pytest.raises(UsageError, match=r"unknown modality 'T11w'.*did you mean T1w\?"):
        call("prepare", root, tmp_path / "store", *grid, "--modalities", "T11w")
    assert not (tmp_path / "store").exists()
    assert call("prepare", root, tmp_path / "store", *grid, "--modalities", "T1w", "FLAIR") == 0
    assert "no scan is FLAIR" in capsys.readouterr().err
    assert Store.open(tmp_path / "store").modalities == ("T1w", "FLAIR")


def test_prepare_says_that_nothing_is_paired(tmp_path, capsys):
    for name in ("a_T1.nii", "b_T2.nii", "c_T1.nii"):
        write_nifti(tmp_path / "data" / name, brain_array())
    assert call("prepare", tmp_path / "data", tmp_path / "store", "--spacing", 3, "--shape", 20, 24, 16) == 0
    assert "no session has more than one contrast" in capsys.readouterr().err


def test_a_brain_smaller_than_a_voxel_is_refused_with_the_units(tmp_path):
    root = write_bids(tmp_path / "data", ["1"], ("T1w",))
    write_nifti(root / "sub-1/anat/sub-1_T1w.nii.gz", brain_array(), xyzt_units=3)  # micron
    with pytest.raises(InputError, match=r"the brain is 0\.0\d+ mm across, less than a voxel of 3 mm.*units"):
        call("prepare", root, tmp_path / "store", "--spacing", 3, "--shape", 20, 24, 16, "--quiet")


def test_wrong_use(dataset, tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        call("inspect", tmp_path / "none")
    with pytest.raises(UsageError, match="spacing_mm"):
        call("prepare", dataset, tmp_path / "store", "--spacing", -1)
    with pytest.raises(UsageError, match="splits table"):
        call("prepare", dataset, tmp_path / "store", "--splits", tmp_path / "none.tsv")
    assert not (tmp_path / "store").exists()
