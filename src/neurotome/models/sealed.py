"""``config.json`` of a model folder: what the network is, what every other file hashes to, and a seal over both.

    format 3    the last line is the SHA-256 of all bytes before it; they hold that of every other file, so that this
                one number stands for the whole folder: it is the model's digest
    format 2    no seal: what the hash of another file does not cover is believed; the digest is that of parts,
                weights, preparation and images
    format 1    as format 2, of flat arguments

A folder keeps the format and the digest it was written with: latents that were stamped with it go on being decoded.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurotome.errors import InputError
from neurotome.files.json_text import parse_json
from neurotome.models.self_test import FETCH_AGAIN
from neurotome.models.subjects import TrainingSubjects
from neurotome.types import Images

FORMAT_VERSION = 3
WEIGHTS, PREPARATION, CARD = "model.safetensors", "preprocess.json", "README.md"
SELF_TEST, STATS, STYLES = "self_test.safetensors", "latent_stats.json", "styles.safetensors"
NEEDED = {WEIGHTS, PREPARATION, CARD}
FILES = {*NEEDED, SELF_TEST, STATS, STYLES}
_KINDS: dict[str, type] = {"network": dict, "images": dict, "frozen": dict, "capabilities": dict, "sha256": dict}
_KINDS1: dict[str, type] = {"class": str, "arguments": dict, "sha256": dict}
# what need not be there; format 1 knew some of them
_OPTIONAL: dict[str, type] = {"provenance": dict, "unready": str, "frozen": dict, "capabilities": dict, "origin": list}


@dataclass(frozen=True)
class Sealed:
    """A verified ``config.json``.

    Args:
        content: What it holds.
        version: Its format.
        digest: Of the model.
        subjects: Of the training.
        images: What the images are.
    """

    content: Mapping[str, Any]
    version: int
    digest: str
    subjects: TrainingSubjects
    images: Images

    @property
    def sha256(self) -> Mapping[str, str]:
        """Hash of every other file."""
        found: Mapping[str, str] = self.content["sha256"]
        return found


def sealed(config: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return the bytes of ``config.json`` and the digest that closes them."""
    body = json_bytes({"format_version": FORMAT_VERSION, **config})[: -len(b"\n}")]
    digest = sha256_of(body)
    return body + _seal(digest), digest


def opened(data: bytes, file: Path) -> Sealed:
    """Return what the bytes of ``config.json`` say.

    Raises:
        InputError: Not a JSON object, other bytes than were sealed, a newer format, or a key of another kind.
    """
    config = parsed(data, file)
    version = config.get("format_version")
    if "digest" in config or version == FORMAT_VERSION:  # first of all: a number of a format may be what was changed
        seal = _seal(str(config.get("digest")))
        if not data.endswith(seal) or sha256_of(data[: -len(seal)]) != config["digest"]:
            reason = "its content is not what its own digest promises"
            raise InputError(reason, file=file, remedy=FETCH_AGAIN)
    if not isinstance(version, int) or version < 1:
        raise InputError("has no format_version", file=file, remedy="give a model folder that neurotome wrote")
    if version > FORMAT_VERSION:
        raise InputError(
            f"format {version} is newer than this version reads ({FORMAT_VERSION})",
            file=file,
            remedy="upgrade neurotome",
        )
    try:
        subjects, images = _checked(config, version)
    except (ValueError, TypeError) as error:
        raise InputError(f"the key {error} is missing or of another kind", file=file, remedy=FETCH_AGAIN) from error
    return Sealed(config, version, config["digest"] if "digest" in config else _digest(config), subjects, images)


def parsed(data: bytes, file: Path) -> dict[str, Any]:
    """Return a JSON object of a model folder.

    Raises:
        InputError: Not one.
    """
    try:
        value = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise InputError("not JSON", file=file, remedy=FETCH_AGAIN) from error
    if not isinstance(value, dict):
        raise InputError("not a JSON object", file=file, remedy=FETCH_AGAIN)
    return value


def json_bytes(value: Any) -> bytes:
    """Return a value as a model folder holds it."""
    return json.dumps(value, indent=1, allow_nan=False).encode()


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def _seal(digest: str) -> bytes:
    return f',\n "digest": "{digest}"\n}}'.encode("ascii", "replace")


def _checked(config: Mapping[str, Any], version: int) -> tuple[TrainingSubjects, Images]:
    """Return subjects and images; a key that is missing or of another kind is a ``ValueError`` of its name."""
    for key, kind in (_KINDS1 if version == 1 else _KINDS).items():
        if not isinstance(config.get(key), kind):
            raise ValueError(key)
    for key, kind in _OPTIONAL.items():
        if key in config and not isinstance(config[key], kind):
            raise ValueError(key)
    for key, texts in (("frozen", config.get("frozen", {}).values()), ("origin", config.get("origin", []))):
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(key)
    needed = NEEDED if version == 1 else {*NEEDED, SELF_TEST}
    if not needed <= config["sha256"].keys() <= FILES:
        raise ValueError("sha256")
    images = config.get("images", {})
    if version == 1:
        space = "voxels" if images in ({}, "scans") else images
        images = {"space": space, **({"masks": config["masks"]} if "masks" in config else {})}
    return TrainingSubjects.from_json(config.get("training_subjects")), Images.from_json(images)


def _digest(config: Mapping[str, Any]) -> str:
    """Return the digest of a folder without a seal, as the release that wrote it computed it."""
    hashes = [config["sha256"][WEIGHTS], config["sha256"][PREPARATION]]
    if config["format_version"] == 1:
        parts = [config["class"], config["arguments"], *hashes, *([config["masks"]] if "masks" in config else [])]
    else:
        parts = [config["network"], *hashes, config["images"]]
    return sha256_of(json.dumps(parts, sort_keys=True).encode())
