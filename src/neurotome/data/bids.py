"""BIDS names, folders and sidecars: what is read from a raw dataset and how derivatives are named.

    sub-01[/ses-1]/anat/sub-01[_ses-1][_acq-x][_run-1]_T1w.nii.gz          a scan
    derivatives/*/sub-01[/ses-1]/anat/*_desc-brain_mask.nii.gz             its brain mask
    derivatives/truth/sub-01[/ses-1]/anat/*_dseg.nii.gz                    its true labels

A site is the ``Site`` of the scan's sidecar, else the ``site`` column of participants.tsv.
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurotome.data.nifti import READABLE_SUFFIXES
from neurotome.data.stream import VerifiedStream
from neurotome.errors import InputError, UsageError
from neurotome.modality import bids_suffix, candidates

BIDS_VERSION = "1.10.0"
# a table or sidecar larger than this is no table or sidecar
MAX_TEXT_BYTES = 256 << 20
_LABEL = re.compile(r"^[A-Za-z0-9+]+$")


@dataclass(frozen=True)
class ScanRow:
    """One scan as found: a row of a manifest.

    Args:
        subject: Id without ``sub-``.
        session: Id without ``ses-``; empty where there is one visit only.
        modality: Our name of the contrast.
        path: The file.
        site: Name of the scanner site, if known.
        mask: Brain mask of the session, if this row names one.
        labels: Label map of the session, if this row names one.
    """

    subject: str
    session: str
    modality: str
    path: Path
    site: str | None = None
    mask: Path | None = None
    labels: Path | None = None


def is_bids(root: Path) -> bool:
    """Return whether a folder is laid out as BIDS: subject folders that hold ``anat`` folders."""
    return any(True for _ in _anat_folders(root))


def find_scans(root: Path) -> tuple[list[ScanRow], list[str]]:
    """Return every anatomical scan of a BIDS dataset in the order of names, and notes.

    Raises:
        InputError: participants.tsv cannot be read.
    """
    sites = _participant_sites(root)
    masks = _derived(root, "*", "_desc-brain_mask")
    labels = _derived(root, "truth", "_dseg")
    rows, ignored = [], 0
    for subject, session, folder in _anat_folders(root):
        for name in _names(folder):
            if not is_image(name):
                continue
            contrasts = candidates(name)
            if len(contrasts) != 1 or not name.startswith("sub-"):
                ignored += 1
                continue
            key = (subject, session)
            site = _sidecar_site(folder / name) or sites.get(subject)
            rows.append(ScanRow(subject, session, contrasts[0], folder / name, site, masks.get(key), labels.get(key)))
    return rows, [f"{ignored} images of other kinds are left out"] if ignored else []


def is_image(name: str) -> bool:
    """Return whether a file name ends like an image that can be read."""
    return name.lower().endswith(READABLE_SUFFIXES) and not name.startswith(".")


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


def _derived(root: Path, pipeline: str, ending: str) -> dict[tuple[str, str], Path]:
    """Return one derived file per subject and session; the shortest name wins, as it has the fewest restrictions."""
    found: dict[tuple[str, str], Path] = {}
    for folder in sorted((root / "derivatives").glob(pipeline)) if (root / "derivatives").is_dir() else []:
        if not folder.is_dir():
            continue
        for subject, session, anat in _anat_folders(folder):
            names = [n for n in _names(anat) if is_image(n) and n.split(".")[0].endswith(ending)]
            if names:
                found.setdefault((subject, session), anat / min(names, key=lambda n: (len(n), n)))
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


def _sidecar_site(image: Path) -> str | None:
    path = image.parent / (image.name.split(".")[0] + ".json")
    if not path.is_file():
        return None
    site = read_json(path).get("Site")
    return str(site) if site is not None else None


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        InputError: Not readable, not JSON, or not an object.
    """
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"not valid JSON ({error})", file=path, remedy="repair or remove the sidecar") from error
    if not isinstance(value, dict):
        raise InputError("a JSON object is expected", file=path, remedy="repair or remove the sidecar")
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
    )
    try:
        header = [cell.strip() for cell in next(reader, [])]
        if not any(header):
            raise InputError("an empty table", file=path, remedy="give a first line with the names of the columns")
        if twice := [name for name in header if header.count(name) > 1]:
            raise InputError(f"line 1: column {twice[0]!r} occurs twice", file=path)
        rows = []
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"line {reader.line_num}: {len(cells)} cells where the header has {len(header)} columns", file=path
                )
            rows.append((reader.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=True))))
    except csv.Error as error:
        raise InputError(f"line {reader.line_num}: {error}", file=path) from error
    return header, rows


def derivative_path(
    subject: str, session: str, modality: str, desc: str, *, space: str | None = None, extension: str = ".nii.gz"
) -> Path:
    """Return the path of a derived image, relative to the derivatives dataset.

    ``sub-01/ses-1/anat/sub-01_ses-1_desc-synth_T2w.nii.gz``; a derived name always carries ``desc``, so that it is
    never the name of a raw file.

    Raises:
        UsageError: A label that BIDS does not allow (letters and digits only).
    """
    labels = {"subject": subject, "session": session, "desc": desc, "space": space or ""}
    for kind, label in labels.items():
        if (label or kind in ("subject", "desc")) and not _LABEL.match(label):
            raise UsageError(f"{kind} {label!r} is no BIDS label; letters and digits are admissible")
    entity, _, suffix = bids_suffix(modality).rpartition("_")
    words = [f"sub-{subject}", f"ses-{session}" if session else "", entity, f"space-{space}" if space else ""]
    name = "_".join([*filter(None, words), f"desc-{desc}", suffix]) + extension
    return Path(f"sub-{subject}", *([f"ses-{session}"] if session else []), "anat", name)


def dataset_description(name: str, version: str, sources: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
    """Return the dataset_description.json of a derivatives dataset made by this package."""
    return {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "neurotome", "Version": version}],
        "SourceDatasets": [dict(source) for source in sources],
    }
