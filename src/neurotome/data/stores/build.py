"""From a manifest to a store: every session prepared once, failures collected, resumable, same bytes every time.

A journal beside the index lists finished entries, so that a killed run keeps what it had; entries whose bytes are still
right are kept, all others are made. A session that fails does not stop the others.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from neurotome.data.datasets.manifest import Manifest, SessionScans, scan
from neurotome.data.datasets.splits import DEFAULT_FRACTIONS, read_splits, split_subjects, write_splits
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.resample import Shape3
from neurotome.data.stores.entries import SessionEntry
from neurotome.data.stores.grid import Failure, StoreGrid, fitted_shape, left_out
from neurotome.data.stores.session_jobs import SessionJob, measure_session, prepare_session
from neurotome.data.stores.store import INDEX_NAME, Store
from neurotome.errors import InputError, OutputError, UsageError, printable
from neurotome.files.atomic import output_error, sweep, write_atomically
from neurotome.files.json_text import parse_json
from neurotome.files.lock import alone
from neurotome.files.pool import results
from neurotome.files.progress import Report
from neurotome.modality import canonical

JOURNAL_NAME, LOCK = "journal.jsonl", ".lock"
_TABLES = ("splits.tsv", "manifest.tsv")


@dataclass(frozen=True)
class PrepareReport:
    """What a run did: the store, its grid, how many entries were made and kept, what failed, and what was decided."""

    store: Store
    grid: StoreGrid
    num_built: int
    num_kept: int
    failures: tuple[Failure, ...]
    notes: tuple[str, ...] = ()

    def raise_failures(self) -> None:
        """Raise one error that names every failed session.

        Raises:
            InputError: There was a failure.
        """
        if self.failures:
            total = len(self.failures) + len(self.store.sessions)
            centred = self.store.preparation.crop == "centre"
            raise left_out(self.failures, total, self.grid, stored=True, centred=centred)


def prepare(
    path: str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    preparation: Preparation,
    multiple: int | None = None,
    modalities: Sequence[str] | None = None,
    seed: int = 0,
    sizes: Sequence[float] | None = None,
    splits: str | os.PathLike[str] | None = None,
    roots: Sequence[str | os.PathLike[str]] = (),
    allow_head: bool = False,
    workers: int = 0,
    overwrite: bool = False,
    progress: Report | None = None,
    measuring: Report | None = None,
    notify: Callable[[StoreGrid], None] | None = None,
) -> PrepareReport:
    """Prepare everything at ``path`` into ``store``.

    Args:
        path: A BIDS dataset, a manifest table, or a folder of images.
        store: A new or empty folder, or a store of the same preparation, which is completed.
        preparation: The declared preparation.
        multiple: Where given, the preparation's shape becomes the smallest that holds every usable brain, each side a
            multiple of this; every brain is measured first.
        modalities: Views to keep, in this order; all that occur by default.
        seed: Of the split by subject.
        sizes: Fractions or counts of train, val and test; by default what the dataset itself says, else 2/3, 1/6, 1/6.
        splits: A table that decides the split instead.
        roots: Other folders that links and a table's paths may lead to.
        allow_head: Accept scans that look like whole heads.
        workers: Processes; 0 prepares in this one.
        overwrite: Discard a store of another preparation, or other content of the folder's store.
        progress: Called with the number of finished sessions, their total, and the subject.
        measuring: Called so while brains are measured.
        notify: Called with the grid before anything is prepared.

    Raises:
        UsageError: A path is missing, an unknown contrast, or the folder is not empty and no store of this preparation.
        InputError: The manifest or splits table is refused, no session holds a wanted contrast, or none can be
            prepared; then nothing is left behind.
        OutputError: The store cannot be written.
        SessionError: An unforeseen error in one session.
        WorkerKilled: A worker process was killed.
    """
    preparation.check_installed()
    asked = _contrasts(modalities or ())
    if multiple is not None:
        preparation = replace(preparation, shape=(multiple,) * 3)
    manifest = scan(path, roots)
    wanted = asked or manifest.modalities
    chosen = _wanted_sessions(manifest, wanted)
    subjects = [s.subject for s, _ in chosen]
    table = _splits(manifest, subjects, splits, sizes, seed)
    folder = Path(store)
    jobs = [
        SessionJob(s, views, preparation, wanted, folder, table[s.subject], manifest.root, {}, allow_head)
        for s, views in chosen
    ]
    with _alone(folder):
        unusable: list[Failure] = []
        if multiple is not None:
            _earlier_store(folder, preparation, wanted, overwrite, any_shape=True)
            jobs, unusable = _fitted(jobs, multiple, workers, measuring)
        grid = _grid(jobs, len(wanted), preparation, multiple is not None)
        refuse = partial(left_out, total=len(chosen), grid=grid, stored=False, centred=preparation.crop == "centre")
        if not jobs:
            raise refuse(unusable)
        if notify is not None:
            notify(grid)
        preparation = jobs[0].preparation
        known = _open_folder(folder, preparation, wanted, overwrite)
        jobs = [replace(job, known=known) for job in jobs]
        entries, failures, num_built = _run(jobs, folder / JOURNAL_NAME, workers, progress)
        failures = sorted([*unusable, *failures], key=lambda f: (f.subject, f.session))
        if not entries:
            _clear(folder)
            raise refuse(failures)
        _write_tables(folder, manifest, {s: table[s] for s in subjects})
        result = Store.create(folder, preparation, wanted, entries, manifest.root)
        (folder / JOURNAL_NAME).unlink(missing_ok=True)
    absent = [f"no scan is {m}: the view is absent everywhere" for m in wanted if m not in manifest.modalities]
    notes = (*absent, *manifest.notes)
    return PrepareReport(result, grid, num_built, len(entries) - num_built, tuple(failures), notes)


def _contrasts(names: Sequence[str]) -> tuple[str, ...]:
    """Return our names of contrasts, each once.

    Raises:
        UsageError: One is not a contrast; the message names the nearest.
    """
    try:
        return tuple(dict.fromkeys(map(canonical, names)))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _fitted(
    jobs: list[SessionJob], multiple: int, workers: int, progress: Report | None
) -> tuple[list[SessionJob], list[Failure]]:
    """Return the jobs whose brains can be measured, on the grid that holds them all, and the other sessions."""
    needs: dict[str, Shape3] = {}
    failures: list[Failure] = []
    for done, found in enumerate(results(measure_session, jobs, workers, _name), start=1):
        if isinstance(found, Failure):
            failures.append(found)
        else:
            needs[found[0]] = found[1]
        if progress is not None:
            progress(done, len(jobs), found.name if isinstance(found, Failure) else found[0])
    if not needs:
        return [], failures
    preparation = replace(jobs[0].preparation, shape=fitted_shape(needs.values(), multiple))
    return [replace(job, preparation=preparation) for job in jobs if job.name in needs], failures


def _grid(jobs: Sequence[SessionJob], contrasts: int, declared: Preparation, fitted: bool) -> StoreGrid:
    preparation = jobs[0].preparation if jobs else declared
    labelled = sum(job.session.labels is not None for job in jobs)
    return StoreGrid(preparation.spacings, preparation.shape, len(jobs), contrasts, labelled, fitted)


def _clear(folder: Path) -> None:
    """Remove what a run without any entry has made, so that the next one may choose another preparation."""
    (folder / JOURNAL_NAME).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # earlier entries stay
        (folder / "entries").rmdir()


def _wanted_sessions(manifest: Manifest, wanted: Sequence[str]) -> list[tuple[SessionScans, tuple[str, ...]]]:
    """Return the sessions that have a wanted contrast, each with those that it has.

    Raises:
        InputError: None has.
    """
    views = [(s, tuple(m for m in wanted if m in s.scans)) for s in manifest.sessions]
    if not any(found for _, found in views):
        raise InputError(
            f"no session has {' or '.join(wanted)}; there are {', '.join(manifest.modalities)}", file=manifest.root
        )
    return [(s, found) for s, found in views if found]


def _splits(
    manifest: Manifest,
    subjects: Sequence[str],
    table: str | os.PathLike[str] | None,
    sizes: Sequence[float] | None,
    seed: int,
) -> dict[str, str]:
    """Return the split of every subject: by the given table, else by the dataset itself, else drawn."""
    if table is not None:
        return read_splits(Path(table), subjects)
    own = _own_splits(manifest, subjects) if sizes is None else {}
    return own or split_subjects(subjects, seed, sizes or DEFAULT_FRACTIONS)


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


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a store's folder for this process.

    Raises:
        UsageError: Another process prepares into it, or it holds something else; nothing is written there.
        OutputError: It cannot be written to.
    """
    names = {part.name for part in folder.iterdir()} if folder.is_dir() else {""} if folder.exists() else set()
    if names - {LOCK} and not names & {INDEX_NAME, JOURNAL_NAME}:
        # never emptied, not even with --overwrite: what lies there is not ours
        raise UsageError(f"{printable(folder)}: the folder is not empty and holds no store; choose another one")
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    held = f"{printable(folder)}: another process prepares into this folder; wait for it, or choose another one"
    try:
        with alone(folder / LOCK, UsageError(held)):
            yield
    finally:
        if is_new and [part.name for part in folder.iterdir()] == [LOCK]:  # nothing could be prepared
            shutil.rmtree(folder, ignore_errors=True)


def _open_folder(
    folder: Path, preparation: Preparation, modalities: tuple[str, ...], overwrite: bool
) -> dict[str, str]:
    """Make the store's folder and return the finished entries of an earlier run: digest to SHA-256."""
    earlier = _earlier_store(folder, preparation, modalities, overwrite)
    known: dict[str, str] = {}
    if earlier is not None and (earlier.preparation, earlier.modalities) != (preparation, modalities):
        for name in (INDEX_NAME, *_TABLES):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "entries", ignore_errors=True)
    elif earlier is not None:
        known = {s.digest: s.sha256 for s in earlier.sessions}
    try:
        # first of all, so that whatever a killed run leaves is known to be a store's
        (folder / JOURNAL_NAME).touch()
        (folder / "entries").mkdir(exist_ok=True)
        sweep(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}). Remedy: choose another folder.") from error
    return {**known, **_read_journal(folder / JOURNAL_NAME)}


def _earlier_store(
    folder: Path, preparation: Preparation, modalities: tuple[str, ...], overwrite: bool, *, any_shape: bool = False
) -> Store | None:
    """Return the store that lies in a folder; None where there is none, or a damaged index, which is written anew.

    Raises:
        UsageError: Without ``overwrite``: it is of another preparation, or of other contrasts.
        InputError: Its index cannot be read for want of access.
    """
    if not (folder / INDEX_NAME).exists():
        return None
    try:
        earlier = Store.open(folder)
    except InputError as error:
        if error.unreadable:
            raise
        return None  # entries are found by the journal or made again
    shape = earlier.preparation.shape
    asked = replace(preparation, shape=shape) if any_shape else preparation
    if (earlier.preparation, earlier.modalities) == (asked, modalities) or overwrite:
        return earlier
    only_grid = (earlier.preparation, earlier.modalities) == (replace(preparation, shape=shape), modalities)
    grid = f" prepare with --shape {' '.join(map(str, shape))}," if only_grid else ""
    raise UsageError(
        f"{printable(folder)}: a store of another preparation or other contrasts is there; choose another folder,"
        f"{grid} or give --overwrite"
    )


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
    jobs: list[SessionJob], journal: Path, workers: int, progress: Report | None
) -> tuple[list[SessionEntry], list[Failure], int]:
    entries: list[SessionEntry] = []
    failures: list[Failure] = []
    num_built = 0
    try:
        with journal.open("a") as file:
            for done, found in enumerate(results(prepare_session, jobs, workers, _name), start=1):
                if isinstance(found, Failure):
                    failures.append(found)
                    subject = found.subject
                else:
                    entry, built = found
                    entries.append(entry)
                    num_built += built
                    file.write(json.dumps([entry.digest, entry.sha256]) + "\n")
                    file.flush()
                    subject = entry.subject
                if progress is not None:
                    progress(done, len(jobs), f"sub-{subject}")
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{journal}: cannot be written ({error.strerror}). Remedy: free some space.") from error
    return entries, failures, num_built


def _name(job: SessionJob) -> str:
    return job.name


def _write_tables(folder: Path, manifest: Manifest, splits: dict[str, str]) -> None:
    write_splits(folder / _TABLES[0], splits)
    write_atomically(folder / _TABLES[1], [manifest.to_tsv().encode()])
