import io
import os
import re

import pytest

from neurotome.files import progress as module
from neurotome.files.progress import Progress


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_without_a_terminal_there_is_a_line_every_ten_seconds_and_one_at_the_end(clock):
    stream = io.StringIO()
    with Progress("prepared", stream=stream) as progress:
        for done in range(1, 49):
            clock.now += 1
            progress(done, 48, f"sub-{done:03d}\n")
    assert stream.getvalue().splitlines() == [
        "prepared 10 of 48 (sub-010\\n), 0:38 left",
        "prepared 20 of 48 (sub-020\\n), 0:28 left",
        "prepared 30 of 48 (sub-030\\n), 0:18 left",
        "prepared 40 of 48 (sub-040\\n), 0:08 left",
        "prepared 48 of 48 (sub-048\\n)",
    ]


def test_the_time_left_comes_from_the_last_calls_and_not_from_what_was_done_before(clock):
    stream = io.StringIO()
    progress = Progress("trained", stream=stream)
    assert not progress.due()
    progress(5000, 6000)  # resumed
    assert progress.rate == 0
    clock.now = 20
    assert progress.due()
    progress(5010, 6000, "loss 0.5")
    assert progress.rate == 0.5
    clock.now = 40
    progress(5010, 6000)
    clock.now = 7200
    for _ in range(32):  # what came before is forgotten
        progress(5020, 6000)
    assert progress.rate == 0
    assert stream.getvalue().splitlines()[:2] == [
        "trained 5010 of 6000 (loss 0.5), 33:00 left",
        "trained 5010 of 6000, 1:06:00 left",
    ]


def test_quiet_writes_nothing(clock):
    for stream in (io.StringIO(), Terminal()):
        with Progress("read", quiet=True, stream=stream) as progress:
            clock.now += 100
            assert not progress.due()
            progress(1, 1)
        assert stream.getvalue() == ""


def test_a_terminal_has_a_bar_that_stays(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with Progress("prepared", stream=stream) as progress:
        assert stream.getvalue() == ""
        for done in range(1, 5):
            clock.now += 1
            progress(done, 4, "[red]")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert re.search(r"prepared .* 50% 2 of 4 \(\[red\]\), 0:02 left", text)
    assert re.search(r"prepared .* 100% 4 of 4 \(\[red\]\)\s*$", text)


def test_a_dumb_terminal_has_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress("read", stream=stream) as progress:
        progress(1, 1)
    assert stream.getvalue() == "read 1 of 1\n"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_reader_that_has_gone_away_does_not_stop_the_work(is_terminal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    stream.isatty = lambda: is_terminal
    done = []
    with Progress("read", stream=stream) as progress:
        for number in (1, 2):
            progress(number, 2, "a")
            done.append(number)
    stream.close()  # nothing is held back that would fail now
    assert done == [1, 2]


def test_a_closed_stream_does_not_stop_the_work_either():
    stream = io.StringIO()
    progress = Progress("read", stream=stream)
    stream.close()
    assert progress(1, 1) is None  # no error
