"""The model folder: weights, the parts the network is made of, and what goes with them; no pickle, nothing executed.

    model.safetensors      averaged weights, without what only training needs
    config.json            format_version; network {class, arguments}, parts nested the same way; what its images are
                           (scans, masks, latents of which model); frozen networks of its training, by digest; origin,
                           the digests of the models its training started from, where it did; capabilities; salted
                           hashes of the training subjects and their scans; sha256 of every other file; digest, the
                           hash of all this (:mod:`neurotome.models.sealed`)
    preprocess.json        the preparation it expects
    README.md              the card
    self_test.safetensors  a small input and what the network made of it when it was exported
    latent_stats.json      of a tokenizer: mean and standard deviation per latent channel, intensity range per contrast
    styles.safetensors     of a tokenizer: per contrast and site mean and covariance of the style vector over training
                           subjects

Classes are looked up among the public names of our folders (:mod:`neurotome.models.registry`) and nowhere else.
Formats 2, without that digest, and 1, flat arguments and no self-test (:mod:`neurotome.models.format1`), are read.
"""

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
from neurotome.files.tensors import read_bounded, read_tensors
from neurotome.models.format1 import upgraded
from neurotome.models.model_place import CONFIG, model_of
from neurotome.models.registry import built_part, constructor_words, plain_part, public_classes
from neurotome.models.sealed import (
    CARD,
    FILES,
    PREPARATION,
    SELF_TEST,
    STATS,
    STYLES,
    WEIGHTS,
    json_bytes,
    opened,
    parsed,
    sealed,
    sha256_of,
)
from neurotome.models.self_test import FETCH_AGAIN, made
from neurotome.models.subjects import TrainingSubjects
from neurotome.nn.exported import Exportable, is_finite
from neurotome.nn.recorded import bounded_modules
from neurotome.types import Images, Space

JSON_BYTES = 64 * 2**20
WEIGHT_BYTES = 32 * 2**30
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
        training_subjects: Hashes of the subjects it was trained on, and of their scans.
        card: The README.
        digest: Of the whole folder; see :mod:`neurotome.models.sealed`. Latents are stamped with it.
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
    training_subjects: TrainingSubjects
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


def write_model_folder(
    folder: Path,
    network: Exportable,
    *,
    preparation: Preparation,
    subjects: Iterable[str] | TrainingSubjects,
    card: str,
    scans: Iterable[str] = (),
    images: Images | None = None,
    frozen: Mapping[str, str] | None = None,
    stats: Mapping[str, Any] | None = None,
    styles: Mapping[str, Tensor] | None = None,
    provenance: Mapping[str, Any] | None = None,
    origin: Sequence[str] = (),
    overwrite: bool = False,
) -> str:
    """Write a model folder whole or not at all.

    Args:
        folder: Where it will stand.
        network: Its exported state and its parts' arguments are stored.
        preparation: Goes to ``preprocess.json``.
        subjects: Training subjects, stored as salted hashes; or the hashes as read from another folder.
        card: Goes to ``README.md``.
        scans: Content hashes of the subjects' scans, stored salted as well.
        images: What its images are; None for scans.
        frozen: Digests of the networks that its training only read, by name.
        stats: Goes to ``latent_stats.json``; None for a network without.
        styles: Go to ``styles.safetensors``; None for a network without.
        provenance: Where the weights come from, if not from a training here.
        origin: Digests of the models that its training started from, the latest first.
        overwrite: Whether a model folder that is there may be replaced; nothing else ever is.

    Returns:
        The digest of the folder, which latents are stamped with.

    Raises:
        UsageError: :func:`check_replaceable` refuses the place; a class is not public; an argument is not plain.
        InputError: A weight is not finite, or something else that :func:`read_folder` would refuse.
    """
    check_replaceable(folder, overwrite=overwrite)
    try:
        part = plain_part(network)
    except ValueError as error:
        raise UsageError(str(error)) from error
    contents = {
        WEIGHTS: safetensors.torch.save(_finite_state(network, folder / WEIGHTS)),
        PREPARATION: json_bytes(preparation.to_json()),
        CARD: card.encode(),
        SELF_TEST: safetensors.torch.save(_plain_tensors(made(network))),
        **({} if stats is None else {STATS: json_bytes(stats)}),
        **({} if styles is None else {STYLES: safetensors.torch.save(_plain_tensors(styles))}),
    }
    hashes = {file: sha256_of(data) for file, data in contents.items()}
    if not isinstance(subjects, TrainingSubjects):
        # the salt differs from model to model, and the same run gives the same bytes
        subjects = TrainingSubjects.hashed(hashes[WEIGHTS][:32], subjects, scans)
    config = {
        "network": part,
        "capabilities": {
            "family": network.family,
            **network.capabilities(preparation.shape),
            **({} if styles is None else {"translates": bool(styles)}),
        },
        "images": (images or Images()).to_json(),
        "frozen": dict(frozen or {}),
        **({"origin": list(origin)} if origin else {}),
        "training_subjects": subjects.to_json(),
        "sha256": hashes,
        **({"provenance": dict(provenance)} if provenance else {}),
        **({"unready": unready} if (unready := network.unready()) else {}),
    }
    data, digest = sealed(config)
    write_folder(folder, {**contents, CONFIG: data}, lambda place: _check_readable(place, folder))
    return digest


def check_replaceable(folder: Path, *, overwrite: bool) -> None:
    """Refuse a place where a model folder would take away anything but an earlier model folder.

    Raises:
        UsageError: Something is there, and ``overwrite`` is False or it holds what no model folder of ours does.
    """
    if not folder.exists():
        return
    if not overwrite:
        raise UsageError(f"{printable(folder)}: there is something already; give --overwrite or another folder")
    if not folder.is_dir():
        raise UsageError(f"{printable(folder)}: is a file, not a model folder; give another folder")
    found = sorted(folder.iterdir())
    strange = [part.name for part in found if part.name not in {*FILES, CONFIG} or not part.is_file()]
    if strange or (found and not _is_ours(folder / CONFIG)):
        what = f"holds {printable(strange[0])}" if strange else f"has no {CONFIG} of neurotome"
        raise UsageError(
            f"{printable(folder)}: is no model folder, it {what}; --overwrite replaces nothing else, so give another "
            "folder"
        )


def _is_ours(config: Path) -> bool:
    """Return whether a file is a ``config.json`` of ours, damaged or not: other libraries call theirs so too."""
    return config.is_file() and b'"format_version"' in read_bounded(config, JSON_BYTES)


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
    sealed_config = opened(read_bounded(file, JSON_BYTES), file)
    config, version = sealed_config.content, sealed_config.version
    part = config["network"] if version > 1 else _part_of_format1(config)
    _check_kind(part, kind, file)
    contents = {}
    with ThreadPoolExecutor(1) as beside:  # hashing leaves the interpreter to build the network meanwhile
        hashes = {}
        for name in config["sha256"]:
            contents[name] = read_bounded(folder / name, WEIGHT_BYTES if name == WEIGHTS else JSON_BYTES)
            hashes[name] = beside.submit(sha256_of, contents[name])
        network = _network(part, file, kind)
        changed = [name for name in contents if hashes[name].result() != config["sha256"][name]]
    if changed:
        raise InputError("its content is not what config.json promises", file=folder / changed[0], remedy=FETCH_AGAIN)
    state = read_tensors(contents.pop(WEIGHTS), folder / WEIGHTS, FETCH_AGAIN)
    _adopt(network, state if version > 1 else upgraded(config["class"], config["arguments"], state)[1], file)
    return ModelFolder(
        network=network.eval().requires_grad_(False),
        preparation=_preparation(contents[PREPARATION], folder / PREPARATION),
        training_subjects=sealed_config.subjects,
        card=contents[CARD].decode("utf-8", "replace"),
        digest=sealed_config.digest,
        images=sealed_config.images,
        capabilities=config.get("capabilities", {}),
        frozen=config.get("frozen", {}),
        unready=network.unready(),
        stats=parsed(contents.get(STATS, b"{}"), folder / STATS),
        styles=_tensors(contents, STYLES, folder),
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


def _part_of_format1(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"class": config["class"], "arguments": upgraded(config["class"], config["arguments"], {})[0]}


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
        strange = min(own.keys() ^ stored.keys() or {key for key in own if own[key] != stored[key]})
        reason = f"weights do not fit the arguments of {type(network).__name__}: tensor {strange} "
        if strange in own and strange in stored:
            (is_shape, is_type), (shape, kind) = stored[strange], own[strange]
            reason += f"is {is_type} {tuple(is_shape)}, it takes {kind} {tuple(shape)}"
        else:
            reason += "is missing" if strange in own else "is not one of its"
        raise InputError(reason.replace("torch.", ""), file=file, remedy=FETCH_AGAIN)
    with torch.random.fork_rng(devices=[]):  # parts that only training needs are drawn anew
        network.adopt(state)


def _preparation(data: bytes, file: Path) -> Preparation:
    try:
        return Preparation.from_json(parsed(data, file))
    except UsageError as error:
        raise InputError(str(error), file=file, remedy=FETCH_AGAIN) from error


def _plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
