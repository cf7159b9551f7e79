"""What there is to prepare: sessions, their scans, and what was decided when they were found.

A manifest is found in a BIDS dataset, in the layout of nnU-Net, in a table, or guessed from the names in a folder. No
path leaves the folder it was found in, or the roots that the caller admits. Of several scans of one contrast in one
session the one that :func:`bids.preference` ranks first is taken, and the choice is noted; ``rows`` keeps them all.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from neurotome.data.datasets import nnunet
from neurotome.data.datasets.bids import ScanRow, is_bids, preference
from neurotome.data.datasets.bids_scans import BidsScans
from neurotome.data.datasets.guessed import guess_scans
from neurotome.data.datasets.manifest_table import COLUMNS, OPTIONAL_COLUMNS, read_manifest_table
from neurotome.data.datasets.text_files import one_line
from neurotome.errors import InputError, UsageError, printable
from neurotome.modality import CONTRASTS

Kind = Literal["bids", "nnunet", "table", "folder"]
_TABLE = "give a table with the columns " + " ".join(COLUMNS)
_REMEDIES: dict[Kind, str] = {
    "bids": f"give the scans names like sub-01_T1w.nii.gz, or {_TABLE}",
    "nnunet": f"name the scans CASE_0000.nii.gz, or {_TABLE}",
    "table": "list at least one scan",
    "folder": f"name the contrasts in the file names ({', '.join(CONTRASTS)}), or {_TABLE}",
}
UNPAIRED = (
    f"no session has more than one contrast, so nothing is paired; if scans of one person have different ids, {_TABLE}"
)


@dataclass(frozen=True)
class SessionScans:
    """One visit of one subject.

    Args:
        subject: Id without ``sub-``.
        session: Id without ``ses-``; empty where there is one visit only.
        site: Name of the scanner site, if known.
        scans: Modality to file.
        mask: Brain mask, if there is one.
        labels: Label map, if there is one.
        notes: What was decided for this session.
        split: Part of the data the subject was assigned to, where the dataset says so.
        damage: Modality to why its scan cannot be prepared.
    """

    subject: str
    session: str
    site: str | None
    scans: dict[str, Path]
    mask: Path | None = None
    labels: Path | None = None
    notes: tuple[str, ...] = ()
    split: str | None = None
    damage: Mapping[str, InputError] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Subject and session in one word, for messages."""
        return f"sub-{self.subject}" + (f" ses-{self.session}" if self.session else "")


@dataclass(frozen=True)
class Manifest:
    """Everything found under one root.

    Args:
        root: The folder no path leaves.
        kind: How it was found.
        sessions: Sorted by subject and session.
        notes: What was decided for the whole, and what was left out.
        rows: Every scan, also those that no session took.
        roots: Other folders that paths may lie in.
    """

    root: Path
    kind: Kind
    sessions: tuple[SessionScans, ...]
    notes: tuple[str, ...] = ()
    rows: tuple[ScanRow, ...] = ()
    roots: tuple[Path, ...] = ()

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subject ids, sorted."""
        return tuple(sorted({s.subject for s in self.sessions}))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Contrasts that occur, in the order of our vocabulary."""
        found = {m for s in self.sessions for m in s.scans}
        return tuple(m for m in CONTRASTS if m in found)

    @property
    def sites(self) -> tuple[str, ...]:
        """Site names that occur, sorted."""
        return tuple(sorted({s.site for s in self.sessions if s.site is not None}))

    @property
    def splits(self) -> dict[str, str]:
        """Splits that the dataset itself assigns: subject to train, val or test."""
        return {s.subject: s.split for s in self.sessions if s.split is not None}

    @property
    def is_unpaired(self) -> bool:
        """Whether there are several contrasts, but no session has more than one."""
        return len(self.modalities) > 1 and all(len(s.scans) == 1 for s in self.sessions)

    def relative(self, path: Path) -> str:
        """Return a path from the root, with forward slashes; one of another root begins with ``..``."""
        return Path(os.path.relpath(path, self.root)).as_posix()

    def to_tsv(self) -> str:
        """Return the manifest as a table that :func:`scan` reads; tabs and line breaks in paths are escaped."""
        lines = ["\t".join((*COLUMNS, *OPTIONAL_COLUMNS))]
        for s in self.sessions:
            tail = [s.site or "n/a", *map(self._cell, (s.mask, s.labels)), s.split or "n/a"]
            lines += ["\t".join([s.subject, s.session or "n/a", m, self._cell(p), *tail]) for m, p in s.scans.items()]
        return "\n".join(lines) + "\n"

    def _cell(self, path: Path | None) -> str:
        return "n/a" if path is None else one_line(self.relative(path))


def scan(
    path: str | os.PathLike[str], roots: Sequence[str | os.PathLike[str]] = (), default_modality: str | None = None
) -> Manifest:
    """Return what there is at a path: a BIDS or nnU-Net dataset, a table, a folder of images, or one image.

    Args:
        path: What to look at.
        roots: Folders besides its own that links and the paths of a table may lead to.
        default_modality: Contrast of images in a plain folder whose names tell none; None leaves them out.

    Raises:
        UsageError: Nothing is there.
        InputError: A table with errors (each named with line and column), or no scan at all.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(
            f"{printable(path)}: nothing is there; give a BIDS dataset, a folder, a .tsv or .csv table, or an image"
        )
    others = tuple(_admitted(root) for root in roots)
    root, kind, rows, notes = _found(path, others, default_modality)
    rows, outside = _confined(rows, (root, *others))
    notes += outside
    sessions = tuple(_sessions(rows, root))
    if not sessions:
        reasons = notes or ["no readable image"]
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        raise InputError(f"no scan found ({'; '.join(reasons[:5])}{more})", file=path, remedy=_REMEDIES[kind])
    manifest = Manifest(root, kind, sessions, tuple(notes), tuple(rows), others)
    return replace(manifest, notes=(UNPAIRED, *notes)) if manifest.is_unpaired else manifest


def is_table(path: Path) -> bool:
    """Return whether a path is a table of scans by its name."""
    return path.name.lower().endswith((".tsv", ".csv")) and path.is_file()


def _admitted(root: str | os.PathLike[str]) -> Path:
    folder = Path(root)
    if not folder.is_dir():
        raise UsageError(f"--root {printable(folder)}: there is no such folder; check the path")
    return folder.resolve()


def _found(
    path: Path, roots: tuple[Path, ...], default_modality: str | None
) -> tuple[Path, Kind, list[ScanRow], list[str]]:
    if is_table(path):
        return path.parent.resolve(), "table", *read_manifest_table(path, roots)
    root = (path if path.is_dir() else path.parent).resolve()
    if path.is_file():
        return root, "folder", *guess_scans(root, [root / path.name], default_modality)
    if nnunet.is_nnunet(root):
        return root, "nnunet", *nnunet.find_cases(root)
    if is_bids(root):
        return root, "bids", *BidsScans(root).find()
    return root, "folder", *guess_scans(root, default_modality=default_modality)


def _confined(rows: list[ScanRow], roots: tuple[Path, ...]) -> tuple[list[ScanRow], list[str]]:
    """Leave out every row with a path that a link leads out of the roots; equal folders are resolved once."""
    folders: dict[str, str] = {}
    inside_roots = tuple(os.path.join(root, "") for root in roots)  # noqa: PTH118 - 10^6 rows take seconds with Path

    def inside(path: Path | None) -> bool:
        if path is None:
            return True
        folder, name = os.path.split(path)
        if os.path.islink(path):  # noqa: PTH114 - as above
            real = os.path.realpath(path)
        else:
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            real = f"{folders[folder]}{os.sep}{name}"
        return real.startswith(inside_roots)

    kept: list[ScanRow] = []
    dropped: list[ScanRow] = []
    for row in rows:
        (kept if inside(row.path) and inside(row.mask) and inside(row.labels) else dropped).append(row)
    return kept, [
        f"left out {printable(row.path)}: it, its mask or its labels are a link out of {printable(roots[0])}; "
        "--root DIR admits another folder"
        for row in dropped
    ]


def _sessions(rows: list[ScanRow], root: Path) -> Iterator[SessionScans]:
    groups: dict[tuple[str, str], list[ScanRow]] = {}
    for row in rows:
        groups.setdefault((row.subject, row.session), []).append(row)
    order = {name: place for place, name in enumerate(CONTRASTS)}
    for (subject, session), members in sorted(groups.items()):
        if len(members) > 1:
            members.sort(key=lambda r: (order[r.modality], preference(r.path.name), str(r.path)))
        chosen: dict[str, ScanRow] = {}
        notes = []
        for row in members:
            if row.modality in chosen:
                used, unused = _told_apart(chosen[row.modality].path, row.path, root)
                notes.append(f"several {row.modality}: {used} is used, {unused} is not (fewest entities, first run)")
            chosen.setdefault(row.modality, row)
        sites = sorted({r.site for r in members if r.site is not None})
        if len(sites) > 1:
            notes.append(f"several sites ({', '.join(sites)}): {sites[0]} is used")
        first = [*chosen.values(), *members]
        masks, labels = (list(dict.fromkeys(filter(None, found))) for found in _maps(first))
        for what, found in (("masks", masks), ("label maps", labels)):
            for other in found[1:]:
                used, unused = _told_apart(found[0], other, root)
                notes.append(f"several {what}: {used} is used, {unused} is not")
        yield SessionScans(
            subject,
            session,
            sites[0] if sites else None,
            {modality: row.path for modality, row in chosen.items()},
            mask=masks[0] if masks else None,
            labels=labels[0] if labels else None,
            notes=tuple(notes),
            split=next((r.split for r in first if r.split), None),
            damage={modality: row.damage for modality, row in chosen.items() if row.damage is not None},
        )


def _maps(rows: Sequence[ScanRow]) -> tuple[list[Path | None], list[Path | None]]:
    return [row.mask for row in rows], [row.labels for row in rows]


def _told_apart(used: Path, unused: Path, root: Path) -> tuple[str, str]:
    """Return the names of two files, with their folders where the names are equal."""
    if used.name != unused.name:
        return used.name, unused.name
    return Path(os.path.relpath(used, root)).as_posix(), Path(os.path.relpath(unused, root)).as_posix()
