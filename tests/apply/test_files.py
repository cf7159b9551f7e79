import json
import os
from pathlib import Path

import pytest
from toy import bids, brain, names

from neurotome.apply import files
from neurotome.apply.files import (
    check_folder,
    modality_of,
    plan_file,
    plan_folder,
    plan_latents,
    target_name,
    write_description,
    write_result,
)
from neurotome.errors import InputError, OutputError, UsageError

ENDINGS = (".nii.gz", ".nii")


@pytest.mark.parametrize(
    ("name", "sidecar", "given", "expected"),
    [
        ("sub-1_T1w.nii.gz", None, None, "T1w"),
        ("sub-1_ce-gadolinium_T1w.nii.gz", None, None, "T1c"),
        ("sub-1_T1w.nii.gz", {"SeriesDescription": "t2 tse"}, None, "T1w"),  # a BIDS name decides alone
        ("sub-1_T1w.nii.gz", None, "t2", "T2w"),
        ("scan.nii.gz", {"Modality": "FLAIR"}, None, "FLAIR"),
        ("scan.nii.gz", {"Modality": "MR", "SeriesDescription": "AX T2/TSE 3.5mm"}, None, "T2w"),
        ("scan.nii.gz", {"ProtocolName": "mprage"}, None, "T1w"),
        ("IXI012-HH-T1.nii.gz", None, None, "T1w"),
    ],
)
def test_the_contrast_is_told_by_flag_name_or_sidecar(
    tmp_path: Path, name: str, sidecar: dict | None, given: str | None, expected: str
) -> None:
    if sidecar is not None:
        (tmp_path / name.replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))
    assert modality_of(tmp_path / name, given) == expected


@pytest.mark.parametrize(
    ("name", "sidecar", "given", "text"),
    [
        ("scan.nii.gz", None, None, "names no contrast"),
        ("a_T1_T2.nii.gz", None, None, "could be T1w or T2w"),
        ("scan.nii.gz", {"SeriesDescription": "t1 and flair"}, None, "could be T1w or FLAIR"),
        ("scan.nii.gz", None, "T1x", "did you mean"),
    ],
)
def test_no_or_two_contrasts_are_refused(
    tmp_path: Path, name: str, sidecar: dict | None, given: str | None, text: str
) -> None:
    if sidecar is not None:
        (tmp_path / "scan.json").write_text(json.dumps(sidecar))
    with pytest.raises(UsageError, match=text):
        modality_of(tmp_path / name, given)


def test_a_broken_sidecar_is_named_when_it_is_needed(tmp_path: Path) -> None:
    for content in ("{", "[1]"):
        (tmp_path / "scan.json").write_text(content)
        with pytest.raises(InputError, match=r"scan\.json"):
            modality_of(tmp_path / "scan.nii.gz")
        assert modality_of(tmp_path / "scan.nii.gz", "T1w") == "T1w"


@pytest.mark.parametrize(
    ("source", "description", "modality", "ending", "expected"),
    [
        ("sub-1_T1w.nii.gz", "recon", None, None, "sub-1_desc-recon_T1w.nii.gz"),
        ("sub-1_ses-2_acq-x_T1w.nii", "synth", "T2w", None, "sub-1_ses-2_acq-x_desc-synth_T2w.nii"),
        ("sub-1_ce-gadolinium_T1w.mgz", "synth", "T2w", None, "sub-1_desc-synth_T2w.nii.gz"),
        ("sub-1_T2w.nii.gz", "synth", "T1c", None, "sub-1_ce-gadolinium_desc-synth_T1w.nii.gz"),
        ("sub-1_desc-latent_T1w.safetensors", "recon", None, ".nii.gz", "sub-1_desc-recon_T1w.nii.gz"),
        ("IXI.T1.nii.gz", "synth", "T2w", None, "IXI.T1_desc-synth_T2w.nii.gz"),
        ("IXI.T1.nii.gz", "latent", None, ".safetensors", "IXI.T1_desc-latent.safetensors"),
    ],
)
def test_names_of_results(
    source: str, description: str, modality: str | None, ending: str | None, expected: str
) -> None:
    assert target_name(Path(source), description, modality, ending) == expected


def test_a_good_pair_of_files_is_accepted(tmp_path: Path) -> None:
    brain().save(tmp_path / "sub-1_T1w.nii.gz")
    job = plan_file(tmp_path / "sub-1_T1w.nii.gz", tmp_path / "new" / "out.nii", overwrite=False, endings=ENDINGS)
    assert job.target == tmp_path / "new" / "out.nii"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("sub-1_T1w.nii.gz", "same file"),
        ("link.nii.gz", "same file"),
        ("o/sub-1_T1w.nii.gz", "name of its source"),
        ("sub-1_T2w.nii.gz", "reads as a raw scan"),
        ("out.mgz", "written as"),
        ("out", "written as"),
        ("there.nii.gz", "--overwrite"),
        ("side.nii.gz", r"side\.json: is there already"),
        ("folder.nii.gz", "--overwrite"),
        ("there.nii.gz/out.nii.gz", "not a folder"),
    ],
)
def test_targets_that_are_refused(tmp_path: Path, target: str, text: str) -> None:
    source = tmp_path / "sub-1_T1w.nii.gz"
    brain().save(source)
    before = source.read_bytes(), source.stat().st_mtime_ns
    (tmp_path / "link.nii.gz").symlink_to(source)
    (tmp_path / "there.nii.gz").touch()
    (tmp_path / "side.json").touch()
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "o").mkdir()
    with pytest.raises(UsageError, match=text):
        plan_file(source, tmp_path / target, overwrite=False, endings=ENDINGS)
    assert (source.read_bytes(), source.stat().st_mtime_ns) == before


def test_the_source_is_never_a_target_even_with_overwrite(tmp_path: Path) -> None:
    source = tmp_path / "scan.nii.gz"
    brain().save(source)
    os.link(source, tmp_path / "hard.nii.gz")
    for name in ("scan.nii.gz", "hard.nii.gz"):
        with pytest.raises(UsageError, match="same file"):
            plan_file(source, tmp_path / name, overwrite=True, endings=ENDINGS)
    with pytest.raises(UsageError, match="no such file"):
        plan_file(tmp_path / "none.nii.gz", tmp_path / "out.nii.gz", overwrite=True, endings=ENDINGS)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "raw"
    (source / "sub-1").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for target, text in (
        ("raw", "lies over"),
        ("raw/out", "lies over"),
        (".", "lies over"),
        ("full", "not empty"),
        ("full/x", "is a file"),
    ):
        with pytest.raises(UsageError, match=text):
            check_folder(source, tmp_path / target, overwrite=False)
    for target in ("raw", "raw/out", "."):
        with pytest.raises(UsageError, match="lies over"):
            check_folder(source, tmp_path / target, overwrite=True)
    check_folder(source, tmp_path / "full", overwrite=True)
    check_folder(source, tmp_path / "raw/derivatives/neurotome", overwrite=False)


def test_a_read_only_output_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brain().save(tmp_path / "a_T1w.nii.gz")
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)  # a superuser may write anywhere
    with pytest.raises(OutputError, match=r"cannot be written to\. Remedy"):
        plan_file(tmp_path / "a_T1w.nii.gz", tmp_path / "deep" / "o.nii.gz", overwrite=False, endings=ENDINGS)


def test_a_result_and_its_sidecar_appear_together(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a_desc-recon.nii.gz"
    write_result(target, lambda path: brain().save(path), {"Synthetic": True})
    assert names(target.parent) == ["a_desc-recon.json", "a_desc-recon.nii.gz"]
    assert json.loads((tmp_path / "new" / "a_desc-recon.json").read_text()) == {"Synthetic": True}


@pytest.mark.parametrize("where", ["image", "sidecar", "rename"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(*_: object) -> None:
        raise OutputError("the disk is full")

    def save(path: Path) -> None:
        path.write_bytes(b"half")
        if where == "image":
            full()

    if where == "sidecar":
        monkeypatch.setattr(files, "write_atomically", full)
    if where == "rename":
        real = Path.replace
        monkeypatch.setattr(Path, "replace", lambda old, new: full() if new.name == "a.nii.gz" else real(old, new))
    with pytest.raises(OutputError):
        write_result(tmp_path / "o" / "a.nii.gz", save, {})
    assert names(tmp_path / "o") == []


def test_a_long_name_is_written(tmp_path: Path) -> None:
    name = "s" * 240 + "_x.nii.gz"
    write_result(tmp_path / name, lambda path: brain().save(path), {})
    assert (tmp_path / name).exists()


def test_a_bids_folder_becomes_a_derivative(tmp_path: Path) -> None:
    raw = bids(tmp_path / "raw", subjects=2)
    masks = raw / "derivatives" / "strip" / "sub-00" / "anat"
    masks.mkdir(parents=True)
    brain().save(masks / "sub-00_desc-brain_mask.nii.gz")
    jobs, notes = plan_folder(
        raw,
        tmp_path / "out",
        ["T1w"],
        lambda m: (f"synthFrom{m}", "T1c"),
        modality=None,
        new_ending=".nii.gz",
        overwrite=False,
    )
    place = "sub-00/anat/sub-00_ce-gadolinium_desc-synthFromT1w_T1w.nii.gz"
    assert [j.target.relative_to(tmp_path / "out").as_posix() for j in jobs] == [place, place.replace("00", "01")]
    assert [j.mask is not None for j in jobs] == [True, False]
    assert {j.modality for j in jobs} == {"T1w"}
    assert any("2 scans are T2w" in note for note in notes)
    with pytest.raises(UsageError, match="no scan of FLAIR"):
        plan_folder(
            raw, tmp_path / "out", ["T1w"], lambda m: ("x", m), modality="FLAIR", new_ending=".nii", overwrite=False
        )


def test_a_plain_folder_keeps_its_names(tmp_path: Path) -> None:
    (tmp_path / "raw" / "deep").mkdir(parents=True)
    brain().save(tmp_path / "raw" / "deep" / "p1_t1.nii.gz")
    jobs, _ = plan_folder(
        tmp_path / "raw",
        tmp_path / "out",
        ["T1w"],
        lambda m: ("recon", m),
        modality="T1w",
        new_ending=".nii.gz",
        overwrite=False,
    )
    assert jobs[0].target == tmp_path / "out" / "deep" / "p1_t1_desc-recon.nii.gz"


def test_latents_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "lat" / "sub-1").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds no latent"):
        plan_latents(tmp_path / "lat", tmp_path / "out", None, overwrite=False)
    (tmp_path / "lat" / "sub-1" / "sub-1_desc-latent_T1w.safetensors").touch()
    (job,) = plan_latents(tmp_path / "lat", tmp_path / "out", "T2w", overwrite=False)
    assert job.target == tmp_path / "out" / "sub-1" / "sub-1_desc-synth_T2w.nii.gz"


def test_the_description_names_no_place(tmp_path: Path) -> None:
    write_description(tmp_path / "out", "neurotome translate")
    content = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert content["DatasetType"] == "derivative"
    assert str(tmp_path) not in json.dumps(content)
