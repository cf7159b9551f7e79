r"""The codes of a whole store, for training on latents: several draws of augmentation per scan, written in shards.

    draw 0             the scan as it is                       validation and test scans have no other
    draw k             image(p) = scan(F (p - t))              F mirrors left and right or not, t shifts by whole voxels
    record of a draw   grid_to_source F T(-t)                  so that decoding leads back to the source all the same

F and t are a pure function of (seed, session, k) and of the brain's box, which no shift moves beyond the grid. Which
entry lies in which shard is a pure function of store, model and options: a killed run resumes with the same bytes.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from neurotome.apply.resume import check_request, writing
from neurotome.data.datasets.text_files import read_json
from neurotome.data.preparation.record import Record
from neurotome.data.stores.entries import SessionEntry, is_intact
from neurotome.data.stores.latents import (
    FORMAT_VERSION,
    INDEX_NAME,
    KIND,
    LatentEntry,
    Latents,
    entry_to_json,
    shard_name,
)
from neurotome.data.stores.masks import check_labelled
from neurotome.data.stores.single_latents import METADATA_KEY
from neurotome.data.stores.store import Store
from neurotome.errors import InputError, UsageError, printable
from neurotome.files.atomic import write_atomically
from neurotome.files.progress import Report
from neurotome.nn.exported import is_finite
from neurotome.ranges import Count, PositiveCount, Range, Ranged, Share
from neurotome.scans.latent_scan import LatentScan
from neurotome.scans.session_views import SessionView, session_views
from neurotome.scans.tokenizer import ScanTokenizer
from neurotome.streams import SHARD_DRAW, generator
from neurotome.tokenizers.base import Encoded


@dataclass(frozen=True)
class ShardPlan(Ranged):
    """How a store is encoded.

    Args:
        draws: Entries per training session; the first is the scan as it is.
        seed: Of the draws.
        shift_voxels: Largest shift along each axis.
        flip_prob: Probability of mirroring left and right.
        shard_bytes: Size that a shard is kept below, where one session is not larger.

    Raises:
        UsageError: A value is out of range.
    """

    draws: PositiveCount = 1
    seed: int = 0
    shift_voxels: Count = 2
    flip_prob: Share = 0.5
    shard_bytes: Annotated[int, Range("[1, inf)")] = 256 << 20


@dataclass(frozen=True)
class Draw:
    """``image(p) = scan(F (p - shift))``; F mirrors x if ``flip``."""

    flip: bool = False
    shift: tuple[int, int, int] = (0, 0, 0)

    def moved(self, volume: Shaped[np.ndarray, "x y z"], outside: float) -> Shaped[np.ndarray, "x y z"]:
        """Return a volume flipped and shifted; what comes in from beyond the grid is ``outside``."""
        source = volume[::-1] if self.flip else volume
        result = np.full_like(source, outside)
        to = tuple(slice(max(t, 0), n + min(t, 0)) for t, n in zip(self.shift, source.shape, strict=True))
        back = tuple(slice(max(-t, 0), n + min(-t, 0)) for t, n in zip(self.shift, source.shape, strict=True))
        result[to] = source[back]
        return result

    def record(self, record: Record) -> Record:
        """Return the record of a moved scan: undoing it undoes the augmentation too."""
        matrix = np.eye(4)
        matrix[:3, 3] = [-t for t in self.shift]
        if self.flip:
            matrix[0, 0], matrix[0, 3] = -1, record.shape[0] - 1 + self.shift[0]
        return replace(record, grid_to_source=record.grid_to_source @ matrix)


def drawn_for(plan: ShardPlan, session: str, draw: int, mask: Bool[np.ndarray, "x y z"]) -> Draw:
    """Return what a draw does to a scan: a pure function of seed, session, draw and the brain's box."""
    if draw == 0:
        return Draw()
    index = int.from_bytes(hashlib.sha256(session.encode()).digest()[:8], "big")
    rng = generator(plan.seed, SHARD_DRAW, index, draw)
    flip = bool(rng.random() < plan.flip_prob)
    shift = []
    for axis, n in enumerate(mask.shape):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (0, n - 1)
        if axis == 0 and flip:
            first, last = n - 1 - last, n - 1 - first
        low, high = max(-plan.shift_voxels, -first), min(plan.shift_voxels, n - 1 - last)
        shift.append(int(rng.integers(low, high + 1)))
    x, y, z = shift
    return Draw(flip, (x, y, z))


@dataclass(frozen=True)
class Summary:
    """What became of the shards of a store.

    Args:
        entries: Sessions times draws.
        shards: Files.
        kept: Files that stood and were verified.
        size_bytes: Size of all.
    """

    entries: int
    shards: int
    kept: int
    size_bytes: int


class ShardWriter:
    """Encodes a store into shards; see the module's text.

    Args:
        tokenizer: The model.
        store: Prepared as the model expects.
        plan: How it is encoded.

    Raises:
        InputError: The store was prepared differently, has none of the model's contrasts, no session, or a session
            without the label map that a model of masks encodes.
    """

    def __init__(self, tokenizer: ScanTokenizer, store: Store, plan: ShardPlan) -> None:
        self.tokenizer, self.store, self.plan = tokenizer, store, plan
        self.views = [m for m in tokenizer.modalities if m in store.modalities]
        if store.preparation.image_digest != tokenizer.preparation.image_digest:
            raise InputError(
                "the store was prepared differently from what the model expects",
                file=store.path,
                remedy="run `neurotome prepare` with what the model's preprocess.json says",
            )
        if not self.views:
            raise InputError(
                f"the store has {', '.join(store.modalities)}, the model knows {', '.join(tokenizer.modalities)}",
                file=store.path,
                remedy="give a store with one of the model's contrasts",
            )
        try:
            tokenizer.network.latent_shape(store.preparation.shape)
        except ValueError as error:
            raise InputError(str(error), file=store.path) from error
        draws = {"train": plan.draws}
        self.cases = [
            (entry, draw)
            for entry in store.sessions
            if set(entry.modalities) & set(self.views)
            for draw in range(draws.get(entry.split, 1))
        ]
        if not self.cases:
            raise InputError("the store holds no session", file=store.path, remedy="prepare it again")
        if tokenizer.masks is not None and tokenizer.masks.source == "label":
            check_labelled(store, [entry for entry, draw in self.cases if draw == 0])

    @property
    def request(self) -> dict[str, Any]:
        """What the bytes depend on."""
        options = {**asdict(self.plan), "Store": self.store.fingerprint, "Precision": self.tokenizer.codec.precision}
        return {"ModelSHA256": self.tokenizer.digest, "Parameters": {"Command": "encode --shards", **options}}

    def write(self, out: Path, *, overwrite: bool = False, progress: Report | None = None) -> Summary:
        """Write the shards that are missing or damaged, and the index after each.

        Args:
            out: Folder of the shards.
            overwrite: Begin anew, whatever is there.
            progress: Called after every shard.

        Raises:
            UsageError: ``out`` holds something else.
            OutputError: It cannot be written, or another process writes there.
            InputError: The network made latents that are not finite.
        """
        check_request(out, self.request, overwrite=overwrite)
        with writing(out, self.request):
            if overwrite:  # the index first: shards that no index names are never taken for standing ones
                for stale in (out / INDEX_NAME, *sorted(out.glob("shard-*.safetensors"))):
                    stale.unlink(missing_ok=True)
            before = _standing(out, self.request)
            sizes = before.get("size") or self._size()
            listed = before.get("shards", [])
            done: list[dict[str, Any]] = []
            kept = finished = 0
            for place, group in enumerate(self._groups(sizes)):
                if place < len(listed) and is_intact(out / shard_name(place), listed[place]["sha256"]):
                    done.append(listed[place])
                    kept += 1
                else:
                    done.append(self._shard(out, place, group, finished))
                    self._index(out, [*done, *listed[place + 1 :]], sizes)
                finished += len(group)
                if progress is not None:
                    progress(finished, len(self.cases), shard_name(place))
            self._index(out, done, sizes)
            for stray in set(out.glob("shard-*.safetensors")) - {out / shard["file"] for shard in done}:
                stray.unlink()
        return Summary(len(self.cases), len(done), kept, sum(shard["bytes"] for shard in done))

    def _size(self) -> dict[str, int]:
        """Return the bytes of the code of a view, the same for all, and what an entry has besides, taken generously."""
        views, mask, _ = self._views(*self.cases[0])
        tensors = self._codes(views[:1])[0].stored().values()
        besides = sum(len(json.dumps(view.record.to_json())) for view in views) + len(_packed(mask))
        return {"view": sum(tensor.nbytes for tensor in tensors), "entry": 2 * besides + 4096}

    def _groups(self, sizes: Mapping[str, int]) -> Iterator[list[tuple[SessionEntry, int]]]:
        """Yield the cases of each shard."""
        group: list[tuple[SessionEntry, int]] = []
        size = 0
        for entry, draw in self.cases:
            more = sizes["entry"] + sizes["view"] * len(set(entry.modalities) & set(self.views))
            if group and size + more > self.plan.shard_bytes:
                yield group
                group, size = [], 0
            group.append((entry, draw))
            size += more
        yield group

    def _views(self, entry: SessionEntry, draw: int) -> tuple[list[SessionView], Bool[np.ndarray, "x y z"], Draw]:
        """Return what is encoded of a session under a draw, its brain, and what was drawn."""
        session, masks = self.store.load(entry), self.tokenizer.masks
        drawn = drawn_for(self.plan, entry.name, draw, session.mask)
        outside = self.store.preparation.outside if masks is None else -1.0
        views = [
            SessionView(
                np.stack([drawn.moved(channel, outside) for channel in view.image]),
                view.modality,
                drawn.record(view.record),
            )
            for view in session_views(self.tokenizer.network, self.store, session, masks)
        ]
        return views, drawn.moved(session.mask, False), drawn

    def _codes(self, views: Sequence[SessionView]) -> list[Encoded]:
        """Return the codes of some views."""
        return self.tokenizer.codec.encode([view.image for view in views], [view.modality for view in views])

    def _shard(self, out: Path, place: int, cases: Sequence[tuple[SessionEntry, int]], first: int) -> dict[str, Any]:
        """Encode some cases and write them; return the line of the index."""
        tensors: dict[str, Tensor] = {}
        entries = []
        waiting: list[tuple[int, SessionView]] = []
        for number, (session, draw) in enumerate(cases, first):
            views, mask, drawn = self._views(session, draw)
            waiting += [(number, view) for view in views]
            tensors[f"{number}.mask"] = torch.frombuffer(bytearray(_packed(mask)), dtype=torch.uint8)
            records = {view.modality: view.record for view in views}
            entry = LatentEntry(
                number, out / shard_name(place), session.subject, session.session, session.site, session.split, draw,
                records, asdict(drawn), session.digest, tuple(sorted(session.contents)),
            )  # fmt: skip
            entries.append(entry_to_json(entry))
            last = number == first + len(cases) - 1
            while len(waiting) >= self.tokenizer.codec.batch or (last and waiting):
                tensors |= self._encoded(waiting[: self.tokenizer.codec.batch])
                waiting = waiting[self.tokenizer.codec.batch :]
        head = {"tokenizer": self.tokenizer.digest, "entries": entries}
        data = safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(head)})
        header = data[8 : 8 + int.from_bytes(data[:8], "little")]
        sha256 = write_atomically(out / shard_name(place), [data])
        return {
            "file": shard_name(place),
            "sha256": sha256,
            "header_sha256": hashlib.sha256(header).hexdigest(),
            "bytes": len(data),
            "entries": len(entries),
        }

    def _encoded(self, views: Sequence[tuple[int, SessionView]]) -> dict[str, Tensor]:
        """Return the named tensors of some views.

        Raises:
            InputError: One is not finite.
        """
        found = {}
        for (number, view), code in zip(views, self._codes([v for _, v in views]), strict=True):
            for name, tensor in code.stored().items():
                if not is_finite(tensor):
                    raise InputError(
                        f"the {name} that the model makes of it is not finite ({view.modality}, entry {number})",
                        file=self.store.path,
                        remedy="train again, or encode with --precision fp32",
                    )
                found[f"{number}.{view.modality}.{name}"] = tensor[0].contiguous()
        return found

    def _index(self, out: Path, shards: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> None:
        tokenizer, shape = self.tokenizer, self.store.preparation.shape
        index = {
            "format_version": FORMAT_VERSION,
            "kind": KIND,
            "tokenizer": tokenizer.digest,
            "class": type(tokenizer.network).__name__,
            "modalities": list(tokenizer.modalities),
            "shape": list(shape),
            "latent": {
                "channels": tokenizer.network.latent_channels,
                "shape": list(tokenizer.network.latent_shape(shape)),
            },
            "preparation": self.store.preparation.to_json(),
            "request": self.request,
            "size": dict(sizes),
            "num_entries": len(self.cases),
            "shards": list(shards),
        }
        write_atomically(out / INDEX_NAME, [json.dumps(index, indent=1).encode() + b"\n"])


def read_scan(latents: Latents, entry: LatentEntry, modality: str) -> LatentScan:
    """Return the code of one view, ready to be decoded onto its source's grid; the decoder refuses another model's.

    Raises:
        UsageError: The entry lacks the view.
        InputError: Its file is damaged.
    """
    if modality not in entry.records:
        raise UsageError(f"sub-{printable(entry.subject)} has {', '.join(entry.modalities)}, not {modality}")
    view, origin = latents.load(entry, modality), latents.origin

    tensors = {name: torch.from_numpy(np.array(array))[None] for name, array in view.arrays.items()}
    encoded = Encoded.restored(tensors, origin.shape)
    mask = latents.mask(entry)
    return LatentScan(encoded, modality, entry.records[modality], mask, origin.preparation, origin.tokenizer)


def _packed(mask: Bool[np.ndarray, "x y z"]) -> bytes:
    return zlib.compress(np.packbits(mask).tobytes(), 6)


def _standing(out: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the index of an earlier run of the same request; a damaged one is made again."""
    try:
        index = read_json(out / INDEX_NAME) if (out / INDEX_NAME).is_file() else {}
        if index.get("format_version") != FORMAT_VERSION or index.get("kind") != KIND:
            return {}
        if index.get("request") != request:  # of a run that was to be overwritten
            return {}
        plain = all(s["file"] == shard_name(i) and isinstance(s["sha256"], str) for i, s in enumerate(index["shards"]))
        return index if plain and all(isinstance(index["size"][key], int) for key in ("view", "entry")) else {}
    except (InputError, KeyError, TypeError) as error:
        if isinstance(error, InputError) and error.unreadable:
            raise
        return {}
