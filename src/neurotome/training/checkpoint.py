r"""Checkpoints: folders of tensors, JSON and hashes, written so that a fault at any instant leaves a good one.

    checkpoints/step-00001000/tensors.safetensors    every tensor of the nested state, named by its path
                              state.json             all the rest; a tensor's place holds {"__tensor__": path}
                              SHA256SUMS             of the two files above

A checkpoint appears whole (:func:`neurotome.files.atomic.new_folder`); older ones are deleted only after the new one
has been read back and its hashes agree.
There is no pickle: mappings, lists, tuples, strings, numbers, booleans, None and tensors are kept, anything else is
refused by the path at which it stands.
"""

import contextlib
import hashlib
import json
import math
import random
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from neurotome.errors import InputError, OutputError, cannot_be_read
from neurotome.files.atomic import new_folder, remove_folder, sweep
from neurotome.files.json_text import parse_json

TENSORS, STATE, SUMS = "tensors.safetensors", "state.json", "SHA256SUMS"
FORMAT_VERSION = 2  # 2: what a training watches has a key of its own
_NAME = re.compile(r"step-(\d{8,})")
_DAMAGED = "damaged-"


def encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return ``value`` as JSON can hold it, collecting its tensors by path.

    Raises:
        TypeError: Something in it is neither a tensor nor plain data; the message names its path.
    """
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"__tensor__": path}
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"__float__": repr(value)}
    if isinstance(value, Mapping):
        wrong = [key for key in value if type(key) not in (str, int)]
        if wrong:
            raise TypeError(f"checkpoint: key {wrong[0]!r} at {path or 'the top'} is neither a string nor an integer")
        items = [(key, encode(item, _join(path, key), tensors)) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("__") for key, _ in items):
            return dict(items)
        return {"__items__": [[key, item] for key, item in items]}
    if type(value) in (list, tuple):
        members = [encode(item, _join(path, i), tensors) for i, item in enumerate(value)]
        return {"__tuple__": members} if type(value) is tuple else members
    raise TypeError(f"checkpoint: {path or 'the top'} is a {type(value).__name__}; store tensors and plain data only")


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what :func:`encode` was given."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((tag, content),) = value.items()
        if tag == "__tensor__":
            return tensors[content]
        if tag == "__float__":
            return float(content)
        if tag == "__tuple__":
            return tuple(decode(item, tensors) for item in content)
        if tag == "__items__":
            return {key: decode(item, tensors) for key, item in content}
    return {key: decode(item, tensors) for key, item in value.items()}


def _join(path: str, key: str | int) -> str:
    """Extend a path; the key's own separators are escaped, and an integer key differs from the same digits as text."""
    text = str(key).replace("~", "~0").replace("/", "~1")
    part = f"~i{text}" if isinstance(key, int) else text
    return f"{path}/{part}" if path else part


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the CPU, no two of which share memory (the file format refuses that)."""
    seen: set[int] = set()
    stored = {}
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        place = copy.untyped_storage().data_ptr()
        shared = place in seen or copy.untyped_storage().nbytes() != copy.nbytes
        stored[name] = copy.clone() if shared else copy
        seen.add(place)
    return stored


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> None:
    """Compare a checkpoint's files with its hashes.

    Raises:
        InputError: A file is missing, cut short or changed; or it is ``unreadable``.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="ascii").splitlines()
        sums = {line[66:]: line[:64] for line in lines}
        for name in (TENSORS, STATE):
            if sums.get(name) != _sha256(folder / name):
                raise InputError("the checkpoint's hash does not agree with its bytes", file=folder / name)
    except UnicodeDecodeError as error:
        raise InputError(f"the checkpoint is not whole ({error})", file=folder) from error
    except OSError as error:
        raise cannot_be_read(folder, error) from error


def step_of(folder: Path) -> int:
    """Return the step a checkpoint folder's name states.

    Raises:
        ValueError: The name is not that of a checkpoint.
    """
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"{folder.name} is not a checkpoint's name; they are called step-00001000")
    return int(match.group(1))


class CheckpointFolder(CheckpointIO):
    """The checkpoints of one run; Lightning reads and writes through it.

    Args:
        root: The folder that holds them.
        keep: How many of the newest stay, >= 1.
    """

    def __init__(self, root: Path, keep: int = 2) -> None:
        self.root = root
        self.keep = keep

    def path(self, step: int) -> Path:
        """Return the place of the checkpoint at ``step``."""
        return self.root / f"step-{step:08d}"

    def all(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        if not self.root.is_dir():
            return []
        return sorted((p for p in self.root.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)), key=step_of)

    def sweep(self) -> None:
        """Delete what an interrupted write has left."""
        sweep(self.root)

    def newest_good(self) -> Path | None:
        """Return the newest checkpoint whose hashes agree; damaged ones are set aside with a warning.

        Raises:
            InputError: There are checkpoints, but none is good: starting afresh silently would lose the run. Or one
                cannot be read; then all stay where they are.
        """
        candidates = self.all()
        for folder in reversed(candidates):
            try:
                verify(folder)
            except InputError as error:
                if error.unreadable:
                    raise
                aside = folder.with_name(f"{_DAMAGED}{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                warnings.warn(f"{error}; it was set aside as {aside.name}, the one before it is tried", stacklevel=2)
            else:
                return folder
        if candidates or (self.root.is_dir() and any(self.root.glob(f"{_DAMAGED}*"))):
            raise InputError(
                "every checkpoint of this run is damaged",
                file=self.root,
                remedy="delete the run folder to train from the start, or restore it from a backup",
            )
        return None

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one checkpoint, then delete those that are too many.

        Raises:
            OutputError: The disk is full or the folder cannot be written to; older checkpoints are as they were.
            TypeError: The state holds something that is neither a tensor nor plain data.
        """
        target = Path(path)
        tensors: dict[str, Tensor] = {}
        state = {"format_version": FORMAT_VERSION, "state": encode(checkpoint, "", tensors)}
        try:
            with new_folder(target) as folder:
                save_file(_storable(tensors), folder / TENSORS)
                (folder / STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
                shutil.copymode(folder / STATE, folder / TENSORS)  # safetensors leaves out what the umask admits
                sums = "".join(f"{_sha256(folder / name)}  {name}\n" for name in (TENSORS, STATE))
                (folder / SUMS).write_text(sums, encoding="ascii")
            verify(target)
        except (OutputError, SafetensorError, InputError) as error:
            raise OutputError(
                f"{target.name} was not saved: {str(error).rstrip('.')}; the earlier checkpoints are intact, and the "
                "same command resumes from them"
            ) from error
        with contextlib.suppress(OSError):  # one checkpoint too many is no reason to stop
            self.sweep()
            for old in self.all()[: -self.keep]:
                remove_folder(old)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Return the state that was saved at ``path``, its tensors on the CPU.

        Raises:
            InputError: The checkpoint is damaged or cannot be read, or is of a newer format.
        """
        folder = Path(path)
        verify(folder)
        return decode(self.read_state(folder), load_file(folder / TENSORS))

    def read_state(self, folder: Path) -> Any:
        """Return all but the tensors of a checkpoint as they are written, unverified.

        Raises:
            InputError: The checkpoint cannot be read, or is of a newer format.
        """
        try:
            content = parse_json((folder / STATE).read_text(encoding="utf-8"))
        except OSError as error:
            raise cannot_be_read(folder / STATE, error) from error
        if content.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"the checkpoint has format {content.get('format_version')!r}, this version reads {FORMAT_VERSION}",
                file=folder,
                remedy="install the version of neurotome that wrote it",
            )
        return content["state"]

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        remove_folder(Path(path))


def seed_generators(seed: int) -> None:
    """Seed torch's, numpy's and python's generators."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from the global generator
    random.seed(seed)


def random_state() -> dict[str, Any]:
    """Return the states of torch's, numpy's and python's generators."""
    version, words, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - libraries draw from the global generator
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {
            "key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "position": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
        "python": [version, torch.tensor(words), gauss],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators where they were."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    numpy = state["numpy"]
    key = numpy["key"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, numpy["position"], numpy["has_gauss"], numpy["gauss"]))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
