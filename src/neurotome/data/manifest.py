"""What there is to prepare: sessions, their scans, and what was decided when they were found.

A manifest is found in a BIDS dataset, in a table with the columns ``participant_id session_id modality path`` (and
``site``, ``mask``, ``label`` if wanted), or guessed from the names in a folder. No path leaves the folder it was found
in. Of several scans of one contrast in one session the first by name is taken, and the choice is noted.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from neurotome.data import bids
from neurotome.data.bids import ScanRow
from neurotome.errors import InputError, UsageError, printable
from neurotome.modality import CONTRASTS, candidates, canonical

COLUMNS = ("participant_id", "session_id", "modality", "path")
_OPTIONAL_COLUMNS = ("site", "mask", "label")
_MAX_PROBLEMS = 20
_MASK_WORDS = re.compile(r"(?:^|[-_.])(?:mask|seg|dseg|probseg|label|labels|lesion|lesions)(?:$|[-_.])", re.IGNORECASE)
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:|^[\\/]{2}")


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
    """

    subject: str
    session: str
    site: str | None
    scans: dict[str, Path]
    mask: Path | None = None
    labels: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """Everything found under one root.

    Args:
        root: The folder no path leaves.
        kind: How it was found.
        sessions: Sorted by subject and session.
        notes: What was decided for the whole.
    """

    root: Path
    kind: Literal["bids", "table", "folder"]
    sessions: tuple[SessionScans, ...]
    notes: tuple[str, ...] = ()

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

    def relative(self, path: Path) -> str:
        """Return a path below the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def to_tsv(self) -> str:
        """Return the manifest as a table that :func:`scan` reads."""
        lines = ["\t".join((*COLUMNS, *_OPTIONAL_COLUMNS))]
        for s in self.sessions:
            tail = [s.site or "n/a", *(self.relative(p) if p else "n/a" for p in (s.mask, s.labels))]
            lines += [
                "\t".join([s.subject, s.session or "n/a", m, self.relative(p), *tail]) for m, p in s.scans.items()
            ]
        return "\n".join(lines) + "\n"


def scan(path: str | os.PathLike[str]) -> Manifest:
    """Return what there is at a path: a BIDS dataset, a table, a folder of images, or one image.

    Raises:
        UsageError: Nothing is there.
        InputError: A table with errors (each named with line and column), or no scan at all.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(
            f"{printable(path)}: nothing is there; give a BIDS dataset, a folder, a .tsv or .csv table, or an image"
        )
    lower = path.name.lower()
    if path.is_file() and lower.endswith((".tsv", ".csv")):
        root, kind = path.parent.resolve(), "table"
        rows, notes = read_manifest_table(path)
    elif path.is_dir() and bids.is_bids(path.resolve()):
        root, kind = path.resolve(), "bids"
        rows, notes = bids.find_scans(root)
    else:
        root, kind = (path if path.is_dir() else path.parent).resolve(), "folder"
        rows, notes = guess_scans(root, [root / path.name] if path.is_file() else None)
    rows, outside = _confined(rows, root)
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
    return Manifest(root, kind, sessions, (*notes, *outside))  # type: ignore[arg-type]  # kind is one of three literals


def read_manifest_table(path: Path) -> tuple[list[ScanRow], list[str]]:
    """Return the rows of a manifest table.

    Raises:
        InputError: A missing column, or rows with errors; each is named with line and column.
    """
    header, lines = bids.read_table(path)
    missing = [c for c in COLUMNS if c not in header and c != "session_id"]
    if missing:
        raise InputError(
            f"line 1: column {', '.join(missing)} is missing; the columns are {', '.join(header)}",
            file=path,
            remedy=f"give the columns {' '.join(COLUMNS)}, and {' '.join(_OPTIONAL_COLUMNS)} if wanted",
        )
    folder = path.parent.resolve()
    rows: list[ScanRow] = []
    problems: list[str] = []
    seen: dict[Path, int] = {}
    for number, cells in lines:
        try:
            row = _row(cells, folder)
        except InputError as error:
            problems.append(f"line {number}, {error.reason}")
            continue
        if row.path in seen:
            problems.append(f"line {number}, column path: {cells['path']!r} is already on line {seen[row.path]}")
        seen.setdefault(row.path, number)
        rows.append(row)
    if problems:
        more = f"; and {len(problems) - _MAX_PROBLEMS} more" if len(problems) > _MAX_PROBLEMS else ""
        raise InputError("; ".join(problems[:_MAX_PROBLEMS]) + more, file=path, remedy="correct these lines")
    unused = [c for c in header if c not in (*COLUMNS, *_OPTIONAL_COLUMNS)]
    return rows, [f"columns not used: {', '.join(unused)}"] if unused else []


def _row(cells: dict[str, str], folder: Path) -> ScanRow:
    values = {key: "" if value == "n/a" else value for key, value in cells.items()}
    subject = values["participant_id"].removeprefix("sub-")
    session = values.get("session_id", "").removeprefix("ses-")
    for column, label in (("participant_id", subject), ("session_id", session)):
        if column == "participant_id" and not label:
            raise InputError(f"column {column}: empty")
        if not label.isprintable() or "/" in label or "\\" in label:
            raise InputError(f"column {column}: {label!r} is no id")
    try:
        modality = canonical(values["modality"])
    except ValueError as error:
        raise InputError(f"column modality: {error}") from error
    paths = {c: _table_path(c, values.get(c, ""), folder) for c in ("path", "mask", "label")}
    if paths["path"] is None:
        raise InputError("column path: empty")
    return ScanRow(subject, session, modality, paths["path"], values.get("site") or None, paths["mask"], paths["label"])


def _table_path(column: str, text: str, folder: Path) -> Path | None:
    if not text:
        return None
    if _URL.match(text):
        raise InputError(f"column {column}: {text!r} is not a path below the table's folder")
    path = Path(os.path.normpath(folder / text))
    if not path.is_relative_to(folder):
        raise InputError(f"column {column}: {text!r} leaves the table's folder")
    if not path.exists():
        raise InputError(f"column {column}: {text!r} does not exist")
    return path


def guess_scans(root: Path, files: Iterable[Path] | None = None) -> tuple[list[ScanRow], list[str]]:
    """Return the scans of a plain folder, their contrast guessed from the names, and what could not be guessed."""
    rows, notes, masks = [], [], {}
    for path in sorted(_images(root)) if files is None else files:
        key = _guess_ids(path, root)
        if path.name.split(".")[0].endswith("_desc-brain_mask"):
            masks[key] = path
            continue
        if _MASK_WORDS.search(path.name.split(".")[0]):
            continue
        contrasts = candidates(path.name)
        if len(contrasts) != 1:
            what = "no contrast" if not contrasts else " or ".join(contrasts)
            notes.append(f"left out {printable(path.relative_to(root))}: the name says {what}")
            continue
        rows.append(ScanRow(*key, contrasts[0], path))
    return [
        ScanRow(r.subject, r.session, r.modality, r.path, mask=masks.get((r.subject, r.session))) for r in rows
    ], notes


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
        parts = re.split(r"[-_.]", place.name.split(".")[0])
        kept = [p for p in parts if not candidates(p)]
        name = "-".join(kept) or place.name.split(".")[0]
    return name, session.group(1) if session else ""


def _confined(rows: list[ScanRow], root: Path) -> tuple[list[ScanRow], list[str]]:
    """Leave out every row with a path that a link leads out of the root; equal folders are resolved once."""
    folders: dict[Path, Path] = {}

    def inside(path: Path | None) -> bool:
        if path is None:
            return True
        folder = folders.setdefault(path.parent, path.parent.resolve())
        real = path.resolve() if path.is_symlink() else folder / path.name
        return real.is_relative_to(root)

    kept: list[ScanRow] = []
    dropped: list[ScanRow] = []
    for row in rows:
        (kept if all(inside(p) for p in (row.path, row.mask, row.labels)) else dropped).append(row)
    return kept, [f"left out {printable(row.path)}: it is a link out of {printable(root)}" for row in dropped]


def _sessions(rows: list[ScanRow]) -> Iterator[SessionScans]:
    groups: dict[tuple[str, str], list[ScanRow]] = {}
    for row in rows:
        groups.setdefault((row.subject, row.session), []).append(row)
    order = list(CONTRASTS)
    for (subject, session), members in sorted(groups.items()):
        members.sort(key=lambda r: (order.index(r.modality), r.path.name, str(r.path)))
        scans: dict[str, Path] = {}
        notes = []
        for row in members:
            if row.modality in scans:
                notes.append(f"several {row.modality}: {scans[row.modality].name} is used, {row.path.name} is not")
            scans.setdefault(row.modality, row.path)
        sites = sorted({r.site for r in members if r.site is not None})
        if len(sites) > 1:
            notes.append(f"several sites ({', '.join(sites)}): {sites[0]} is used")
        yield SessionScans(
            subject,
            session,
            sites[0] if sites else None,
            scans,
            mask=next((r.mask for r in members if r.mask), None),
            labels=next((r.labels for r in members if r.labels), None),
            notes=tuple(notes),
        )
