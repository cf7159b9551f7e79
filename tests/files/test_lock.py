import errno
import os
import signal
import subprocess
import sys

import filelock
import pytest

from neurotome.errors import OutputError, UsageError
from neurotome.files.lock import alone

HOLDER = """
import sys, time
from pathlib import Path
from neurotome.errors import UsageError
from neurotome.files.lock import alone
with alone(Path(sys.argv[1]), UsageError("held")):
    print("holds", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_refused_at_once_and_goes_with_its_process(tmp_path):
    file = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "holds\n"
        with pytest.raises(UsageError, match="somebody is here"), alone(file, UsageError("somebody is here")):
            pass
        os.kill(process.pid, signal.SIGKILL)
    with alone(file, UsageError("somebody is here")):
        pass


def test_a_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(KeyError), alone(tmp_path / ".lock", UsageError("held")):
        raise KeyError
    with alone(tmp_path / ".lock", UsageError("held")):
        pass


def test_a_place_that_cannot_be_written_to_is_named_and_one_without_locks_is_used_unlocked(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"file/\.lock: cannot be written"),
        alone(tmp_path / "file" / ".lock", UsageError("held")),
    ):
        pass

    def unsupported(self, *_, **__):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(filelock.FileLock, "acquire", unsupported)
    entered = []
    with alone(tmp_path / ".lock", UsageError("held")):
        entered.append(True)
    assert entered
