"""``neurotome doctor [MODEL]``: the state of the installation, or of a model folder."""

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
        help="say whether the installation, or a model folder, is in order",
        description="Report versions, threads, devices, caches and disk, and what should be changed. With MODEL: "
        "verify its files, say what it can do, and compare what it computes here with what it computed at its export.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="model folder (RUN/model)")
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Print the findings."""
    return _installation(args) if args.model is None else _model(args)


def _model(args: argparse.Namespace) -> int:
    """Print what a model folder can do; exit 3 when it computes something else than it did."""
    from neurotome.errors import InputError
    from neurotome.models.folder import read_folder
    from neurotome.models.sealed import SELF_TEST
    from neurotome.models.self_test import compared
    from neurotome.nn.exported import Exportable

    folder = Path(args.model)
    content = read_folder(folder, Exportable)  # type: ignore[type-abstract]  # the registry holds concrete ones
    found = compared(content.network, content.self_test, folder / SELF_TEST) if content.self_test is not None else None
    facts: dict[str, Any] = {
        "class": type(content.network).__name__,
        "digest": content.digest,
        "images": content.images.to_json(),
        **(content.capabilities or content.network.capabilities(content.preparation.shape)),
        **({"frozen": dict(content.frozen)} if content.frozen else {}),
        **({"provenance": dict(content.provenance)} if content.provenance else {}),
        **({"origin": list(content.origin)} if content.origin else {}),
        "preparation": content.preparation.describe(),
        "training_subjects": len(content.training_subjects.subjects),
        "self_test": None if found is None else {"share_within_1e-3": found.share, "largest": found.largest},
    }
    warnings = [content.unready] if content.unready else []
    if not content.training_subjects.complete:
        warnings.append("not all subjects it was trained on are known: an evaluation may be on some of them")
    if found is None:
        warnings.append("the folder was written before there were self-tests: what it computes cannot be compared")
    lines = [f"{key:<18} {_in_words(value)}" for key, value in facts.items()]
    answer(args, {**facts, "warnings": warnings}, "\n".join([*lines, *(f"warning: {line}" for line in warnings)]))
    if found is not None and not found.passed:
        raise InputError(
            f"the self-test failed: {found.share:.1%} of the values are those of the export (largest difference "
            f"{found.largest:.3g})",
            file=folder,
            remedy="copy the folder again; if it stays so, compare the versions of torch in RUN/environment.json",
        )
    return 0


def _in_words(value: Any) -> str:
    """Return a value of a model's facts for people."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_in_words(one) for one in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _installation(args: argparse.Namespace) -> int:
    """Print the state of the installation; exit 1 when something is broken."""
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
    text += [f"warning: {warning}" for warning in warnings] or ["no problems found"]
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
