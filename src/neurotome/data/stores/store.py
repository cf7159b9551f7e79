r"""Prepared sessions on disk: one array file each, found by what is in it, verified before first use, memory-mapped.

    digest = SHA-256(source bytes of every view, mask, labels; preparation; modalities)
    STORE/index.json                        everything but voxels
    STORE/entries/<digest>.safetensors      image (v, 1, x, y, z), present (v,), mask and labels (x, y, z), records
    STORE/splits.tsv, STORE/manifest.tsv    for people

A changed source or preparation is another digest, so a stale entry cannot be met. Equal inputs give equal bytes.
"""

import hashlib
import json
import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float32, Integer

from neurotome.data.datasets.bids import read_json
from neurotome.data.datasets.splits import SPLITS
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.record import Prepared, Record
from neurotome.errors import InputError, UsageError, printable
from neurotome.files.stream import VerifiedStream, file_sha256, write_atomically

FORMAT_VERSION = 1
INDEX_NAME = "index.json"
# a system admits about 65 000 memory maps to a process; mapping again what was verified costs a millisecond
MAX_OPEN = 8192
_REBUILD = "run the same `neurotome prepare` again; only this entry is rebuilt"
_METADATA_KEY = "neurotome"
_MAX_HEADER_BYTES = 16 << 20
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I32": np.dtype("<i4"), "U8": np.dtype("u1")}


@dataclass(frozen=True)
class SessionEntry:
    """One session of a store.

    Args:
        subject: Subject id.
        session: Session id; empty where a subject has one visit only.
        site: Site name, or None.
        split: ``train``, ``val`` or ``test``.
        modalities: Views that are present.
        digest: Content address.
        file: Path of the entry below the store.
        sha256: Of the entry's bytes.
        sources: Modality (also ``mask``, ``labels``) to path below the dataset.
        source_sha256: The same, to SHA-256 of the source bytes.
        notes: What was decided on the way.
    """

    subject: str
    session: str
    site: str | None
    split: str
    modalities: tuple[str, ...]
    digest: str
    file: str
    sha256: str
    sources: dict[str, str] = field(default_factory=dict)
    source_sha256: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Subject and session in one word, for messages."""
        return f"sub-{self.subject}" + (f" ses-{self.session}" if self.session else "")


@dataclass(frozen=True, eq=False)
class LoadedSession:
    """The arrays of one session, memory-mapped (writing to them changes a private copy, never the file).

    Args:
        image: In the preparation's window; zero where a view is missing, ``(v, 1, x, y, z)``.
        present: Which views there are, ``(v,)``.
        mask: The brain, ``(x, y, z)``.
        labels: A label map (8 bits where all ids fit, else 32), or None.
        records: How each present view was prepared.
        sources: Modality to path of the source below the dataset.
    """

    image: Float32[np.ndarray, "v 1 x y z"]
    present: Bool[np.ndarray, " v"]
    mask: Bool[np.ndarray, "x y z"]
    labels: Integer[np.ndarray, "x y z"] | None
    records: dict[str, Record]
    sources: dict[str, str]


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
        """Leave the memory maps behind: a loader process opens its own; what was verified need not be again."""
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
        index = read_json(file)
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
        except (KeyError, TypeError, AttributeError) as error:
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
                    self._rebuild(entry)
                self._verified.add(entry.digest)
            loaded = self._open[entry.digest] = map_entry(file, entry, self.modalities, self.preparation.shape)
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(entry.digest)
        return loaded

    def _rebuild(self, entry: SessionEntry) -> None:
        from neurotome.data.stores.build import rebuild_entry  # preparing needs the store

        rebuild_entry(self, entry)


def is_intact(file: Path, sha256: str) -> bool:
    """Return whether a file is there and has these bytes."""
    try:
        return file_sha256(file) == sha256
    except InputError:
        return False


def entry_file(digest: str) -> str:
    """Return the path of an entry below its store."""
    return f"entries/{digest}.safetensors"


def entry_digest(sources: Mapping[str, str], preparation: Preparation, modalities: Sequence[str]) -> str:
    """Return the content address of a session: its source bytes, the preparation and the order of views."""
    parts = [FORMAT_VERSION, sorted(sources.items()), preparation.digest, list(modalities)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def write_entry(
    file: Path, prepared: Prepared, modalities: Sequence[str], labels: Integer[np.ndarray, "x y z"] | None
) -> str:
    """Write one session and return the SHA-256 of the file.

    Raises:
        OutputError: The file cannot be written.
    """
    if prepared.modalities == tuple(modalities):
        image = prepared.image[:, None]
    else:
        image = np.zeros((len(modalities), 1, *prepared.mask.shape), dtype=np.float32)
        for index, name in enumerate(prepared.modalities):
            image[list(modalities).index(name), 0] = prepared.image[index]
    arrays = {
        "image": image,
        **({} if labels is None else {"labels": np.ascontiguousarray(labels)}),
        "mask": prepared.mask.view(np.uint8),
        "present": np.array([m in prepared.modalities for m in modalities], dtype=np.uint8),
    }
    records = {name: record.to_json() for name, record in prepared.records.items()}
    # one key only: the library does not promise an order for several
    metadata = {_METADATA_KEY: json.dumps({"records": records}, sort_keys=True)}
    return write_atomically(file, safetensors_parts(arrays, metadata))


def safetensors_parts(arrays: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, str]) -> list[Any]:
    """Return the header of a safetensors file and views of its arrays: the library's bytes without its copies.

    Args:
        arrays: Of 4-byte numbers first and 1-byte numbers last, by name among equals: the library's order.
        metadata: Of ASCII text.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for name, array in arrays.items():
        kind = next(kind for kind, dtype in _DTYPES.items() if dtype == array.dtype)
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, begin + array.nbytes]}
        begin += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [
        len(text).to_bytes(8, "little"),
        text,
        *(np.ascontiguousarray(array).data.cast("B") for array in arrays.values()),
    ]


def map_entry(file: Path, entry: SessionEntry, modalities: Sequence[str], shape: tuple[int, int, int]) -> LoadedSession:
    """Map the arrays of an entry into memory.

    Raises:
        InputError: The file is not an entry of this store.
    """
    header, start = _read_header(file)
    num_views = len(modalities)
    wanted = {
        "image": (("F32",), (num_views, 1, *shape)),
        "present": (("U8",), (num_views,)),
        "mask": (("U8",), shape),
        "labels": (("U8", "I32"), shape),
    }
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    mapped = np.memmap(file, dtype=np.uint8, mode="c")
    try:
        for name, (dtypes, size) in wanted.items():
            if name == "labels" and name not in header:
                continue
            begin, end = header[name]["data_offsets"]
            dtype = header[name]["dtype"]
            if dtype not in dtypes or tuple(header[name]["shape"]) != size:
                raise InputError(
                    f"{name} has another type or shape than the store declares", file=file, remedy=_REBUILD
                )
            if end - begin != math.prod(size) * _DTYPES[dtype].itemsize or not 0 <= begin <= end <= len(mapped) - start:
                raise InputError(f"{name} lies outside the file", file=file, remedy=_REBUILD)
            # plain arrays on the same pages: indexing a memmap object is several times slower
            arrays[name] = np.asarray(mapped[start + begin : start + end]).view(_DTYPES[dtype]).reshape(size)
        records = json.loads(header["__metadata__"][_METADATA_KEY])["records"]
        return LoadedSession(
            image=arrays["image"],
            present=arrays["present"].astype(bool),
            mask=arrays["mask"].view(np.bool_),
            labels=arrays.get("labels"),
            records={name: Record.from_json(value) for name, value in records.items()},
            sources={m: path for m, path in entry.sources.items() if m in modalities},
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"not an entry of a store ({error!r})", file=file, remedy=_REBUILD) from error


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file and where its data begin."""
    with VerifiedStream(file, compressed=False) as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > min(_MAX_HEADER_BYTES, stream.file_bytes):
            raise InputError(f"its header claims {size} bytes", file=file, remedy=_REBUILD)
        try:
            header = json.loads(stream.read(size))
        except ValueError as error:
            raise InputError("its header is not JSON", file=file, remedy=_REBUILD) from error
    if not isinstance(header, dict):
        raise InputError("its header is not a JSON object", file=file, remedy=_REBUILD)
    return header, 8 + size


def _entry_from_json(value: Mapping[str, Any]) -> SessionEntry:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    entry = SessionEntry(**values)
    if entry.file != entry_file(entry.digest) or not entry.digest.isalnum() or entry.split not in SPLITS:
        raise TypeError(f"entry {entry.digest!r} in {entry.split!r}")
    return entry
