"""What a shell, a notebook or a cluster leaves behind stops no command."""

import io
import os
import pwd
import random
import subprocess
import sys
from pathlib import Path

import pytest

from neurotome.cli.main import main
from neurotome.cli.surroundings import settle
from neurotome.data.phantom.template import cache_folder
from neurotome.training.run_folder import environment
from tests.toy import CONFIG

SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_NODEID": "1",
         "SLURM_JOB_NAME": "job", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NODELIST": "n[1-2]"}  # fmt: skip
INTERACTIVE = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "interactive", "SLURM_PROCID": "0"}
TORCHRUN = {"RANK": "1", "LOCAL_RANK": "one", "WORLD_SIZE": "2", "MASTER_ADDR": "nowhere", "MASTER_PORT": "x"}
NOTEBOOK = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "JPY_PARENT_PID": "1", "TERM": "xterm-color"}
SHELL = {"TERM": "dumb", "COLUMNS": "-3", "LINES": "x", "LC_ALL": "C", "LANG": "xx_YY", "PYTHONUTF8": "0", "TZ": "?"}
FOLDERS = {
    "HOME": "/nonexistent",
    "TMPDIR": "/nonexistent",
    "XDG_CACHE_HOME": "/dev/null",
    "NEUROTOME_CACHE": "/proc/1",
}
LIBRARIES = {
    "OMP_NUM_THREADS": "0",
    "CUDA_VISIBLE_DEVICES": "-1",
    "MKL_NUM_THREADS": "many",
    "PYTHONDONTWRITEBYTECODE": "1",
}
SETS = (SLURM, INTERACTIVE, TORCHRUN, NOTEBOOK, SHELL, FOLDERS, LIBRARIES)


@pytest.fixture
def config(tmp_path: Path, toys: None) -> str:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    return str(tmp_path / "toy.yaml")


@pytest.mark.parametrize(
    "left", [SLURM, INTERACTIVE, TORCHRUN, NOTEBOOK], ids=("slurm", "interactive", "torchrun", "notebook")
)
def test_one_process_trains_whatever_the_cluster_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: str, toy_store: Path, left: dict[str, str]
) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    words = ["train", config, str(toy_store), "--out", str(tmp_path / "run"), "--device", "cpu", "--quiet"]
    assert main(words) == 0
    assert os.environ["MPLBACKEND"] == "agg"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("NEUROTOME_CACHE", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(sys, "argv", ["/home/x/neurotome", "~/out"])
    with pytest.raises(RuntimeError):
        Path.home()
    assert environment(0, 1, "cpu")["command"] == ["neurotome", "~/out"]
    with pytest.raises(OSError, match="Not a directory"):
        cache_folder().mkdir(parents=True)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_stream_escapes_what_it_cannot_encode(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
    settle()
    print("Lauf_ü 脳 \udcff", flush=True)  # noqa: T201
    assert raw.getvalue().decode(encoding).startswith("Lauf_")


def test_settling_twice_changes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "2")
    settle()
    before = dict(os.environ)
    settle()
    assert dict(os.environ) == before
    assert "SLURM_NTASKS" not in before


STREAMS = ("", "2>&-", ">&-", "<&-", "<&- >&- 2>&-", "| head -c 1", ">/dev/null 2>/dev/full")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_random_surroundings(seed: int, tmp_path: Path, phantom_store: Path) -> None:
    """A training in a process of its own, under a random mixture of variables and streams; the run is finished."""
    draw = random.Random(seed)
    left = {name: value for part in SETS for name, value in part.items() if draw.random() < 0.3}
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "HOME")}
    left |= {"PYTHONIOENCODING": draw.choice(["ascii", "utf-8:strict", "latin-1", "cp1252"])}
    if draw.random() < 0.3:
        kept.pop("HOME", None)
    out = tmp_path / "Läufe 脳"
    words = f'"$0" -m neurotome train vq-vae-demo "$1" --out "$2" --trainer.max_steps 3 {draw.choice(STREAMS)}'
    quantizer = "--method.tokenizer.quantizer"
    tiny = f"--method.tokenizer.channels [8] {quantizer}.num_codes 8 {quantizer}.start_after 0 {quantizer}.reservoir 64"
    tiny += " --trainer.val_every_steps null"
    command = ["bash", "-c", words.replace("--trainer", f"{tiny} --trainer", 1), sys.executable, phantom_store, out]
    done = subprocess.run(command, env={**left, **kept}, capture_output=True, timeout=120, check=False)
    assert b"internal error" not in done.stderr, (left, done.stderr)
    assert done.returncode == 0, (left, done.stderr)
    assert (out / "model" / "config.json").exists(), (left, done.stderr)
