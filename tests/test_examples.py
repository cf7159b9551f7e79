"""The examples run in their order, on a small cohort for a few steps; their figures mean nothing."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from neurotome.data.imaging.reader import read_volume

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {"01_synthetic_cohort.py": ["--subjects", "6"], "03_train.py": ["--steps", "20"]}


def test_the_scripts_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for script in sorted(EXAMPLES.glob("*.py")):
        monkeypatch.setattr(sys, "argv", [script.name, str(tmp_path), *SMALL.get(script.name, [])])
        runpy.run_path(str(script), run_name="__main__")
        said[script.stem[:2]] = capsys.readouterr().out
    assert "factors.tsv" in said["01"]
    assert "'error': 0" in said["02"]
    assert said["03"].rstrip().endswith("model")
    assert "T1w->T2w" in said["04"]
    assert "site from style" in said["06"]
    results = tmp_path / "results"
    (translated,) = results.glob("*_desc-synth_T2w.nii.gz")
    (source,) = (tmp_path / "raw").glob(f"{translated.name[:7]}/anat/*_T1w.nii.gz")
    assert read_volume(translated).array.shape == read_volume(source).array.shape
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_the_readme_lists_every_script() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    scripts = sorted(file.name for file in EXAMPLES.iterdir() if file.name[0].isdigit())
    assert scripts
    assert [name for name in scripts if f"]({name})" not in text] == []


@pytest.mark.slow
def test_the_commands_run(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "neurotome"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m neurotome "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    words = ["sh", str(EXAMPLES / "07_commands.sh"), str(tmp_path / "out"), "6", "150"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "run" / "report.html").exists()
    assert len(list((tmp_path / "out" / "derivatives").rglob("*_desc-synth_T2w.nii.gz"))) == 6
