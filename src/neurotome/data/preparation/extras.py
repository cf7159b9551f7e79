"""Packages that only some preparations need: imported where they are needed, named with their command where absent."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from neurotome.errors import UsageError

SIMPLEITK = "SimpleITK"


def simpleitk(purpose: str) -> Any:
    """Return the module SimpleITK.

    Args:
        purpose: Begins the message where it is missing.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return importlib.import_module(SIMPLEITK)
    except ImportError as error:
        raise UsageError(
            f"{purpose} needs the package {SIMPLEITK}; install it with `pip install {SIMPLEITK}`"
        ) from error


@contextmanager
def one_thread(sitk: Any) -> Iterator[None]:
    """Let SimpleITK compute in one thread: its sums depend on the number of threads, and so would the last digits."""
    process = sitk.ProcessObject
    before = process.GetGlobalDefaultNumberOfThreads()
    process.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        process.SetGlobalDefaultNumberOfThreads(before)
