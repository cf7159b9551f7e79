r"""Evaluate a tokenizer on a split: fidelity, translation, structures, codes, their audit, speed.

    reconstruction   decode(encode(x), own contrast)
    translation      decode(shared code of x, mean style of the target over *training* subjects, target contrast);
                     not applicable to a tokenizer without style

One value per subject (its sessions averaged), then a mean and an interval over subjects. Baselines are fitted on the
store's training split and stand in the same table. Nothing is read from the scan that a translation is compared with,
but by the baseline that says so, ``monotone_ceiling``.
"""

import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurotome import streams
from neurotome.data.stores.entries import LoadedSession, SessionEntry
from neurotome.data.stores.leaks import check_splits
from neurotome.data.stores.store import Store
from neurotome.errors import InputError, UsageError
from neurotome.evaluation.audit import ScanCode, audit, noisy, scan_codes
from neurotome.evaluation.baselines import Baselines
from neurotome.evaluation.factors import Truth, factors
from neurotome.evaluation.held_out import check_held_out, seen_at_all
from neurotome.evaluation.regions import RegionVolumes
from neurotome.evaluation.results import (
    DATA_RANGE,
    PROTOCOL,
    Findings,
    bits_tree,
    codebook_tree,
    evaluation_request,
    finite,
    image_metrics,
    not_applicable,
    scales,
    shown_subjects,
    structure_tree,
    task_tree,
    window_size,
    write_results,
)
from neurotome.evaluation.structures import SEGMENTED, StructureReader, StructureScores, check_reader
from neurotome.files.progress import Report
from neurotome.models.styles import ALL_SITES
from neurotome.scans.tokenizer import ScanTokenizer
from neurotome.tokenizers.base import Encoded
from neurotome.training.cost import peak_memory
from neurotome.types import Image, Mask


def evaluate(
    tokenizer: ScanTokenizer,
    store: Store,
    split: str = "test",
    out: str | os.PathLike[str] | None = None,
    allow_train: bool = False,
    seed: int = 0,
    noise_sd: float = 0.04,
    truth: Truth | None = None,
    progress: Report | None = None,
    segmenter: StructureReader | None = None,
    regions: RegionVolumes | None = None,
) -> dict[str, Any]:
    """Return the metrics of ``tokenizer`` on a split, and write them to a folder.

    Args:
        tokenizer: What is evaluated.
        store: The prepared scans; its training split fits baselines and probes.
        split: "train", "val" or "test".
        out: Folder for ``metrics.json`` and ``panels.safetensors``; None writes nothing.
        allow_train: Evaluate subjects the model was trained on.
        seed: Of noise, sampling, probes and intervals.
        noise_sd: Standard deviation, on [-1, 1], of the noise that tests how steady codes are.
        truth: Known factors by subject, ``{"01": {"age": 43.0, "sex": "F"}}``; none if None.
        progress: Called after every session.
        segmenter: Names the structures whose overlap is measured; None for no overlap.
        regions: Volumes of regions that another program measured on scans and reconstructions; None for none.

    Raises:
        UsageError: The split is unknown or empty, or store and model share no contrast.
        InputError: Model or segmenter were trained on a subject of the split, the store was prepared otherwise, or the
            tables of volumes hold no scan of the split.
        OutputError: The folder cannot be written to.
    """
    evaluation = _Evaluation(tokenizer, store, split, seed, noise_sd, segmenter, truth or {})
    evaluation.check(allow_train)
    volumes = None if regions is None else regions.compare({e.subject for e in evaluation.entries}, split, seed)
    result = evaluation.measure(progress)
    if regions is not None:
        result |= {"regions": finite(volumes), "protocol": {**result["protocol"], **regions.protocol()}}
    if out is not None:
        write_results(Path(out), result, evaluation.found.panels, evaluation.found.entries)
    return result


class _Evaluation:
    """One pass over the training split and one over the split under test."""

    def __init__(
        self,
        tokenizer: ScanTokenizer,
        store: Store,
        split: str,
        seed: int,
        noise_sd: float,
        segmenter: StructureReader | None,
        truth: Truth,
    ) -> None:
        if split not in ("train", "val", "test"):
            raise UsageError(f"split is {split!r}; admissible are train, val and test")
        self.tokenizer, self.store, self.split, self.seed, self.noise_sd = tokenizer, store, split, seed, noise_sd
        self.segmenter, self.truth = segmenter, truth
        self.network = tokenizer.network
        self.modalities = [m for m in self.network.modalities if m in store.modalities]
        self.entries = list(store.split(split))
        self.training = list(store.split("train"))
        self.found = Findings()
        self.baselines = Baselines(self.modalities, self.network.factor)
        self.code_maps: tuple[str, ...] = ()
        self.styled = True
        self.structures: StructureScores | None = None
        self.device = tokenizer.codec.device

    def check(self, allow_train: bool) -> None:
        """Refuse what cannot give a valid number."""
        if not self.entries:
            raise UsageError(f"the store has no session in its {self.split} split; choose another split")
        if not self.modalities:
            raise UsageError(
                f"the model knows {', '.join(self.network.modalities)}, the store holds "
                f"{', '.join(self.store.modalities)}: they share no contrast"
            )
        if not allow_train:
            training = self.training if self.split != "train" else ()
            check_splits([*training, *self.entries], self.store.path)
            check_held_out(self.entries, self.split, {"model": self.tokenizer, "segmenter": self.segmenter})
        if self.segmenter is not None:
            check_reader(self.segmenter, self.store, self.modalities)
        if self.tokenizer.preparation.image_digest != self.store.preparation.image_digest:
            raise InputError(
                "the store was prepared differently from what the model expects",
                remedy="run `neurotome prepare` with the spacing and shape in the model's preprocess.json",
            )
        if self.store.preparation.window is None:
            raise InputError(
                "the store holds z-scores without bounds, but the metrics are defined on [-1, 1]",
                file=self.store.path,
                remedy="prepare with --intensity percentile, or with --intensity zscore --clip 5",
            )
        try:
            self.network.latent_shape(self.store.preparation.shape)
        except ValueError as error:
            raise InputError(str(error)) from error
        missing = [m for m in self.modalities if (m, ALL_SITES) not in self.tokenizer.styles]
        if self.tokenizer.styles and missing:
            raise InputError(f"the model folder stores no mean style for {', '.join(missing)} to translate to")

    @torch.inference_mode()
    def measure(self, progress: Report | None = None) -> dict[str, Any]:
        """Pass through both splits and return the tree of ``metrics.json``."""
        passes = [(self._fit, entry) for entry in self.training] + [(self._test, entry) for entry in self.entries]
        for i, (step, entry) in enumerate(passes):
            session = self.store.load(entry)
            views, mask = self._views(session)
            if views:
                self.structures = self._structures(session, views, mask) if step == self._test else None
                step(entry, views, mask, i)
            if progress is not None:
                progress(i + 1, len(passes), entry.name)
        for subject, rank in shown_subjects(self.found.scores, [entry.subject for entry in self.entries]).items():
            self._show(next(entry for entry in self.entries if entry.subject == subject), rank)
        return finite(self._tree())

    def _show(self, entry: SessionEntry, rank: str) -> None:
        """Keep the images of one session for the report."""
        views, mask = self._views(self.store.load(entry))
        if not views:
            return
        encoded, names = self._encode(views), list(views)
        own = self._decode(encoded, names)
        outputs = {(name, name): own[i : i + 1] for i, name in enumerate(names)}
        self.found.keep(entry.subject, rank, views, outputs | self._translations(encoded, names), mask)

    def _fit(self, entry: SessionEntry, views: dict[str, Image], mask: Mask, index: int) -> None:
        """Fit the baselines to a training session and keep its codes for the probes."""
        self.baselines.update(views, mask)
        self.found.train += self._codes(entry, list(views), self._encode(views), mask, index)

    def _test(self, entry: SessionEntry, views: dict[str, Image], mask: Mask, index: int) -> None:
        """Encode, decode, translate and score one session."""
        names = list(views)
        start = self._clock()
        encoded = self._encode(views)
        middle = self._clock()
        own = self._decode(encoded, names)
        self.found.seconds["decode"].append((self._clock() - middle) / len(names))
        self.found.seconds["encode"].append((middle - start) / len(names))
        outputs = {(name, name): own[i : i + 1] for i, name in enumerate(names)}
        if self.structures is not None:
            self.structures.ceilings(entry.subject, self.found)
        shared = self.network.shared(encoded)
        if len(shared.codes) < len(encoded.codes):  # what the private codes buy stands beside what the shared ones hold
            alone = self._decode(shared, names)
            for i, name in enumerate(names):
                metrics = self._metrics(name, "shared_codes_alone", entry.subject, name, alone[i : i + 1], views, mask)
                self.found.score(name, "shared_codes_alone", entry.subject, metrics)
        self.styled = encoded.style is not None
        outputs |= self._translations(encoded, names)
        for (source, target), output in outputs.items():
            if target in views:
                self._score(entry.subject, source, target, output, views, mask)
        self.code_maps = tuple(encoded.codes)
        self.found.spend("own", self.network.bits_used(encoded), mask)
        if self.styled:
            self.found.spend("translated", self.network.bits_used(shared), mask)
        self.found.count(encoded.codes, self._sizes(encoded.codes), mask)
        again = (
            self._encode(noisy(views, mask, self.noise_sd, self._rng(streams.EVALUATION_NOISE, index)))
            if encoded.codes
            else None
        )
        self.found.test += self._codes(entry, names, encoded, mask, index, again)

    def _translations(self, encoded: Encoded, names: Sequence[str]) -> dict[tuple[str, str], Image]:
        """Return every contrast in every other one the model knows; nothing where it has no style."""
        outputs: dict[tuple[str, str], Image] = {}
        shared = self.network.shared(encoded)
        for target in self.modalities if encoded.style is not None else ():
            decoded = self._decode(self._styled(shared, target), [target] * len(names))
            outputs |= {(name, target): decoded[i : i + 1] for i, name in enumerate(names) if name != target}
        return outputs

    def _views(self, session: LoadedSession) -> tuple[dict[str, Image], Mask]:
        """Return the present contrasts the model knows as ``(1, c, x, y, z)``, and the mask."""
        images = {
            name: torch.from_numpy(np.array(session.image[i], dtype=np.float32))[None].to(self.device)
            for i, name in enumerate(self.store.modalities)
            if name in self.modalities and session.present[i]
        }
        return images, torch.from_numpy(np.array(session.mask, dtype=bool))[None, None].to(self.device)

    def _encode(self, views: Mapping[str, Image]) -> Encoded:
        images = [image[0].cpu().numpy() for image in views.values()]
        return Encoded.joined(self.tokenizer.codec.encode(images, list(views))).to(self.device)

    def _decode(self, encoded: Encoded, names: Sequence[str]) -> Image:
        codes = [encoded.single(i) for i in range(len(names))]
        return torch.stack(self.tokenizer.codec.decode(codes, names)).clamp(-1, 1).to(self.device)

    def _styled(self, encoded: Encoded, target: str) -> Encoded:
        """Return the code with the target's mean style over training subjects."""
        if encoded.style is None:
            return encoded
        if (target, ALL_SITES) not in self.tokenizer.styles:
            raise InputError(f"the model has a style but stores no training mean of it for {target} to translate to")
        style = self.tokenizer.styles[target, ALL_SITES].to(encoded.style)
        return replace(encoded, style=style.expand_as(encoded.style))

    def _score(
        self, subject: str, source: str, target: str, output: Image, views: Mapping[str, Image], mask: Mask
    ) -> None:
        """Score the model's output and its baselines against the true target."""
        if source == target:
            task, rivals = target, self.baselines.reconstruct(target, views[target], mask)
        else:
            task, rivals = (
                f"{source}->{target}",
                self.baselines.translate(source, target, views[source], views[target], mask),
            )
        for method, image in {"": output, **rivals}.items():
            self.found.score(task, method, subject, self._metrics(task, method, subject, target, image, views, mask))

    def _metrics(
        self,
        task: str,
        method: str,
        subject: str,
        target: str,
        image: Image,
        views: Mapping[str, Image],
        mask: Mask,
    ) -> dict[str, float]:
        """Return what is measured of one image; the structures are noted one by one for the model alone."""
        values = image_metrics(image, views[target], mask)
        if self.structures is not None and method in SEGMENTED:
            found = None if method else self.found
            values |= self.structures.score(image, task, target, subject, found)
        return values

    def _structures(self, session: LoadedSession, views: Mapping[str, Image], mask: Mask) -> StructureScores | None:
        if self.segmenter is None:
            return None
        labels = None if session.labels is None else torch.from_numpy(np.array(session.labels)).to(self.device)
        return StructureScores(self.segmenter, views, mask, labels)

    def _codes(
        self,
        entry: SessionEntry,
        names: list[str],
        encoded: Encoded,
        mask: Mask,
        index: int,
        noisy: Encoded | None = None,
    ) -> list[ScanCode]:
        try:
            return scan_codes(
                encoded,
                self.network.anatomy(encoded),
                names,
                mask,
                entry.subject,
                entry.session or "",
                entry.site or "",
                self._rng(streams.EVALUATION_CELLS, index),
                noisy,
            )
        except ValueError as error:
            raise InputError(str(error), remedy="check the brain mask of this session and prepare it again") from error

    def _rng(self, stream: int, index: int) -> np.random.Generator:
        return streams.generator(self.seed, stream, index)

    def _tree(self) -> dict[str, Any]:
        """Return the tree of ``metrics.json``."""
        found = self.found
        sizes = self._sizes(self.code_maps)
        return {
            "protocol": self._protocol(),
            **task_tree(found.scores, self.seed),
            "structures": structure_tree(found.overlaps, self.seed),
            "codebook": codebook_tree(found.codebooks, sizes),
            "bits": bits_tree(found.bits, self.store.preparation.shape),
            "audit": audit(found.train, found.test, self.modalities, self.seed),
            "not_applicable": not_applicable(type(self.network).__name__, self.styled, bool(self.code_maps)),
            "factors": factors(found.train, found.test, self.modalities, self.truth, self.seed),
            "speed": {f"{k}_volumes_per_s": 1 / max(statistics.median(v), 1e-9) for k, v in found.seconds.items() if v},
            "memory": peak_memory(),
        }

    def _protocol(self) -> dict[str, Any]:
        """Say what was evaluated and how every number was made."""
        preparation = self.store.preparation
        return {
            **evaluation_request(self.split, getattr(self.segmenter, "digest", None), self.truth),
            "model": type(self.network).__name__,
            "model_sha256": self.tokenizer.digest,
            "store_sha256": self.store.fingerprint,
            "subjects": len({e.subject for e in self.entries}),
            "sessions": len(self.entries),
            "training_subjects": len({e.subject for e in self.training}),
            "trained_on_evaluated": seen_at_all(self.tokenizer, self.entries),
            "modalities": list(self.modalities),
            "shape": list(preparation.shape),
            "spacing_mm": preparation.spacing_mm,
            "latent_factor": list(self.network.factor),
            "data_range": DATA_RANGE,
            "ssim_window": window_size(preparation.shape),
            "ms_ssim_scales": scales(preparation.shape),
            "structures": list(self.segmenter.structures) if self.segmenter is not None else None,
            "noise_sd": self.noise_sd,
            "seed": self.seed,
            "precision": self.tokenizer.codec.precision,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            **PROTOCOL,
        }

    def _sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        """Return the number of codes behind each code map, None where the network does not say."""
        return {name: self.network.codebook_sizes.get(name) for name in names}

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
