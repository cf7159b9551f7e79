"""``check``: every finding of every case, with severity, file, reason and remedy; nothing is ever corrected.

    files ──examine, one at a time──▶ facts ──between files──▶ findings + fingerprint

What each finding means and how grave it is stands in :data:`neurotome.data.checking.finding.FINDINGS`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from neurotome.data.checking.between_files import between_files
from neurotome.data.checking.dataset_files import Case, find_dataset
from neurotome.data.checking.finding import Finding, counted, ranked
from neurotome.data.checking.scan_findings import PERCENTILES, Facts, examine
from neurotome.data.checking.store_findings import check_store
from neurotome.data.datasets.fingerprint import ScanRecord, fingerprint, orientation
from neurotome.data.stores.store import INDEX_NAME
from neurotome.data.stores.store_fingerprint import fingerprint_of_store
from neurotome.files.pool import results
from neurotome.files.progress import Report

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class CheckReport:
    """What a check found.

    Args:
        kind: ``bids``, ``nnunet``, ``table``, ``folder``, ``image`` or ``store``.
        findings: Without repetition, the most severe first.
        fingerprint: See :func:`neurotome.data.datasets.fingerprint.fingerprint`.
        files: One mapping of JSON values per file that was read.
    """

    kind: str
    findings: tuple[Finding, ...]
    fingerprint: dict[str, Any]
    files: tuple[dict[str, Any], ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of findings of each severity."""
        return counted(self.findings)

    def fails(self, *, strict: bool = False) -> bool:
        """Return whether there is an error; with ``strict`` also whether there is a warning."""
        return self.counts["error"] > 0 or (strict and self.counts["warning"] > 0)

    def to_json(self) -> dict[str, Any]:
        """Return the content of check.json: the same for the same input."""
        return {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "counts": self.counts,
            "findings": [f.to_json() for f in self.findings],
            "fingerprint": self.fingerprint,
            "files": list(self.files),
        }


def check(
    path: str | os.PathLike[str],
    *,
    splits: str | os.PathLike[str] | None = None,
    labels: Sequence[int] | None = None,
    roots: Sequence[str | os.PathLike[str]] = (),
    volume: int | None = None,
    use_qform: bool = False,
    allow_head: bool = False,
    workers: int = 0,
    progress: Report | None = None,
) -> CheckReport:
    """Check a dataset, a folder, a table, one image or a prepared store.

    Args:
        path: What to check; nothing there is changed.
        splits: A table ``participant_id, split``; without it a ``split`` column or splits.tsv counts.
        labels: The admissible labels of label maps, 0 included.
        roots: Folders besides its own that links and the paths of a table may lead to.
        volume: Which volume of files that are 4-D series, from 0; None finds such files unreadable.
        use_qform: Read each file's quaternion where it and the matrix disagree.
        allow_head: Whole heads without a mask are warnings, as `prepare` with the same flag takes them.
        workers: Processes; 0 reads in this one. Each holds one image at a time.
        progress: Called with the number of files read, their total, and a name.

    Raises:
        UsageError: Nothing is at ``path``, or a root is no folder.
        WorkerKilled: A worker was killed, most likely for lack of memory.
    """
    place = Path(path)
    if (place / INDEX_NAME).is_file():
        store, found = check_store(place, progress)
        damaged = any(f.code == "store-entry" for f in found)
        prints = {} if store is None or damaged else fingerprint_of_store(store)
        return CheckReport("store", ranked(found), prints, ())
    dataset = find_dataset(place, None if splits is None else Path(splits), [Path(root).resolve() for root in roots])
    if allow_head:
        dataset = replace(dataset, cases=tuple(replace(case, masked=True) for case in dataset.cases))
    facts: list[Facts] = []
    for one in results(partial(examine, volume=volume, use_qform=use_qform), dataset.cases, workers, _name):
        facts.append(one)
        if progress is not None:
            progress(len(facts), len(dataset.cases), one.case.name)
    order = {case: place for place, case in enumerate(dataset.cases)}
    facts.sort(key=lambda one: order[one.case])
    findings = [*dataset.findings, *(f for one in facts for f in one.findings)]
    findings += between_files(facts, dataset.splits, dataset.labels if labels is None else labels)
    return CheckReport(dataset.kind, ranked(findings), _fingerprint(facts), tuple(_file_json(one) for one in facts))


def _name(case: Case) -> str:
    return case.name


def _fingerprint(facts: Sequence[Facts]) -> dict[str, Any]:
    records = []
    for one in facts:
        c = one.case
        if c.role == "scan" and c.used and one.geometry is not None and one.sha256 is not None:
            values = dict(zip((f"p{p:g}" for p in PERCENTILES), one.percentiles or (), strict=False))
            ids = (c.subject, c.session, c.modality, c.site)
            records.append(ScanRecord(*ids, one.geometry, values, one.sha256, one.foreground_ml, one.dtype))
    return fingerprint(records)


def _file_json(one: Facts) -> dict[str, Any]:
    case, geometry = one.case, one.geometry
    result: dict[str, Any] = {
        "file": case.name,
        "role": case.role,
        "subject": case.subject,
        "session": case.session,
        "modality": case.modality or None,
        "site": case.site,
        "used": case.used,
        "sha256": one.sha256,
        "content": one.content,
    }
    if geometry is not None:
        result |= {
            "shape": list(geometry.shape),
            "spacing_mm": [round(d, 5) for d in geometry.spacing_mm],
            "orientation": orientation(geometry),
            "type": one.dtype,
        }
    if one.percentiles is not None:
        result["percentiles"] = {f"p{p:g}": v for p, v in zip(PERCENTILES, one.percentiles, strict=True)}
    if one.foreground_ml is not None:
        result |= {"foreground_ml": round(one.foreground_ml, 4), "head": one.head}
    if one.labels is not None:
        result["labels"] = list(one.labels)
    return result
