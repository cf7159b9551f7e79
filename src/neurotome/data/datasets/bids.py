"""BIDS names, folders and sidecars: what is read from a dataset.

    sub-01[/ses-1]/anat/sub-01[_ses-1][_acq-x][_run-1]_T1w.nii.gz          a scan
    derivatives/*/sub-01[/ses-1]/anat/*_desc-brain_mask.nii.gz             its brain mask
    derivatives/truth/sub-01[/ses-1]/anat/*_dseg.nii.gz                    its true labels

A sidecar applies to every scan at its level or below that has its suffix and all its entities; the nearest wins. A site
is the ``Site`` of a scan's sidecars, else the ``site`` column of participants.tsv. A mask applies to a scan only if it
lies in the same space and none of its entities says otherwise.
"""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurotome.data.imaging.reader import READABLE_SUFFIXES
from neurotome.errors import InputError, printable
from neurotome.files.json_text import parse_json
from neurotome.files.verified import VerifiedStream
from neurotome.modality import candidates

# a larger file is no table or sidecar
MAX_TEXT_BYTES = 256 << 20
# spaces that are a scan's own: a mask in one of them serves a scan whose name states no space
_OWN_SPACES = ("", "T1w", "T2w", "orig", "native", "individual", "scanner")
# parts of a complex image other than its magnitude
_NO_MAGNITUDE = ("phase", "real", "imag")
# entities that name the visit or the contrast: they do not restrict which of several scans this is
_NAMING = ("sub", "ses", "ce")
# entities that a mask and its scan must have in common
_MATCHING = ("acq", "ce", "rec", "run", "echo")


@dataclass(frozen=True)
class ScanRow:
    """One scan as found: a row of a manifest.

    Args:
        subject: Id without ``sub-``.
        session: Id without ``ses-``; empty where there is one visit only.
        modality: Our name of the contrast.
        path: The file.
        site: Name of the scanner site, if known.
        mask: Brain mask of the scan, if there is one.
        labels: Label map of the session, if this row names one.
        split: Part of the data the subject was assigned to, if it was.
    """

    subject: str
    session: str
    modality: str
    path: Path
    site: str | None = None
    mask: Path | None = None
    labels: Path | None = None
    split: str | None = None


def entities(name: str) -> dict[str, str]:
    """Return the entities of a BIDS file name: ``sub-1_run-2_T1w.nii`` has ``{"sub": "1", "run": "2"}``."""
    words = (word.partition("-") for word in name.split(".", 1)[0].split("_")[:-1])
    return {key: value for key, dash, value in words if dash}


def preference(name: str) -> tuple[int, int, int, str]:
    """Return the order in which several scans of one contrast are preferred.

    Fewest entities besides subject, session and contrast agent; then the lowest run, the lowest echo, the name.
    """
    found = entities(name)
    restricting = sum(key not in _NAMING for key in found)
    run, echo = (int(v) if v.isdecimal() and v.isascii() else 0 for v in (found.get("run", ""), found.get("echo", "")))
    return restricting, run, echo, name


def is_bids(root: Path) -> bool:
    """Return whether a folder is laid out as BIDS: subject folders that hold ``anat`` folders."""
    return any(True for _ in _anat_folders(root))


def find_scans(root: Path) -> tuple[list[ScanRow], list[str]]:
    """Return every anatomical scan of a BIDS dataset in the order of names, and notes.

    Raises:
        InputError: participants.tsv or a sidecar cannot be read.
    """
    sites, sidecars = _participant_sites(root), Sidecars(root)
    masks = _derived(root, "*", "_desc-brain_mask")
    labels = _derived(root, "truth", "_dseg")
    rows: list[ScanRow] = []
    others = parts = 0
    far: list[str] = []
    for subject, session, folder in _anat_folders(root):
        key = (subject, session)
        truth = min(labels.get(key, ()), key=lambda p: (len(p.name), p.name), default=None)
        for name in _names(folder):
            if not is_image(name):
                continue
            contrasts = candidates(name)
            if len(contrasts) != 1 or not name.startswith("sub-"):
                others += 1
                continue
            if entities(name).get("part") in _NO_MAGNITUDE:
                parts += 1
                continue
            site = sidecars.of(folder, name).get("Site")
            mask = best_mask(name, masks.get(key, ()))
            if mask is None and key in masks:
                far.append(name)
            where = str(site) if site is not None else sites.get(subject)
            rows.append(ScanRow(subject, session, contrasts[0], folder / name, where, mask, truth))
    notes = [f"{others} images of other kinds are left out"] if others else []
    notes += [f"{parts} phase, real or imaginary images are left out"] if parts else []
    notes += [f"{printable(n)}: its session has brain masks, but of another scan or in another space" for n in far]
    return rows, notes


def best_mask(name: str, masks: Sequence[Path]) -> Path | None:
    """Return the mask that fits a scan best, if any: most entities in common, then the shortest name."""
    scan = entities(name)
    own = scan.get("space", "")

    def fits(mask: Path) -> bool:
        theirs = entities(mask.name)
        space = theirs.pop("space", "")
        near = space == own or (not own and space in _OWN_SPACES)
        return near and all(scan.get(key) == theirs[key] for key in _MATCHING if key in theirs)

    def rank(mask: Path) -> tuple[int, int, str]:
        common = sum(scan.get(key) == value for key, value in entities(mask.name).items())
        return -common, len(mask.name), mask.name

    return min(filter(fits, masks), key=rank, default=None)


def is_image(name: str) -> bool:
    """Return whether a file name ends like an image that can be read."""
    return name.lower().endswith(READABLE_SUFFIXES) and not name.startswith(".")


class Sidecars:
    """The JSON files beside and above the scans of a dataset; each folder is listed once.

    Args:
        root: The dataset; nothing above it is looked at.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[Path, list[tuple[str, dict[str, str], str]]] = {}
        self._read: dict[Path, dict[str, Any]] = {}

    def of(self, folder: Path, name: str) -> dict[str, Any]:
        """Return what the sidecars say about a scan.

        Raises:
            InputError: A sidecar that applies to the scan is damaged.
        """
        stem = name.split(".", 1)[0]
        suffix, own = stem.rpartition("_")[2], entities(name)
        place = folder.relative_to(self.root)
        content: dict[str, Any] = {}
        for level in (self.root, *(self.root / p for p in reversed(place.parents) if p.parts), folder):
            applying = [
                (len(theirs), sidecar)
                for their_suffix, theirs, sidecar in self._sidecars(level)
                if their_suffix == suffix and theirs.items() <= own.items()
            ]
            for _, sidecar in sorted(applying):
                content |= self._content(level / sidecar)
        return content

    def _sidecars(self, folder: Path) -> list[tuple[str, dict[str, str], str]]:
        if folder not in self._listed:
            names = [n for n in _names(folder) if n.endswith(".json") and not n.startswith(".")]
            self._listed[folder] = [(n[:-5].rpartition("_")[2], entities(n), n) for n in names]
        return self._listed[folder]

    def _content(self, path: Path) -> dict[str, Any]:
        if path.parent.name == "anat":  # applies to one scan, or few: not worth keeping
            return read_json(path)
        if path not in self._read:
            self._read[path] = read_json(path)
        return self._read[path]


def _anat_folders(root: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield subject, session and folder of every ``anat`` folder."""
    for subject in _folders(root, "sub-"):
        visits = _folders(subject, "ses-")
        for visit in [subject, *visits]:
            if (visit / "anat").is_dir():
                session = visit.name.removeprefix("ses-") if visit is not subject else ""
                yield subject.name.removeprefix("sub-"), session, visit / "anat"


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder))


def _folders(root: Path, prefix: str) -> list[Path]:
    return sorted(Path(e.path) for e in os.scandir(root) if e.name.startswith(prefix) and e.is_dir())


def _derived(root: Path, pipeline: str, ending: str) -> dict[tuple[str, str], list[Path]]:
    """Return the derived files of one kind per subject and session."""
    found: dict[tuple[str, str], list[Path]] = {}
    for folder in sorted((root / "derivatives").glob(pipeline)) if (root / "derivatives").is_dir() else []:
        if not folder.is_dir():
            continue
        for subject, session, anat in _anat_folders(folder):
            names = [n for n in _names(anat) if is_image(n) and n.split(".")[0].endswith(ending)]
            if names:
                found.setdefault((subject, session), []).extend(anat / n for n in names)
    return found


def _participant_sites(root: Path) -> dict[str, str]:
    path = root / "participants.tsv"
    if not path.is_file():
        return {}
    header, rows = read_table(path)
    if "participant_id" not in header:
        raise InputError(f"no column participant_id; the columns are {', '.join(header)}", file=path)
    if "site" not in header:
        return {}
    return {
        row["participant_id"].removeprefix("sub-"): row["site"] for _, row in rows if row["site"] not in ("", "n/a")
    }


def read_json(path: Path, *, finite: bool = False, remedy: str = "repair or remove the sidecar") -> dict[str, Any]:
    """Return a JSON object.

    Args:
        path: The file.
        finite: Whether to refuse NaN and infinity, which some converters write into sidecars.
        remedy: What to do about a file that is damaged.

    Raises:
        InputError: Not readable, not JSON, or not an object.
    """
    try:
        value = parse_json(read_text(path), finite=finite)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"not valid JSON ({error})", file=path, remedy=remedy) from error
    if not isinstance(value, dict):
        raise InputError("a JSON object is expected", file=path, remedy=remedy)
    return value


def read_text(path: Path) -> str:
    """Return the text of a regular UTF-8 file, without a byte order mark.

    Raises:
        InputError: Not a regular file, too large, or not UTF-8.
    """
    with VerifiedStream(path, compressed=False) as stream:
        data = stream.read_rest(MAX_TEXT_BYTES)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})", file=path, remedy="save it as UTF-8") from error


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the columns of a TSV or CSV file and its rows with their line numbers; cells are text, never evaluated.

    Raises:
        InputError: Empty, a NUL byte, a column twice, or a row of the wrong length; the message names the line.
    """
    rows = table_rows(path)
    _, header = next(rows)
    return header, [(number, dict(zip(header, cells, strict=True))) for number, cells in rows]


def table_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the header and the rows of a TSV or CSV file, each with the number of its (first) line.

    Raises:
        InputError: Empty, a NUL byte, a column twice, or a row of the wrong length; the message names the line.
    """
    text = read_text(path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"line {line}: a NUL byte", file=path, remedy="save it as plain UTF-8 text")
    tabs = path.name.lower().endswith(".tsv")
    # in a BIDS table a quotation mark is a character like any other
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=True,
    )
    width, start = 0, 1
    try:
        for row in reader:
            cells, number, start = [cell.strip() for cell in row], start, reader.line_num + 1
            if not width:
                if not any(cells):
                    continue
                if twice := [name for name in cells if cells.count(name) > 1]:
                    raise InputError(f"line {number}: column {twice[0]!r} occurs twice", file=path)
                width = len(cells)
            elif not any(cells):
                continue
            elif len(cells) != width:
                raise InputError(
                    f"line {number}: {len(cells)} cells where the header has {width} columns",
                    file=path,
                    remedy=f"separate the cells with {'tabs' if tabs else 'commas'}, one for every column",
                )
            yield number, cells
    except csv.Error as error:
        raise InputError(f"line {start}: {error}", file=path, remedy="close every quotation mark") from error
    if not width:
        raise InputError("an empty table", file=path, remedy="give a first line with the names of the columns")
