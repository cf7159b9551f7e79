"""Which files belong to a dataset and what each is taken for, including those that a manifest refuses or leaves out.

The manifest says what `prepare` would use. Where it refuses the dataset as a whole (a bad line, a broken sidecar), that
is one finding, and every image is still listed by what its name and folder say.
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from neurotome.data.checking.finding import Finding
from neurotome.data.checking.privacy import sidecar_findings, table_findings
from neurotome.data.datasets.bids import folders, is_bids, listed, preference
from neurotome.data.datasets.manifest import UNPAIRED, Manifest, SessionScans, is_table, scan
from neurotome.data.datasets.nnunet import is_nnunet
from neurotome.data.datasets.splits import SPLITS
from neurotome.data.datasets.text_files import cell_value, read_json, read_table
from neurotome.data.imaging.other_formats import other_format_notes
from neurotome.errors import InputError, UsageError, printable
from neurotome.files.endings import is_image, stem
from neurotome.modality import LABEL_WORDS, MASK_WORDS, candidates, canonical, is_bids_name

Role = Literal["scan", "label", "mask", "other"]
# nnU-Net's folders of label maps
_LABEL_FOLDERS = ("labels", "labelstr", "labelsts")
_SKIPPED_FOLDERS = ("derivatives", "sourcedata", "code")
# these describe the dataset, not a scan; names of authors belong there
_NO_SIDECARS = ("dataset_description.json", "participants.json", "dataset.json", "check.json", "index.json")


@dataclass(frozen=True)
class Case:
    """One file to look at.

    Args:
        path: The file.
        name: Its path below the dataset, with forward slashes.
        role: What it is taken for; ``other`` where neither name nor folder says.
        subject: Subject id, or empty where unknown.
        session: Session id, or empty.
        modality: Our name of the contrast of a scan.
        site: Name of the site, if known.
        used: Whether `prepare` would read it.
        masked: Whether `prepare` would take a whole head: its session has a brain mask, or heads are allowed.
    """

    path: Path
    name: str
    role: Role
    subject: str = ""
    session: str = ""
    modality: str = ""
    site: str | None = None
    used: bool = False
    masked: bool = False


@dataclass(frozen=True)
class Dataset:
    """What lies at a path.

    Args:
        root: The folder that names are relative to.
        kind: How it was found.
        cases: Every image that is looked at, sorted by name.
        findings: About files other than images, and about the whole.
        splits: Subject to the splits it is put in by a ``split`` column or splits.tsv.
        labels: The labels that nnU-Net's dataset.json declares, if it is there.
    """

    root: Path
    kind: str
    cases: tuple[Case, ...]
    findings: tuple[Finding, ...]
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    labels: tuple[int, ...] | None = None


def find_dataset(path: Path, splits: Path | None = None, roots: Sequence[Path] = ()) -> Dataset:
    """Return every file to look at.

    Args:
        path: A BIDS or nnU-Net dataset, a folder, a table or an image.
        splits: A table ``participant_id, split`` that decides who is trained on.
        roots: Folders besides its own that links and the paths of a table may lead to.

    Raises:
        UsageError: Nothing is at ``path``, or a root is no folder.
    """
    if not path.exists() and not path.is_symlink():
        raise UsageError(f"{printable(path)}: nothing is there; give a BIDS dataset, a folder, a table or an image")
    root = path.resolve() if path.is_dir() else path.parent.resolve()
    table = path if is_table(path) else None
    manifest, findings = _manifest(path, roots) if path.is_dir() or table else (None, [])
    kind, cases = _kind(path, root, manifest), [replace(_case(root / path.name, root), used=True)]
    sidecars: list[Path] = []
    if table:
        cases, more = _table_cases(path, root, roots)
        findings += more
    elif path.is_dir():
        cases, sidecars, more = _folder_cases(root, kind)
        findings += more
    if path.is_dir() or table:
        cases = sorted(_with_manifest(cases, manifest, root), key=lambda c: c.name)
    findings += [f for case in cases for f in _place_findings(case, (root, *roots))]
    damaged = list(_sidecar_findings(root, cases, sidecars, kind))
    told = {(f.file, f.reason) for f in damaged if f.code == "bids-sidecar"}
    findings = [f for f in findings if f.code != "not-prepared" or (f.file, f.reason) not in told] + damaged
    if kind == "bids":
        findings += _bids_findings(root, cases)
    where, more = _split_table(table, splits, root, {} if manifest is None else manifest.splits)
    labels = _declared_labels(root / "dataset.json") if kind == "nnunet" else None
    return Dataset(root, kind, tuple(cases), (*findings, *more), where, labels)


def _kind(path: Path, root: Path, manifest: Manifest | None) -> str:
    if manifest is not None:
        return manifest.kind
    if not path.is_dir():
        return "table" if is_table(path) else "image"
    return "nnunet" if is_nnunet(root) else "bids" if is_bids(root) else "folder"


def _manifest(path: Path, roots: Sequence[Path]) -> tuple[Manifest | None, list[Finding]]:
    """Return what prepare would read, or why it would not."""
    root = path if path.is_dir() else path.parent
    try:
        manifest = scan(path, roots)
    except InputError as error:
        name = "" if error.file is None or error.file == path == root else _name(error.file.absolute(), root.absolute())
        remedy = error.remedy or "repair it; the other findings were made without it"
        # the reader of tables joins its problems; each is a finding
        return None, [Finding("manifest", name, one, remedy) for one in re.split(r"; (?=line \d+, )", error.reason)]
    notes = [Finding("choice", "", note) for note in manifest.notes if not note.startswith(("left out", UNPAIRED))]
    if manifest.is_unpaired:
        notes.append(Finding("unpaired", "", UNPAIRED))
    for s in manifest.sessions:
        notes += [Finding("choice", "", note, subject=s.subject, session=s.session) for note in s.notes]
        notes += [_damage(s.scans[m], error, root, s) for m, error in s.damage.items()]
    return manifest, notes


def _damage(scan: Path, error: InputError, root: Path, session: SessionScans) -> Finding:
    """Return why a scan cannot be prepared; its image may be whole."""
    file = _name((error.file or scan).absolute(), root.absolute())
    return Finding("not-prepared", file, error.reason, error.remedy or "repair it", session.subject, session.session)


def _table_cases(path: Path, root: Path, roots: Sequence[Path]) -> tuple[list[Case], list[Finding]]:
    """Return the files that a table names, as far as its lines can be read; the manifest reports the faults."""
    try:
        _, rows = read_table(path)
    except InputError:
        return [], []
    cases: dict[Path, Case] = {}
    for _, cells in rows:
        cells = {key: cell_value(value) or "" for key, value in cells.items()}
        ids = (cells.get("participant_id", "").removeprefix("sub-"), cells.get("session_id", "").removeprefix("ses-"))
        for column, role in (("path", "scan"), ("mask", "mask"), ("label", "label")):
            file = Path(os.path.normpath(root / cells.get(column, "")))
            if not cells.get(column) or "\0" in cells[column] or not _inside(file, (root, *roots)):
                continue
            modality = _canonical(cells.get("modality", "")) if role == "scan" else ""
            case = Case(file, _name(file, root), role, *ids, modality, cells.get("site") or None)  # type: ignore[arg-type]  # three literals
            if os.path.lexists(file):
                cases.setdefault(file, case)
    return list(cases.values()), table_findings(path, path.name)


def _inside(path: Path, roots: Iterable[Path]) -> bool:
    return any(path.is_relative_to(root) and path != root for root in roots)


def _canonical(text: str) -> str:
    try:
        return canonical(text)
    except ValueError:
        return ""


def _folder_cases(root: Path, kind: str) -> tuple[list[Case], list[Path], list[Finding]]:
    """Return the images below a folder, the JSON files, and what was found about other files."""
    cases: list[Case] = []
    sidecars: list[Path] = []
    left_out: Counter[str] = Counter()
    findings: list[Finding] = []
    denied: list[OSError] = []
    others: list[str] = []
    for folder, inner, names in os.walk(root, onerror=denied.append):
        place = Path(folder)
        inner[:] = sorted(f for f in inner if not f.startswith(".") and f not in _SKIPPED_FOLDERS)
        # a folder, a pipe or a link that is named like an image is treated as an image, and refused
        for name in sorted([*names, *filter(is_image, inner)]):
            lower = name.lower()
            if is_image(name) and kind == "bids" and place.name != "anat":
                left_out["images beside the subjects" if place == root else f"images in {place.name}/ folders"] += 1
            elif is_image(name):
                cases.append(_case(place / name, root))
            elif lower.endswith(".json") and name not in _NO_SIDECARS:
                sidecars.append(place / name)
            elif lower.endswith(".tsv"):
                findings += table_findings(place / name, _name(place / name, root))
            else:
                others.append(name)
        inner[:] = [f for f in inner if not is_image(f)]
    for error in denied:
        reason = f"the folder cannot be listed ({error.strerror})"
        findings.append(Finding("unreadable", _name(Path(error.filename), root), reason, "check its permissions"))
    findings += [Finding("not-checked", "", f"{n} {what}") for what, n in sorted(left_out.items())]
    findings += [Finding("not-checked", "", note) for note in other_format_notes(others)]
    return cases, sidecars, findings


def _case(path: Path, root: Path) -> Case:
    """Return what name and folder say about a file."""
    place, name = _name(path, root), stem(path)
    whole = "/".join([*place.split("/")[:-1], name])
    subject = re.search(r"(?:^|[/_])sub-([^_/]+)", whole)
    session = re.search(r"(?:^|[/_])ses-([^_/]+)", whole)
    ids = (subject.group(1) if subject else "", session.group(1) if session else "")
    kind = name.rpartition("_")[2] if is_bids_name(name) else name
    words = set(re.split(r"[^a-z0-9]+", kind.lower()))
    if words & MASK_WORDS and not words & LABEL_WORDS:
        return Case(path, place, "mask", *ids)
    if words & LABEL_WORDS or path.parent.name.lower() in _LABEL_FOLDERS:
        return Case(path, place, "label", *ids)
    contrasts = candidates(name)
    if len(contrasts) == 1:
        return Case(path, place, "scan", *ids, contrasts[0])
    return Case(path, place, "other", *ids)


def _with_manifest(cases: list[Case], manifest: Manifest | None, root: Path) -> Iterable[Case]:
    """Return the cases with what the manifest says about them, and those it names elsewhere (derivatives).

    Without a manifest the scans are chosen by its rule, so that sessions are compared all the same.
    """
    if manifest is None:
        chosen: dict[tuple[str, str, str], Case] = {}
        for case in sorted(cases, key=lambda c: (preference(c.path.name), c.name)):
            if case.role == "scan" and case.subject and case.modality:
                chosen.setdefault((case.subject, case.session, case.modality), case)
        names = {case.name for case in chosen.values()}
        return [replace(case, used=case.name in names) for case in cases]
    known = {c.path: c for c in cases}

    def assign(path: Path | None, role: Role, subject: str, session: str, **more: Any) -> None:
        if path is not None:
            case = known.get(path) or _case(path, root)
            known[path] = replace(case, role=role, subject=subject, session=session, **more)

    for row in manifest.rows:
        ids = (row.subject, row.session)
        assign(row.mask, "mask", *ids, site=row.site, used=True)
        assign(row.labels, "label", *ids, site=row.site, used=True)
        assign(row.path, "scan", *ids, site=row.site, modality=row.modality)
    for s in manifest.sessions:
        for modality, path in s.scans.items():
            masked = s.mask is not None
            assign(path, "scan", s.subject, s.session, site=s.site, modality=modality, used=True, masked=masked)
    return known.values()


def _name(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _place_findings(case: Case, roots: Sequence[Path]) -> Iterator[Finding]:
    """Look at where a file lies: links, and names that contradict their folders."""
    if case.path.is_symlink() and case.path.exists() and not _inside(case.path.resolve(), roots):
        remedy = "copy the file into the dataset, or admit its folder with --root DIR"
        yield Finding("outside", case.name, "a link out of the dataset, which prepare does not follow", remedy)
    *folders, name = case.name.split("/")
    for entity, what in (("sub-", "subject"), ("ses-", "session")):
        stated = {f.removeprefix(entity) for f in folders if f.startswith(entity)}
        own = re.search(rf"(?:^|_){entity}([^_]+)", stem(name))
        if own and stated and own.group(1) not in stated:
            reason = f"the file name says {what} {own.group(1)}, the folder {' and '.join(sorted(stated))}"
            remedy = "find out whose scan it is and rename one of them"
            yield Finding("bids-ids", case.name, reason, remedy, case.subject, case.session)


def _sidecar_findings(root: Path, cases: Sequence[Case], found: Iterable[Path], kind: str) -> Iterator[Finding]:
    """Look at the JSON files of a dataset; those that belong to no scan need not be sidecars."""
    owned = {c.path.parent / f"{stem(c.path)}.json" for c in cases}
    for place in sorted({*found, *owned}):
        if os.path.lexists(place):
            for finding in sidecar_findings(place, _name(place, root)):
                if finding.code != "bids-sidecar" or place in owned or kind == "bids":
                    yield finding


def _bids_findings(root: Path, cases: list[Case]) -> Iterator[Finding]:
    if not (root / "dataset_description.json").is_file():
        yield Finding("bids-description", "", "dataset_description.json is missing", "write one (Name, BIDSVersion)")
    for case in cases:
        name = case.path.name
        if not is_bids_name(stem(name)):
            reason = "not a name of BIDS, like sub-01_acq-x_T1w.nii.gz; it is left out"
            yield Finding("bids-name", case.name, reason, "rename it")
    stems = defaultdict(list)
    for case in cases:
        stems[case.path.parent / stem(case.path)].append(case)
    for twins in (t for t in stems.values() if len(t) > 1):
        reason = f"stored twice, as {' and '.join(c.path.name for c in twins)}"
        yield Finding("bids-name", twins[1].name, reason, "remove one", twins[1].subject, twins[1].session)
    with_scans = {c.subject for c in cases}
    people = {folder.name.removeprefix("sub-") for folder in folders(root, "sub-")}
    for name in listed(root):
        if name.startswith("sub-") and not os.path.exists(root / name):  # noqa: PTH110 - False for a link that loops
            remedy = "in a DataLad dataset fetch it with `datalad get`, else remove the link"
            yield Finding("bids-empty", name, "a link that leads nowhere", remedy)
    for subject in sorted(people - with_scans):
        yield Finding("bids-empty", f"sub-{subject}", "no image in an anat folder", subject=subject)
    try:
        header, rows = read_table(root / "participants.tsv")
    except InputError:
        return  # missing, or the manifest reports why it cannot be read
    rows_of = {row["participant_id"].removeprefix("sub-") for _, row in rows} if "participant_id" in header else set()
    for subject in sorted(people ^ rows_of) if rows_of else []:
        where = "a folder, but no line" if subject in people else "a line, but no folder"
        yield Finding("bids-participants", "participants.tsv", f"sub-{subject}: {where}", subject=subject)


def _split_table(
    manifest: Path | None, given: Path | None, root: Path, assigned: Mapping[str, str]
) -> tuple[dict[str, tuple[str, ...]], list[Finding]]:
    """Return every split a subject is put in: by the given table, a manifest's column, splits.tsv, or the layout."""
    found: dict[str, set[str]] = defaultdict(set)
    for subject, split in assigned.items():
        found[subject].add(split)
    findings = []
    for path in [p for p in (given, manifest, root / "splits.tsv") if p is not None and p.is_file()]:
        try:
            header, rows = read_table(path)
        except InputError as error:
            if path != manifest:  # the manifest's faults are reported already
                findings.append(Finding("splits", path.name, error.reason, error.remedy or "repair the table"))
            continue
        if not {"participant_id", "split"} <= set(header):
            if path == given:
                reason = f"line 1: the columns are {', '.join(header)}; participant_id and split are needed"
                findings.append(Finding("splits", path.name, reason, "name the columns"))
            continue
        for number, cells in rows:
            subject, split = cells["participant_id"].removeprefix("sub-"), cells["split"]
            if split in SPLITS:
                found[subject].add(split)
            elif split not in ("", "n/a") and path != manifest:
                reason = f"line {number}, column split: {split!r}; admissible are {', '.join(SPLITS)}"
                findings.append(Finding("splits", path.name, reason, "correct the line", subject))
    return {subject: tuple(sorted(names)) for subject, names in found.items()}, findings


def _declared_labels(path: Path) -> tuple[int, ...] | None:
    """Return the labels of nnU-Net's dataset.json: ``{"labels": {"background": 0, "edema": [1, 2]}}`` or reversed."""
    try:
        declared = read_json(path).get("labels")
    except InputError:
        return None  # the manifest reports why
    if not isinstance(declared, dict):
        return None
    texts = [str(v) for item in [*declared.values(), *declared] for v in (item if isinstance(item, list) else [item])]
    return tuple(sorted({int(v) for v in texts if v.isdecimal() and v.isascii()})) or None


def spelling(text: str) -> str:
    """Return an id without case, Unicode composition and leading zeros, in which spellings of one id differ."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"0+(?=\d)", "", folded)
