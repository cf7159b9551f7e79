"""What a BIDS dataset says beside its scans: sidecars, and the sites of participants.tsv.

A sidecar applies to every scan at its level or below that has its suffix and all its entities; the nearest wins. A row
of participants.tsv holds for one participant, or, where there is a column session_id, for one visit.
"""

import os
from pathlib import Path
from typing import Any

from neurotome.data.datasets.bids import entities, listed
from neurotome.data.datasets.text_files import cell_value, read_json, read_table, site_name
from neurotome.errors import InputError, printable
from neurotome.files.endings import stem


class Sidecars:
    """The JSON files beside and above the scans of a dataset; each folder is listed once.

    Args:
        root: The dataset; nothing above it is looked at.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[Path, list[tuple[str, dict[str, str], str]]] = {}
        self._read: dict[Path, dict[str, Any]] = {}

    def site(self, folder: Path, name: str) -> str | None:
        """Return the ``Site`` that the sidecars of a scan name, None where they name none.

        Raises:
            InputError: A sidecar that applies to the scan is damaged, or two of one level and rank disagree.
        """
        suffix, own = stem(name).rpartition("_")[2], entities(name)
        place = folder.relative_to(self.root)
        site = None
        for level in (self.root, *(self.root / p for p in reversed(place.parents) if p.parts), folder):
            found: dict[int, tuple[str, Path]] = {}
            for their_suffix, theirs, sidecar in self._sidecars(level):
                if their_suffix != suffix or not theirs.items() <= own.items():
                    continue
                path = level / sidecar
                if (value := site_name(self._content(path).get("Site"), path)) is None:
                    continue
                other, file = found.setdefault(len(theirs), (value, path))
                if other != value:
                    raise InputError(
                        f"names site {printable(value)}, and {printable(file.name)} beside it {printable(other)}",
                        file=path,
                        remedy="leave Site in one of them",
                    )
            if found:
                site, _ = found[max(found)]
        return site

    def _sidecars(self, folder: Path) -> list[tuple[str, dict[str, str], str]]:
        if folder not in self._listed:
            names = [n for n in listed(folder) if n.endswith(".json") and not n.startswith(".")]
            self._listed[folder] = [(stem(n).rpartition("_")[2], entities(n), n) for n in names]
        return self._listed[folder]

    def _content(self, path: Path) -> dict[str, Any]:
        if path.parent.name == "anat":  # applies to one scan, or few: not worth keeping
            return read_json(path)
        if path not in self._read:
            self._read[path] = read_json(path)
        return self._read[path]


class ParticipantSites:
    """The ``site`` column of participants.tsv.

    Args:
        root: The dataset.

    Raises:
        InputError: The table cannot be read, or two of its rows name two sites for one participant or visit.
    """

    def __init__(self, root: Path) -> None:
        self._sites: dict[str, dict[str, str | None]] = {}
        path = root / "participants.tsv"
        if not os.path.lexists(path):
            return
        header, rows = read_table(path)
        if "participant_id" not in header:
            columns = printable(", ".join(header))
            remedy = "separate the cells with tabs, and name the first column participant_id"
            raise InputError(f"no column participant_id; the columns are {columns}", file=path, remedy=remedy)
        lines: dict[tuple[str, str], int] = {}
        for number, row in rows if "site" in header else ():
            subject = row["participant_id"].removeprefix("sub-")
            session = (cell_value(row.get("session_id", "")) or "").removeprefix("ses-")
            site = cell_value(row["site"])
            first = lines.setdefault((subject, session), number)
            if self._sites.setdefault(subject, {}).setdefault(session, site) != site:
                visit = f"sub-{subject}" + (f" ses-{session}" if session else "")
                raise InputError(
                    f"line {number}: {printable(visit)} is on line {first} already, with another site",
                    file=path,
                    remedy="give one line per participant, or a column session_id that tells the visits apart",
                )

    def of(self, subject: str, session: str) -> tuple[str | None, bool]:
        """Return the site of a visit, and whether rows of other visits leave it open."""
        visits = self._sites.get(subject, {})
        for key in (session, ""):
            if key in visits:
                return visits[key], False
        sites = set(visits.values())
        return (sites.pop(), False) if len(sites) == 1 else (None, bool(sites))
