"""From a manifest to a store: every session prepared once, failures collected, resumable, same bytes every time.

A journal beside the index lists finished entries, so that a killed run keeps what it had; entries whose bytes are still
right are kept, all others are made. A session that fails does not stop the others.
"""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from neurotome.data.datasets.manifest import Manifest, SessionScans, scan
from neurotome.data.datasets.splits import DEFAULT_FRACTIONS, read_splits, split_subjects, write_splits
from neurotome.data.imaging.headers import read_header
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.entries import (
    LABELS,
    MASK,
    SessionEntry,
    contents_of,
    entry_digest,
    entry_file,
    is_intact,
    make_entry,
)
from neurotome.data.stores.store import INDEX_NAME, Store
from neurotome.errors import InputError, NeurotomeError, OutputError, UsageError, printable
from neurotome.files.atomic import sweep, write_atomically
from neurotome.files.json_text import parse_json
from neurotome.files.pool import results
from neurotome.files.progress import Report
from neurotome.files.verified import file_sha256
from neurotome.modality import canonical

JOURNAL_NAME = "journal.jsonl"


@dataclass(frozen=True)
class Failure:
    """A session that could not be prepared, and why."""

    subject: str
    session: str
    reason: str


class SessionError(NeurotomeError):
    """An unforeseen error in one session; the message names its subject and files."""


@dataclass(frozen=True)
class PrepareReport:
    """What a run did: the store, how many entries were made and kept, and what failed."""

    store: Store
    num_built: int
    num_kept: int
    failures: tuple[Failure, ...]

    def raise_failures(self) -> None:
        """Raise one error that names every failed session.

        Raises:
            InputError: There was a failure.
        """
        if self.failures:
            lines = [f"sub-{f.subject}{f' ses-{f.session}' if f.session else ''}: {f.reason}" for f in self.failures]
            raise InputError(
                f"{len(lines)} of {len(lines) + len(self.store.sessions)} sessions were left out. " + " | ".join(lines),
                remedy="repair or remove these sessions and run the same command again; the others are stored",
            )


@dataclass(frozen=True)
class _Job:
    """One session to prepare, in a form that travels to a worker."""

    session: SessionScans
    views: tuple[str, ...]
    preparation: Preparation
    modalities: tuple[str, ...]
    store: Path
    split: str
    root: Path
    known: dict[str, str]
    allow_head: bool


def prepare(
    path: str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    preparation: Preparation,
    modalities: Sequence[str] | None = None,
    seed: int = 0,
    sizes: Sequence[float] | None = None,
    splits: str | os.PathLike[str] | None = None,
    roots: Sequence[str | os.PathLike[str]] = (),
    allow_head: bool = False,
    workers: int = 0,
    overwrite: bool = False,
    progress: Report | None = None,
) -> PrepareReport:
    """Prepare everything at ``path`` into ``store``.

    Args:
        path: A BIDS dataset, a manifest table, or a folder of images.
        store: A new or empty folder, or a store of the same preparation, which is completed.
        preparation: The declared preparation.
        modalities: Views to keep, in this order; all that occur by default.
        seed: Of the split by subject.
        sizes: Fractions or counts of train, val and test; by default what the dataset itself says, else 2/3, 1/6, 1/6.
        splits: A table that decides the split instead.
        roots: Other folders that links and a table's paths may lead to.
        allow_head: Accept scans that look like whole heads.
        workers: Processes; 0 prepares in this one.
        overwrite: Discard a store of another preparation, or other content of the folder's store.
        progress: Called with the number of finished sessions, their total, and the subject.

    Raises:
        UsageError: A path is missing, an unknown contrast, or the folder is not empty and no store of this preparation.
        InputError: The manifest or splits table is refused, or no session holds a wanted contrast.
        OutputError: The store cannot be written.
        SessionError: An unforeseen error in one session.
        WorkerKilled: A worker process was killed.
    """
    preparation.check_installed()
    manifest = scan(path, roots)
    wanted = tuple(dict.fromkeys(canonical(m) for m in modalities)) if modalities else manifest.modalities
    chosen = [(s, tuple(m for m in wanted if m in s.scans)) for s in manifest.sessions]
    chosen = [(s, views) for s, views in chosen if views]
    if not chosen:
        raise InputError(
            f"no session has {' or '.join(wanted)}; there are {', '.join(manifest.modalities)}", file=manifest.root
        )
    subjects = [s.subject for s, _ in chosen]
    if splits is not None:
        table = read_splits(Path(splits), subjects)
    else:
        table = _own_splits(manifest, subjects) if sizes is None else {}
        table = table or split_subjects(subjects, seed, sizes or DEFAULT_FRACTIONS)
    folder = Path(store)
    known = _open_folder(folder, preparation, wanted, overwrite)
    jobs = [
        _Job(s, views, preparation, wanted, folder, table[s.subject], manifest.root, known, allow_head)
        for s, views in chosen
    ]
    entries, failures, num_built = _run(jobs, folder / JOURNAL_NAME, workers, progress)
    _write_tables(folder, manifest, {s: table[s] for s in subjects})
    result = Store.create(folder, preparation, wanted, entries, manifest.root)
    (folder / JOURNAL_NAME).unlink(missing_ok=True)
    return PrepareReport(result, num_built, len(entries) - num_built, tuple(failures))


def _own_splits(manifest: Manifest, subjects: Iterable[str]) -> dict[str, str]:
    """Return the splits that the dataset assigns, empty where it assigns none.

    Raises:
        InputError: Some subjects have one and others have not.
    """
    table = manifest.splits
    if table and (missing := sorted(set(subjects) - table.keys())):
        raise InputError(
            f"the dataset assigns splits, but none to {len(missing)} subjects: {', '.join(missing[:10])}",
            file=manifest.root,
            remedy="assign one to each, or decide with --splits FILE or --split-sizes",
        )
    return table


def _open_folder(
    folder: Path, preparation: Preparation, modalities: tuple[str, ...], overwrite: bool
) -> dict[str, str]:
    """Make the store's folder and return the finished entries of an earlier run: digest to SHA-256."""
    known: dict[str, str] = {}
    if (folder / INDEX_NAME).exists():
        try:
            earlier = Store.open(folder)
        except InputError:
            earlier = None  # a damaged index is written anew; entries are found by the journal or made again
        if earlier is not None and (earlier.preparation, earlier.modalities) != (preparation, modalities):
            if not overwrite:
                raise UsageError(
                    f"{printable(folder)}: a store of another preparation or other contrasts is there; choose another "
                    "folder or give --overwrite"
                )
            shutil.rmtree(folder / "entries", ignore_errors=True)
        elif earlier is not None:
            known = {s.digest: s.sha256 for s in earlier.sessions}
    elif folder.exists() and not (folder / JOURNAL_NAME).exists() and any(folder.iterdir()):
        # never emptied, not even with --overwrite: what lies there is not ours
        raise UsageError(f"{printable(folder)}: the folder is not empty and holds no store; choose another one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # first of all, so that whatever a killed run leaves is known to be a store's
        (folder / JOURNAL_NAME).touch()
        (folder / "entries").mkdir(exist_ok=True)
        sweep(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}). Remedy: choose another folder.") from error
    return {**known, **_read_journal(folder / JOURNAL_NAME)}


def _read_journal(path: Path) -> dict[str, str]:
    """Return what an interrupted run had finished; a torn last line is ignored."""
    known = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            digest, sha256 = parse_json(line)
        except (ValueError, TypeError):
            continue
        known[str(digest)] = str(sha256)
    return known


def _run(
    jobs: list[_Job], journal: Path, workers: int, progress: Report | None
) -> tuple[list[SessionEntry], list[Failure], int]:
    entries: list[SessionEntry] = []
    failures: list[Failure] = []
    num_built = 0
    try:
        with journal.open("a") as file:
            for done, (result, built) in enumerate(results(_prepare_session, jobs, workers, _name), start=1):
                if isinstance(result, Failure):
                    failures.append(result)
                else:
                    entries.append(result)
                    num_built += built
                    file.write(json.dumps([result.digest, result.sha256]) + "\n")
                    file.flush()
                if progress is not None:
                    progress(done, len(jobs), f"sub-{result.subject}")
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{journal}: cannot be written ({error.strerror}). Remedy: free some space.") from error
    failures.sort(key=lambda f: (f.subject, f.session))
    return entries, failures, num_built


def _name(job: _Job) -> str:
    return job.session.name


def _prepare_session(job: _Job) -> tuple[SessionEntry | Failure, bool]:
    """Return the entry of one session and whether it was made now; a refused input becomes a failure.

    Raises:
        SessionError: An error that is no refused input, with the session's name and files.
    """
    s = job.session
    try:
        return _entry(job)
    except InputError as error:
        # an error that concerns all views of a session names the file of the first
        named = InputError(error.reason, file=error.file or s.scans[job.views[0]], remedy=error.remedy)
        return Failure(s.subject, s.session, str(named)), False
    except NeurotomeError:
        raise
    except Exception as error:
        files = ", ".join(printable(path) for path in s.scans.values())
        raise SessionError(
            f"{printable(s.name)} ({files}): internal error, {type(error).__name__}: {' '.join(str(error).split())}. "
            "What was finished is kept. Remedy: leave this session out, or report the error with --verbose."
        ) from error


def _entry(job: _Job) -> tuple[SessionEntry, bool]:
    s = job.session
    paths = {m: s.scans[m] for m in job.views}
    paths |= {name: p for name, p in ((MASK, s.mask), (LABELS, s.labels)) if p is not None}
    sha = {name: file_sha256(p) for name, p in paths.items()}
    digest = entry_digest(sha, job.preparation, job.modalities)
    file = job.store / entry_file(digest)
    sha256 = job.known.get(digest, "")
    built = not (sha256 and is_intact(file, sha256))
    if built:
        sha256 = make_entry(file, paths, sha, job.preparation, job.modalities, allow_head=job.allow_head)
    # a path in another root than the dataset's own begins with ..
    sources = {name: Path(os.path.relpath(p, job.root)).as_posix() for name, p in paths.items()}
    ids = (s.subject, s.session, s.site, job.split, job.views)
    # of the header alone, so that entries which are kept say the same as those which are made
    read = {name: read_header(path, **job.preparation.reading) for name, path in paths.items()}
    notes = (*s.notes, *(f"{name}: {note}" for name, header in read.items() for note in header.notes))
    return SessionEntry(*ids, digest, entry_file(digest), sha256, sources, sha, notes, contents_of(file)), built


def _write_tables(folder: Path, manifest: Manifest, splits: dict[str, str]) -> None:
    write_splits(folder / "splits.tsv", splits)
    write_atomically(folder / "manifest.tsv", [manifest.to_tsv().encode()])
