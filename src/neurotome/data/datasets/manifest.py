"""What there is to prepare: sessions, their scans, and what was decided when they were found.

A manifest is found in a BIDS dataset, in the layout of nnU-Net, in a table, or guessed from the names in a folder. No
path leaves the folder it was found in, or the roots that the caller admits. Of several scans of one contrast in one
session the one that :func:`bids.preference` ranks first is taken, and the choice is noted; ``rows`` keeps them all.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from neurotome.data.datasets import bids, nnunet
from neurotome.data.datasets.bids import ScanRow, preference
from neurotome.data.datasets.manifest_table import COLUMNS, OPTIONAL_COLUMNS, read_manifest_table
from neurotome.data.imaging.reader import READABLE_SUFFIXES
from neurotome.errors import InputError, UsageError, printable
from neurotome.modality import CONTRASTS, candidates

_MASK_WORDS = re.compile(
    r"(?:^|[-_.+])(?:mask|seg|dseg|probseg|label|labels|lesion|lesions|aseg|aparc)(?:$|[-_.+])", re.IGNORECASE
)


Kind = Literal["bids", "nnunet", "table", "folder"]


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
    """

    subject: str
    session: str
    site: str | None
    scans: dict[str, Path]
    mask: Path | None = None
    labels: Path | None = None
    notes: tuple[str, ...] = ()
    split: str | None = None

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
        notes: What was decided for the whole.
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

    def relative(self, path: Path) -> str:
        """Return a path from the root, with forward slashes; one of another root begins with ``..``."""
        return Path(os.path.relpath(path, self.root)).as_posix()

    def to_tsv(self) -> str:
        """Return the manifest as a table that :func:`scan` reads."""
        lines = ["\t".join((*COLUMNS, *OPTIONAL_COLUMNS))]
        for s in self.sessions:
            tail = [s.site or "n/a", *(self.relative(p) if p else "n/a" for p in (s.mask, s.labels)), s.split or "n/a"]
            lines += [
                "\t".join([s.subject, s.session or "n/a", m, self.relative(p), *tail]) for m, p in s.scans.items()
            ]
        return "\n".join(lines) + "\n"


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
    sessions = tuple(_sessions(rows))
    if not sessions:
        reasons = [*notes, *outside] or ["no readable image"]
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        raise InputError(
            f"no scan found ({'; '.join(reasons[:5])}{more})",
            file=path,
            remedy=f"name the contrasts in the file names ({', '.join(CONTRASTS)}), or give a table with the columns "
            + " ".join(COLUMNS),
        )
    return Manifest(root, kind, sessions, (*notes, *outside), tuple(rows), others)


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
    if bids.is_bids(root):
        return root, "bids", *bids.find_scans(root)
    return root, "folder", *guess_scans(root, default_modality=default_modality)


def guess_scans(
    root: Path, files: Iterable[Path] | None = None, default_modality: str | None = None
) -> tuple[list[ScanRow], list[str]]:
    """Return the scans of a plain folder, guessed from the names, and what could not be guessed.

    Args:
        root: The folder.
        files: Look at these alone.
        default_modality: Contrast of images whose names tell none.
    """
    rows, notes = [], []
    masks: dict[tuple[str, str], list[Path]] = {}
    aside = 0
    for path in sorted(_images(root)) if files is None else files:
        stem = _stem(path)
        if stem.endswith("_desc-brain_mask"):
            masks.setdefault(_guess_ids(path, root), []).append(path)
            continue
        if _MASK_WORDS.search(stem):
            aside += 1
            continue
        contrasts = candidates(path.name) or ((default_modality,) if default_modality is not None else ())
        if len(contrasts) != 1:
            what = "no contrast" if not contrasts else " or ".join(contrasts)
            notes.append(f"left out {printable(path.relative_to(root))}: the name says {what}")
            continue
        rows.append(ScanRow(*_guess_ids(path, root), contrasts[0], path))
    fitting = [bids.best_mask(row.path.name, masks.get((row.subject, row.session), ())) for row in rows]
    rows, visits = _visits([replace(row, mask=mask) for row, mask in zip(rows, fitting, strict=True)], root)
    if rows and files is None:
        count = Counter(row.modality for row in rows)
        counts = ", ".join(f"{count[m]} {m}" for m in CONTRASTS if m in count)
        notes.insert(0, f"contrasts and subjects are guessed from the names ({counts}); a table states them")
    if aside:
        notes.append(f"{aside} masks or label maps are not taken for scans")
    return rows, notes + visits


def _visits(rows: list[ScanRow], root: Path) -> tuple[list[ScanRow], list[str]]:
    """Take scans of one contrast in one folder for visits of one subject, so that no person is in two splits."""
    count = Counter((row.subject, row.session, row.modality) for row in rows)
    many = {(subject, session) for (subject, session, _), number in count.items() if number > 1}
    named = [
        row
        if (row.subject, row.session) not in many or bids.entities(row.path.name) or row.path.parent == root
        else replace(row, session="-".join(filter(None, (row.session, _rest(row.path)))))
        for row in rows
    ]
    folders = sorted({after.subject for before, after in zip(rows, named, strict=True) if before is not after})
    return named, [
        f"{printable(folder)}: holds several scans of one contrast, taken for visits of one subject; if they are "
        "several persons, give each a folder, or a table"
        for folder in folders
    ]


def _stem(path: Path) -> str:
    """Return a name without its image ending."""
    lower = path.name.lower()
    return next((path.name[: -len(end)] for end in READABLE_SUFFIXES if lower.endswith(end)), path.stem)


def _rest(path: Path) -> str:
    """Return what a name says besides the contrast."""
    return "-".join(word for word in re.split(r"[-_.]", _stem(path)) if word and not candidates(word))


def _images(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "derivatives")
        yield from (Path(folder, n) for n in names if bids.is_image(n))


def _guess_ids(path: Path, root: Path) -> tuple[str, str]:
    """Return subject and session: BIDS words if there are any, else the folder, else the name without its contrast."""
    place = path.relative_to(root)
    words = "_".join(place.parts)
    session = re.search(r"(?:^|_)ses-([^_]+)", words)
    subject = re.search(r"(?:^|_)sub-([^_.]+)", words)
    if subject:
        name = subject.group(1)
    elif len(place.parts) > 1:
        name = place.parts[0]
    else:
        name = _rest(place) or _stem(place)
    return name, session.group(1) if session else ""


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


def _sessions(rows: list[ScanRow]) -> Iterator[SessionScans]:
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
                used = chosen[row.modality].path.name
                notes.append(
                    f"several {row.modality}: {used} is used, {row.path.name} is not (fewest entities, first run)"
                )
            chosen.setdefault(row.modality, row)
        sites = sorted({r.site for r in members if r.site is not None})
        if len(sites) > 1:
            notes.append(f"several sites ({', '.join(sites)}): {sites[0]} is used")
        first = [*chosen.values(), *members]
        yield SessionScans(
            subject,
            session,
            sites[0] if sites else None,
            {modality: row.path for modality, row in chosen.items()},
            mask=next((r.mask for r in first if r.mask), None),
            labels=next((r.labels for r in first if r.labels), None),
            notes=tuple(notes),
            split=next((r.split for r in first if r.split), None),
        )
