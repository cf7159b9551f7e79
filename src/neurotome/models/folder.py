"""The model folder: weights, the parts the network is made of, and what goes with them; no pickle, nothing executed.

    model.safetensors      averaged weights, without what only training needs
    config.json            format_version 2; network {class, arguments}, parts nested the same way; what its images are
                           (scans, masks, latents of which model); frozen networks of its training, by digest; origin,
                           the digests of the models its training started from, where it did;
                           capabilities; salted hashes of the training subjects; sha256 of every other file
    preprocess.json        the preparation it expects
    README.md              the card
    self_test.safetensors  a small input and what the network made of it when it was exported
    latent_stats.json      of a tokenizer: mean and standard deviation per latent channel, intensity range per contrast
    styles.safetensors     of a tokenizer: per contrast and site mean and covariance of the style vector over training
                           subjects

Classes are looked up among the public names of our folders (:mod:`neurotome.models.registry`) and nowhere else.
Format 1, flat arguments and no self-test, is read through :mod:`neurotome.models.format1`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from neurotome.data.preparation.preparation import Preparation
from neurotome.errors import InputError, UsageError, printable
from neurotome.files.atomic import write_folder
from neurotome.files.json_text import parse_json
from neurotome.files.tensors import read_bounded, read_tensors
from neurotome.models.format1 import upgraded
from neurotome.models.model_place import CONFIG, model_of
from neurotome.models.registry import built_part, constructor_words, plain_part, public_classes
from neurotome.models.self_test import FETCH_AGAIN, made
from neurotome.nn.exported import Exportable, is_finite
from neurotome.nn.recorded import bounded_modules
from neurotome.types import Images, Space

FORMAT_VERSION = 2
JSON_BYTES = 64 * 2**20
WEIGHT_BYTES = 32 * 2**30
WEIGHTS, SELF_TEST = "model.safetensors", "self_test.safetensors"
NEEDED = {WEIGHTS, "preprocess.json", "README.md"}
FILES = {*NEEDED, SELF_TEST, "latent_stats.json", "styles.safetensors"}
# of a masks' tokenizer, what it is and what to do
NO_SCANS = (
    "was trained on masks: a scan would be read as one, and its output, the logits of a mask, as a scan",
    "encode the masks of a store with `neurotome encode MODEL STORE OUT --shards` (the overlap on validation subjects "
    "stands in the model's card), or train without `segmentation` for scans",
)
N = TypeVar("N", bound=Exportable)


@dataclass(frozen=True)
class ModelFolder(Generic[N]):
    """What a model folder holds.

    Args:
        network: In evaluation mode, on the CPU.
        preparation: What it expects.
        training_subjects: Salt, and salted hashes of the subjects it was trained on.
        card: The README.
        digest: SHA-256 over parts, weights, preparation and images: what a latent depends on.
        images: What its images are.
        capabilities: What it can do, by name.
        frozen: Digests of the networks that its training only read, by name.
        unready: Why it must not be used yet, and what to do; empty where it may.
        stats: Content of ``latent_stats.json``; empty where there is none.
        styles: Tensors of ``styles.safetensors`` by name.
        self_test: Tensors of ``self_test.safetensors``; None in format 1.
        provenance: Where the weights come from; empty where from a training here.
        origin: Digests of the models that its training started from, the latest first.
    """

    network: N
    preparation: Preparation
    training_subjects: tuple[str, frozenset[str]]
    card: str
    digest: str
    images: Images = field(default_factory=Images)
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    frozen: Mapping[str, str] = field(default_factory=dict)
    unready: str = ""
    stats: Mapping[str, Any] = field(default_factory=dict)
    styles: Mapping[str, Tensor] = field(default_factory=dict)
    self_test: Mapping[str, Tensor] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    origin: tuple[str, ...] = ()


def subject_hash(salt: str, subject: str) -> str:
    """Return the salted hash under which a training subject is listed."""
    return hashlib.sha256(f"{salt}:{subject}".encode()).hexdigest()


def write_model_folder(
    folder: Path,
    network: Exportable,
    *,
    preparation: Preparation,
    subjects: Iterable[str] | tuple[str, frozenset[str]],
    card: str,
    images: Images | None = None,
    frozen: Mapping[str, str] | None = None,
    stats: Mapping[str, Any] | None = None,
    styles: Mapping[str, Tensor] | None = None,
    provenance: Mapping[str, str] | None = None,
    origin: Sequence[str] = (),
    overwrite: bool = False,
) -> str:
    """Write a model folder whole or not at all.

    Args:
        folder: Where it will stand.
        network: Its exported state and its parts' arguments are stored.
        preparation: Goes to ``preprocess.json``.
        subjects: Training subjects, stored as salted hashes; or salt and hashes as read from another folder.
        card: Goes to ``README.md``.
        images: What its images are; None for scans.
        frozen: Digests of the networks that its training only read, by name.
        stats: Goes to ``latent_stats.json``; None for a network without.
        styles: Go to ``styles.safetensors``; None for a network without.
        provenance: Where the weights come from, if not from a training here.
        origin: Digests of the models that its training started from, the latest first.
        overwrite: Whether a folder that is there may be replaced.

    Returns:
        The digest a latent is stamped with.

    Raises:
        UsageError: The folder is there and ``overwrite`` is False; a class is not public; an argument is not plain.
        InputError: A weight is not finite, or something else that :func:`read_folder` would refuse.
    """
    if folder.exists() and not overwrite:
        raise UsageError(f"{printable(folder)}: there is something already; give --overwrite or another folder")
    try:
        part = plain_part(network)
    except ValueError as error:
        raise UsageError(str(error)) from error
    contents = {
        WEIGHTS: safetensors.torch.save(_finite_state(network, folder / WEIGHTS)),
        "preprocess.json": _json(preparation.to_json()),
        "README.md": card.encode(),
        SELF_TEST: safetensors.torch.save(_plain_tensors(made(network))),
    }
    if stats is not None:
        contents["latent_stats.json"] = _json(stats)
    if styles is not None:
        contents["styles.safetensors"] = safetensors.torch.save(_plain_tensors(styles))
    hashes = {file: hashlib.sha256(data).hexdigest() for file, data in contents.items()}
    if isinstance(subjects, tuple) and len(subjects) == 2 and isinstance(subjects[1], frozenset):
        salt, hashed = subjects
    else:
        salt = hashes[WEIGHTS][:32]  # differs from model to model, and the same run gives the same bytes
        hashed = frozenset(subject_hash(salt, str(subject)) for subject in subjects)
    config = {
        "format_version": FORMAT_VERSION,
        "network": part,
        "capabilities": {
            "family": network.family,
            **network.capabilities(preparation.shape),
            **({} if styles is None else {"translates": bool(styles)}),
        },
        "images": (images or Images()).to_json(),
        "frozen": dict(frozen or {}),
        **({"origin": list(origin)} if origin else {}),
        "training_subjects": {"salt": salt, "sha256": sorted(hashed)},
        "sha256": hashes,
        **({"provenance": dict(provenance)} if provenance else {}),
        **({"unready": unready} if (unready := network.unready()) else {}),
    }
    write_folder(folder, {**contents, CONFIG: _json(config)}, lambda place: _check_readable(place, folder))
    return _digest(config)


def _check_readable(place: Path, folder: Path) -> None:
    """Refuse to write what reading would refuse."""
    try:
        read_folder(place, Exportable)  # type: ignore[type-abstract]  # the registry holds concrete ones
    except InputError as error:
        file = folder if error.file is None else folder / error.file.name
        raise InputError(f"would be refused when it is read: {error.reason}", file=file, remedy="report it") from error


def _finite_state(network: Exportable, file: Path) -> dict[str, Tensor]:
    """Return the weights that are stored, on the CPU; ``file`` is named where one is not finite."""
    state = {key: value.contiguous().cpu() for key, value in network.exported_state().items()}
    for name, value in state.items():
        if not is_finite(value):
            reason, remedy = f"tensor {name} holds NaN or infinity", "train again, with a lower rate if it recurs"
            raise InputError(reason, file=file, remedy=remedy)
    return state


def read_folder(folder: Path, kind: type[N]) -> ModelFolder[N]:
    """Read and verify a model folder.

    Args:
        folder: The folder, or a run folder that holds it.
        kind: What its network must be: ``Tokenizer``, ``Segmenter``, or ``Exportable`` for any.

    Raises:
        UsageError: There is no such folder, or a run folder without a model yet.
        InputError: A file is missing, changed or too large; a newer format; a class that is not public or of another
            kind; arguments or weights that do not fit it; a weight that is not finite.
    """
    folder = model_of(Path(folder))
    file = folder / CONFIG
    config = _parsed(read_bounded(file, JSON_BYTES), file)
    version = _version(config, file)
    _check_config(config, version, file)
    part = config["network"] if version > 1 else _part_of_format1(config)
    _check_kind(part, kind, file)
    contents = {}
    with ThreadPoolExecutor(1) as beside:  # hashing leaves the interpreter to build the network meanwhile
        hashes = {}
        for name in config["sha256"]:
            contents[name] = read_bounded(folder / name, WEIGHT_BYTES if name == WEIGHTS else JSON_BYTES)
            hashes[name] = beside.submit(_sha256, contents[name])
        network = _network(part, file, kind)
        changed = [name for name in contents if hashes[name].result() != config["sha256"][name]]
    if changed:
        raise InputError("its content is not what config.json promises", file=folder / changed[0], remedy=FETCH_AGAIN)
    state = read_tensors(contents.pop(WEIGHTS), folder / WEIGHTS, FETCH_AGAIN)
    _adopt(network, state if version > 1 else upgraded(config["class"], config["arguments"], state)[1], file)
    subjects = config["training_subjects"]
    return ModelFolder(
        network=network.eval().requires_grad_(False),
        preparation=_preparation(contents["preprocess.json"], folder / "preprocess.json"),
        training_subjects=(subjects["salt"], frozenset(subjects["sha256"])),
        card=contents["README.md"].decode("utf-8", "replace"),
        digest=_digest(config),
        images=_images(config, version, file),
        capabilities=config.get("capabilities", {}),
        frozen=config.get("frozen", {}),
        unready=network.unready(),
        stats=_parsed(contents.get("latent_stats.json", b"{}"), folder / "latent_stats.json"),
        styles=_tensors(contents, "styles.safetensors", folder),
        self_test=_tensors(contents, SELF_TEST, folder) if version > 1 else None,
        provenance=config.get("provenance", {}),
        origin=tuple(config.get("origin", [])),
    )


def check_usable(content: ModelFolder[Any], folder: Path, space: Space = "voxels") -> None:
    """Refuse a model that must not be used yet, or whose images are others than those it shall be given.

    Raises:
        InputError: The model is not ready, or reads images of another space.
    """
    if content.unready:
        reason, _, remedy = content.unready.partition("; ")
        raise InputError(f"it is not ready: {reason}", file=folder, remedy=remedy or FETCH_AGAIN)
    if content.images.space == space:
        return
    if content.images.space == "masks":
        raise InputError(NO_SCANS[0], file=folder, remedy=NO_SCANS[1])
    names = {"voxels": "scans", "masks": "masks", "latents": f"latents of model {content.images.tokenizer[:12]}"}
    raise InputError(f"it reads {names[content.images.space]}, not {names[space]}", file=folder)


def _tensors(contents: Mapping[str, bytes], name: str, folder: Path) -> dict[str, Tensor]:
    return read_tensors(contents[name], folder / name, FETCH_AGAIN) if name in contents else {}


def _version(config: Mapping[str, Any], file: Path) -> int:
    version = config.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise InputError("has no format_version", file=file, remedy="give a model folder that neurotome wrote")
    if version > FORMAT_VERSION:
        raise InputError(
            f"format {version} is newer than this version reads ({FORMAT_VERSION})",
            file=file,
            remedy="upgrade neurotome",
        )
    return version


def _check_config(config: Mapping[str, Any], version: int, file: Path) -> None:
    kinds: dict[str, type] = {"training_subjects": dict, "sha256": dict}
    kinds |= (
        {"class": str, "arguments": dict}
        if version == 1
        else {
            "network": dict,
            "images": dict,
            "frozen": dict,
            "capabilities": dict,
        }
    )
    wrong = [key for key, kind in kinds.items() if not isinstance(config.get(key), kind)]
    subjects = config.get("training_subjects", {})
    if not wrong:
        texts = [subjects.get("salt"), *(found if isinstance(found := subjects.get("sha256"), list) else [None])]
        wrong = [] if all(isinstance(text, str) for text in texts) else ["training_subjects"]
    origin = config.get("origin", [])
    if not wrong and not (isinstance(origin, list) and all(isinstance(digest, str) for digest in origin)):
        wrong = ["origin"]
    needed = NEEDED if version == 1 else {*NEEDED, SELF_TEST}
    if not wrong and not needed <= config["sha256"].keys() <= FILES:
        wrong = ["sha256"]
    if wrong:
        raise InputError(f"the key {wrong[0]} is missing or of another kind", file=file, remedy=FETCH_AGAIN)


def _part_of_format1(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"class": config["class"], "arguments": upgraded(config["class"], config["arguments"], {})[0]}


def _images(config: Mapping[str, Any], version: int, file: Path) -> Images:
    """Return what the images of a folder are."""
    value = config.get("images", {})
    if version == 1:
        space = "voxels" if value in ({}, "scans") else value
        value = {"space": space, **({"masks": config["masks"]} if "masks" in config else {})}
    try:
        return Images.from_json(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"the key {error} is missing or of another kind", file=file, remedy=FETCH_AGAIN) from error


def _check_kind(part: Mapping[str, Any], kind: type[N], file: Path) -> None:
    """Refuse a class that is not public, or of another kind."""
    name, classes, word = str(part.get("class")), public_classes(kind), kind.__name__.lower()
    if name in classes:
        return
    other = public_classes(Exportable).get(name)
    what = f"a {other.family}, no {word}" if other else f"not a public {word}"  # type: ignore[attr-defined]
    raise InputError(
        f"class {printable(name)[:80]!r} is {what} ({', '.join(sorted(classes))})",
        file=file,
        remedy=f"give the model folder of a {word}" if other else "upgrade neurotome, or give another model",
    )


def _network(part: Mapping[str, Any], file: Path, kind: type[N]) -> N:
    """Build the network on the meta device: absurd sizes cost nothing, and no weight is drawn to be replaced."""
    try:
        with torch.device("meta"), bounded_modules():
            return built_part(part, kind)
    except Exception as error:  # whatever a constructor trips over, it is the folder's value
        reason = f"arguments do not fit {part['class']}: {constructor_words(error)}"
        raise InputError(reason, file=file, remedy=FETCH_AGAIN) from error


def _adopt(network: Exportable, state: dict[str, Tensor], file: Path) -> None:
    """Make the stored weights those of the network."""
    own = {key: (value.shape, value.dtype) for key, value in network.exported_state().items()}
    stored = {key: (value.shape, value.dtype) for key, value in state.items()}
    if own != stored:
        strange = sorted(own.keys() ^ stored.keys()) or sorted(key for key in own if own[key] != stored[key])
        raise InputError(
            f"weights do not fit the arguments of {type(network).__name__} ({strange[0]})",
            file=file,
            remedy=FETCH_AGAIN,
        )
    with torch.random.fork_rng(devices=[]):  # parts that only training needs are drawn anew
        network.adopt(state)


def _preparation(data: bytes, file: Path) -> Preparation:
    try:
        return Preparation.from_json(_parsed(data, file))
    except UsageError as error:
        raise InputError(str(error), file=file, remedy=FETCH_AGAIN) from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest(config: Mapping[str, Any]) -> str:
    hashes = [config["sha256"][WEIGHTS], config["sha256"]["preprocess.json"]]
    if config["format_version"] == 1:  # as it was, so that latents of before can be decoded
        parts = [config["class"], config["arguments"], *hashes, *([config["masks"]] if "masks" in config else [])]
    else:
        parts = [config["network"], *hashes, config["images"]]
    return _sha256(json.dumps(parts, sort_keys=True).encode())


def _plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode()


def _parsed(data: bytes, file: Path) -> dict[str, Any]:
    try:
        value = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise InputError("not JSON", file=file, remedy=FETCH_AGAIN) from error
    if not isinstance(value, dict):
        raise InputError("not a JSON object", file=file, remedy=FETCH_AGAIN)
    return value
