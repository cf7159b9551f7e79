"""Whether a prepared store is what its index says: bytes, voxels, splits, duplicates, sources, stray files."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from neurotome.data.checking.dataset_files import spelling
from neurotome.data.checking.finding import Finding
from neurotome.data.datasets.text_files import read_table
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.build import JOURNAL_NAME
from neurotome.data.stores.entries import LABELS, MASK, LoadedSession, SessionEntry, is_intact, map_entry
from neurotome.data.stores.store import INDEX_NAME, Store
from neurotome.errors import InputError, UsageError
from neurotome.files.progress import Report
from neurotome.files.verified import file_sha256

_AGAIN = "run the same `neurotome prepare` again; only what is damaged is made anew"


def check_store(path: Path, progress: Report | None = None) -> tuple[Store | None, list[Finding]]:
    """Return the store, if its index can be read, and every finding about it.

    Args:
        path: The folder.
        progress: Called with the number of entries that were looked at, their total, and a name.
    """
    try:
        store = Store.open(path)
    except (InputError, UsageError) as error:
        reason, remedy = (error.reason, error.remedy) if isinstance(error, InputError) else (str(error), None)
        return None, [Finding("store-index", INDEX_NAME, reason, remedy or "prepare the store again")]
    findings: list[Finding] = []
    contents: dict[str, list[SessionEntry]] = defaultdict(list)
    for done, entry in enumerate(store.sessions, start=1):
        found, hashes = _entry(store, entry)
        findings += found
        for content in hashes:
            contents[content].append(entry)
        if progress is not None:
            progress(done, len(store.sessions), entry.name)
    findings += _splits(store)
    findings += _twins(store.sessions, contents)
    findings += _strays(store)
    findings += _tables(store)
    return store, findings


def _about(entry: SessionEntry, code: str, reason: str, remedy: str = "") -> Finding:
    return Finding(code, entry.file, reason, remedy, entry.subject, entry.session)


def _entry(store: Store, entry: SessionEntry) -> tuple[list[Finding], list[str]]:
    """Return what is wrong with one entry and the hashes of its views."""
    found = list(_sources(store, entry))
    file = store.path / entry.file
    if not file.is_file():
        return [*found, _about(entry, "store-entry", "the file is missing", _AGAIN)], []
    try:
        if not is_intact(file, entry.sha256):
            return [*found, _about(entry, "store-entry", "its bytes are not those that were written", _AGAIN)], []
        loaded = map_entry(file, entry, store.modalities, store.preparation.shape)
    except InputError as error:
        return [*found, _about(entry, "store-entry", error.reason, _AGAIN)], []
    found += [
        _about(entry, "store-voxels", reason, "report it; prepare never writes this")
        for reason in _odd(loaded, store.preparation)
    ]
    present = np.flatnonzero(loaded.present)
    return found, [hashlib.sha256(np.ascontiguousarray(loaded.image[view]).data).hexdigest() for view in present]


def _odd(loaded: LoadedSession, preparation: Preparation) -> Iterator[str]:
    """Yield what is wrong with the arrays: values outside the window, several outside the brain, no brain."""
    low, high = preparation.window or (-np.inf, np.inf)
    if not loaded.present.any():
        yield "no view is present"
    if not loaded.mask.any():
        yield "the brain mask is empty"
    for view in np.flatnonzero(loaded.present):
        image = loaded.image[view, 0]
        if not np.isfinite(image).all():
            yield f"view {view} holds NaN or infinite values"
        elif image.min() < low or image.max() > high:
            yield f"view {view} holds values from {image.min():g} to {image.max():g}, not from {low:g} to {high:g}"
        elif (image[~loaded.mask] != np.float32(preparation.outside)).any():
            yield f"view {view} is not {preparation.outside:g} outside the brain"


def _sources(store: Store, entry: SessionEntry) -> Iterator[Finding]:
    """Compare the sources with what they were; a dataset that is no longer there is no finding."""
    if store.root is None or not store.root.is_dir():
        return
    for view, place in sorted(entry.sources.items()):
        source = store.root / place
        try:
            changed = file_sha256(source) != entry.source_sha256.get(view)
        except InputError as error:
            yield _about(entry, "store-source", f"{view}: {error.reason} ({place})", "the entry itself is whole")
            continue
        if changed:
            yield _about(entry, "store-source", f"{view} has changed since ({place})", "prepare again to take it up")


def _splits(store: Store) -> Iterator[Finding]:
    where: dict[str, set[str]] = defaultdict(set)
    names: dict[str, set[str]] = defaultdict(set)
    for entry in store.sessions:
        where[spelling(entry.subject)].add(entry.split)
        names[spelling(entry.subject)].add(entry.subject)
    for key, splits in sorted(where.items()):
        ids = sorted(names[key])
        if len(splits) > 1:
            who = "" if len(ids) == 1 else f"the ids {', '.join(ids)} differ only in spelling and are "
            remedy = "prepare again with a --splits table that names each subject once"
            yield Finding("two-splits", INDEX_NAME, f"{who}in {' and '.join(sorted(splits))}", remedy, ids[0])
        elif len(ids) > 1:
            reason = f"the ids {', '.join(ids)} differ only in case, zeros or Unicode spelling"
            yield Finding("similar-ids", INDEX_NAME, reason, "if they are one person, give them one id", ids[0])


def _twins(sessions: Sequence[SessionEntry], contents: dict[str, list[SessionEntry]]) -> Iterator[Finding]:
    """Find equal sources and equal prepared views."""
    by_source: dict[str, list[SessionEntry]] = defaultdict(list)
    for entry in sessions:
        for view, sha256 in sorted(entry.source_sha256.items()):
            if view not in (MASK, LABELS):
                by_source[sha256].append(entry)
    reported: set[tuple[str, str]] = set()
    for what, groups in (("source bytes", by_source), ("prepared voxels", contents)):
        for first, *others in (g for g in groups.values() if len(g) > 1):
            for other in others:
                if (first.name, other.name) in reported:
                    continue
                reported.add((first.name, other.name))
                reason = f"the same {what} as {first.name}"
                if other.split != first.split:
                    reason += f": {other.split} and {first.split}"
                    yield _about(other, "leak", reason, "move both into one split, or remove one")
                elif other.subject != first.subject:
                    yield _about(other, "duplicate-subjects", reason, "find out whose scan it is and remove the other")
                elif other.session != first.session:
                    yield _about(other, "duplicate-sessions", reason, "find out which visit it is from")
                else:
                    yield _about(other, "duplicate-contrasts", f"two views hold the same {what}", "remove one")


def _strays(store: Store) -> Iterator[Finding]:
    known = {entry.file for entry in store.sessions}
    files = sorted((store.path / "entries").iterdir()) if (store.path / "entries").is_dir() else []
    for file in files:
        name = f"entries/{file.name}"
        if name not in known:
            reason = "an unfinished file" if file.name.endswith(".tmp") else "an entry of an earlier state"
            yield Finding("store-stray", name, reason, "it is not read; remove it to free the space")
    if (store.path / JOURNAL_NAME).exists():
        yield Finding("store-unfinished", JOURNAL_NAME, "a journal is left", "run the same `neurotome prepare` again")


def _tables(store: Store) -> Iterator[Finding]:
    """Compare splits.tsv with the index, which is what a training reads."""
    path = store.path / "splits.tsv"
    try:
        header, rows = read_table(path)
    except InputError as error:
        yield Finding("store-tables", "splits.tsv", error.reason, _AGAIN)
        return
    if not {"participant_id", "split"} <= set(header):
        yield Finding("store-tables", "splits.tsv", f"the columns are {', '.join(header)}", _AGAIN)
        return
    listed = {(row["participant_id"].removeprefix("sub-"), row["split"]) for _, row in rows}
    subjects = {subject for subject, _ in listed}
    for subject, split in sorted({(e.subject, e.split) for e in store.sessions} - listed):
        said = "another one" if subject in subjects else "nothing"
        reason = f"the index says {split}, splits.tsv {said}"
        yield Finding("store-tables", "splits.tsv", reason, "a training follows the index; prepare again", subject)
