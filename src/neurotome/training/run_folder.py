"""The files of a run folder that are not checkpoints.

    config.yaml        what was asked for, resolved; a resume must ask for the same
    environment.json   versions, machine, threads, revision, seed, command of the first start, and of each resume
    metrics.jsonl      {"step": 50, "seconds": 2.4, "train/loss": 0.31, "lr": 0.0003, "steps_per_s": 21.0}
                       {"step": 500, "seconds": 26.0, "val/psnr/T1w": 27.1}
                       {"step": 101, "seconds": 5.1, "begun/codebook": 1.0}   something began, the loss may jump
    worst_batch.safetensors   images of the training batch with the highest loss, where the method keeps them
    status.json        {"state": running|finished|interrupted|failed, "step", "max_steps", "seconds", "cpu_seconds",
                        "peak_rss_mb", "peak_device_mb" (CUDA), "message", "exported": step of the model folder}
    origin.json        the model of --init-from, where there was one: digest, network, salted hashes of its subjects

``seconds`` are wall time of the steps that are kept; ``cpu_seconds`` is what all threads of the processes that trained
here have used since their first step, validation, checkpoints and work that a fault lost included.

Every file but the metrics, which grow, is written under another name and renamed.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from neurotome.errors import InputError, UsageError, cannot_be_read, printable
from neurotome.files.atomic import HIDDEN, output_error, remove, write_atomically
from neurotome.files.json_text import parse_json
from neurotome.files.lock import alone
from neurotome.files.yaml_text import parse_yaml
from neurotome.training.cost import peak_memory

# A resume may change these: none of them changes the weights.
FREE_KEYS = frozenset(
    {"keep", "progress", "quiet", "workers", "log_every_steps", "val_every_steps", "checkpoint_every_steps"}
)
LOCK = ".lock"
_ORIGIN_LOST = "restore the file from a backup, or train into another --out"
PACKAGES = ("neurotome", "torch", "lightning", "numpy", "monai", "safetensors", "nibabel", "scikit-learn")


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by their dotted path."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def differences(old: Any, new: Any) -> list[str]:
    """Return one line per leaf that a resume may not change and that differs.

    A key that is null on one side and absent on the other is no difference: an argument of another version, not used.
    """
    before, after = flat(old), flat(new)

    def words(leaves: Mapping[str, Any], key: str) -> str:
        return repr(leaves[key]) if key in leaves else "not there"

    return [
        f"{key}: {words(before, key)} -> {words(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if key.rsplit(".", 1)[-1] not in FREE_KEYS and before.get(key) != after.get(key)
    ]


def _only_one_sided(old: Any, new: Any) -> bool:
    """Return whether two configs differ in keys that one of them lacks, and in no value that both have."""
    before, after = flat(old), flat(new)
    shared = {key: before[key] for key in before.keys() & after.keys()}
    return not differences(shared, {key: after[key] for key in shared})


def origin_digest(origin: Mapping[str, Any] | None) -> str | None:
    """Return a SHA-256 of what a run started from; None for freshly drawn weights."""
    if origin is None:
        return None
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()


def _flat_data(config: Any) -> bool:
    """Return whether a config has a data block that names no class, as runs of earlier versions have."""
    return isinstance(config, Mapping) and isinstance(data := config.get("data"), Mapping) and "class_path" not in data


def environment(seed: int, threads: int, device: str) -> dict[str, Any]:
    """Return what a reader needs to repeat a run; paths under the home folder are written with ``~``."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "threads": threads,
        "device": device,
        "revision": _revision(),
        "seed": seed,
        "command": [_homeless(word) for word in (Path(sys.argv[0]).name, *sys.argv[1:])],
    }


def _homeless(word: str) -> str:
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where a container's user has none
    return word.replace(home, "~") if len(home) > 1 else word


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _revision() -> str | None:
    """Return the commit of the checkout this package lies in; None when it was installed from a wheel."""
    here = Path(__file__).resolve().parent
    if not any((parent / ".git").exists() and (parent / "pyproject.toml").exists() for parent in here.parents):
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


class RunFolder:
    """Reads and writes the files of one run.

    Args:
        root: The run folder; made if it is not there.
        extend: Whether it must hold a run, which gets more steps.

    Raises:
        UsageError: It holds no run to extend.
        OutputError: It cannot be made or written to.
    """

    def __init__(self, root: Path, *, extend: bool = False) -> None:
        self.root = root
        self._begin: float | None = None
        if extend and self._config() is None:
            raise UsageError(f"{printable(root)}: holds no run to extend; leave --extend-to out, or check --out")
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(root, error) from error

    def sweep(self) -> None:
        """Delete what a stopped write has left beside the files; the folders have their own."""
        for left in self.root.glob(f"{HIDDEN}*"):
            remove(left)

    def alone(self) -> AbstractContextManager[None]:
        """Return a context within which no other process trains into the folder.

        Raises:
            UsageError: One does.
        """
        held = f"another process is training into {printable(self.root)}; wait for it, or give another --out"
        return alone(self.root / LOCK, UsageError(held), again=True)

    def write(self, name: str, content: str | bytes) -> None:
        """Replace a file as a whole.

        Raises:
            OutputError: The disk is full or the folder cannot be written to.
        """
        write_atomically(self.root / name, [content.encode() if isinstance(content, str) else content])

    def read_json(self, name: str) -> dict[str, Any]:
        """Return a JSON object, or an empty one where the file is missing or half-written.

        Raises:
            InputError: The file is there and may not be read; what is in it must not be replaced.
        """
        try:
            value = parse_json((self.root / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        except OSError as error:
            raise cannot_be_read(self.root / name, error) from error
        return value if isinstance(value, dict) else {}

    def check(self, config: str, origin: Mapping[str, Any] | None = None, *, extend: bool = False) -> int | None:
        """Compare a call with the run that is there, and write nothing.

        Args:
            config: The resolved configuration as YAML.
            origin: What the weights start from, with its digest as ``model``; None for freshly drawn ones.
            extend: Whether the run that is there may get more steps.

        Returns:
            The steps of the run that is there, where it gets more.

        Raises:
            UsageError: The run was started with another configuration or from other weights; the message lists the
                keys.
            InputError: ``origin.json`` is damaged.
        """
        before = self._config()
        if before is None:
            return None
        old, new = parse_yaml(before, str(self.root / "config.yaml")), parse_yaml(config, "config")
        steps = self._extension(old, new) if extend else None
        changed = differences(old, new)
        if _flat_data(old) and not _flat_data(new):
            raise UsageError(
                f"{self.root} holds a run of an earlier version of neurotome, whose runs cannot be resumed; its model "
                "folder can be used as before. Give another --out, or --overwrite to replace it"
            )
        if changed and _only_one_sided(old, new):
            raise UsageError(
                f"{self.root} holds a run whose configuration has other keys ({'; '.join(changed[:20])}): give "
                "the same values to resume it; where another version of neurotome began it, only that version can. Its "
                "model folder can be used; give another --out to start a new run"
            )
        if changed:
            raise UsageError(
                f"{self.root} holds a run with another configuration ({'; '.join(changed[:20])}): "
                "give the same values to resume it, or another --out to start a new run"
            )
        self._check_origin(origin)
        return steps

    def claim(self, config: str, origin: Mapping[str, Any] | None = None, *, extend: bool = False) -> None:
        """Write ``origin.json`` and ``config.yaml`` of a call that passes :meth:`check`; its arguments and errors."""
        steps, before = self.check(config, origin, extend=extend), self._config()
        self.sweep()
        if before is None:
            if origin is not None:
                self.write("origin.json", json.dumps(origin, indent=2) + "\n")
            else:
                (self.root / "origin.json").unlink(missing_ok=True)
        if steps is not None and "exported" not in self.read_json("status.json"):
            self.exported(steps)  # so that the model folder is known to be of fewer steps
        if before != config:
            self.write("config.yaml", config)  # last: it makes a folder a run

    def _config(self) -> str | None:
        """Return the text of ``config.yaml``; None where the folder holds no run."""
        path = self.root / "config.yaml"
        try:
            return path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise cannot_be_read(path, error) from error

    def _extension(self, old: Any, new: Any) -> int | None:
        """Return the steps of the run that is there where it gets more, and make ``old`` ask for as many as ``new``."""
        before, now = (tree.get("trainer", {}).get("max_steps") for tree in (old, new))
        if before == now:
            return None  # begun before
        if not isinstance(before, int) or before > now:
            raise UsageError(f"{printable(self.root)}: has {before} steps; --extend-to {now} is not more")
        old["trainer"]["max_steps"] = now
        return before

    def origin(self) -> dict[str, Any] | None:
        """Return what the run that is there started from; None where that were freshly drawn weights.

        Raises:
            InputError: The file is damaged: without it, the subjects that the weights have seen are not known.
        """
        path = self.root / "origin.json"
        if not path.exists():
            return None
        found = self.read_json("origin.json")
        if not isinstance(found.get("model"), str):
            raise InputError("does not say what the run started from", file=path, remedy=_ORIGIN_LOST)
        return found

    def check_origin(self, digest: str | None) -> None:
        """Compare ``origin.json`` with what :func:`origin_digest` was when a checkpoint was written.

        Raises:
            InputError: The file is missing, damaged, or another.
        """
        found = self.origin()
        if origin_digest(found) != digest:
            reason = "is not the file that the run began with" if found else "is missing; the run has begun with one"
            raise InputError(reason, file=self.root / "origin.json", remedy=_ORIGIN_LOST)

    def _check_origin(self, origin: Mapping[str, Any] | None) -> None:
        """Refuse other first weights than those of the run."""
        before = (self.origin() or {}).get("model")
        if origin is not None and origin["model"] != before:
            what = f"from model {str(before)[:12]}" if before else "from freshly drawn weights"
            raise UsageError(
                f"{printable(self.root)}: the run was started {what}, not from the model of --init-from "
                f"({origin['model'][:12]}); leave --init-from out to resume it, or give another --out"
            )
        begun = any((self.root / "checkpoints").glob("step-*"))
        if origin is None and before and not begun:
            raise UsageError(
                f"{printable(self.root)}: the run was started from model {before[:12]} and has no checkpoint yet; give "
                "the same --init-from again, or --overwrite"
            )

    def start(self, facts: Mapping[str, Any]) -> None:
        """Record the environment of a first start or, beside it, of a resume."""
        before = self.read_json("environment.json")
        record = {**before, "resumes": [*before.get("resumes", []), dict(facts)]} if before else dict(facts)
        self.write("environment.json", json.dumps(record, indent=2) + "\n")

    def status(self, state: str, step: int, max_steps: int, seconds: float, message: str = "") -> None:
        """Write ``status.json``."""
        exported = self.read_json("status.json").get("exported")
        record = {
            "state": state,
            "step": step,
            "max_steps": max_steps,
            "seconds": round(seconds, 3),
            "cpu_seconds": round(self._cpu_seconds(), 3),
            **peak_memory(),
            "message": message,
            **({"exported": exported} if exported is not None else {}),
        }
        self.write("status.json", json.dumps(record, indent=2) + "\n")

    def exported(self, step: int) -> None:
        """Note of which step the model folder is."""
        self.write("status.json", json.dumps({**self.read_json("status.json"), "exported": step}, indent=2) + "\n")

    def _cpu_seconds(self) -> float:
        """Return the CPU seconds since the first status of this process, and those of earlier ones."""
        if self._begin is None:
            before = self.read_json("status.json").get("cpu_seconds")
            self._begin = time.process_time() - (before if isinstance(before, int | float) else 0.0)
        return time.process_time() - self._begin

    def append(self, row: Mapping[str, Any]) -> None:
        """Append one row of metrics; a number that is not finite becomes null.

        Raises:
            OutputError: The disk is full or the file cannot be written to.
        """
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        path = self.root / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean) + "\n")
        except OSError as error:
            raise output_error(path, error) from error

    def rewind(self, step: int) -> None:
        """Drop rows after ``step``, and one that a fault cut short: a resume writes them again."""
        path = self.root / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = parse_json(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= step:
                kept.append(line + "\n")
        self.write("metrics.jsonl", "".join(kept))
