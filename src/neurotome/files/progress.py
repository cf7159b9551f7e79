"""How far a verb is: a bar on a terminal, elsewhere a line every ten seconds and one at the end.

prepared 12 of 48 (sub-012), 0:21 left
"""

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self

from neurotome.errors import printable

# (done, total, what was done): how every long function says how far it is
Report = Callable[[int, int, str], None]
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_BARS = 0.5


class Progress:
    """A :data:`Report` that shows what it is called with, until :meth:`close` or the end of the context.

    Args:
        verb: What is done, in the past tense: ``prepared``.
        quiet: Whether to write nothing.
        stream: Where to write; standard error if None. A reader that has gone away does not stop the work.
    """

    def __init__(self, verb: str, quiet: bool = False, stream: Any = None) -> None:
        self.verb = verb
        self.quiet = quiet
        self._stream = _Unbroken(sys.stderr if stream is None else stream)
        self._is_terminal = not quiet and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._bar: Any = None
        self._shown = float("-inf") if self._is_terminal else time.monotonic()
        # the last calls alone: what an earlier run had finished takes no time
        self._marks: deque[tuple[float, int]] = deque(maxlen=32)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def due(self) -> bool:
        """Return whether a call would show something, for callers whose words take time to find."""
        wait = _SECONDS_BETWEEN_BARS if self._is_terminal else _SECONDS_BETWEEN_LINES
        return not self.quiet and time.monotonic() - self._shown >= wait

    @property
    def rate(self) -> float:
        """How much was done per second of late; 0 where that is unknown."""
        (begin, before), (now, done) = (self._marks[0], self._marks[-1]) if self._marks else ((0.0, 0), (0.0, 0))
        return (done - before) / (now - begin) if now > begin and done > before else 0.0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show that ``done`` of ``total`` are finished, the last of them ``note``."""
        if self.quiet:
            return
        self._marks.append((time.monotonic(), done))
        if done < total and not self.due():
            return
        self._shown = time.monotonic()
        note = f" ({printable(note)})" if note else ""
        left = f", {clock((total - done) / self.rate)} left" if done < total and self.rate else ""
        if not self._is_terminal:
            self._stream.write(f"{self.verb} {done} of {total}{note}{left}\n")
            self._stream.flush()
            return
        if self._bar is None:
            self._bar = _bar(self.verb, self._stream)
        self._bar.update(0, completed=done, total=total, words=f"{done} of {total}{note}{left}", refresh=True)

    def say(self, text: str) -> None:
        """Write a line of its own, above the bar where there is one."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
            return
        self._stream.write(f"{printable(text)}\n")
        self._stream.flush()

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Unbroken:
    """A stream that swallows what its reader, gone away, no longer takes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        """Write what can be written."""
        self._try("write", text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        self._try("flush")

    def _try(self, action: str, *words: str) -> None:
        try:
            getattr(self._stream, action)(*words)
        except BrokenPipeError:  # what the stream still holds must not fail once more when Python ends
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        except (OSError, ValueError):
            pass


def _bar(verb: str, stream: Any) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    words = TextColumn("{task.fields[words]}", markup=False)
    # refreshed by the calls: a thread of its own would be forked with the workers of a loader
    console = Console(file=stream, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn(), words)
    bar = Bar(*columns, console=console, auto_refresh=False, redirect_stdout=False)
    bar.start()
    bar.add_task(verb, total=None, words="")
    return bar


def clock(seconds: float) -> str:
    """Return ``3:07``, or ``2:03:07`` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
