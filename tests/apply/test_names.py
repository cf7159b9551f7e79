import hashlib
import json
from pathlib import Path

import pytest

from neurotome.apply import names as files
from neurotome.apply.names import modality_of, target_name, write_result
from neurotome.errors import InputError, OutputError, UsageError
from tests.toy import brain, names


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
def test_the_contrast_comes_from_flag_name_or_sidecar(
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
        ("sub-1_acq-mprage_T1map.nii.gz", {"SeriesDescription": "t1 mprage"}, None, "no scan of T1w"),
        ("sub-1_mod-T1w_defacemask.nii.gz", None, None, "no scan of T1w"),
        ("patient_T1_pve_1.nii.gz", None, None, "no scan of T1w"),
    ],
)
def test_no_or_two_contrasts_are_refused(
    tmp_path: Path, name: str, sidecar: dict | None, given: str | None, text: str
) -> None:
    if sidecar is not None:
        (tmp_path / name.replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))
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
        ("sub-1_rec-a_run-2_T2w.nii.gz", "synth", "T1c", None, "sub-1_ce-gadolinium_rec-a_run-2_desc-synth_T1w.nii.gz"),
        ("sub-1_run-2_space-MNI_desc-x_T1w.nii", "recon", None, None, "sub-1_run-2_space-MNI_desc-recon_T1w.nii"),
        ("sub-1_desc-latent_T1w.safetensors", "recon", None, ".nii.gz", "sub-1_desc-recon_T1w.nii.gz"),
        ("IXI.T1.nii.gz", "synth", "T2w", None, "IXI.T1_desc-synth_T2w.nii.gz"),
        ("IXI.T1.nii.gz", "latent", None, ".safetensors", "IXI.T1_desc-latent.safetensors"),
    ],
)
def test_names_of_results(
    source: str, description: str, modality: str | None, ending: str | None, expected: str
) -> None:
    assert target_name(Path(source), description, modality, ending) == expected


def test_a_result_and_its_sidecar_appear_together(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a_desc-recon.nii.gz"
    write_result(target, lambda path: brain().save(path), {"Synthetic": True})
    assert names(target.parent) == ["a_desc-recon.json", "a_desc-recon.nii.gz"]
    sha256 = hashlib.sha256(target.read_bytes()).hexdigest()
    assert json.loads((tmp_path / "new" / "a_desc-recon.json").read_text()) == {
        "Synthetic": True,
        "ResultSHA256": sha256,
    }


@pytest.mark.parametrize("where", ["image", "sidecar", "rename"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(*_: object) -> None:
        raise OutputError("the disk is full")

    def save(path: Path) -> str:
        path.write_bytes(b"half")
        if where == "image":
            full()
        return "0" * 64

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
