"""One prepared session on disk: a safetensors file made from its sources, found by its content, mapped into memory.

    digest = SHA-256(source bytes of every view, mask, labels; preparation; modalities)
    entries/<digest>.safetensors    image (v, 1, x, y, z), present (v,), mask and labels (x, y, z), records

A changed source or preparation has another digest, so an outdated entry is never read. Equal inputs give equal bytes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Integer

from neurotome.data.imaging.reader import read_volume
from neurotome.data.preparation.content import content_sha256
from neurotome.data.preparation.labels import whole_labels
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.record import Prepared, Record
from neurotome.errors import InputError, printable
from neurotome.files.atomic import write_atomically
from neurotome.files.json_text import parse_json
from neurotome.files.tensors import map_tensors, read_header
from neurotome.files.verified import file_sha256

FORMAT_VERSION = 1
# 2: of two equally near labels the one to the right, front and top
_LABELS_VERSION = 2
# names of the sources that are no views
MASK, LABELS = "mask", "labels"
_METADATA_KEY = "neurotome"
_REBUILD = "run the same `neurotome prepare` again; only this entry is rebuilt"
# safetensors' names of the types that are written
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
        content_sha256: Modality to SHA-256 of the source's voxels; empty in stores that an earlier release made.
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
    content_sha256: dict[str, str] = field(default_factory=dict)

    @property
    def contents(self) -> frozenset[str]:
        """Hashes by which its scans are known under any id: those of their voxels, and those of their files."""
        files = {sha256 for name, sha256 in self.source_sha256.items() if name not in (MASK, LABELS)}
        return frozenset(files | set(self.content_sha256.values()))

    @property
    def name(self) -> str:
        """Subject and session in one word, for messages."""
        return f"sub-{self.subject}" + (f" ses-{self.session}" if self.session else "")


@dataclass(frozen=True, eq=False)
class LoadedSession:
    """The arrays of one session, memory-mapped; writing to them changes a private copy, never the file.

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


def is_intact(file: Path, sha256: str) -> bool:
    """Return whether a file is there and has these bytes.

    Raises:
        InputError: It is there and may not be read: no reason to make it again.
    """
    try:
        return file_sha256(file) == sha256
    except InputError as error:
        if error.unreadable:
            raise
        return False


def entry_file(digest: str) -> str:
    """Return the path of an entry below its store."""
    return f"entries/{digest}.safetensors"


def entry_digest(sources: Mapping[str, str], preparation: Preparation, modalities: Sequence[str]) -> str:
    """Return the content address of a session: its source bytes, the preparation and the order of views."""
    parts = [FORMAT_VERSION, sorted(sources.items()), preparation.digest, list(modalities)]
    # label maps that were stored otherwise than in RAS+ order came out differently before: they are made again
    parts += [_LABELS_VERSION] * (LABELS in sources)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def make_entry(
    file: Path,
    paths: Mapping[str, Path],
    sha256: Mapping[str, str],
    preparation: Preparation,
    modalities: Sequence[str],
    *,
    allow_head: bool,
    with_contents: bool = True,
) -> str:
    """Prepare one session from its sources, write its entry and return the SHA-256 of the file.

    Args:
        file: The entry.
        paths: Modality (also ``mask``, ``labels``) to source.
        sha256: The same, to SHA-256 of the source bytes.
        preparation: The declared preparation.
        modalities: Views of the store, in its order.
        allow_head: Accept scans that look like whole heads.
        with_contents: Whether its header lists the hashes of the sources' voxels.

    Raises:
        InputError: A source is refused, or changed while it was read.
        OutputError: The entry cannot be written.
    """
    volumes = {name: read_volume(path, **preparation.reading) for name, path in paths.items()}
    for name, volume in volumes.items():
        if volume.provenance.sha256 != sha256[name]:
            raise InputError("the file changed while it was read", file=paths[name], remedy="run the command again")
    mask, labels = volumes.pop(MASK, None), volumes.pop(LABELS, None)
    prepared = preparation.apply(volumes, mask, allow_head=allow_head)
    kept = None if labels is None else prepared.labels(whole_labels(labels))
    contents = {name: content_sha256(volume.array, volume.geometry) for name, volume in volumes.items()}
    return write_entry(file, prepared, modalities, kept, contents if with_contents else None)


def contents_of(file: Path) -> dict[str, str]:
    """Return modality to SHA-256 of the source's voxels, as an entry's header has it; empty where it has none.

    Raises:
        InputError: Not an entry of a store.
    """
    try:
        found = parse_json(read_header(file)[0]["__metadata__"][_METADATA_KEY]).get("contents", {})
        return {str(name): str(sha256) for name, sha256 in found.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"not an entry of a store ({error!r})", file=file, remedy=_REBUILD) from error


def rebuild_entry(
    folder: Path, root: Path | None, entry: SessionEntry, preparation: Preparation, modalities: Sequence[str]
) -> None:
    """Make one corrupt entry again from its sources.

    Args:
        folder: The store.
        root: The dataset it was made from.
        entry: What the store's index says of the entry.
        preparation: The store's preparation.
        modalities: Views of the store, in its order.

    Raises:
        InputError: A source is missing or changed, or the result differs from what the index promises.
    """
    file = folder / entry.file
    remedy = "run the same `neurotome prepare` again"
    if root is None:
        raise InputError("the entry is corrupt and the store does not know its sources", file=file, remedy=remedy)
    paths = {name: root / place for name, place in entry.sources.items()}
    for name, path in paths.items():
        if not path.is_file() or file_sha256(path) != entry.source_sha256[name]:
            raise InputError(
                f"the entry of {entry.name} is corrupt, and its source {printable(path)} is missing or has changed",
                file=file,
                remedy=remedy,
            )
    # whether a head is acceptable was decided when the entry was first made
    listed = bool(entry.content_sha256)
    made = make_entry(file, paths, entry.source_sha256, preparation, modalities, allow_head=True, with_contents=listed)
    if made != entry.sha256:
        raise InputError(f"the entry of {entry.name} was corrupt and came out differently", file=file, remedy=remedy)


def write_entry(
    file: Path,
    prepared: Prepared,
    modalities: Sequence[str],
    labels: Integer[np.ndarray, "x y z"] | None,
    contents: Mapping[str, str] | None = None,
) -> str:
    """Write one session and return the SHA-256 of the file.

    Args:
        file: The entry.
        prepared: Its views.
        modalities: Views of the store, in its order.
        labels: A label map, or None.
        contents: Modality to SHA-256 of the source's voxels; None where they are not known.

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
    listed = {} if contents is None else {"contents": dict(contents)}
    metadata = {_METADATA_KEY: json.dumps({"records": records, **listed}, sort_keys=True)}
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
    num_views = len(modalities)
    wanted = {
        "image": (("float32",), (num_views, 1, *shape)),
        "present": (("uint8",), (num_views,)),
        MASK: (("uint8",), shape),
        LABELS: (("uint8", "int32"), shape),
    }
    try:
        arrays = map_tensors(file)
        for name, (dtypes, size) in wanted.items():
            if name == LABELS and name not in arrays:
                continue
            if arrays[name].dtype.name not in dtypes or arrays[name].shape != size:
                raise InputError(f"{name} has another type or shape than the store declares")
        records = parse_json(read_header(file)[0]["__metadata__"][_METADATA_KEY])["records"]
        return LoadedSession(
            image=arrays["image"],
            present=arrays["present"].astype(bool),
            mask=arrays[MASK].view(np.bool_),
            labels=arrays.get(LABELS),
            records={name: Record.from_json(value) for name, value in records.items()},
            sources={m: path for m, path in entry.sources.items() if m in modalities},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = error.reason if isinstance(error, InputError) else f"not an entry of a store ({error!r})"
        raise InputError(reason, file=file, remedy=_REBUILD) from error
