"""The model folder: weights, the call that builds the network, and what goes with them; no pickle, nothing executed.

    model.safetensors    averaged weights, without what only training needs
    config.json          {format_version, class, arguments, modalities, training_subjects, sha256}; of a tokenizer of
                         masks also "images": "masks", their source and groups; of one whose codebook has not seen data
                         also "codebook": "not started"
    preprocess.json      the preparation it expects
    README.md            the card
    latent_stats.json    mean and standard deviation per latent channel, mean intensity range per contrast
    styles.safetensors   per contrast and site: mean and covariance of the style vector over training subjects

A segmenter's folder is the same without the last two.

``sha256`` in ``config.json`` covers every other file, so a changed byte is noticed. The class is looked up among the
public names of our method folders and nowhere else.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from neurotome.errors import InputError, UsageError, printable
from neurotome.files.folder import write_folder
from neurotome.tasks.base import Segmenter
from neurotome.tokenizers.base import Tokenizer, is_finite
from neurotome.tokenizers.health import books_started

FORMAT_VERSION = 1
METHOD_FOLDERS = ("tokenizers", "disentangle", "generative", "tasks")
JSON_BYTES = 64 * 2**20
WEIGHT_BYTES = 32 * 2**30
MAX_TENSORS = 100_000
NAME = re.compile(r"[A-Za-z0-9_.%/|-]{1,256}")
SEGMENTER_FILES = ("model.safetensors", "preprocess.json", "README.md")
FILES = (*SEGMENTER_FILES, "latent_stats.json", "styles.safetensors")
FETCH_AGAIN = "copy or train the model folder again"
N = TypeVar("N", Tokenizer, Segmenter)


@dataclass(frozen=True)
class ModelFolder(Generic[N]):
    """What a model folder holds.

    Args:
        network: In evaluation mode, on the CPU.
        preparation: Content of ``preprocess.json``.
        stats: Content of ``latent_stats.json``; empty for a segmenter.
        styles: Tensors of ``styles.safetensors`` by name; none for a segmenter.
        training_subjects: Salt, and salted hashes of the subjects it was trained on.
        card: The README.
        digest: SHA-256 over class, arguments, weights, preparation and masks: what a latent depends on.
        masks: ``source`` and ``groups`` of the masks that a tokenizer was trained on; None where it was on scans.
    """

    network: N
    preparation: dict[str, Any]
    stats: dict[str, Any]
    styles: dict[str, Tensor]
    training_subjects: tuple[str, frozenset[str]]
    card: str
    digest: str
    masks: dict[str, Any] | None = None


def public_classes(kind: type) -> dict[str, type]:
    """Return the concrete public subclasses of ``kind`` by name: the registry for configs and model folders."""
    found: dict[str, type] = {}
    for folder in METHOD_FOLDERS:
        if importlib.util.find_spec(f"neurotome.{folder}") is None:
            continue
        module = importlib.import_module(f"neurotome.{folder}")
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isclass(value) and issubclass(value, kind) and not inspect.isabstract(value):
                found[name] = value
    return found


def subject_hash(salt: str, subject: str) -> str:
    """Return the salted hash under which a training subject is listed."""
    return hashlib.sha256(f"{salt}:{subject}".encode()).hexdigest()


def write_model_folder(
    folder: Path,
    network: Tokenizer | Segmenter,
    *,
    preparation: Mapping[str, Any],
    subjects: Iterable[str] | tuple[str, frozenset[str]],
    card: str,
    stats: Mapping[str, Any] | None = None,
    styles: Mapping[str, Tensor] | None = None,
    masks: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> str:
    """Write a model folder whole or not at all.

    Args:
        folder: Where it will stand.
        network: Its exported state and constructor arguments are stored.
        preparation: Goes to ``preprocess.json``.
        subjects: Training subjects, stored as salted hashes; or salt and hashes as read from another folder.
        card: Goes to ``README.md``.
        stats: Goes to ``latent_stats.json``; of a tokenizer alone.
        styles: Go to ``styles.safetensors``; of a tokenizer alone.
        masks: ``source`` and ``groups`` of the masks that a tokenizer was trained on; None for scans.
        overwrite: Whether a folder that is there may be replaced.

    Returns:
        The digest a latent is stamped with.

    Raises:
        UsageError: The folder is there and ``overwrite`` is False; the class is not public; an argument is not plain.
        InputError: A weight is not finite.
    """
    if folder.exists() and not overwrite:
        raise UsageError(f"{printable(folder)}: there is something already; give --overwrite or another folder")
    name = type(network).__name__
    if public_classes(nn.Module).get(name) is not type(network):
        raise UsageError(f"{name} is not a public class of the package, so a model folder could not be read again")
    state = {key: value.contiguous().cpu() for key, value in network.exported_state().items()}
    _finite(state, folder / "model.safetensors")
    contents = {
        "model.safetensors": safetensors.torch.save(state),
        "preprocess.json": _json(preparation),
        "README.md": card.encode(),
    }
    if isinstance(network, Tokenizer):
        plain = {k: v.detach().contiguous().cpu() for k, v in (styles or {}).items()}
        contents |= {"latent_stats.json": _json(stats or {}), "styles.safetensors": safetensors.torch.save(plain)}
    hashes = {file: hashlib.sha256(data).hexdigest() for file, data in contents.items()}
    if isinstance(subjects, tuple) and len(subjects) == 2 and isinstance(subjects[1], frozenset):
        salt, hashed = subjects
    else:
        salt = hashes["model.safetensors"][:32]  # differs from model to model, and the same run gives the same bytes
        hashed = frozenset(subject_hash(salt, str(subject)) for subject in subjects)
    config = {
        "format_version": FORMAT_VERSION,
        "class": name,
        "arguments": _plain_arguments(network),
        "modalities": list(network.modalities),
        "training_subjects": {"salt": salt, "sha256": sorted(hashed)},
        "sha256": hashes,
    }
    if masks is not None:
        config |= {"images": "masks", "masks": dict(masks)}
    if not books_started(network):
        config["codebook"] = "not started"
    write_folder(folder, {**contents, "config.json": _json(config)})
    return _digest(config)


def read_model_folder(folder: Path) -> ModelFolder[Tokenizer]:
    """Read and verify the model folder of a tokenizer; raises as :func:`read_folder`."""
    return read_folder(folder, Tokenizer)  # type: ignore[type-abstract]  # the registry holds concrete ones


def read_folder(folder: Path, kind: type[N]) -> ModelFolder[N]:
    """Read and verify a model folder.

    Args:
        folder: The folder.
        kind: What it must hold: ``Tokenizer`` or ``Segmenter``.

    Raises:
        UsageError: There is no such folder.
        InputError: A file is missing, changed or too large; a newer format; a class that is not public or of the other
            kind; arguments or weights that do not fit it; a weight that is not finite.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(
            f"{printable(folder)}: there is no such model folder; `neurotome train` writes one as RUN/model"
        )
    config_file = folder / "config.json"
    config = _parsed(read_bounded(config_file, JSON_BYTES), config_file)
    names = FILES if issubclass(kind, Tokenizer) else SEGMENTER_FILES
    _check_config(config, config_file)
    cls = _class(config, config_file, kind)
    if set(config["sha256"]) != set(names):
        raise InputError("the key sha256 is missing or of another kind", file=config_file, remedy=FETCH_AGAIN)
    contents = {}
    with ThreadPoolExecutor(1) as beside:  # hashing leaves the interpreter to build the network meanwhile
        hashes = {}
        for name in names:
            contents[name] = read_bounded(folder / name, WEIGHT_BYTES if name == "model.safetensors" else JSON_BYTES)
            hashes[name] = beside.submit(_sha256, contents[name])
        network = _network(config, config_file, cls)
        changed = [name for name in names if hashes[name].result() != config["sha256"][name]]
    if changed:
        raise InputError("its content is not what config.json promises", file=folder / changed[0], remedy=FETCH_AGAIN)
    state = read_tensors(contents.pop("model.safetensors"), folder / "model.safetensors")
    _adopt(network, state, config, config_file)
    subjects = config["training_subjects"]
    return ModelFolder(
        network=network.eval().requires_grad_(False),
        preparation=_parsed(contents["preprocess.json"], folder / "preprocess.json"),
        stats=_parsed(contents.get("latent_stats.json", b"{}"), folder / "latent_stats.json"),
        styles=read_tensors(found, folder / "styles.safetensors") if (found := contents.get(FILES[-1])) else {},
        training_subjects=(subjects["salt"], frozenset(subjects["sha256"])),
        card=contents["README.md"].decode("utf-8", "replace"),
        digest=_digest(config),
        masks=_masks(config, config_file),
    )


def read_bounded(file: Path, limit: int) -> bytes:
    """Read a regular file of at most ``limit`` bytes; never blocks on a pipe or a device.

    Raises:
        InputError: Not a regular file, unreadable, or larger.
    """
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", file=file, remedy="check the path and its permissions"
        ) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise InputError("not a regular file", file=file, remedy="give a file")
    with os.fdopen(handle, "rb") as stream:
        if status.st_size > limit:
            reason = f"{status.st_size} bytes, admissible are {limit}"
            raise InputError(reason, file=file, remedy="give a file of the right kind")
        return stream.read(status.st_size)  # a limit of gigabytes would be allocated at once


def read_tensors(data: bytes, file: Path) -> dict[str, Tensor]:
    """Read safetensors bytes with checked names and finite values.

    Raises:
        InputError: Not safetensors, too many tensors, an odd name, NaN or infinity.
    """
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"not a safetensors file ({printable(str(error))})", file=file, remedy=FETCH_AGAIN) from error
    odd = [name for name in tensors if not NAME.fullmatch(name)]
    if odd or len(tensors) > MAX_TENSORS:
        what = f"tensor name '{printable(odd[0][:80])}'" if odd else f"{len(tensors)} tensors"
        raise InputError(f"{what} is not admissible", file=file, remedy=FETCH_AGAIN)
    _finite(tensors, file)
    return tensors


def _finite(tensors: Mapping[str, Tensor], file: Path) -> None:
    for name, value in tensors.items():
        if not is_finite(value):
            raise InputError(
                f"tensor {name} holds NaN or infinity", file=file, remedy="train again, with a lower rate if it recurs"
            )


def _check_config(config: Any, file: Path) -> None:
    version = config.get("format_version") if isinstance(config, dict) else None
    if not isinstance(version, int) or version < 1:
        raise InputError("has no format_version", file=file, remedy="give a model folder that neurotome wrote")
    if version > FORMAT_VERSION:
        raise InputError(
            f"format {version} is newer than this version reads ({FORMAT_VERSION})",
            file=file,
            remedy="upgrade neurotome",
        )
    kinds = {"class": str, "arguments": dict, "modalities": list, "training_subjects": dict, "sha256": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(config.get(key), kind)]
    subjects = config.get("training_subjects")
    if not wrong and not (isinstance(subjects.get("salt"), str) and isinstance(subjects.get("sha256"), list)):
        wrong = ["training_subjects"]
    if wrong:
        raise InputError(f"the key {wrong[0]} is missing or of another kind", file=file, remedy=FETCH_AGAIN)


def _masks(config: Mapping[str, Any], file: Path) -> dict[str, Any] | None:
    """Return what a tokenizer of masks was trained on."""
    if config.get("images", "scans") == "scans":
        return None
    found = config.get("masks")
    if config["images"] != "masks" or not isinstance(found, dict) or found.get("source") not in ("image", "label"):
        raise InputError("the key masks is missing or of another kind", file=file, remedy=FETCH_AGAIN)
    return found


def _class(config: Mapping[str, Any], file: Path, kind: type[N]) -> type[N]:
    """Return the class of the network among our public ones of a kind."""
    name, classes, word = config["class"], public_classes(kind), kind.__name__.lower()
    if name not in classes:
        others = [k for k in (Tokenizer, Segmenter) if name in public_classes(k)]
        what = f"a {others[0].__name__.lower()}, no {word}" if others else f"not a public {word}"
        raise InputError(
            f"class {printable(name)[:80]!r} is {what} ({', '.join(sorted(classes))})",
            file=file,
            remedy=f"give the model folder of a {word}" if others else "upgrade neurotome, or give another model",
        )
    return classes[name]


def _network(config: Mapping[str, Any], file: Path, cls: type[N]) -> N:
    """Build the network on the meta device: absurd sizes cost nothing, and no weight is drawn to be replaced."""
    arguments = {key: _tuples(value) for key, value in config["arguments"].items()}
    try:
        with torch.device("meta"):
            network: N = cls(**arguments)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = f"arguments do not fit {config['class']}: {printable(' '.join(str(error).split()))}"
        raise InputError(reason, file=file, remedy=FETCH_AGAIN) from error
    if list(network.modalities) != config["modalities"]:
        raise InputError("modalities are not those of the network", file=file, remedy=FETCH_AGAIN)
    return network


def _adopt(network: N, state: dict[str, Tensor], config: Mapping[str, Any], file: Path) -> None:
    """Make the stored weights those of the network."""
    own = {key: value.shape for key, value in network.exported_state().items()}
    if own != {key: value.shape for key, value in state.items()}:
        strange = sorted(own.keys() ^ state.keys()) or sorted(k for k in own if own[k] != state[k].shape)
        raise InputError(
            f"weights do not fit the arguments of {config['class']} ({strange[0]})", file=file, remedy=FETCH_AGAIN
        )
    with torch.random.fork_rng(devices=[]):  # parts that only training needs are drawn anew
        network.adopt(state)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest(config: Mapping[str, Any]) -> str:
    parts = [
        config["class"],
        config["arguments"],
        config["sha256"]["model.safetensors"],
        config["sha256"]["preprocess.json"],
        *([config["masks"]] if "masks" in config else []),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _plain_arguments(network: Tokenizer | Segmenter) -> dict[str, Any]:
    def plain(name: str, value: Any) -> Any:
        if dataclasses.is_dataclass(value) or not isinstance(value, str | bool | int | float | list | tuple | None):
            raise UsageError(f"argument {name} of {type(network).__name__} is {value!r}, which config.json cannot hold")
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"argument {name} of {type(network).__name__} is {value}; give a finite number")
        return [plain(name, item) for item in value] if isinstance(value, list | tuple) else value

    return {name: plain(name, value) for name, value in network.arguments.items()}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode()


def _parsed(data: bytes, file: Path) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError("not JSON", file=file, remedy=FETCH_AGAIN) from error
    if not isinstance(value, dict):
        raise InputError("not a JSON object", file=file, remedy=FETCH_AGAIN)
    return value
