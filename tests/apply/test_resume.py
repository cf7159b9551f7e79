import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neurotome.apply.resume import RECORD, writing
from neurotome.cli.main import main
from neurotome.errors import OutputError
from tests.toy import bids, brain

pytestmark = pytest.mark.usefixtures("toys")

# The verb in a process of its own, with a network that takes its time.
SLOW = """
import sys, time
from tests import toy; import neurotome.tokenizers as folder
for cls in (toy.ToyTokenizer, toy.ToyTraining):
    setattr(folder, cls.__name__, cls)
folder.__all__ = [*folder.__all__, "ToyTokenizer", "ToyTraining"]
encode = toy.ToyTokenizer.encode
def slow(self, image, modality):
    time.sleep(0.15)
    return encode(self, image, modality)
toy.ToyTokenizer.encode = slow
from neurotome.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def go(*words: object) -> int:
    return main([str(word) for word in words])


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.rglob("*.nii.gz")}


def standing(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*.nii.gz") if not p.name.startswith(".")]


def said(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def out(tmp_path: Path, toy_model: Path) -> Path:
    """Results of two subjects in two contrasts."""
    bids(tmp_path / "raw", subjects=2)
    assert go("reconstruct", toy_model, tmp_path / "raw", tmp_path / "out", "--quiet") == 0
    return tmp_path / "out"


def test_the_same_command_again_keeps_what_is_right(
    tmp_path: Path, toy_model: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, stamps = content(out), times(out)
    capsys.readouterr()
    assert go("reconstruct", toy_model, tmp_path / "raw", out, "--json") == 0
    result = said(capsys)
    assert (len(result["written"]), len(result["kept"]), result["refused"]) == (0, 4, [])
    assert (content(out), times(out)) == (before, stamps)


def test_only_what_is_missing_or_changed_is_made_again(
    tmp_path: Path, toy_model: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(out)
    results = sorted(out.rglob("*.nii.gz"))
    results[0].unlink()
    results[1].with_name(results[1].name.replace(".nii.gz", ".json")).unlink()
    data = bytearray(results[2].read_bytes())
    data[len(data) // 2] ^= 1
    results[2].write_bytes(data)
    capsys.readouterr()
    # a result without its sidecar could be anyone's
    assert go("reconstruct", toy_model, tmp_path / "raw", out, "--json") == 3
    result = said(capsys)
    assert sorted(Path(p).name for p in result["written"]) == sorted(p.name for p in (results[0], results[2]))
    assert [Path(p).name for p in result["kept"]] == [results[3].name]
    assert "has no sidecar of ours" in result["refused"][0]
    results[1].unlink()
    assert go("reconstruct", toy_model, tmp_path / "raw", out, "--quiet") == 0
    assert content(out) == before


def test_a_changed_source_is_done_again(
    tmp_path: Path, toy_model: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    brain(7).save(tmp_path / "raw" / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    capsys.readouterr()
    assert go("reconstruct", toy_model, tmp_path / "raw", out, "--json") == 0
    result, written = json.loads((captured := capsys.readouterr()).out), captured.err
    assert [Path(p).name for p in result["written"]] == ["sub-01_desc-recon_T1w.nii.gz"]
    assert "again: its source has changed" in written
    assert len(result["kept"]) == 3


def test_a_changed_mask_is_done_again(
    tmp_path: Path, toy_model: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anat = tmp_path / "raw" / "derivatives" / "m" / "sub-00" / "anat"
    anat.mkdir(parents=True)
    brain().save(anat / "sub-00_desc-brain_mask.nii.gz")
    capsys.readouterr()
    assert go("reconstruct", toy_model, tmp_path / "raw", out, "--json") == 0
    assert {Path(p).parts[-3] for p in said(capsys)["written"]} == {"sub-00"}


def test_another_request_is_refused_before_anything_is_written(
    tmp_path: Path, toy_model: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(out)
    for words, text in (
        (["reconstruct", "--allow-head"], "another choice of options"),
        (["encode"], "another choice of options"),
        (["reconstruct", "--precision", "bf16"], "another choice of options"),
    ):
        assert go(words[0], toy_model, tmp_path / "raw", out, *words[1:]) == 2
        assert text in capsys.readouterr().err
    assert content(out) == before
    assert go("reconstruct", toy_model, tmp_path / "raw", out, "--allow-head", "--overwrite", "--quiet") == 0
    assert content(out) != before


def test_a_folder_that_is_not_ours_is_not_touched(
    tmp_path: Path, toy_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = bids(tmp_path / "raw", subjects=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    assert go("reconstruct", toy_model, raw, tmp_path / "full") == 2
    assert "is not empty; give --overwrite or another folder" in capsys.readouterr().err
    (tmp_path / "full" / RECORD).write_text("{")
    assert go("reconstruct", toy_model, raw, tmp_path / "full") == 2
    assert "holds results of another model" in capsys.readouterr().err
    assert sorted(content(tmp_path / "full")) == [RECORD, "notes.txt"]


def test_one_file_again_is_kept_and_another_source_is_refused(
    tmp_path: Path, toy_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("a_T1w.nii", "b_T1w.nii")):
        brain(seed).save(tmp_path / name)
    words = ("reconstruct", toy_model, tmp_path / "a_T1w.nii", tmp_path / "o.nii.gz")
    assert go(*words, "--quiet") == 0
    before = content(tmp_path)
    capsys.readouterr()
    assert go(*words, "--json") == 0
    assert said(capsys)["kept"] == [str(tmp_path / "o.nii.gz")]
    assert go("reconstruct", toy_model, tmp_path / "b_T1w.nii", tmp_path / "o.nii.gz") == 2
    assert "made from another scan" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_two_processes_do_not_write_into_one_folder(tmp_path: Path) -> None:
    request = {"ModelSHA256": "0", "Parameters": {}}
    with writing(tmp_path, request), pytest.raises(OutputError, match="another process"), writing(tmp_path, request):
        pass
    with writing(tmp_path, request):
        assert json.loads((tmp_path / RECORD).read_text())["ModelSHA256"] == "0"


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_half_done_and_ends_with_the_same_bytes(tmp_path: Path, toy_model: Path) -> None:
    raw = bids(tmp_path / "raw", subjects=6)
    assert go("translate", toy_model, raw, tmp_path / "whole", "--to", "T2w", "--quiet") == 0
    out = tmp_path / "killed"
    words = ["translate", str(toy_model), str(raw), str(out), "--to", "T2w"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, "-c", SLOW, *words], env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(standing(out)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = standing(out)
    whole = content(tmp_path / "whole")
    assert 2 <= len(done) < 6
    for path in done:  # what stands is whole, and has its sidecar
        assert path.read_bytes() == whole[path.relative_to(out).as_posix()]
        assert path.with_name(path.name.replace(".nii.gz", ".json")).exists()
    (out / "sub-00" / "anat" / ".neurotome-0123456789abcdef.nii.gz").write_bytes(b"half")
    stamps = {path: path.stat().st_mtime_ns for path in done}
    assert go(*words, "--quiet") == 0
    assert content(out) == whole
    assert {path: path.stat().st_mtime_ns for path in done} == stamps
