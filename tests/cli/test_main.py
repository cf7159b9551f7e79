import argparse
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neurotome.cli import main as cli
from neurotome.cli import say
from neurotome.cli.main import explain, main, parse, split_overrides
from neurotome.errors import InputError, Interrupted, NeurotomeError, OutputError, UsageError, printable
from tests.toy import names

VERBS = [
    "demo",
    "phantom",
    "inspect",
    "prepare",
    "train",
    "configs",
    "evaluate",
    "report",
    "reconstruct",
    "translate",
    "encode",
    "decode",
    "doctor",
]


def run_raising(monkeypatch: pytest.MonkeyPatch, error: BaseException, *flags: str) -> int:
    def run(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr("neurotome.cli.configs.run", run)
    return main(["configs", *flags])


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UsageError("x is y"), 2, "x is y"),
        (InputError("bad", file="a.nii", remedy="copy it again"), 3, "a.nii: bad. Remedy: copy it again."),
        (OutputError("the disk is full"), 1, "the disk is full"),
        (Interrupted("saved"), 75, "saved"),
        (NeurotomeError("diverged"), 1, "diverged"),
        (KeyboardInterrupt(), 75, "run the same command again"),
        (OSError(errno.ENOSPC, "No space", "out.nii"), 1, "out.nii: the disk is full. Remedy"),
        (OSError(errno.EROFS, "Read-only", "out.nii"), 1, "out.nii: the file system is read-only. Remedy"),
        (PermissionError(errno.EACCES, "denied", "out.nii"), 1, "out.nii: permission denied. Remedy"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 1, "the disk is full"),
        (FileNotFoundError(errno.ENOENT, "No such file", "gone"), 2, "gone: there is no such file"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "b" * 256), 2, "the name is too long for the file system"),
        (RuntimeError("I/O error: File name too long (os error 36)"), 2, "the output: the name is too long"),
        (MemoryError(), 1, "memory ran out"),
        (RuntimeError("CUDA out of memory. Tried"), 1, "memory ran out"),
        (ZeroDivisionError("a\nb"), 1, "internal error, ZeroDivisionError: a b."),
    ],
)
def test_every_error_is_one_paragraph_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, text: str
) -> None:
    assert run_raising(monkeypatch, error) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_a_traceback_is_kept_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    assert run_raising(monkeypatch, ZeroDivisionError("here")) == 1
    assert "--verbose" in capsys.readouterr().err
    assert names(tmp_path) == []
    assert run_raising(monkeypatch, ZeroDivisionError("here"), "--verbose") == 1
    (file,) = tmp_path.iterdir()
    assert str(file) in capsys.readouterr().err
    assert "Traceback" in file.read_text()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["trian"], "'trian'; did you mean train?"),
        (["recnstruct", "a"], "did you mean reconstruct?"),
        (["zzz"], "there is no verb 'zzz'; `neurotome --help`"),
        (["evaluate", "m", "s", "--splti", "test"], "'--splti'; did you mean --split?"),
        (["train", "--max-steps", "3"], "did you mean --trainer.max_steps?"),
        (["train", "c", "s", "--otu", "r"], "did you mean --out?"),
        (["train", "c", "s", "--learning-rate=1"], "--learning-rate"),
        (["train", "c", "s", "--out", "r", "--trainer.max_steps"], "--trainer.max_steps needs a value"),
        (["train", "c", "s"], "--out"),
        (["evaluate", "m", "s", "--out", "d", "--spl", "val"], "--spl"),
        (["evaluate", "m", "s", "--out", "d", "--split", "tset"], "tset"),
        (["configs", "a", "b"], "extra word 'b'"),
        (["doctor", "--seed", "1"], "--seed"),
        (["train", "c", "s", "--out", "r", "--threads", "0"], "not a positive whole number"),
        (["train", "c", "s", "--out", "r", "--threads", "many"], "many"),
        (["evaluate", "m", "s", "--out", "d", "--seed", "-1"], "negative"),
        (["\x1b[2Jverb"], "\\x1b"),
    ],
)
def test_a_wrong_call_is_2_and_names_the_nearest(
    capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert text in err
    assert "\x1b" not in err
    assert err.count("\n") == 1


def test_overrides_are_the_dotted_options_wherever_they_stand() -> None:
    words = [
        "train",
        "--trainer.max_steps",
        "7",
        "cfg",
        "--optimizer.lr=-1",
        "store",
        "--out",
        "a.b",
        "--data.crop",
        "[4,4,4]",
    ]
    overrides, rest = split_overrides(words)
    assert overrides == [("trainer.max_steps", "7"), ("optimizer.lr", "-1"), ("data.crop", "[4,4,4]")]
    assert rest == ["train", "cfg", "store", "--out", "a.b"]
    args = parse(words)
    assert (args.config, args.store, args.out, args.overrides) == ("cfg", "store", "a.b", overrides)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_json(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("--json", "--quiet", "--verbose"):
        assert flag in text


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)
    assert main(["--version"]) == 0
    assert main([]) == 2


HELP = """
import os, sys
os.environ.pop("OMP_WAIT_POLICY", None)
from neurotome.cli.main import main
main(["--help"])
heavy = {"torch", "numpy", "lightning", "nibabel", "scipy", "monai", "pydantic"} & set(sys.modules)
sys.exit(str(heavy) if heavy or os.environ.get("OMP_WAIT_POLICY") != "passive" else 0)
"""


def test_help_imports_nothing_heavy_and_sets_the_wait_policy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_gone_does_not_stop_the_work(tmp_path: Path) -> None:
    code = (
        "import argparse, sys, pathlib; from neurotome.cli import answer, say\n"
        "args = argparse.Namespace(json=False, quiet=False)\n"
        "for i in range(20000): answer(args, {}, 'line')\n"
        f"pathlib.Path({str(tmp_path / 'end')!r}).touch()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(60) == 0, errors
    assert (tmp_path / "end").exists()
    assert errors == b""


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_stop_the_work(tmp_path: Path, closed: str) -> None:
    def run(words: str) -> "subprocess.CompletedProcess[bytes]":
        command = ["sh", "-c", f'"$0" -m neurotome {words} {closed}', sys.executable, str(tmp_path / "out")]
        return subprocess.run(command, capture_output=True, timeout=120)

    done = run('phantom "$1" --subjects 1 --spacing 4')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "dataset_description.json").exists()
    refused = run("nosuch")
    assert refused.returncode == 2
    assert refused.stdout == b""


def test_a_terminated_verb_ends_with_75_and_restores_the_handler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned = []

    def run(args: argparse.Namespace) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            cleaned.append(True)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("neurotome.cli.configs.run", run)
    assert main(["configs"]) == 75
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) is before
    assert "run the same command again" in capsys.readouterr().err


def test_names_are_printed_literally() -> None:
    assert printable("a\x1b[31m\nb\udcff\u202e.nii") == "a\\x1b[31m\\nb\\udcff\\u202e.nii"
    assert printable("mäuse 脳.nii") == "mäuse 脳.nii"
    assert "\n" not in str(InputError("bad", file="a\nb"))


def test_an_input_error_survives_a_worker_process() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(InputError("bad", file="a.nii", remedy="r")))  # noqa: S301
    assert (str(error), error.file, error.remedy) == ("a.nii: bad. Remedy: r.", Path("a.nii"), "r")


def test_quiet_is_quiet_and_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    say(argparse.Namespace(quiet=True), "progress")
    assert capsys.readouterr().err == ""
    assert main(["doctor", "--json"]) in (0, 1)
    facts = json.loads(capsys.readouterr().out)
    assert facts["packages"]["torch"] != "missing"
    assert facts["OMP_WAIT_POLICY"] == os.environ["OMP_WAIT_POLICY"]


def test_the_doctor_warns_of_torchvision(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: True if name == "torchvision" else real(name, *a))
    main(["doctor"])
    assert "torchvision is installed" in capsys.readouterr().out


def test_explain_names_the_file_of_an_os_error_literally() -> None:
    text, code = explain(OSError(errno.ENOSPC, "No space", "a\x1b.nii"))
    assert code == 1
    assert text.startswith("a\\x1b.nii: the disk is full")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_memory_that_runs_out_is_named_whoever_says_it(error: BaseException) -> None:
    text, code = explain(error)
    assert text.startswith("memory ran out (")
    assert "a smaller batch" in text
    assert code == 1


def test_memory_that_runs_out_in_a_constructor_is_no_value_of_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    from neurotome.experiments.config import load_config
    from neurotome.experiments.experiment import check_experiment

    def full(*args: object, **kwargs: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 16000000000 bytes.")

    experiment = check_experiment(load_config("vq-vae-demo"), ("T1w", "T2w"))
    monkeypatch.setattr(torch.Tensor, "normal_", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        experiment.build_method()
