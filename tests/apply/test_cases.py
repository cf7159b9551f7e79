import os
import shutil
from pathlib import Path

import pytest

from neurotome.apply.cases import Plan, check_folder, plan_file, plan_folder, plan_latents
from neurotome.errors import OutputError, UsageError
from tests.toy import bids, brain

ENDINGS = (".nii.gz", ".nii")


def same(modality: str) -> tuple[str, str]:
    return "recon", modality


def plan(source: Path, target: Path, known: tuple[str, ...] = ("T1w", "T2w"), **changes: object) -> Plan:
    words: dict = {"modality": None, "new_ending": ".nii.gz"} | changes
    return plan_folder(source, target, known, words.pop("describe", same), **words)


def places(found: Plan, target: Path) -> list[str]:
    return [job.target.relative_to(target).as_posix() for job in found.jobs]


def test_a_good_pair_of_files_is_accepted(tmp_path: Path) -> None:
    brain().save(tmp_path / "sub-1_T1w.nii.gz")
    job = plan_file(tmp_path / "sub-1_T1w.nii.gz", tmp_path / "new" / "out.nii", endings=ENDINGS)
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
        ("folder.nii.gz", "is a folder"),
        ("o/../scan.nii", "sidecar would replace"),
        ("there.nii.gz/out.nii.gz", "not a folder"),
    ],
)
def test_targets_that_are_refused(tmp_path: Path, target: str, text: str) -> None:
    source = tmp_path / ("scan.nii.gz" if text.startswith("sidecar") else "sub-1_T1w.nii.gz")
    brain().save(source)
    before = source.read_bytes(), source.stat().st_mtime_ns
    (tmp_path / "link.nii.gz").symlink_to(source)
    (tmp_path / "there.nii.gz").touch()
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "o").mkdir()
    with pytest.raises(UsageError, match=text):
        plan_file(source, tmp_path / target, endings=ENDINGS)
    assert (source.read_bytes(), source.stat().st_mtime_ns) == before


@pytest.mark.parametrize(
    ("source", "target", "endings", "description", "advised"),
    [
        ("sub-1_T1w.nii.gz", "sub-1_T1w.safetensors", (".safetensors",), "latent", "sub-1_desc-latent_T1w.safetensors"),
        ("sub-1_T1w.nii.gz", "sub-1_T1w.nii", (".safetensors",), "latent", "sub-1_desc-latent_T1w.safetensors"),
        ("sub-1_T1w.nii.gz", "o/sub-1_T1w.nii.gz", ENDINGS, "recon", "sub-1_desc-recon_T1w.nii.gz"),
        ("sub-1_T1w.nii.gz", "sub-1_T2w.nii", ENDINGS, "synth", "sub-1_desc-synth_T2w.nii"),
        ("sub-1_desc-latent_T1w.safetensors", "sub-1_T2w.safetensors", ENDINGS, "recon", "sub-1_desc-recon_T2w.nii.gz"),
    ],
)
def test_a_name_that_is_advised_is_one_that_is_taken(
    tmp_path: Path, source: str, target: str, endings: tuple[str, ...], description: str, advised: str
) -> None:
    (tmp_path / source).touch()
    with pytest.raises(UsageError, match=f"for example {advised}$"):
        plan_file(tmp_path / source, tmp_path / target, endings=endings, description=description)
    assert plan_file(tmp_path / source, tmp_path / advised, endings=endings, description=description).target


def test_the_source_is_never_a_target(tmp_path: Path) -> None:
    source = tmp_path / "scan.nii.gz"
    brain().save(source)
    os.link(source, tmp_path / "hard.nii.gz")
    for name in ("scan.nii.gz", "hard.nii.gz"):
        with pytest.raises(UsageError, match="same file"):
            plan_file(source, tmp_path / name, endings=ENDINGS)
    with pytest.raises(UsageError, match="no such file"):
        plan_file(tmp_path / "none.nii.gz", tmp_path / "out.nii.gz", endings=ENDINGS)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "raw"
    (source / "sub-1").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for target, text in (
        ("raw", "is inside or equal to"),
        ("raw/out", "is inside or equal to"),
        (".", "is inside or equal to"),
        ("full/x", "is a file"),
    ):
        with pytest.raises(UsageError, match=text):
            check_folder(source, tmp_path / target)
    check_folder(source, tmp_path / "full")
    check_folder(source, tmp_path / "raw/derivatives/neurotome")


def test_a_read_only_output_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brain().save(tmp_path / "a_T1w.nii.gz")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a superuser may write anywhere
    with pytest.raises(OutputError, match=r"cannot be written to\. Remedy"):
        plan_file(tmp_path / "a_T1w.nii.gz", tmp_path / "deep" / "o.nii.gz", endings=ENDINGS)


def test_a_bids_folder_becomes_a_derivative(tmp_path: Path) -> None:
    raw, out = bids(tmp_path / "raw", subjects=2), tmp_path / "out"
    masks = raw / "derivatives" / "strip" / "sub-00" / "anat"
    masks.mkdir(parents=True)
    brain().save(masks / "sub-00_desc-brain_mask.nii.gz")
    found = plan(raw, out, ("T1w",), describe=lambda m: (f"synthFrom{m}", "T1c"))
    place = "sub-00/anat/sub-00_ce-gadolinium_desc-synthFromT1w_T1w.nii.gz"
    assert places(found, out) == [place, place.replace("00", "01")]
    assert [j.mask is not None for j in found.jobs] == [True, False]
    assert [j.origin for j in found.jobs] == [f"bids:raw:sub-0{i}/anat/sub-0{i}_T1w.nii.gz" for i in (0, 1)]
    assert found.jobs[0].mask_origin == "bids:raw:derivatives/strip/sub-00/anat/sub-00_desc-brain_mask.nii.gz"
    assert {j.modality for j in found.jobs} == {"T1w"}
    assert any("2 scans are T2w" in note for note in found.notes)
    with pytest.raises(UsageError, match="no scan of FLAIR"):
        plan(raw, out, ("T1w",), modality="FLAIR")


def test_every_run_of_every_session_gets_a_result_of_its_own(tmp_path: Path) -> None:
    names = [
        f"sub-1/ses-{s}/anat/sub-1_ses-{s}{acq}{run}_T1w.nii.gz"
        for s in (1, 2) for acq in ("", "_acq-hi") for run in ("_run-1", "_run-2")
    ]  # fmt: skip
    for name in names:
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = plan(tmp_path / "raw", tmp_path / "out")
    assert sorted(places(found, tmp_path / "out")) == sorted(n.replace("_T1w", "_desc-recon_T1w") for n in names)
    assert not found.refused


def test_two_results_never_share_a_name(tmp_path: Path) -> None:
    anat = tmp_path / "raw" / "sub-1" / "anat"
    anat.mkdir(parents=True)
    for name in ("sub-1_T1w.nii.gz", "sub-1_T1w.nii", "sub-1_run-1_T1w.nii.gz"):
        (anat / name).touch()
    found = plan(tmp_path / "raw", tmp_path / "out")
    assert [job.source.name for job in found.jobs] == ["sub-1_run-1_T1w.nii.gz"]
    assert sorted(error.file.name for error in found.refused) == ["sub-1_T1w.nii", "sub-1_T1w.nii.gz"]
    assert "2 results would share the name" in str(found.refused[0])


@pytest.mark.parametrize(
    "names",
    [
        ("a\u00e9_t1.nii.gz", "ae\u0301_t1.nii.gz"),
        ("p1_t1.nii.gz", "P1_t1.nii.gz"),
        ("P1/scan_t1.nii.gz", "p1/scan_t1.nii.gz"),
        ("stra\u00dfe_t1.nii.gz", "STRASSE_t1.nii.gz"),
    ],
)
def test_names_that_are_one_to_some_systems_and_two_to_others_are_refused(tmp_path: Path, names: tuple) -> None:
    """They differ in the composition of letters or in case."""
    for name in (*names, "other_t1.nii.gz"):
        path = tmp_path / "plain" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = plan(tmp_path / "plain", tmp_path / "out")
    assert [job.source.name for job in found.jobs] == ["other_t1.nii.gz"]
    assert len(found.refused) == 2


def test_a_link_does_not_lead_out_of_the_output(tmp_path: Path) -> None:
    raw, out = bids(tmp_path / "raw", subjects=2), tmp_path / "out"
    out.mkdir()
    (out / "sub-00").symlink_to(raw / "sub-00")
    found = plan(raw, out, ("T1w",))
    assert [job.source.name for job in found.jobs] == ["sub-01_T1w.nii.gz"]
    assert "link out of the output folder" in str(found.refused[0])


def test_a_full_disk_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = bids(tmp_path / "raw", subjects=2)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match=r"the results need about .* 0 MB are free"):
        plan(raw, tmp_path / "out")
    with pytest.raises(OutputError, match="free some space"):
        plan_file(raw / "sub-00/anat/sub-00_T1w.nii.gz", tmp_path / "o.nii.gz", endings=ENDINGS)
    assert not (tmp_path / "out").exists()


def test_a_plain_folder_keeps_its_names(tmp_path: Path) -> None:
    (tmp_path / "raw" / "deep").mkdir(parents=True)
    brain().save(tmp_path / "raw" / "deep" / "p1_t1.nii.gz")
    brain().save(tmp_path / "raw" / "deep" / "default_modality.nii.gz")
    found = plan(tmp_path / "raw", tmp_path / "out")
    assert places(found, tmp_path / "out") == ["deep/p1_t1_desc-recon.nii.gz"]
    assert found.jobs[0].origin == "p1_t1.nii.gz"
    assert any("guessed from the names (1 T1w)" in note for note in found.notes)
    assert any("left out deep/default_modality.nii.gz" in note for note in found.notes)
    found = plan(tmp_path / "raw", tmp_path / "out", modality="T1w")
    assert len(found.jobs) == 2


def test_a_table_names_what_is_read_and_where_it_may_lie(tmp_path: Path) -> None:
    for name in ("in/a.nii.gz", "other/b.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        brain().save(tmp_path / name)
    lines = ["participant_id\tmodality\tpath", "a\tT1w\ta.nii.gz", f"b\tT2w\t{tmp_path / 'other' / 'b.nii.gz'}"]
    (tmp_path / "in" / "scans.tsv").write_text("\n".join(lines))
    found = plan(tmp_path / "in" / "scans.tsv", tmp_path / "out", roots=[tmp_path / "other"])
    assert places(found, tmp_path / "out") == ["a_desc-recon.nii.gz", "b_desc-recon.nii.gz"]
    assert [job.modality for job in found.jobs] == ["T1w", "T2w"]


def test_latents_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "lat" / "sub-1").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds no latent"):
        plan_latents(tmp_path / "lat", tmp_path / "out", None)
    (tmp_path / "lat" / "sub-1" / "sub-1_desc-latent_T1w.safetensors").touch()
    (tmp_path / "secret.safetensors").touch()
    (tmp_path / "lat" / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    found = plan_latents(tmp_path / "lat", tmp_path / "out", "T2w")
    assert places(found, tmp_path / "out") == ["sub-1/sub-1_desc-synth_T2w.nii.gz"]
    assert "link out of" in found.notes[0]
