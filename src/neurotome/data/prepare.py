"""From a manifest to a store: every session prepared once, failures collected, resumable, same bytes every time.

A journal beside the index lists finished entries, so that a killed run keeps what it had; entries whose bytes are still
right are kept, all others are made. One bad case costs that case only.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from neurotome.data.manifest import Manifest, SessionScans, scan
from neurotome.data.nifti import read_volume
from neurotome.data.splits import DEFAULT_FRACTIONS, read_splits, split_subjects, write_splits
from neurotome.data.store import (
    INDEX_NAME,
    SessionEntry,
    Store,
    entry_digest,
    entry_file,
    is_intact,
    write_entry,
)
from neurotome.data.stream import file_sha256, write_atomically
from neurotome.data.transforms import Preparation, Prepared
from neurotome.data.volume import Volume
from neurotome.errors import InputError, OutputError, UsageError, printable
from neurotome.modality import canonical

_JOURNAL_NAME = "journal.jsonl"
_MASK, _LABELS = "mask", "labels"


@dataclass(frozen=True)
class Failure:
    """A session that could not be prepared, and why."""

    subject: str
    session: str
    reason: str


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


def prepare(
    path: str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    preparation: Preparation,
    modalities: Sequence[str] | None = None,
    seed: int = 0,
    sizes: Sequence[float] = DEFAULT_FRACTIONS,
    splits: str | os.PathLike[str] | None = None,
    workers: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> PrepareReport:
    """Prepare everything at ``path`` into ``store``.

    Args:
        path: A BIDS dataset, a manifest table, or a folder of images.
        store: A new or empty folder, or a store of the same preparation, which is completed.
        preparation: The declared preparation.
        modalities: Views to keep, in this order; all that occur by default.
        seed: Of the split by subject.
        sizes: Fractions or counts of train, val and test.
        splits: A table that decides the split instead.
        workers: Processes; 0 prepares in this one.
        overwrite: Discard a store of another preparation, or other content of the folder's store.
        progress: Called with the number of finished sessions, their total, and a word.

    Raises:
        UsageError: A path is missing, an unknown contrast, or the folder is not empty and no store of this preparation.
        InputError: The manifest or splits table is refused, or no session holds a wanted contrast.
        OutputError: The store cannot be written.
    """
    manifest = scan(path)
    wanted = tuple(dict.fromkeys(canonical(m) for m in modalities)) if modalities else manifest.modalities
    chosen = [(s, tuple(m for m in wanted if m in s.scans)) for s in manifest.sessions]
    chosen = [(s, views) for s, views in chosen if views]
    if not chosen:
        raise InputError(
            f"no session has {' or '.join(wanted)}; there are {', '.join(manifest.modalities)}", file=manifest.root
        )
    subjects = [s.subject for s, _ in chosen]
    table = read_splits(Path(splits), subjects) if splits is not None else split_subjects(subjects, seed, sizes)
    folder = Path(store)
    known = _open_folder(folder, preparation, wanted, overwrite)
    jobs = [_Job(s, views, preparation, wanted, folder, table[s.subject], manifest.root, known) for s, views in chosen]
    entries, failures, num_built = _run(jobs, folder / _JOURNAL_NAME, workers, progress)
    _write_tables(folder, manifest, {s: table[s] for s in subjects})
    result = Store.create(folder, preparation, wanted, entries, manifest.root)
    (folder / _JOURNAL_NAME).unlink(missing_ok=True)
    return PrepareReport(result, num_built, len(entries) - num_built, tuple(failures))


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
    elif folder.exists() and not (folder / _JOURNAL_NAME).exists() and any(folder.iterdir()):
        # never emptied, not even with --overwrite: what lies there is not ours
        raise UsageError(f"{printable(folder)}: the folder is not empty and holds no store; choose another one")
    try:
        (folder / "entries").mkdir(parents=True, exist_ok=True)
        for left_over in (folder / "entries").glob(".neurotome-*.tmp"):
            left_over.unlink()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}). Remedy: choose another folder.") from error
    return {**known, **_read_journal(folder / _JOURNAL_NAME)}


def _read_journal(path: Path) -> dict[str, str]:
    """Return what an interrupted run had finished; a torn last line is ignored."""
    known = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            digest, sha256 = json.loads(line)
        except ValueError:
            continue
        known[str(digest)] = str(sha256)
    return known


def _run(
    jobs: list[_Job], journal: Path, workers: int, progress: Callable[[int, int, str], None] | None
) -> tuple[list[SessionEntry], list[Failure], int]:
    entries: list[SessionEntry] = []
    failures: list[Failure] = []
    num_built = 0
    try:
        with journal.open("a") as file:
            for done, (result, built) in enumerate(_results(jobs, workers), start=1):
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
    return entries, failures, num_built


def _results(jobs: list[_Job], workers: int) -> Iterator[tuple[SessionEntry | Failure, bool]]:
    if workers <= 0 or len(jobs) == 1:
        yield from map(_prepare_session, jobs)
        return
    # spawned, not forked: a forked child inherits locks of the parent's threads
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_prepare_session, jobs)


def _prepare_session(job: _Job) -> tuple[SessionEntry | Failure, bool]:
    """Return the entry of one session and whether it was made now; only an input's fault becomes a failure."""
    s = job.session
    try:
        return _entry(job)
    except InputError as error:
        return Failure(s.subject, s.session, str(error)), False


def _entry(job: _Job) -> tuple[SessionEntry, bool]:
    s = job.session
    paths = {m: s.scans[m] for m in job.views}
    paths |= {name: p for name, p in ((_MASK, s.mask), (_LABELS, s.labels)) if p is not None}
    sha = {name: file_sha256(p) for name, p in paths.items()}
    digest = entry_digest(sha, job.preparation, job.modalities)
    file = job.store / entry_file(digest)
    sha256 = job.known.get(digest, "")
    built = not (sha256 and is_intact(file, sha256))
    if built:
        sha256 = _write(file, paths, sha, job.preparation, job.modalities)
    sources = {name: p.relative_to(job.root).as_posix() for name, p in paths.items()}
    ids = (s.subject, s.session, s.site, job.split, job.views)
    return SessionEntry(*ids, digest, entry_file(digest), sha256, sources, sha, s.notes), built


def _write(
    file: Path, paths: dict[str, Path], sha: dict[str, str], preparation: Preparation, modalities: tuple[str, ...]
) -> str:
    volumes = {name: read_volume(path) for name, path in paths.items()}
    for name, volume in volumes.items():
        if volume.provenance.sha256 != sha[name]:
            raise InputError("the file changed while it was read", file=paths[name], remedy="run the command again")
    mask, labels = volumes.pop(_MASK, None), volumes.pop(_LABELS, None)
    prepared = preparation.apply(volumes, mask)
    return write_entry(file, prepared, modalities, None if labels is None else _label_map(prepared, labels))


def _label_map(prepared: Prepared, volume: Volume) -> "np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]":
    """Return a label map of small whole numbers on the prepared grid."""
    labels = prepared.labels(volume)
    if (labels != np.round(labels)).any() or labels.min() < 0 or labels.max() > 255:
        raise InputError(
            f"labels from {labels.min():g} to {labels.max():g}; whole numbers from 0 to 255 are stored",
            file=volume.provenance.path,
            remedy="map the labels to a smaller set",
        )
    return labels.astype(np.uint8)


def rebuild_entry(store: Store, entry: SessionEntry) -> None:
    """Make one corrupt entry again from its sources.

    Raises:
        InputError: A source is missing or changed, or the result differs from what the index promises.
    """
    file = store.path / entry.file
    remedy = "run the same `neurotome prepare` again"
    if store.root is None:
        raise InputError("the entry is corrupt and the store does not know its sources", file=file, remedy=remedy)
    paths = {name: store.root / place for name, place in entry.sources.items()}
    for name, path in paths.items():
        if not path.is_file() or file_sha256(path) != entry.source_sha256[name]:
            raise InputError(
                f"the entry of {entry.name} is corrupt, and its source {printable(path)} is missing or has changed",
                file=file,
                remedy=remedy,
            )
    if _write(file, paths, entry.source_sha256, store.preparation, store.modalities) != entry.sha256:
        raise InputError(f"the entry of {entry.name} was corrupt and came out differently", file=file, remedy=remedy)


def _write_tables(folder: Path, manifest: Manifest, splits: dict[str, str]) -> None:
    write_splits(folder / "splits.tsv", splits)
    write_atomically(folder / "manifest.tsv", [manifest.to_tsv().encode()])
