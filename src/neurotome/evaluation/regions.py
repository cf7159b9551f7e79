r"""Volumes of regions that another program measured, on scans and on the reconstructions of the same scans.

    relative_error  mean over subjects of |v' - v| / v          v on the scan, v' on the reconstruction, mm3
    bias_mm3        mean over subjects of v' - v
    pearson, icc    agreement over subjects (:mod:`neurotome.metrics.agreement`)

A table has one row per scan, the file's name or its subject in the first column, and one column per region: what
SynthSeg writes with ``--vol`` (CSV) and FreeSurfer's ``asegstats2table`` (TSV).
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurotome.data.datasets.text_files import table_rows
from neurotome.errors import InputError, printable
from neurotome.evaluation.audit import interval_entry, per_subject
from neurotome.files.endings import stem
from neurotome.files.verified import file_sha256
from neurotome.metrics.agreement import icc_consistency, pearson
from neurotome.modality import candidates

# where the name of a scan says no contrast
UNNAMED = "unnamed contrast"


@dataclass(frozen=True)
class ScanName:
    """Which scan a row is about: what the names of a scan and of its reconstruction share.

    Args:
        subject: Without ``sub-``; the whole name where it is no BIDS name.
        contrast: As the name says.
        others: Session, run and the like.
    """

    subject: str
    contrast: str
    others: tuple[str, ...] = ()

    @classmethod
    def read(cls, cell: str) -> "ScanName":
        """Return what a cell of the first column names: a path, a file or a subject."""
        name = stem(Path(cell))
        found = candidates(name)
        contrast = found[0] if len(found) == 1 else UNNAMED
        words = [word for word in name.split("_") if not word.startswith("desc-")]
        if not words or not words[0].startswith("sub-"):
            return cls("_".join(words), contrast)
        # of a contrast agent the contrast tells already; the last word is a suffix where it has no dash
        others = tuple(sorted(w for w in words[1:] if "-" in w and not w.startswith("ce-")))
        return cls(words[0].removeprefix("sub-"), contrast, others)


@dataclass(frozen=True)
class VolumeTable:
    """One table of volumes.

    Args:
        file: Where it stands.
        regions: In the order of the columns.
        volumes: In mm3, by scan and region.
    """

    file: Path
    regions: tuple[str, ...]
    volumes: Mapping[ScanName, Mapping[str, float]]

    @classmethod
    def read(cls, file: Path) -> "VolumeTable":
        """Read a table.

        Raises:
            InputError: No table, no region, a scan twice, or a cell that is no volume; file, line and column are named.
        """
        rows = table_rows(file)
        _, header = next(rows)
        if len(header) < 2:
            raise InputError(
                f"one column alone ({printable(header[0][:80])})", file=file,
                remedy="name the scan in the first column and one region in each further one; a file whose cells are "
                "separated by tabs must end in .tsv",
            )  # fmt: skip
        volumes: dict[ScanName, dict[str, float]] = {}
        lines: dict[ScanName, int] = {}
        for line, (label, *cells) in rows:
            scan = ScanName.read(label)
            if scan in volumes:
                raise InputError(
                    f"line {line}: {printable(label)} is the scan of line {lines[scan]} once more", file=file,
                    remedy="keep one row per scan",
                )  # fmt: skip
            named = zip(header[1:], cells, strict=True)
            volumes[scan] = {region: _volume(cell, file, line, region) for region, cell in named}
            lines[scan] = line
        return cls(file, tuple(header[1:]), volumes)


def _volume(cell: str, file: Path, line: int, region: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise InputError(
            f"line {line}, column {printable(region)}: {printable(cell) or 'an empty cell'} is no volume", file=file,
            remedy="give volumes in mm3, and leave out columns that are none",
        )  # fmt: skip
    return value


@dataclass(frozen=True)
class RegionVolumes:
    """Both tables.

    Args:
        scans: Volumes on the scans.
        reconstructions: Volumes on what `neurotome reconstruct` made of them.

    Raises:
        InputError: They share no region or no scan.
    """

    scans: VolumeTable
    reconstructions: VolumeTable

    def __post_init__(self) -> None:
        ours, theirs = self.scans, self.reconstructions
        for what, mine, others in (
            ("region", list(ours.regions), list(theirs.regions)),
            ("scan", [_shown(s) for s in ours.volumes], [_shown(s) for s in theirs.volumes]),
        ):
            if not set(mine) & set(others):
                raise InputError(
                    f"shares no {what} with {printable(ours.file)}: {_few(others)} here, {_few(mine)} there",
                    file=theirs.file,
                    remedy="measure scans and reconstructions with one program, and keep sub-… of their names",
                )

    def protocol(self) -> dict[str, str]:
        """Return which tables they are."""
        return {
            "regions_scans_sha256": file_sha256(self.scans.file),
            "regions_reconstructions_sha256": file_sha256(self.reconstructions.file),
        }

    def compare(self, subjects: Collection[str], split: str, seed: int) -> dict[str, Any]:
        """Return the agreement over the subjects of a split.

        Args:
            subjects: Of the split; rows of others are left out, and counted.
            split: Its name.
            seed: Of the intervals.

        Returns:
            ``{contrast: {"relative_error": interval of the mean over regions, "by_region": {region:
            {"relative_error", "bias_mm3", "pearson", "icc", "n"}}, "left_out": {"other_subjects", "unpaired"}}}``.

        Raises:
            InputError: No scan of the split is in both tables.
        """
        mine, theirs = self.scans.volumes, self.reconstructions.volumes
        everyone = [*mine, *(scan for scan in theirs if scan not in mine)]
        held = [scan for scan in everyone if scan.subject in subjects]
        paired = [scan for scan in held if scan in mine and scan in theirs]
        if not paired:
            raise InputError(
                f"no scan of a subject of the {split} split is in this table and in "
                f"{printable(self.reconstructions.file)}; here are {_few([_shown(s) for s in mine])}",
                file=self.scans.file,
                remedy=f"measure the scans of sub-{_few(sorted(subjects))}, or choose another --split",
            )
        shared = [region for region in self.scans.regions if region in self.reconstructions.regions]
        left_out = {"other_subjects": len(everyone) - len(held), "unpaired": len(held) - len(paired)}
        return {
            contrast: self._contrast([scan for scan in paired if scan.contrast == contrast], shared, seed)
            | {"left_out": left_out}
            for contrast in dict.fromkeys(scan.contrast for scan in paired)
        }

    def _contrast(self, scans: Sequence[ScanName], regions: Sequence[str], seed: int) -> dict[str, Any]:
        errors = [
            (scan.subject, abs(after - before) / before)
            for region in regions
            for scan, before, after in self._pairs(scans, region)
            if before > 0
        ]
        return {
            "relative_error": _entry(per_subject(errors), seed),
            "by_region": {region: self._region(scans, region, seed) for region in regions},
        }

    def _region(self, scans: Sequence[ScanName], region: str, seed: int) -> dict[str, Any]:
        """Return the agreement in one region; sessions of a subject are averaged first."""
        pairs = list(self._pairs(scans, region))
        errors = per_subject((s.subject, abs(after - before) / before) for s, before, after in pairs if before > 0)
        bias = per_subject((s.subject, after - before) for s, before, after in pairs)
        before, after = (
            list(per_subject((pair[0].subject, pair[place]) for pair in pairs).values()) for place in (1, 2)
        )
        return {
            "relative_error": _entry(errors, seed),
            "bias_mm3": _entry(bias, seed),
            "pearson": pearson(before, after),
            "icc": icc_consistency(before, after),
            "n": len(bias),
        }

    def _pairs(self, scans: Sequence[ScanName], region: str) -> Iterator[tuple[ScanName, float, float]]:
        for scan in scans:
            yield scan, self.scans.volumes[scan][region], self.reconstructions.volumes[scan][region]


def _entry(values: Mapping[str, float], seed: int) -> dict[str, Any] | None:
    """Return an interval; None without a value, as where a region is empty on every scan."""
    return interval_entry(values, seed) if values else None


def _shown(scan: ScanName) -> str:
    return " ".join([scan.subject, *scan.others, *([] if scan.contrast == UNNAMED else [scan.contrast])])


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:3])
    return (shown + " …" if len(names) > 3 else shown) or "none"
