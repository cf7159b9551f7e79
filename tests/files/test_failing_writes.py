"""Every opening for writing, renaming, making and removing fails once: an error of the output, and nothing is lost.

Python announces each to its audit hooks before it happens; an error raised there takes its place.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from neurotome.cli.main import main
from tests import toy
from tests.toy import CONFIG

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Fault:
    """Counts what is done below a folder, and lets the call of one number fail."""

    def __init__(self) -> None:
        self.below, self.at, self.seen = "", 0, 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.below or event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        if self.below in os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else False:
            self.seen += 1
            if self.seen == self.at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), arguments[0])


FAULT = Fault()


@pytest.fixture(scope="module", autouse=True)
def _hook() -> None:
    sys.addaudithook(FAULT)  # for ever; it does nothing while no folder is watched


@contextmanager
def failing(folder: Path, at: int) -> Iterator[None]:
    FAULT.below, FAULT.at, FAULT.seen = str(folder), at, 0
    try:
        yield
    finally:
        FAULT.below = ""


def contents(folder: Path) -> dict[str, bytes]:
    """Return what must be the same however often the work was stopped: all but clocks, logs and locks."""
    kept = (".safetensors", ".nii.gz", ".npy", ".tsv", ".bin")
    files = [p for p in sorted(folder.rglob("*")) if p.name.endswith(kept) and "checkpoints" not in p.parts]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def train(out: Path, store: Path, model: Path, config: Path) -> list[str]:
    return ["train", str(config), str(store), "--out", str(out), "--device", "cpu"]


def prepare(out: Path, store: Path, model: Path, config: Path) -> list[str]:
    return ["prepare", str(config.parent / "raw"), str(out), "--spacing", "3", "--shape", "20", "24", "20"]


def encode(out: Path, store: Path, model: Path, config: Path) -> list[str]:
    return ["encode", str(model), str(store), str(out), "--shards"]


def translate(out: Path, store: Path, model: Path, config: Path) -> list[str]:
    return ["translate", str(model), str(config.parent / "raw"), str(out), "--to", "T2w"]


# the thread of TensorBoard's writer meets its own fault; the run ends with the next row
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("every", [16, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", [train, prepare, encode, translate])
def test_a_write_that_fails_once_costs_nothing(
    command: Callable[..., list[str]], every: int, tmp_path: Path, toys: None, toy_store: Path, toy_model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "toy.yaml").write_text(CONFIG)
    toy.bids(tmp_path / "raw", subjects=2)

    def words(out: Path) -> list[str]:
        return [*command(out, toy_store, toy_model, tmp_path / "toy.yaml"), "--quiet"]

    with failing(tmp_path / "whole", 0):
        assert main(words(tmp_path / "whole")) == 0
    number, whole = FAULT.seen, contents(tmp_path / "whole")
    assert number >= 5
    assert whole
    faults = []
    for at in range(1, number + 1, every):
        out = tmp_path / f"at-{at}"
        with failing(out, at):
            code = main(words(out))
        said = capsys.readouterr().err
        if code not in (0, 1) or "internal error" in said or (code == 1 and "Remedy" not in said):
            faults.append(f"{at} of {number}: {code} {said}")
        again = main(words(out))
        if again != 0 or contents(out) != whole:
            faults.append(f"{at} of {number}: then {again} {capsys.readouterr().err}")
    assert not faults, "\n".join(faults)
