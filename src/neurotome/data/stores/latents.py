r"""Latents on disk as a latent model is trained on them: shards of a whole store, or single latent files.

    SHARDS/index.json                  format, model, preparation, and SHA-256 of every shard and of its header
    SHARDS/shard-00000.safetensors     tensors NUMBER.MODALITY.latent, … .codes.NAME, … .style, … .gain, NUMBER.mask;
                                       the header says whose they are and how they were prepared
    NAME.safetensors                   one scan: codes.NAME, style, gain, mask, and the latent where no codes stand for
                                       it or it was asked for; its SHA-256 stands in NAME.json

An entry is one session under one draw of augmentation. Latents are raw: nothing is normalised here, and a latent of
signs alone lies there as bits (:mod:`neurotome.files.bit_planes`). Arrays are memory-mapped; a file is verified
once, before its first use, against the index or the sidecar.
"""

import hashlib
import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Bool

from neurotome.data.datasets.bids import entities
from neurotome.data.datasets.splits import SPLITS
from neurotome.data.datasets.text_files import read_json
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.record import Record
from neurotome.data.stores.single_latents import ALTERED, ENCODE, METADATA_KEY, promise_of, single_arrays, single_head
from neurotome.errors import InputError, UsageError, printable
from neurotome.files.bit_planes import unpack_bits
from neurotome.files.endings import stem
from neurotome.files.json_text import parse_json
from neurotome.files.tensors import inflated, map_tensors, read_header
from neurotome.files.verified import file_sha256

FORMAT_VERSION = 1
INDEX_NAME = "index.json"
KIND = "neurotome latent shards"
_AGAIN = "run the same `neurotome encode … --shards` again; only what is damaged or missing is made"
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


@dataclass(frozen=True, eq=False)
class LatentEntry:
    """One session under one draw of augmentation.

    Args:
        number: Names its tensors.
        file: Where they are.
        subject: Subject id.
        session: Session id; empty where a subject has one visit only.
        site: Site name, or None.
        split: ``train``, ``val`` or ``test``; empty for a single latent.
        draw: Number of the draw; 0 is the scan as it is.
        records: How each view was prepared, the augmentation included: decoding leads back to the source grid.
        augmentation: What was drawn.
        digest: Of the session in its store; empty for a single latent.
        contents: Content hashes of its scans, sorted; empty for a single latent.
    """

    number: int
    file: Path
    subject: str
    session: str
    site: str | None
    split: str
    draw: int
    records: Mapping[str, Record]
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    contents: tuple[str, ...] = ()

    @property
    def modalities(self) -> tuple[str, ...]:
        """Views that are there."""
        return tuple(self.records)


@dataclass(frozen=True, eq=False)
class LatentView:
    """The code of one view, memory-mapped (writing to it changes a private copy, never the file).

    Args:
        arrays: As they are stored, by name, without the axis of a batch: ``latent``, ``codes.anatomy``, ``style``.
            Floats lie in half precision where that holds them exactly.
    """

    arrays: Mapping[str, np.ndarray[Any, Any]]

    @property
    def latent(self) -> np.ndarray[Any, Any]:
        """The latent ``(d, x, y, z)``, float32; unpacked where it holds signs alone."""
        stored = self.arrays["latent"]
        return unpack_bits(stored) if stored.dtype == np.dtype("<i4") else stored.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Origin:
    """What made some latents; latents of another origin do not mix.

    Args:
        tokenizer: Digest of the model.
        modalities: Its contrasts, in its order; their places are the ids.
        shape: Spatial shape of the images.
        preparation: What made the images.
    """

    tokenizer: str
    modalities: tuple[str, ...]
    shape: tuple[int, int, int]
    preparation: Preparation


class Latents:
    """Latents of many sessions behind one face; see the module's text.

    Args:
        path: Folder or file they were read from.
        origin: What made them.
        entries: Sorted by number.
        sha256: What each file is promised to hold; a single latent without a sidecar is mapped unverified.
    """

    def __init__(
        self, path: Path, origin: Origin, entries: Sequence[LatentEntry], sha256: Mapping[Path, str] | None = None
    ) -> None:
        self.path, self.origin = path, origin
        self.entries = tuple(sorted(entries, key=lambda e: e.number))
        self.sites = tuple(sorted({e.site for e in self.entries if e.site is not None}))
        self._sha256 = dict(sha256 or {})
        self._maps: dict[Path, dict[str, np.ndarray[Any, Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory maps behind: a loader process opens its own."""
        return {**vars(self), "_maps": {}}

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        tokenizer: str | None = None,
        modalities: Sequence[str] | None = None,
    ) -> Self:
        """Open a folder of shards, a folder of single latents (searched through), or one latent file.

        Args:
            path: Where they are.
            tokenizer: Digest of the model they will be used with; None admits any.
            modalities: That model's contrasts. Single latents do not know them; None takes those that occur, sorted.

        Raises:
            UsageError: Nothing is there.
            InputError: Another model made them; unfinished, damaged, of a newer format, or of several models.
        """
        root = Path(path)
        if (root / INDEX_NAME).is_file():
            found = cls._of_shards(root)
        elif root.is_dir():
            files = sorted(p for p in root.rglob("*.safetensors") if p.is_file() and not p.name.startswith("."))
            found = cls._of_files(root, files, modalities)
        elif root.exists():
            found = cls._of_files(root, [root], modalities)
        else:
            raise UsageError(f"{printable(root)}: there is no such file or folder of latents")
        made = found.origin
        if tokenizer is not None and made.tokenizer != tokenizer:
            raise InputError(
                f"the latents were made by model {printable(made.tokenizer)[:12]}, this one is {tokenizer[:12]}",
                file=root,
                remedy="use the model that made them, or encode the store with this one",
            )
        if modalities is not None and tuple(modalities) != made.modalities:
            raise InputError(
                f"the latents are of {', '.join(made.modalities)}, the model of {', '.join(modalities)}", file=root
            )
        return found

    @classmethod
    def _of_shards(cls, root: Path) -> Self:
        file = root / INDEX_NAME
        index = read_json(file, finite=True, remedy=_AGAIN)
        if "sessions" in index and "kind" not in index:
            raise UsageError(
                f"{printable(root)}: is a prepared store, and the config reads latents; make them with "
                "`neurotome encode MODEL STORE OUT --shards`"
            )
        if index.get("kind") != KIND or index.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{index.get('kind')!r}, format {index.get('format_version')!r}; this release reads {KIND!r}, format "
                f"{FORMAT_VERSION}",
                file=file,
                remedy="give a folder that `neurotome encode … --shards` wrote, or update neurotome",
            )
        try:
            x, y, z = (int(size) for size in index["shape"])
            preparation = Preparation.from_json(index["preparation"])
            names = index["modalities"]
            if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
                raise ValueError("modalities are no list of names")
            origin = Origin(str(index["tokenizer"]), tuple(names), (x, y, z), preparation)
            entries: list[LatentEntry] = []
            promises: dict[Path, str] = {}
            for place, shard in enumerate(index["shards"]):
                if shard["file"] != shard_name(place):  # a name from elsewhere could lead out of the folder
                    raise ValueError(f"shard {place} is called {shard['file']!r}")
                promises[root / shard["file"]] = str(shard["sha256"])
                entries += _shard_entries(root / shard["file"], origin.tokenizer, str(shard["header_sha256"]))
            total = int(index["num_entries"])
        except InputError:
            raise
        except _MALFORMED as error:
            raise InputError(f"the index is damaged ({error!r})", file=file, remedy=_AGAIN) from error
        if len(entries) != total:
            raise InputError(f"unfinished: {len(entries)} of {total} entries are there", file=root, remedy=_AGAIN)
        return cls(root, origin, entries, promises)

    @classmethod
    def _of_files(cls, root: Path, files: Sequence[Path], modalities: Sequence[str] | None) -> Self:
        if not files:
            raise UsageError(f"{printable(root)}: there is no latent file; `neurotome encode` writes some")
        heads = [single_head(file) for file in files]
        named = {head["modality"] for head in heads}
        known = tuple(sorted(named)) if modalities is None else tuple(modalities)
        if strange := sorted(named - set(known)):
            raise InputError(f"latents of {', '.join(strange)}, but the model knows {', '.join(known)}", file=root)
        first, entries, counts = heads[0], [], Counter(head["shape"] for head in heads)
        usual = min(counts, key=lambda shape: (-counts[shape], math.prod(shape)))
        for number, (file, head) in enumerate(zip(files, heads, strict=True)):
            if head["shape"] != usual:
                own, others = (" x ".join(map(str, shape)) for shape in (head["shape"], usual))
                remedy = "move it and the .json beside it out of this folder, into one of its own"
                raise InputError(f"lies on a grid of {own} voxels, the others on {others}", file=file, remedy=remedy)
            for key in ("tokenizer", "preparation"):
                if head[key] != first[key]:
                    remedy = "give latents of one model and one preparation"
                    raise InputError(f"its {key} is not that of {files[0].name}", file=file, remedy=remedy)
            found, records = entities(file.name), {head["modality"]: head["record"]}
            subject = found.get("sub", stem(file))
            entries.append(LatentEntry(number, file, subject, found.get("ses", ""), None, "", 0, records))
        origin = Origin(first["tokenizer"], known, usual, first["preparation"])
        return cls(root, origin, entries, {file: sha256 for file in files if (sha256 := promise_of(file)) is not None})

    @property
    def fingerprint(self) -> str:
        """SHA-256 over model and content: what decides what a training sees."""
        parts: list[Any] = [self.origin.tokenizer, sorted(self._sha256.values())]
        parts += [[e.subject, e.session, e.split, e.draw] for e in self.entries if e.file not in self._sha256]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def split(self, name: str) -> list[LatentEntry]:
        """Return the entries of a split.

        Raises:
            ValueError: Not the name of a split.
        """
        if name not in SPLITS:
            raise ValueError(f"there is no split {name!r}; admissible are {', '.join(SPLITS)}")
        return [e for e in self.entries if e.split == name]

    def subjects(self, split: str) -> tuple[str, ...]:
        """Return the subjects of a split, sorted."""
        return tuple(sorted({e.subject for e in self.split(split)}))

    def site_index(self, entry: LatentEntry) -> int:
        """Return the number of an entry's site, -1 where unknown."""
        return -1 if entry.site is None else self.sites.index(entry.site)

    def load(self, entry: LatentEntry, modality: str) -> LatentView:
        """Return the code of one view; its file is verified the first time and mapped once.

        Raises:
            ValueError: The entry has no such view.
            InputError: The file is not what index or sidecar promise.
        """
        if modality not in entry.records:
            raise ValueError(f"sub-{entry.subject} has {', '.join(entry.modalities)}, not {modality}")
        arrays = self._mapped(entry)
        stem = f"{entry.number}.{modality}." if entry.split else ""
        found = {name.removeprefix(stem): array for name, array in arrays.items() if name.startswith(stem)}
        if "latent" not in found:
            if not stem:
                raise InputError("holds codes alone", file=entry.file, remedy="encode the scan with --float-latent")
            raise InputError(f"holds no latent of {modality}", file=entry.file, remedy=_AGAIN)
        if not stem:  # single latents keep the axis of their batch
            found = {name: array[0] for name, array in found.items() if name != "mask"}
        return LatentView(found)

    def mask(self, entry: LatentEntry) -> Bool[np.ndarray, "x y z"]:
        """Return the brain mask of an entry on the grid of the images.

        Raises:
            InputError: It is missing or of another size.
        """
        arrays = self._mapped(entry)
        single = not entry.split
        packed = arrays.get("mask" if single else f"{entry.number}.mask")
        count = math.prod(self.origin.shape)
        try:
            if packed is None:
                raise ValueError("it is missing")
            plain = single and packed.size == math.ceil(count / 8)  # a deflated mask of this size would be no brain's
            bits = packed if plain else np.frombuffer(inflated(packed.tobytes(), math.ceil(count / 8)), np.uint8)
            if bits.dtype != np.uint8 or bits.size != math.ceil(count / 8):
                raise ValueError(f"{bits.size} bytes for {count} voxels")
        except (ValueError, zlib.error) as error:
            raise InputError(f"the mask is damaged ({error})", file=entry.file, remedy=_AGAIN) from error
        return np.unpackbits(bits, count=count).reshape(self.origin.shape).astype(bool)

    def _mapped(self, entry: LatentEntry) -> dict[str, np.ndarray[Any, Any]]:
        file = entry.file
        if file not in self._maps:
            promise = self._sha256.get(file)
            if promise is not None and file_sha256(file) != promise:
                if not entry.split:
                    raise InputError(ALTERED, file=file, remedy=ENCODE)
                raise InputError("its content is not what the index promises", file=file, remedy=_AGAIN)
            self._maps[file] = map_tensors(file) if entry.split else single_arrays(file)
        return self._maps[file]


def shard_name(place: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{place:05d}.safetensors"


def _shard_entries(file: Path, tokenizer: str, sha256: str) -> list[LatentEntry]:
    """Return whose latents a shard holds; its header is verified, its data are when they are first used."""
    header, data, _ = read_header(file)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError("its header is not what the index promises", file=file, remedy=_AGAIN)
    try:
        head = parse_json(header["__metadata__"][METADATA_KEY])
        made_by, entries = head["tokenizer"], [entry_from_json(file, value) for value in head["entries"]]
    except _MALFORMED as error:
        raise InputError(f"its header is damaged ({error!r})", file=file, remedy=_AGAIN) from error
    if made_by != tokenizer:
        raise InputError("it was made by another model than the index says", file=file, remedy=_AGAIN)
    return entries


def entry_to_json(entry: LatentEntry) -> dict[str, Any]:
    """Return an entry as it stands in the header of its shard."""
    keys = ("number", "subject", "session", "site", "split", "draw", "digest")
    records = {modality: record.to_json() for modality, record in entry.records.items()}
    more = {"contents": list(entry.contents), "augmentation": dict(entry.augmentation), "records": records}
    return {key: getattr(entry, key) for key in keys} | more


def entry_from_json(file: Path, value: Mapping[str, Any]) -> LatentEntry:
    """Undo :func:`entry_to_json`.

    Raises:
        ValueError: An unknown split.
    """
    if value["split"] not in SPLITS:
        raise ValueError(f"split {value['split']!r}")
    site = value["site"]
    return LatentEntry(
        number=int(value["number"]),
        file=file,
        subject=str(value["subject"]),
        session=str(value["session"]),
        site=None if site is None else str(site),
        split=value["split"],
        draw=int(value["draw"]),
        records={str(modality): Record.from_json(record) for modality, record in value["records"].items()},
        augmentation=dict(value["augmentation"]),
        digest=str(value["digest"]),
        contents=tuple(str(content) for content in value.get("contents", ())),
    )
