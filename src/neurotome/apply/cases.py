"""What a command will do: one job per scan, planned and checked before anything is computed.

A file makes a file; a folder makes a folder: BIDS in, BIDS derivatives out, plain names in, plain names out. Every scan
of a session gets a result of its own, runs included; two that would share a name are refused, both.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neurotome.apply.derivatives import source_uri
from neurotome.apply.names import Job, free_of, modality_of, sidecar_of, target_name
from neurotome.data.datasets.bids import ScanRow
from neurotome.data.datasets.manifest import Manifest, is_table, scan
from neurotome.errors import InputError, OutputError, UsageError, printable
from neurotome.files.atomic import check_writable
from neurotome.files.endings import LATENT_ENDING, ending


@dataclass
class Plan:
    """What will be done.

    Args:
        jobs: One per scan.
        refused: What will not be done although it was asked for, and why.
        notes: What was decided.
        dataset: Root of the source where it is a BIDS dataset.
    """

    jobs: list[Job]
    refused: list[InputError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dataset: Path | None = None


def is_many(source: Path) -> bool:
    """Return whether a path stands for many scans: a folder, or a table of scans."""
    return source.is_dir() or is_table(source)


def plan_file(source: Path, target: Path, *, endings: tuple[str, ...], description: str = "synth") -> Job:
    """Check one pair of files.

    Args:
        source: The scan or latent.
        target: The result.
        endings: Of the result's name, the one that is advised first.
        description: The value of BIDS' ``desc`` in the names that are advised: recon, synth, latent.

    Raises:
        UsageError: The source is missing; the target has another ending, is the source, has its name or its sidecar, or
            looks like a raw scan.
        OutputError: The target's folder cannot be written to.
    """

    def advised(file: Path) -> str:
        kept = ending(file) if ending(file) in endings else endings[0]
        return printable(target_name(file, description, new_ending=kept))

    if not source.exists():
        raise UsageError(f"{printable(source)}: there is no such file; check the path")
    if not target.name.lower().endswith(endings):
        raise UsageError(
            f"{printable(target)}: the result is written as {' or '.join(endings)}; for example {advised(target)}"
        )
    if target.exists() and target.samefile(source):
        raise UsageError(f"{printable(target)}: input and output are the same file; choose another name")
    if target.name == source.name:
        raise UsageError(
            f"{printable(target)}: a synthetic image must not have the name of its source; for example "
            f"{advised(source)}"
        )
    if target.name.startswith("sub-") and "desc-" not in target.name:
        raise UsageError(
            f"{printable(target)}: reads as a raw scan, but a model made it; name it with desc-, for example "
            f"{advised(target)}"
        )
    for file in (target, sidecar_of(target)):
        if file.is_dir():
            raise UsageError(f"{printable(file)}: is a folder; name a file")
    if sidecar_of(target).resolve() == sidecar_of(source).resolve():
        raise UsageError(f"{printable(target)}: its sidecar would replace that of the source; choose another name")
    check_writable(target.parent)
    _check_space([source], target.parent)
    return Job(source, target, origin=source.name)


def plan_folder(
    source: Path,
    target: Path,
    known: Sequence[str],
    describe: Callable[[str], tuple[str, str]],
    *,
    modality: str | None,
    new_ending: str,
    roots: Sequence[Path] = (),
) -> Plan:
    """Return one job per scan of a dataset, a folder or a table.

    Args:
        source: What :func:`scan` reads.
        target: Output folder; a BIDS dataset becomes a BIDS derivative.
        known: Contrasts the model knows; others are left out.
        describe: Contrast of a scan to the ``desc`` and the contrast of its result.
        modality: Take scans of this contrast alone, and those of a plain folder whose names tell none.
        new_ending: Ending of the results.
        roots: Other folders that links and a table's paths may lead to.

    Raises:
        UsageError: As :func:`check_folder`; no scan of an admissible contrast.
        OutputError: The output cannot be written, or there is too little space.
    """
    check_folder(source, target)
    only = None if modality is None else modality_of(source, modality)
    manifest = scan(source, roots, default_modality=only)
    wanted = list(known) if only is None else [only]
    jobs = []
    left_out: Counter[str] = Counter()
    for row in manifest.rows:
        if row.modality not in wanted:
            left_out[row.modality] += 1
            continue
        description, result = describe(row.modality)
        other = result if result != row.modality else None
        place = _place(row.path, manifest).with_name(target_name(row.path, description, other, new_ending))
        jobs.append(_job(row, manifest, target / place))
    notes = list(manifest.notes)
    notes += [f"{count} scans are {name}: not asked for, or not known to the model" for name, count in left_out.items()]
    if not jobs:
        raise UsageError(f"{printable(source)}: holds no scan of {' or '.join(wanted)}")
    dataset = manifest.root if manifest.kind == "bids" else None
    return _checked(Plan(jobs, notes=notes, dataset=dataset), target)


def plan_latents(source: Path, target: Path, modality: str | None) -> Plan:
    """Return one job per latent file of a folder.

    Raises:
        UsageError: As :func:`check_folder`; there is no latent.
        OutputError: The output cannot be written, or there is too little space.
    """
    check_folder(source, target)
    root = source.resolve()
    files = sorted(f for f in source.rglob(f"*{LATENT_ENDING}") if f.is_file() and not f.name.startswith("."))
    inside = [f for f in files if f.resolve().is_relative_to(root)]
    notes = [f"left out {printable(f)}: it is a link out of {printable(root)}" for f in files if f not in inside]
    if not inside:
        raise UsageError(f"{printable(source)}: holds no latent ({LATENT_ENDING})")
    description = "recon" if modality is None else "synth"
    dataset = source if (source / "dataset_description.json").is_file() else None
    jobs = []
    for f in inside:
        place = f.relative_to(source).with_name(target_name(f, description, modality, ".nii.gz"))
        origin = f.name if dataset is None else source_uri(f, source)
        jobs.append(Job(f, target / place, modality, origin=origin))
    return _checked(Plan(jobs, notes=notes, dataset=dataset), target)


def check_folder(source: Path, target: Path) -> None:
    """Check where results will go.

    Raises:
        UsageError: It is the source, inside it or around it, or a file.
        OutputError: It cannot be written to.
    """
    a, b = (source if source.is_dir() else source.parent).resolve(), target.resolve()
    # BIDS keeps derivatives inside the dataset, under derivatives/
    inside = a in b.parents and "derivatives" not in b.relative_to(a).parts[:1]
    if a == b or b in a.parents or (inside and source.is_dir()):
        raise UsageError(
            f"{printable(target)}: is inside or equal to the input {printable(source)}; choose a folder beside it"
        )
    if target.exists() and not target.is_dir():
        raise UsageError(f"{printable(target)}: is a file; a folder of scans needs an output folder")
    check_writable(target)


def _place(path: Path, manifest: Manifest) -> Path:
    """Return a scan's path below the root it lies in."""
    root = next(root for root in (manifest.root, *manifest.roots) if path.is_relative_to(root))
    return path.relative_to(root)


def _job(row: ScanRow, manifest: Manifest, target: Path) -> Job:
    def origin(path: Path) -> str:
        return source_uri(path, manifest.root) if manifest.kind == "bids" else path.name

    mask = "" if row.mask is None else origin(row.mask)
    return Job(row.path, target, row.modality, row.mask, origin(row.path), mask)


def _checked(plan: Plan, target: Path) -> Plan:
    """Refuse jobs that would meet in one name or leave the output folder, and check the space for the others.

    Raises:
        OutputError: There is too little space.
    """
    # names that differ in case or in the composition of letters are one file on some systems
    names = [unicodedata.normalize("NFC", str(sidecar_of(job.target))).casefold() for job in plan.jobs]
    first: dict[str, Job] = {}
    for job, name in zip(plan.jobs, names, strict=True):
        first.setdefault(name, job)
    count = Counter(names)
    root, kept = target.resolve(), []
    for job, name in zip(plan.jobs, names, strict=True):
        if count[name] > 1:
            reason = f"{count[name]} results would share the name {printable(first[name].target.name)}"
            plan.refused.append(InputError(reason, file=job.source, remedy="rename it, or remove the copies"))
        elif not job.target.parent.resolve().is_relative_to(root):
            reason = f"{printable(job.target.parent)} is a link out of the output folder"
            plan.refused.append(InputError(reason, file=job.source, remedy="choose another output folder"))
        else:
            kept.append(job)
    plan.jobs = kept
    _check_space([job.source for job in kept], target)
    return plan


def _check_space(sources: Sequence[Path], folder: Path) -> None:
    """Refuse a disk on which the results have no room: compressed, they take at least about what the sources take.

    Raises:
        OutputError: There is too little space.
    """
    needed, free = sum(os.path.getsize(s) for s in sources if s.is_file()), free_of(folder)  # noqa: PTH202 - many
    if needed > free:
        raise OutputError(
            f"{printable(folder)}: the results need about {needed / 2**20:.0f} MB, {free / 2**20:.0f} MB are free. "
            "Remedy: free some space or choose another output folder."
        )
