"""What the caller's shell, notebook or cluster leaves behind is made harmless once, before a verb runs.

The library itself changes no environment variable and no stream.
"""

import contextlib
import ctypes
import io
import logging
import os
import sys
import threading

# from which Lightning takes a process to be one of a group; a command is one process on one device
_GROUP = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "JSM_NAMESPACE_RANK",
    "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID",
)  # fmt: skip
# numbers of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def settle() -> None:
    """Open closed streams and set the variables that other packages read when they are imported."""
    _open_streams()
    # idle OpenMP threads that spin steal the cores from the loader and from other jobs
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # a notebook exports the name of a backend that this environment need not have; nothing is drawn on a screen
    os.environ["MPLBACKEND"] = "agg"
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # without a home it tells where its cache lies
    for name in _GROUP:
        os.environ.pop(name, None)
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _thread_error
    _keep_freed_memory()


def _thread_error(error: threading.ExceptHookArgs) -> None:
    """Leave faults of the output to the main thread, which meets them with its next write (TensorBoard's writer)."""
    if not isinstance(error.exc_value, OSError):
        threading.__excepthook__(error)


def _open_streams() -> None:
    """Open the null device in place of every standard stream that the caller closed (``2>&-``).

    Python sets such a stream to None, and the next file that is opened takes its descriptor: messages would go there.
    A stream that cannot encode a name (``PYTHONIOENCODING=ascii``) escapes it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is this one
            os.set_inheritable(opened, True)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
        stream = getattr(sys, name)
        if mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _keep_freed_memory() -> None:
    """Tell glibc to keep the arrays that every step frees and asks for again.

    Given back to the kernel, each comes back as thousands of page faults. No other C library has this call.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc admits
