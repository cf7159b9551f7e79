"""A folder of prepared sessions: an index and one file a session, verified before first use and memory-mapped.

STORE/index.json                        everything but voxels
STORE/entries/<digest>.safetensors      the sessions (:mod:`neurotome.data.stores.entries`)
STORE/splits.tsv, STORE/manifest.tsv    for people
"""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from neurotome.data.datasets.splits import SPLITS
from neurotome.data.datasets.text_files import read_json
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.entries import (
    FORMAT_VERSION,
    LoadedSession,
    SessionEntry,
    entry_file,
    is_intact,
    map_entry,
    rebuild_entry,
)
from neurotome.errors import InputError, UsageError, printable
from neurotome.files.atomic import write_atomically

INDEX_NAME = "index.json"
# a system admits about 65 000 memory maps to a process; mapping again what was verified costs a millisecond
MAX_OPEN = 8192


class Store:
    """A folder of prepared sessions; see the module's text.

    Args:
        path: The folder.
        preparation: How its sessions were prepared.
        modalities: Views of every entry, in this order.
        sessions: Sorted by subject and session.
        root: The dataset it was made from.
    """

    def __init__(
        self,
        path: Path,
        preparation: Preparation,
        modalities: tuple[str, ...],
        sessions: Sequence[SessionEntry],
        root: Path | None = None,
    ) -> None:
        self.path = Path(path)
        self.preparation = preparation
        self.modalities = modalities
        self.sessions = tuple(sorted(sessions, key=lambda s: (s.subject, s.session)))
        self.sites = tuple(sorted({s.site for s in self.sessions if s.site is not None}))
        self.root = root
        self._verified: set[str] = set()
        self._open: OrderedDict[str, LoadedSession] = OrderedDict()  # the one used last is at the end

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory maps behind: a loader process opens its own, and need not verify again."""
        return {**vars(self), "_open": OrderedDict()}

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        preparation: Preparation,
        modalities: Sequence[str],
        sessions: Sequence[SessionEntry],
        root: Path | None = None,
    ) -> Self:
        """Write the index of entries that are already there and return the store.

        Raises:
            OutputError: The index cannot be written.
        """
        store = cls(Path(path), preparation, tuple(modalities), sessions, root)
        index = {
            "format_version": FORMAT_VERSION,
            "preparation": preparation.to_json(),
            "preparation_digest": preparation.digest,
            "modalities": list(store.modalities),
            "sites": list(store.sites),
            "fingerprint": store.fingerprint,
            "root": None if root is None else str(root),
            "sessions": [asdict(s) for s in store.sessions],
        }
        write_atomically(store.path / INDEX_NAME, [json.dumps(index, indent=1, sort_keys=True).encode() + b"\n"])
        return store

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a store.

        Raises:
            UsageError: There is no store at ``path``.
            InputError: The index is damaged, or of a newer format.
        """
        path = Path(path)
        file = path / INDEX_NAME
        if not file.is_file():
            raise UsageError(
                f"{printable(path)}: no store is there (no {INDEX_NAME}); make one with `neurotome prepare`"
            )
        index = read_json(file, finite=True, remedy="prepare the store again")
        if "kind" in index:
            raise UsageError(
                f"{printable(path)}: holds {printable(str(index['kind']))[:80]}, no store; give the store they were "
                "made from, or a config whose data block is {class_path: LatentVolumes}"
            )
        if index.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"store format {index.get('format_version')!r}; this release reads {FORMAT_VERSION}",
                file=file,
                remedy="update neurotome, or prepare the store again",
            )
        try:
            sessions = [_entry_from_json(value) for value in index["sessions"]]
            root = None if index["root"] is None else Path(index["root"])
            store = cls(path, Preparation.from_json(index["preparation"]), tuple(index["modalities"]), sessions, root)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"the index is damaged ({error!r})", file=file, remedy="prepare the store again"
            ) from error
        if store.fingerprint != index.get("fingerprint"):
            raise InputError(
                "the index is damaged: its fingerprint does not match", file=file, remedy="prepare the store again"
            )
        return store

    @property
    def fingerprint(self) -> str:
        """SHA-256 over preparation, modalities and every session with its split and bytes."""
        lines = [self.preparation.digest, *self.modalities]
        lines += [
            json.dumps([s.subject, s.session, s.site, s.split, s.digest, s.sha256], ensure_ascii=True)
            for s in self.sessions
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def split(self, name: str) -> list[SessionEntry]:
        """Return the sessions of a split.

        Raises:
            ValueError: Not the name of a split.
        """
        if name not in SPLITS:
            raise ValueError(f"there is no split {name!r}; admissible are {', '.join(SPLITS)}")
        return [s for s in self.sessions if s.split == name]

    def subjects(self, split: str) -> tuple[str, ...]:
        """Return the subjects of a split, sorted."""
        return tuple(sorted({s.subject for s in self.split(split)}))

    def site_index(self, entry: SessionEntry) -> int:
        """Return the number of an entry's site, -1 where unknown."""
        return -1 if entry.site is None else self.sites.index(entry.site)

    def load(self, entry: SessionEntry) -> LoadedSession:
        """Return the arrays of a session; its file is verified the first time and mapped once.

        A corrupt entry is rebuilt if its sources are still there and unchanged.

        Raises:
            InputError: The entry is corrupt and cannot be rebuilt.
        """
        loaded = self._open.get(entry.digest)
        if loaded is None:
            file = self.path / entry.file
            if entry.digest not in self._verified:
                if not is_intact(file, entry.sha256):
                    rebuild_entry(self.path, self.root, entry, self.preparation, self.modalities)
                self._verified.add(entry.digest)
            loaded = self._open[entry.digest] = map_entry(file, entry, self.modalities, self.preparation.shape)
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(entry.digest)
        return loaded


def _entry_from_json(value: Mapping[str, Any]) -> SessionEntry:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    entry = SessionEntry(**values)
    if entry.file != entry_file(entry.digest) or not entry.digest.isalnum() or entry.split not in SPLITS:
        raise TypeError(f"entry {entry.digest!r} in {entry.split!r}")
    return entry
