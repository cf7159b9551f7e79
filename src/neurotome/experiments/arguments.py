"""Checks of what the functions of Python are given; the command line has those of its parser."""

import os
from typing import Any

from neurotome.errors import UsageError, printable


def check_path(name: str, value: Any) -> None:
    """Refuse what names no file or folder.

    Raises:
        UsageError: It is neither text nor a path, is empty or holds a NUL.
    """
    if not isinstance(value, str | os.PathLike) or not (text := os.fspath(value)) or "\0" in text:
        raise UsageError(f"{name} is {printable(repr(value))[:80]}; give a path")


def check_number(name: str, value: Any, least: int, most: int = 2**32 - 1) -> None:
    """Refuse what is no whole number of a range.

    Raises:
        UsageError: It is another thing, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{name} is {printable(repr(value))[:80]}; give a whole number from {least} to {most}")
