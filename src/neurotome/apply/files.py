"""From files to files: what is read, where the result goes, and what must not happen to either.

A file makes a file; a folder makes a folder: BIDS in, BIDS derivatives out, plain names in, plain names out. A result
is marked as synthetic in its name, its header and its sidecar, appears whole or not at all, and never replaces its
source.
"""

import contextlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import neurotome
from neurotome import modality as contrasts
from neurotome.data.bids import dataset_description, derivative_path, read_json
from neurotome.data.manifest import scan
from neurotome.data.stream import write_atomically
from neurotome.errors import OutputError, UsageError, printable

IMAGE_ENDINGS = (".nii.gz", ".nii")
READABLE_ENDINGS = (*IMAGE_ENDINGS, ".mgz", ".mgh")
LATENT_ENDING = ".safetensors"


@dataclass(frozen=True)
class Job:
    """One file to read and one to write.

    Args:
        source: The scan or latent.
        target: The result.
        modality: Contrast of the source (of the result when decoding); None where names and sidecars say it.
        mask: Brain mask of the source, if there is one.
    """

    source: Path
    target: Path
    modality: str | None = None
    mask: Path | None = None


def stem(path: Path) -> str:
    """Return a file's name without its image or latent ending."""
    for ending in (*READABLE_ENDINGS, LATENT_ENDING):
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def ending(path: Path) -> str:
    """Return the image or latent ending of a file name, in lower case."""
    return next((e for e in (*READABLE_ENDINGS, LATENT_ENDING) if path.name.lower().endswith(e)), path.suffix.lower())


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
    found = dict.fromkeys(contrasts.candidates(path.name))
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
    entities = [w for w in words[:-1] if not w.startswith("desc-")]
    suffix = words[-1]
    if modality is not None:
        entities = [w for w in entities if not w.startswith("ce-")]
        *extra, suffix = contrasts.bids_suffix(modality).split("_")
        entities += extra
    return "_".join([*entities, f"desc-{description}", suffix]) + tail


def plan_file(source: Path, target: Path, *, overwrite: bool, endings: tuple[str, ...]) -> Job:
    """Check one pair of files before anything is computed.

    Raises:
        UsageError: The source is missing; the target has another ending, is there already, is the source, has its name,
            or looks like a raw scan.
        OutputError: The target's folder cannot be written to.
    """
    if not source.exists():
        raise UsageError(f"{printable(source)}: there is no such file; check the path")
    if not target.name.lower().endswith(endings):
        raise UsageError(f"{printable(target)}: the result is written as {' or '.join(endings)}")
    if target.exists() and target.samefile(source):
        raise UsageError(f"{printable(target)}: input and output are the same file; choose another name")
    if target.name == source.name:
        raise UsageError(
            f"{printable(target)}: a synthetic image must not have the name of its source; "
            f"for example {printable(target_name(source, 'synth'))}"
        )
    if target.name.startswith("sub-") and "desc-" not in target.name:
        raise UsageError(
            f"{printable(target)}: reads as a raw scan, but the image is synthetic; name it with desc-, "
            f"for example {printable(target_name(target, 'synth'))}"
        )
    for file in (target, sidecar_of(target)):
        if file.exists() and not overwrite:
            raise UsageError(f"{printable(file)}: is there already; give --overwrite or another name")
        if file.is_dir():
            raise UsageError(f"{printable(file)}: is a folder; name a file")
    check_writable(target.parent)
    return Job(source, target)


def plan_folder(
    source: Path,
    target: Path,
    known: Sequence[str],
    describe: Callable[[str], tuple[str, str]],
    *,
    modality: str | None,
    new_ending: str,
    overwrite: bool,
) -> tuple[list[Job], list[str]]:
    """Return one job per scan of a folder, and what was left out.

    Args:
        source: A BIDS dataset or a folder of scans whose names tell the contrast.
        target: Output folder; a BIDS dataset becomes a BIDS derivative.
        known: Contrasts the model knows; others are left out.
        describe: Contrast of a scan to the ``desc`` and the contrast of its result.
        modality: Take scans of this contrast alone.
        new_ending: Ending of the results.
        overwrite: Whether the output folder may hold something.

    Raises:
        UsageError: As :func:`check_folder`; no scan of an admissible contrast.
    """
    check_folder(source, target, overwrite=overwrite)
    manifest = scan(source)
    wanted = [modality_of(source, modality)] if modality is not None else list(known)
    jobs, notes = [], list(manifest.notes)
    left_out: Counter[str] = Counter()
    for session in manifest.sessions:
        notes += session.notes
        for name, path in session.scans.items():
            if name not in wanted:
                left_out[name] += 1
                continue
            description, result = describe(name)
            if manifest.kind == "bids":
                place = derivative_path(session.subject, session.session, result, description, extension=new_ending)
            else:
                other = result if result != name else None
                place = path.relative_to(manifest.root).with_name(target_name(path, description, other, new_ending))
            jobs.append(Job(path, target / place, name, session.mask))
    notes += [f"{count} scans are {name}: not asked for, or not known to the model" for name, count in left_out.items()]
    if not jobs:
        raise UsageError(f"{printable(source)}: holds no scan of {' or '.join(wanted)}")
    return jobs, notes


def plan_latents(source: Path, target: Path, modality: str | None, *, overwrite: bool) -> list[Job]:
    """Return one job per latent file of a folder.

    Raises:
        UsageError: As :func:`check_folder`; there is no latent.
    """
    check_folder(source, target, overwrite=overwrite)
    files = sorted(f for f in source.rglob(f"*{LATENT_ENDING}") if f.is_file())
    if not files:
        raise UsageError(f"{printable(source)}: holds no latent ({LATENT_ENDING})")
    description = "recon" if modality is None else "synth"
    return [
        Job(f, target / f.relative_to(source).with_name(target_name(f, description, modality, ".nii.gz")), modality)
        for f in files
    ]


def check_folder(source: Path, target: Path, *, overwrite: bool) -> None:
    """Check an output folder before anything is computed.

    Raises:
        UsageError: It is not empty, or it is the source, inside it or around it.
        OutputError: It cannot be written to.
    """
    a, b = source.resolve(), target.resolve()
    # BIDS keeps derivatives inside the dataset, under derivatives/
    inside = a in b.parents and "derivatives" not in b.relative_to(a).parts[:1]
    if a == b or b in a.parents or inside:
        raise UsageError(f"{printable(target)}: lies over the input {printable(source)}; choose a folder beside it")
    if target.exists() and not target.is_dir():
        raise UsageError(f"{printable(target)}: is a file; a folder of scans needs an output folder")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise UsageError(f"{printable(target)}: is not empty; give --overwrite or another folder")
    check_writable(target)


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written to, before time is spent.

    Raises:
        OutputError: It, or the nearest folder above that exists, is read-only.
        UsageError: A part of the path is a file.
    """
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise UsageError(f"{printable(existing)}: is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{printable(existing)}: cannot be written to. Remedy: choose another output folder.")


def write_result(target: Path, save: Callable[[Path], object], sidecar: Mapping[str, Any]) -> None:
    """Write a result and its sidecar: both or none.

    Args:
        target: The result.
        save: Writes the result to the path it is given.
        sidecar: Goes to the JSON file beside it.

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
    hidden = target.with_name(f".neurotome-{secrets.token_hex(8)}{ending(target)}")
    beside = sidecar_of(target)
    try:
        save(hidden)
        write_atomically(beside, [json.dumps(sidecar, indent=2).encode() + b"\n"])
        hidden.replace(target)
    except BaseException:
        if not target.exists():
            beside.unlink(missing_ok=True)
        raise
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)


def write_description(folder: Path, name: str) -> None:
    """Write ``dataset_description.json`` of a BIDS derivative."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataset_description(name, neurotome.__version__), indent=2)
    write_atomically(folder / "dataset_description.json", [text.encode() + b"\n"])


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
    # a dot would end the name that candidates() looks at
    return contrasts.candidates(text.replace("/", " ").replace(".", " "))
