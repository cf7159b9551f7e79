"""The errors a user can act on, each with the exit code of the command that raised it.

    0 ok
    1 internal error, full disk, read-only output            OutputError
    2 flag, key, type, missing path, OUT not empty           UsageError
    3 an input refused: scan, latent, model folder, manifest InputError
    75 interrupted by a signal; run again to resume          Interrupted

The text of each is one paragraph: what was given, what is admissible, what to do.
"""

import difflib
import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

# what torch says of CUDA and MPS, of the CPU on each system, of C++ and of the libraries of a GPU
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory|bad_alloc|_STATUS_ALLOC_FAILED"
)


def printable(text: str | os.PathLike[str]) -> str:
    r"""Return ``text`` with control characters, line breaks and broken bytes escaped, so that it stays on one line.

    A file name is data: one that holds an escape sequence must not steer the reader's terminal.
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in os.fspath(text))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean …?`` with the word of ``known`` that is nearest, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, as Python, numpy, the allocators of torch or the system say it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


class NeurotomeError(Exception):
    """An error with a remedy; its text is one paragraph.

    Attributes:
        exit_code: What the command line returns.
    """

    exit_code = 1


class UsageError(NeurotomeError, ValueError):
    """A flag, a key, a type or a path of the call is wrong."""

    exit_code = 2


class InputError(NeurotomeError, ValueError):
    """An input was refused: a scan, a latent, a model folder, a manifest, a store.

    Args:
        reason: What is wrong with it, and what would be admissible.
        file: The file that was refused.
        remedy: What the reader can do.
    """

    exit_code = 3

    def __init__(self, reason: str, *, file: str | os.PathLike[str] | None = None, remedy: str | None = None) -> None:
        self.reason = reason
        self.file = None if file is None else Path(file)
        self.remedy = remedy
        super().__init__(reason)

    def __str__(self) -> str:
        """Return ``FILE: reason. Remedy: remedy.`` on one line."""
        head = "" if self.file is None else f"{printable(self.file)}: "
        tail = "" if self.remedy is None else f" Remedy: {self.remedy.rstrip('.')}."
        body = self.reason if self.reason.endswith((".", "!", "?")) else f"{self.reason}."
        # both may quote a file or a name; a line break of their own stays one
        lines = f"{body if tail else self.reason}{tail}".split("\n")
        return head + "\n".join(map(printable, lines))

    @property
    def unreadable(self) -> bool:
        """Whether the system refused to read what is there; that says nothing about its content."""
        absent = FileNotFoundError | NotADirectoryError | IsADirectoryError
        return isinstance(self.__cause__, OSError) and not isinstance(self.__cause__, absent)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the way from a worker process, keyword arguments included."""
        return _input_error, (self.reason, None if self.file is None else str(self.file), self.remedy)


def _input_error(reason: str, file: str | None, remedy: str | None) -> InputError:
    return InputError(reason, file=file, remedy=remedy)


def cannot_be_read(path: Path, error: OSError) -> InputError:
    """Return the error of a file that the system did not let us read; raise it from ``error``."""
    return InputError(
        f"cannot be read ({error.strerror or error})",
        file=error.filename or path,
        remedy="check its owner and permissions, the limit of open files and the network drive, then run again; "
        "nothing was changed",
    )


class OutputError(NeurotomeError, OSError):
    """An output could not be written: the disk is full, or the folder cannot be written to."""

    exit_code = 1


class Interrupted(NeurotomeError):  # noqa: N818 - a stop that can be resumed, not a fault
    """A signal stopped the work after its state was saved; the same command resumes it."""

    exit_code = 75
