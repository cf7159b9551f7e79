"""A manifest as a table: ``participant_id session_id modality path``, and ``site mask label split`` if wanted.

A path lies below the table's folder, or below one of the roots that the caller admits; everything else (``..``, an
absolute path elsewhere, a URL, a share) is refused. Every fault is named with its line and column, all at once.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from neurotome.data.datasets.bids import ScanRow
from neurotome.data.datasets.text_files import MISSING, table_rows
from neurotome.errors import InputError, printable
from neurotome.modality import canonical

COLUMNS = ("participant_id", "session_id", "modality", "path")
OPTIONAL_COLUMNS = ("site", "mask", "label", "split")
_SPLITS = ("train", "val", "test")
_MAX_PROBLEMS = 20
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:|^[\\/]{2}")
_REMEDY = f"give the columns {' '.join(COLUMNS)}, and {' '.join(OPTIONAL_COLUMNS)} if wanted"


def read_manifest_table(path: Path, roots: Sequence[Path] = ()) -> tuple[list[ScanRow], list[str]]:
    """Return the rows of a manifest table, and notes.

    Args:
        path: A TSV or CSV file.
        roots: Folders besides the table's own that its paths may lie in.

    Raises:
        InputError: A missing column, or rows with errors; each is named with line and column.
    """
    lines = table_rows(path)
    _, header = next(lines)
    if missing := [c for c in COLUMNS if c not in header and c != "session_id"]:
        where = f"line 1: column {', '.join(missing)} is missing; the columns are {printable(', '.join(header))}"
        separator = next((name for sign, name in ((";", "semicolons"), ("\t", "tabs")) if sign in header[0]), None)
        other = f"the cells seem to be separated by {separator}; save .csv with commas, .tsv with tabs"
        raise InputError(where, file=path, remedy=_REMEDY if separator is None else other)
    reader = _RowReader(header, path.parent.resolve(), [root.resolve() for root in roots])
    rows: list[ScanRow] = []
    problems: list[str] = []
    num_problems = 0
    for number, cells in lines:
        try:
            rows.append(reader.row(number, cells))
        except InputError as error:
            num_problems += 1
            if len(problems) < _MAX_PROBLEMS:
                problems.append(f"line {number}, {error.reason}")
    if problems:
        more = f"; and {num_problems - _MAX_PROBLEMS} more" if num_problems > _MAX_PROBLEMS else ""
        remedy = "correct these lines"
        if any("leaves the table's folder" in problem for problem in problems):
            remedy += "; --root DIR admits another folder"
        raise InputError("; ".join(problems) + more, file=path, remedy=remedy)
    unused = [c for c in header if c not in (*COLUMNS, *OPTIONAL_COLUMNS)]
    return rows, [f"columns not used: {printable(', '.join(unused))}"] if unused else []


class _RowReader:
    """Reads rows; remembers what must not occur twice."""

    def __init__(self, header: list[str], folder: Path, roots: list[Path]) -> None:
        # a subject may be called NA or None; in a column that may be empty this is a missing value
        self._at = [
            (name, header.index(name), ("n/a",) if name in ("participant_id", "path") else MISSING)
            for name in (*COLUMNS, *OPTIONAL_COLUMNS)
            if name in header
        ]
        self._folder = str(folder)
        # with the separator, so that /data does not admit /database
        self._inside = tuple(os.path.join(root, "") for root in (folder, *roots))  # noqa: PTH118 - hot loop
        self._lines: dict[str, int] = {}
        self._splits: dict[str, tuple[str, int]] = {}

    def row(self, number: int, cells: list[str]) -> ScanRow:
        """Return one row."""
        values = {name: "" if cells[at].casefold() in missing else cells[at] for name, at, missing in self._at}
        subject = _id("participant_id", values["participant_id"].removeprefix("sub-"))
        session = _id("session_id", values.get("session_id", "").removeprefix("ses-"))
        if not subject:
            raise InputError("column participant_id: empty")
        try:
            modality = canonical(values["modality"])
        except ValueError as error:
            raise InputError(f"column modality: {error}") from error
        path = self._path("path", values["path"])
        if path is None:
            raise InputError("column path: empty")
        mask, label = (self._path(c, values.get(c, "")) for c in ("mask", "label"))
        split = self._split(number, subject, values.get("split", ""))
        if (line := self._lines.setdefault(path, number)) != number:
            raise InputError(f"column path: {values['path']!r} is already on line {line}")
        site = values.get("site") or None
        return ScanRow(subject, session, modality, Path(path), site, _file(mask), _file(label), split)

    def _split(self, number: int, subject: str, split: str) -> str | None:
        if not split:
            return None
        if split not in _SPLITS:
            raise InputError(f"column split: {split!r}; admissible are {', '.join(_SPLITS)}")
        first, line = self._splits.setdefault(subject, (split, number))
        if first != split:
            raise InputError(f"column split: subject {subject!r} is in {first} on line {line} and here in {split}")
        return split

    def _path(self, column: str, text: str) -> str | None:
        """Return where a cell leads, inside the roots; None for an empty one."""
        if not text:
            return None
        if _URL.match(text):
            raise InputError(f"column {column}: {text!r} is not a path below the table's folder")
        path = os.path.normpath(os.path.join(self._folder, text))  # noqa: PTH118 - a table may have 10^6 rows
        if not path.startswith(self._inside):
            raise InputError(f"column {column}: {text!r} leaves the table's folder")
        if not os.path.exists(path):  # noqa: PTH110 - as above
            raise InputError(f"column {column}: {text!r} does not exist")
        return path


def _id(column: str, label: str) -> str:
    if not label.isprintable() or "/" in label or "\\" in label or label in (".", ".."):
        raise InputError(f"column {column}: {label!r} is no id")
    return label


def _file(path: str | None) -> Path | None:
    return None if path is None else Path(path)
