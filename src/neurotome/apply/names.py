"""From files to files: what is read, where the result goes, and what must not happen to either.

A result is marked as synthetic in its name, its header and its sidecar, appears whole or not at all, and never replaces
its source. Its sidecar holds the SHA-256 of what it was made from and of its own bytes.
"""

import contextlib
import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurotome import modality as contrasts
from neurotome.data.datasets.text_files import read_json
from neurotome.errors import OutputError, UsageError, printable
from neurotome.files.atomic import HIDDEN, write_atomically
from neurotome.files.endings import IMAGE_ENDINGS, ending, stem

RESULT_KEY = "ResultSHA256"
# the order of entities in a BIDS name
_ENTITIES = (
    "sub", "ses", "sample", "task", "tracksys", "acq", "ce", "trc", "stain", "rec", "dir", "run", "mod", "echo", "flip",
    "inv", "mt", "part", "proc", "hemi", "space", "split", "recording", "chunk", "atlas", "seg", "scale", "res", "den",
    "label", "desc",
)  # fmt: skip
_ORDER = {key: place for place, key in enumerate(_ENTITIES)}


@dataclass(frozen=True)
class Job:
    """One file to read and one to write.

    Args:
        source: The scan or latent.
        target: The result.
        modality: Contrast of the source (of the result when decoding); None where names and sidecars say it.
        mask: Brain mask of the source, if there is one.
        origin: What the sidecar calls the source: a BIDS URI, or the file's name; never its folder, which may name a
            person.
        mask_origin: The same for the mask.
    """

    source: Path
    target: Path
    modality: str | None = None
    mask: Path | None = None
    origin: str = ""
    mask_origin: str = ""


def sidecar_of(path: Path) -> Path:
    """Return the JSON file beside an image or latent."""
    return path.with_name(f"{stem(path)}.json")


def modality_of(path: Path, given: str | None = None) -> str:
    """Return the contrast of a scan: as given, else from the sidecar and the file name.

    Raises:
        UsageError: Not a contrast; none is named; two are.
    """
    if given is not None:
        try:
            return contrasts.canonical(given)
        except ValueError as error:
            raise UsageError(str(error)) from error
    found = dict.fromkeys(contrasts.candidates(stem(path)))
    if contrasts.is_no_scan(stem(path)):
        raise UsageError(
            f"{printable(path)}: by its name no scan of {', '.join(contrasts.CONTRASTS)}; if it is one, say which with "
            "--modality, for example --modality T1w"
        )
    if len(found) != 1:  # a name that decides needs no second opinion
        found.update(dict.fromkeys(_sidecar_contrasts(path)))
    if len(found) == 1:
        return next(iter(found))
    what = f"could be {' or '.join(found)}" if found else "names no contrast, nor does a sidecar"
    raise UsageError(f"{printable(path)}: {what}; say which with --modality, for example --modality T1w")


def target_name(source: Path, description: str, modality: str | None = None, new_ending: str | None = None) -> str:
    """Return the name of a result: ``sub-01_T1w`` becomes ``sub-01_desc-synth_T2w``; a plain name gets a tail.

    Args:
        source: The scan.
        description: The value of BIDS' ``desc``: recon, synth, latent.
        modality: Contrast of the result where it is another one.
        new_ending: Ending of the result; None for the source's own, or ``.nii.gz`` where that is not written.
    """
    tail = new_ending or (ending(source) if ending(source) in IMAGE_ENDINGS else ".nii.gz")
    words = stem(source).split("_")
    if not words[0].startswith("sub-") or len(words) < 2:
        return f"{stem(source)}_desc-{description}{f'_{modality}' if modality else ''}{tail}"
    entities = {key: value for key, _, value in (w.partition("-") for w in words[:-1])}
    suffix = words[-1]
    if modality is not None:
        entities.pop("ce", None)
        *extra, suffix = contrasts.bids_suffix(modality).split("_")
        entities |= {key: value for key, _, value in (w.partition("-") for w in extra)}
    entities["desc"] = description
    ordered = sorted(entities.items(), key=lambda pair: _ORDER.get(pair[0], len(_ORDER) // 2))
    return "_".join([*("-".join(pair) if pair[1] else pair[0] for pair in ordered), suffix]) + tail


def free_of(folder: Path) -> int:
    """Return the bytes that are free where a folder is, or will be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free


def write_result(target: Path, save: Callable[[Path], str], sidecar: Mapping[str, Any]) -> None:
    """Write a result and its sidecar; the result appears last, so that it never stands without its sidecar.

    Args:
        target: The result.
        save: Writes the result to the path it is given and returns the SHA-256 of its bytes.
        sidecar: Goes to the JSON file beside it, with that SHA-256.

    Raises:
        OutputError: The disk is full or the folder read-only; nothing is left behind.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{printable(target.parent)}: cannot be made ({error.strerror}). Remedy: choose another output folder."
        ) from error
    # a name of our own: a longer one than the target's might be refused
    hidden = target.with_name(f"{HIDDEN}{secrets.token_hex(8)}{ending(target)}")
    beside = sidecar_of(target)
    try:
        content = {**sidecar, RESULT_KEY: save(hidden)}
        write_atomically(beside, [json.dumps(content, indent=2).encode() + b"\n"])
        hidden.replace(target)
    except BaseException:
        if not target.exists():
            beside.unlink(missing_ok=True)
        raise
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)


def _sidecar_contrasts(path: Path) -> tuple[str, ...]:
    """Return what a scan's sidecar says: ``Modality`` where it names a contrast, else words of the series' names."""
    file = sidecar_of(path)
    if not file.exists():
        return ()
    content = read_json(file)
    named = str(content.get("Modality", ""))
    if named in contrasts.CONTRASTS:
        return (named,)
    text = " ".join(str(content.get(key, "")) for key in ("SeriesDescription", "ProtocolName"))
    return contrasts.mentioned(text)
