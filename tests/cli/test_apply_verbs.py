import gzip
import hashlib
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from safetensors.torch import load_file

from neurotome.cli.main import main
from neurotome.data.imaging.reader import read_volume
from neurotome.data.imaging.volume import Volume
from neurotome.nn.quantize import EMAQuantizer
from neurotome.scans.tokenizer import ScanTokenizer
from neurotome.tokenizers import NeuroQuant
from neurotome.tokenizers.shared_anatomy.parts import Appearance, Trunk
from tests.toy import ToyTokenizer, bids, brain, exported, head, names, oblique

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "sub-9_T1w.nii.gz"
    brain(9, geometry=oblique()).save(path)
    (tmp_path / "sub-9_T1w.json").write_text(json.dumps({"PatientName": "Doe^John", "Site": "x"}))
    return path


def go(*words: object) -> int:
    return main([str(w) for w in words])


def state(path: Path) -> tuple[bytes, int]:
    return path.read_bytes(), path.stat().st_mtime_ns


def test_reconstruct_and_translate_a_file(
    tmp_path: Path, toy_model: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(scan)
    out = tmp_path / "o" / "sub-9_desc-synth_T2w.nii.gz"
    assert go("reconstruct", toy_model, scan, tmp_path / "recon.nii", "--json") == 0
    assert json.loads(capsys.readouterr().out)["written"] == [str(tmp_path / "recon.nii")]
    assert go("translate", toy_model, scan, out, "--to", "T2w") == 0
    source = nib.load(scan)
    for path in (tmp_path / "recon.nii", out):
        result = nib.load(path)
        assert np.array_equal(result.affine, source.affine)
        assert result.shape == source.shape
        assert b"synthetic" in bytes(result.header["descrip"])
    sidecar = json.loads((tmp_path / "o" / "sub-9_desc-synth_T2w.json").read_text())
    assert sidecar["Synthetic"] is True
    assert (sidecar["SourceModality"], sidecar["Modality"], sidecar["Sources"]) == ("T1w", "T2w", [scan.name])
    assert sidecar["ResultSHA256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert sidecar["SourceSHA256"] == read_volume(scan).provenance.sha256
    assert len(sidecar["ModelSHA256"]) == 64
    everything = b"".join(p.read_bytes() for p in tmp_path.rglob("*desc*")) + out.read_bytes()
    assert b"Doe" not in everything
    assert str(tmp_path).encode() not in everything
    assert state(scan) == before
    assert not list(tmp_path.rglob(".*"))


def test_the_file_interface_equals_the_python_interface(tmp_path: Path, toy_model: Path, scan: Path) -> None:
    from neurotome import Tokenizer

    model, volume = Tokenizer.from_pretrained(toy_model), read_volume(scan)
    assert go("encode", toy_model, scan, tmp_path / "c.safetensors", "--quiet") == 0
    assert go("decode", toy_model, tmp_path / "c.safetensors", tmp_path / "own.nii", "--quiet") == 0
    assert go("decode", toy_model, tmp_path / "c.safetensors", tmp_path / "t2.nii", "--modality", "T2w", "--quiet") == 0
    assert np.array_equal(read_volume(tmp_path / "own.nii").array, model.reconstruct(volume).array)
    assert np.array_equal(read_volume(tmp_path / "t2.nii").array, model.translate(volume, "T2w").array)
    brain(3, gain=5.0).save(tmp_path / "ref_T2w.nii")
    lent = ["--style-from", tmp_path / "ref_T2w.nii", "--quiet"]
    assert go("translate", toy_model, scan, tmp_path / "lent.nii", "--to", "T2w", *lent) == 0
    expected = model.translate(volume, "T2w", read_volume(tmp_path / "ref_T2w.nii"))
    assert np.array_equal(read_volume(tmp_path / "lent.nii").array, expected.array)


def test_a_dry_run_says_everything_and_writes_nothing(
    tmp_path: Path, toy_model: Path, toy_raw: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    words = ("translate", toy_model, toy_raw, tmp_path / "out", "--to", "T2w", "--dry-run")
    assert go(*words) == 0
    text = capsys.readouterr().out
    assert text.startswith("6 scans, prepared at")
    assert "nothing is written" in text
    assert "make     " in text
    assert "16x20x12" in text
    assert go(*words, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["would_write"]
    assert [Path(r["target"]).name for r in rows] == [f"sub-0{i}_desc-synthFromT1w_T2w.nii.gz" for i in range(6)]
    assert go("reconstruct", toy_model, scan, tmp_path / "o" / "x.nii.gz", "--dry-run") == 0
    assert "sub-9_T1w.nii.gz (T1w, 16x20x12)" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert go("reconstruct", toy_model, scan, tmp_path / "x.nii.gz", "--quiet") == 0
    capsys.readouterr()
    assert go("reconstruct", toy_model, scan, tmp_path / "x.nii.gz", "--dry-run") == 0
    assert "keep     " in capsys.readouterr().out


def test_the_volume_of_a_series_and_the_qform_are_chosen(tmp_path: Path, toy_model: Path) -> None:
    volume = brain(4)
    series = np.stack([volume.array, brain(5).array], axis=-1)
    nib.save(nib.Nifti1Image(series, volume.geometry.affine), tmp_path / "a_T1w.nii.gz")
    volume.save(tmp_path / "one_T1w.nii.gz")
    assert go("reconstruct", toy_model, tmp_path / "a_T1w.nii.gz", tmp_path / "o.nii", "--quiet") == 3
    for k in (0, 1):
        out = tmp_path / f"o{k}.nii.gz"
        assert go("reconstruct", toy_model, tmp_path / "a_T1w.nii.gz", out, "--volume", k, "--quiet") == 0
        assert json.loads((tmp_path / f"o{k}.json").read_text())["Parameters"]["Volume"] == k
    assert go("reconstruct", toy_model, tmp_path / "one_T1w.nii.gz", tmp_path / "p.nii.gz", "--quiet") == 0
    same = read_volume(tmp_path / "p.nii.gz").array
    assert np.allclose(read_volume(tmp_path / "o0.nii.gz").array, same, atol=1e-3)
    assert not np.allclose(read_volume(tmp_path / "o1.nii.gz").array, same, atol=1.0)
    image = nib.load(tmp_path / "one_T1w.nii.gz")
    moved = image.affine.copy()
    moved[:3, 3] += 40
    image.set_qform(moved, code=1)
    nib.save(image, tmp_path / "two_T1w.nii")
    assert go("reconstruct", toy_model, tmp_path / "two_T1w.nii", tmp_path / "q.nii", "--quiet") == 3
    assert go("reconstruct", toy_model, tmp_path / "two_T1w.nii", tmp_path / "q.nii", "--use-qform", "--quiet") == 0


def test_masks_of_a_dataset_are_used_for_whole_heads(
    tmp_path: Path, toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(ToyTokenizer(), toy_store, tmp_path / "model")
    anat, derived = tmp_path / "raw" / "sub-1" / "anat", tmp_path / "raw" / "derivatives" / "bet" / "sub-1" / "anat"
    other = tmp_path / "raw" / "sub-2" / "anat"
    for folder in (anat, derived, other):
        folder.mkdir(parents=True)
    head().save(anat / "sub-1_T1w.nii.gz")
    head(1).save(other / "sub-2_T1w.nii.gz")
    Volume((brain().array > 0).astype(np.uint8), head().geometry).save(derived / "sub-1_desc-brain_mask.nii.gz")
    assert go("reconstruct", tmp_path / "model", tmp_path / "raw", tmp_path / "out", "--json") == 3
    result = json.loads(capsys.readouterr().out)
    assert [Path(p).name for p in result["written"]] == ["sub-1_desc-recon_T1w.nii.gz"]
    assert "whole head" in result["refused"][0]
    assert "put a mask *_desc-brain_mask under derivatives" in result["refused"][0]
    sidecar = json.loads((tmp_path / "out/sub-1/anat/sub-1_desc-recon_T1w.json").read_text())
    assert sidecar["Mask"] == "bids:raw:derivatives/bet/sub-1/anat/sub-1_desc-brain_mask.nii.gz"
    assert len(sidecar["MaskSHA256"]) == 64


def test_a_training_site_lends_its_look(tmp_path: Path, toy_model: Path, scan: Path) -> None:
    words = ("translate", toy_model, scan)
    assert go(*words, tmp_path / "a.nii", "--to", "T2w", "--style-site", "site0", "--quiet") == 0
    assert "of site site0" in json.loads((tmp_path / "a.json").read_text())["Style"]
    assert go(*words, tmp_path / "b.nii", "--to", "T2w", "--style-site", "nowhere", "--quiet") == 2
    lent = ("--style-site", "site0", "--style-from", scan)
    assert go(*words, tmp_path / "b.nii", "--to", "T2w", *lent, "--quiet") == 2
    assert not (tmp_path / "b.nii").exists()


def test_every_result_says_that_it_is_synthetic_and_says_nothing_private(
    tmp_path: Path, toy_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = bids(tmp_path / "jane.doe" / "raw", subjects=2)
    image = nib.load(raw / "sub-00/anat/sub-00_T1w.nii.gz")
    image.header["descrip"], image.header["aux_file"] = b"Doe^Jane 1970", b"/home/jane"
    nib.save(image, raw / "sub-00/anat/sub-00_T1w.nii.gz")
    (raw / "sub-00/anat/sub-00_T1w.json").write_text(json.dumps({"PatientName": "Doe^Jane", "Site": "x"}))
    for verb, extra in (("reconstruct", ()), ("translate", ("--to", "T2w")), ("encode", ())):
        out = tmp_path / verb
        assert go(verb, toy_model, raw, out, *extra, "--quiet") == 0
        files = [p for p in out.rglob("*") if p.is_file()]
        data = b"".join(gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes() for p in files)
        for planted in (b"Doe", b"jane", str(tmp_path).encode()):
            assert planted not in data
        for path in out.rglob("*_T?w.nii.gz"):
            assert b"synthetic" in bytes(nib.load(path).header["descrip"])
            assert "_desc-" in path.name
            assert json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())["Synthetic"] is True
    capsys.readouterr()


@pytest.mark.parametrize("shape", [(9, 11, 7), (61, 73, 53), (96, 40, 33)])
def test_scans_of_any_size_come_back_on_their_own_grid(tmp_path: Path, toy_model: Path, shape: tuple) -> None:
    spacing = 50.0 / max(shape)
    brain(2, shape=shape, geometry=oblique(shape, spacing)).save(tmp_path / "a_T1w.nii.gz")
    assert go("reconstruct", toy_model, tmp_path / "a_T1w.nii.gz", tmp_path / "o.nii.gz", "--quiet") == 0
    before, after = nib.load(tmp_path / "a_T1w.nii.gz"), nib.load(tmp_path / "o.nii.gz")
    assert after.shape == before.shape
    assert np.array_equal(after.affine, before.affine)


def test_equal_calls_give_equal_bytes(tmp_path: Path, toy_model: Path, scan: Path) -> None:
    for name in ("a", "b"):
        assert go("translate", toy_model, scan, tmp_path / name / "x_T2w.nii.gz", "--to", "T2w", "--quiet") == 0
    assert state(tmp_path / "a" / "x_T2w.nii.gz")[0] == state(tmp_path / "b" / "x_T2w.nii.gz")[0]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ("reconstruct MODEL missing.nii out.nii", 2, "no such file"),
        ("reconstruct nowhere SCAN out.nii", 2, "no such model folder"),
        ("reconstruct DIR SCAN out.nii", 3, "config.json"),
        ("reconstruct MODEL SCAN SCAN", 2, "same file"),
        ("reconstruct MODEL SCAN there.nii", 2, "--overwrite"),
        ("reconstruct MODEL SCAN out.png", 2, "written as"),
        ("reconstruct MODEL SCAN out.nii --modality FLAIR", 2, "knows T1w, T2w, not FLAIR"),
        ("reconstruct MODEL SCAN out.nii --modality T3w", 2, "unknown modality"),
        ("reconstruct MODEL untold.nii out.nii", 2, "say which with --modality"),
        ("reconstruct MODEL two_T1_T2.nii out.nii", 2, "could be T1w or T2w"),
        ("reconstruct MODEL SCAN out.nii --mask missing.nii", 2, "no such file"),
        ("translate MODEL SCAN out.nii", 2, "--to"),
        ("translate MODEL SCAN out.nii --to FLAIR", 2, "not FLAIR"),
        ("translate MODEL SCAN sub-9_T2w.nii.gz --to T2w", 2, "reads as a raw scan"),
        ("translate MODEL SCAN out.nii --to T2w --style-from missing.nii", 2, "no such file"),
        ("decode MODEL SCAN out.nii", 3, "not a safetensors file"),
        ("reconstruct MODEL cut_T1w.nii.gz out.nii", 3, "cut_T1w.nii.gz"),
        ("reconstruct MODEL empty_T1w.nii out.nii", 3, "empty_T1w.nii"),
        ("reconstruct MODEL head_T1w.nii out.nii", 3, "with --mask FILE; --allow-head"),
        ("reconstruct MODEL raw raw/out", 2, "is inside or equal to"),
        ("reconstruct MODEL raw full", 2, "not empty"),
        ("reconstruct MODEL raw o --mask SCAN", 2, "for one scan"),
        ("reconstruct MODEL raw o --modality FLAIR", 2, "no scan of FLAIR"),
        ("reconstruct MODEL SCAN out.nii --device cuda", 2, "this machine has none"),
    ],
)
def test_what_is_refused_leaves_nothing(
    tmp_path: Path,
    toy_model: Path,
    toy_raw: Path,
    scan: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    code: int,
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "there.nii").touch()
    (tmp_path / "DIR").mkdir()
    for name in ("untold.nii", "two_T1_T2.nii"):
        brain().save(tmp_path / name)
    head().save(tmp_path / "head_T1w.nii")
    (tmp_path / "cut_T1w.nii.gz").write_bytes(scan.read_bytes()[:-20])
    (tmp_path / "empty_T1w.nii").touch()
    shutil.copytree(toy_raw, tmp_path / "raw")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    places = {"MODEL": str(toy_model), "SCAN": scan.name}
    assert main([places.get(w, w) for w in words.split()]) == code
    out, err = capsys.readouterr()
    assert text in err
    assert out == ""
    assert err.count("\n") == 1
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_head_is_taken_with_a_mask_or_with_permission(tmp_path: Path, toy_store: Path) -> None:
    volume = head()
    volume.save(tmp_path / "head_T1w.nii")
    Volume((brain().array > 0).astype(np.uint8), volume.geometry).save(tmp_path / "mask.nii")
    exported(ToyTokenizer(), toy_store, tmp_path / "model")
    assert (
        go(
            "reconstruct",
            tmp_path / "model",
            tmp_path / "head_T1w.nii",
            tmp_path / "out.nii",
            "--mask",
            tmp_path / "mask.nii",
        )
        == 0
    )
    result = read_volume(tmp_path / "out.nii").array
    assert np.mean((result > 30) == (brain().array > 30)) > 0.95


def test_a_folder_of_scans_and_one_that_is_broken(
    tmp_path: Path, toy_model: Path, toy_raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(toy_raw, tmp_path / "raw")
    broken = tmp_path / "raw" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    broken.write_bytes(broken.read_bytes()[:100])
    assert go("translate", toy_model, tmp_path / "raw", tmp_path / "out", "--to", "T2w", "--json") == 3
    result = json.loads(capsys.readouterr().out)
    assert len(result["written"]) == 5
    assert len(result["refused"]) == 1
    assert "sub-01_T1w.nii.gz" in result["refused"][0]
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert "sub-00/anat/sub-00_desc-synthFromT1w_T2w.nii.gz" in names
    assert "dataset_description.json" in names
    assert not any("sub-01" in name for name in names)
    aside = {"dataset_description.json", "README", ".bidsignore", ".neurotome.json", ".neurotome.lock"}
    assert aside < names
    assert len(names) == 5 * 2 + len(aside)
    shutil.copy(toy_raw / "sub-01" / "anat" / "sub-01_T1w.nii.gz", broken)
    assert go("translate", toy_model, tmp_path / "raw", tmp_path / "out", "--to", "T2w", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert [Path(p).name for p in result["written"]] == ["sub-01_desc-synthFromT1w_T2w.nii.gz"]


def test_a_folder_of_latents_goes_out_and_back(tmp_path: Path, toy_model: Path, toy_raw: Path) -> None:
    assert go("encode", toy_model, toy_raw, tmp_path / "lat", "--modality", "T1w", "--quiet") == 0
    assert go("decode", toy_model, tmp_path / "lat", tmp_path / "out", "--quiet") == 0
    path = tmp_path / "out" / "sub-00" / "anat" / "sub-00_desc-recon_T1w.nii.gz"
    assert (
        go("reconstruct", toy_model, toy_raw / "sub-00" / "anat" / "sub-00_T1w.nii.gz", tmp_path / "one.nii", "--quiet")
        == 0
    )
    assert np.array_equal(read_volume(path).array, read_volume(tmp_path / "one.nii").array)


def test_codes_alone_are_written_and_the_float_latent_on_request(
    tmp_path: Path, toy_store: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = NeuroQuant(
        trunk=Trunk(channels=(8,), num_res_blocks=1, attention_levels=(False,), mid_blocks=False, norm_groups=0),
        appearance=Appearance(channels=4, film_hidden=8), quantizer=EMAQuantizer(16, 4), adversary=False,
    )  # fmt: skip
    network.quantizer.reservoir.mark_started()
    exported(network, toy_store, tmp_path / "m")
    for name, more in (("codes", ()), ("both", ("--float-latent",))):
        code = tmp_path / f"{name}.safetensors"
        assert go("encode", tmp_path / "m", scan, code, "--quiet", *more) == 0
        assert ("latent" in load_file(code)) == bool(more)
        assert go("decode", tmp_path / "m", code, tmp_path / f"from_{name}.nii.gz", "--quiet") == 0
    assert (tmp_path / "from_codes.nii.gz").read_bytes() == (tmp_path / "from_both.nii.gz").read_bytes()
    assert go("reconstruct", tmp_path / "m", scan, tmp_path / "whole.nii.gz", "--quiet") == 0
    assert (tmp_path / "from_codes.nii.gz").read_bytes() == (tmp_path / "whole.nii.gz").read_bytes()
    capsys.readouterr()
    assert go("encode", tmp_path / "m", scan, tmp_path / "codes.safetensors", "--float-latent") == 2
    assert "another choice of options" in capsys.readouterr().err


def test_the_help_of_encode_says_on_which_grid_a_code_lies(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {}
    for verb in ("encode", "decode", "reconstruct", "translate"):
        assert go(verb, "--help") == 0
        texts[verb] = " ".join(capsys.readouterr().out.split())
    assert "A code lies on the model's latent grid, not on that of its source" in texts.pop("encode")
    assert all("Results are on the grid of their source" in text for text in texts.values())


def test_a_latent_of_another_model_is_refused_by_name(
    tmp_path: Path, toy_model: Path, toy_store: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(ToyTokenizer(width=2), toy_store, tmp_path / "other")
    assert go("encode", toy_model, scan, tmp_path / "c.safetensors", "--quiet") == 0
    capsys.readouterr()
    assert go("decode", tmp_path / "other", tmp_path / "c.safetensors", tmp_path / "x.nii") == 3
    err = capsys.readouterr().err
    assert "c.safetensors: the latent was made by model" in err
    assert "Remedy: decode it with the model that made it" in err
    assert not (tmp_path / "x.nii").exists()


def test_a_changed_byte_in_the_model_is_refused(
    tmp_path: Path, toy_model: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(toy_model, tmp_path / "model")
    data = bytearray((tmp_path / "model" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model" / "model.safetensors").write_bytes(data)
    assert go("reconstruct", tmp_path / "model", scan, tmp_path / "out.nii") == 3
    assert "model.safetensors: its content is not what config.json promises. Remedy" in capsys.readouterr().err


@pytest.mark.parametrize("error", [28, 30, 13])
def test_a_disk_that_refuses_leaves_nothing(
    tmp_path: Path,
    toy_model: Path,
    scan: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: int,
) -> None:
    from neurotome.files import atomic

    before = state(scan)

    def refuse(handle: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(atomic.os, "fsync", refuse)
    assert go("reconstruct", toy_model, scan, tmp_path / "o" / "x.nii.gz") == 1
    text = capsys.readouterr().err
    assert "x.nii.gz" in text or "neurotome-" in text
    assert "Remedy" in text
    assert text.count("\n") == 1
    assert names(tmp_path / "o") == []
    assert state(scan) == before


def test_hostile_names_are_taken_literally(tmp_path: Path, toy_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a b'c_T1w.nii", "$(touch sang)_T1w.nii", "x;touch sang_T1w.nii", "new\nline_T1w.nii", "ä_T1w.nii"):
        brain().save(tmp_path / name)
        assert go("reconstruct", toy_model, name, f"out {name}", "--quiet", "--overwrite") == 0
        assert (tmp_path / f"out {name}").exists()
    assert not (tmp_path / "sang").exists()


def test_a_brain_wider_than_the_models_grid_comes_back_whole(tmp_path: Path, toy_model: Path) -> None:
    usual = ScanTokenizer.from_pretrained(toy_model).preparation.shape
    wide = brain(9, shape=(3 * usual[0], 24, 20))
    wide.save(tmp_path / "sub-9_T1w.nii.gz")
    assert go("reconstruct", toy_model, tmp_path / "sub-9_T1w.nii.gz", tmp_path / "out_T1w.nii.gz") == 0
    result = read_volume(tmp_path / "out_T1w.nii.gz").array
    assert np.count_nonzero(result) > 0.97 * np.count_nonzero(wide.array)
    notes = json.loads((tmp_path / "out_T1w.json").read_text())["Notes"]
    assert any(note.startswith("computed on a grid of") and "does not fit the model's" in note for note in notes)
    assert go("encode", toy_model, tmp_path / "sub-9_T1w.nii.gz", tmp_path / "code.safetensors") == 0
    assert go("decode", toy_model, tmp_path / "code.safetensors", tmp_path / "again_T1w.nii.gz") == 0
    np.testing.assert_array_equal(read_volume(tmp_path / "again_T1w.nii.gz").array, result)


def test_a_z_scored_scan_is_refused_with_a_remedy_that_the_verb_has(
    tmp_path: Path, toy_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = brain(9)
    inside = raw.array > 0
    scored = (raw.array - raw.array[inside].mean()) / raw.array[inside].std()
    Volume(np.where(inside, scored, 0).astype(np.float32), raw.geometry).save(tmp_path / "sub-9_T1w.nii.gz")
    Volume(inside.astype(np.uint8), raw.geometry).save(tmp_path / "mask.nii.gz")
    words = ("reconstruct", toy_model, tmp_path / "sub-9_T1w.nii.gz", tmp_path / "out_T1w.nii.gz")
    assert go(*words) == 3
    said = capsys.readouterr().err
    assert "seems to be z-scored" in said
    assert "give a brain mask with --mask FILE" in said
    assert "--intensity" not in said
    assert not (tmp_path / "out_T1w.nii.gz").exists()
    assert go(*words, "--mask", tmp_path / "mask.nii.gz") == 0
    assert np.count_nonzero(read_volume(tmp_path / "out_T1w.nii.gz").array) > 0.97 * inside.sum()
