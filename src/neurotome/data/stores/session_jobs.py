"""What a worker does with one session of a dataset: measure its brain, or prepare it into an entry.

A refused input becomes a failure, which costs that session alone.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from neurotome.data.datasets.manifest import SessionScans
from neurotome.data.imaging.headers import read_header
from neurotome.data.imaging.reader import read_volume
from neurotome.data.preparation.brain_box import BrainFitError
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.resample import Shape3
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
from neurotome.data.stores.grid import Failure
from neurotome.errors import InputError, NeurotomeError, printable
from neurotome.files.verified import file_sha256

T = TypeVar("T")


class SessionError(NeurotomeError):
    """An unforeseen error in one session; the message names its subject and files."""


@dataclass(frozen=True)
class SessionJob:
    """One session, in a form that travels to a worker.

    Args:
        session: Its files.
        views: Contrasts that are wanted and there.
        preparation: The declared one.
        modalities: Views of the store.
        store: Its folder.
        split: Of the subject.
        root: Of the dataset.
        known: Entries that were made before: digest to SHA-256.
        allow_head: Accept scans that look like whole heads.
    """

    session: SessionScans
    views: tuple[str, ...]
    preparation: Preparation
    modalities: tuple[str, ...]
    store: Path
    split: str
    root: Path
    known: dict[str, str]
    allow_head: bool

    @property
    def name(self) -> str:
        """Of the session."""
        return self.session.name

    def paths(self) -> dict[str, Path]:
        """Return the wanted views, mask and labels, by name."""
        s = self.session
        found = {m: s.scans[m] for m in self.views}
        return found | {name: p for name, p in ((MASK, s.mask), (LABELS, s.labels)) if p is not None}


def prepare_session(job: SessionJob) -> tuple[SessionEntry, bool] | Failure:
    """Return the entry of one session and whether it was made now; a refused input becomes a failure.

    Raises:
        SessionError: An error that is no refused input, with the session's name and files.
    """
    return _attempt(job, _entry)


def measure_session(job: SessionJob) -> tuple[str, Shape3] | Failure:
    """Return a session's name and the voxels its brain needs; errors are those of :func:`prepare_session`."""
    return _attempt(job, _needed)


def _attempt(job: SessionJob, work: Callable[[SessionJob], T]) -> T | Failure:
    s = job.session
    try:
        for damage in (s.damage[m] for m in job.views if m in s.damage):
            raise damage
        return work(job)
    except InputError as error:
        # an error that concerns all views of a session names the file of the first
        named = InputError(error.reason, file=error.file or s.scans[job.views[0]], remedy=error.remedy)
        return Failure(s.subject, s.session, str(named), error.needed if isinstance(error, BrainFitError) else None)
    except NeurotomeError:
        raise
    except Exception as error:
        files = ", ".join(printable(path) for path in s.scans.values())
        raise SessionError(
            f"{printable(s.name)} ({files}): internal error, {type(error).__name__}: {' '.join(str(error).split())}. "
            "What was finished is kept. Remedy: leave this session out, or report the error with --verbose."
        ) from error


def _needed(job: SessionJob) -> tuple[str, Shape3]:
    reading = job.preparation.reading
    volumes = {name: read_volume(path, **reading) for name, path in job.paths().items() if name != LABELS}
    mask = volumes.pop(MASK, None)
    return job.name, job.preparation.needed_shape(volumes, mask, allow_head=job.allow_head)


def _entry(job: SessionJob) -> tuple[SessionEntry, bool]:
    s, paths = job.session, job.paths()
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
