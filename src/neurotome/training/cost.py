"""What a process has used of the machine: its largest memory so far."""

import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def peak_memory() -> dict[str, float]:
    """Return ``{"peak_rss_mb"}`` and, where this process has used CUDA, ``"peak_device_mb"``, in MB of 2^20 bytes.

    Resident memory is that of this process; device memory is what tensors have held on the current device.
    """
    found = {"peak_rss_mb": round(peak_rss_mb(), 1)}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch leaves it bare
        found["peak_device_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return found


def peak_rss_mb() -> float:
    """Return the largest resident memory this process has held, in MB of 2^20 bytes."""
    # Linux hands ru_maxrss on to what a process starts: a small child of a large parent would report the parent's peak
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
