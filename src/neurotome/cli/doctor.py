"""``neurotome doctor``: the state of the installation."""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from neurotome.cli import add_common, answer

PACKAGES = ("neurotome", "torch", "lightning", "monai", "numpy", "scipy", "nibabel", "nilearn", "safetensors")
SMALL_DISK_GB = 2.0  # the demo writes about 0.3 GB; a real cohort at 1 mm takes tens


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "doctor",
        help="say whether the installation is in order",
        description="Report versions, threads, devices, caches and disk, and what should be changed.",
    )
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Print the findings; exit 1 when something is broken."""
    import torch

    from neurotome.data.phantom.template import cache_folder

    cache = cache_folder()
    free = shutil.disk_usage(next(p for p in (Path.cwd(), *Path.cwd().parents) if p.exists())).free / 1e9
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "unset"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "unset"),
        "accelerator": _accelerator(),
        "cache": str(cache),
        "disk_free_gb": round(free, 1),
    }
    warnings = _warnings(facts, cache)
    broken = [name for name, version in facts["packages"].items() if version == "missing"]
    warnings += [f"{name} is not installed; run `pip install neurotome` again" for name in broken]
    text = [f"{key:<18} {value}" for key, value in facts.items() if key != "packages"]
    text += [f"{key:<18} {value}" for key, value in facts["packages"].items()]
    text += [f"warning: {warning}" for warning in warnings] or ["nothing to complain about"]
    answer(args, {**facts, "warnings": warnings}, "\n".join(text))
    return 1 if broken else 0


def _warnings(facts: dict[str, Any], cache: Path) -> list[str]:
    found = []
    if importlib.util.find_spec("torchvision") is not None:
        found.append(
            "torchvision is installed; beside a CPU build of torch it can break lightning (operator nms). It is not "
            "needed here: `pip uninstall torchvision`, if imports fail"
        )
    if facts["OMP_WAIT_POLICY"].lower() != "passive":
        found.append("OMP_WAIT_POLICY is not passive: idle threads spin and take the cores from the loader")
    if facts["disk_free_gb"] < SMALL_DISK_GB:
        found.append(f"only {facts['disk_free_gb']} GB are free here")
    above = next(p for p in (cache, *cache.parents) if p.exists())
    if not os.access(above, os.W_OK):
        found.append(f"the cache {cache} cannot be written to; set NEUROTOME_CACHE to a folder that can")
    return found


def _accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return "mps" if torch.backends.mps.is_available() else "none"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
