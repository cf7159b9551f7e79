"""Many scans, one after another, with every part of the machine busy: read ahead, compute in batches, write behind.

    reader thread     read, verify, prepare           at most three batches ahead
    this thread       network, in batches
    writer thread     undo the preparation, compress, write

A refused scan is named and costs itself only. Order and bytes of the results do not depend on timing.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from neurotome.apply.derivatives import generated_by
from neurotome.apply.names import Job, modality_of, write_result
from neurotome.apply.resume import standing
from neurotome.data.imaging.reader import read_volume
from neurotome.data.imaging.volume import Volume
from neurotome.errors import InputError
from neurotome.files.verified import file_sha256
from neurotome.scans.stages import PreparedScan
from neurotome.scans.tokenizer import ScanTokenizer

_BATCHES_AHEAD = 3


@dataclass(frozen=True)
class Reading:
    """How scans are read.

    Args:
        allow_head: Accept a scan that looks like a whole head.
        use_qform: Take the quaternion where the two transforms of a header disagree.
        volume: Which volume of a 4-D series, from 0; None admits one volume only.
    """

    allow_head: bool = False
    use_qform: bool = False
    volume: int | None = None

    def read(self, path: Path) -> Volume:
        """Read a scan."""
        return read_volume(path, volume=self.volume, use_qform=self.use_qform)

    def to_json(self) -> dict[str, Any]:
        """Return what results depend on."""
        return {"AllowHead": self.allow_head, "UseQform": self.use_qform, "Volume": self.volume}


@dataclass(frozen=True, eq=False)
class Loaded:
    """One case on its way to the network.

    Args:
        job: What is read and written.
        item: What the network gets.
        facts: What the sidecar says about the source.
        reason: Why it is made again, if it is.
    """

    job: Job
    item: Any
    facts: dict[str, Any]
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Result:
    """One case on its way to the disk.

    Args:
        job: What is read and written.
        save: Writes the result and returns the SHA-256 of its bytes.
        sidecar: Goes beside it.
    """

    job: Job
    save: Callable[[Path], str]
    sidecar: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Args:
        job: What was read and written.
        state: "kept" where a verified result stands.
        reason: Why it was refused, or made again.
        error: The refusal.
    """

    job: Job
    state: Literal["written", "kept", "refused"]
    reason: str = ""
    error: InputError | None = None


class Work(ABC):
    """One verb.

    Args:
        tokenizer: The model.
        reading: How scans are read.
    """

    verb: str

    def __init__(self, tokenizer: ScanTokenizer, reading: Reading | None = None) -> None:
        self.tokenizer = tokenizer
        self.reading = Reading() if reading is None else reading

    @property
    def request(self) -> dict[str, Any]:
        """What a result depends on besides its source: written into its sidecar, compared before it is kept."""
        options = {"Command": self.verb, **self.reading.to_json(), "Precision": self.tokenizer.codec.precision}
        return {"ModelSHA256": self.tokenizer.digest, "Parameters": options | self.options()}

    def options(self) -> dict[str, Any]:
        """Return the options of the verb."""
        return {}

    @abstractmethod
    def load(self, job: Job) -> Loaded:
        """Read and prepare a case; runs in a thread beside the network.

        Raises:
            InputError: The case is refused.
        """

    @abstractmethod
    def compute(self, loaded: Sequence[Loaded]) -> list[Result]:
        """Run the network on several cases."""

    def described(self, job: Job, source: str, source_modality: str, modality: str) -> dict[str, Any]:
        """Return what every sidecar says; the names are those of files or BIDS URIs, as a path may name a person."""
        return {
            "Synthetic": True,
            "Sources": [job.origin],
            "SourceSHA256": source,
            "SourceModality": source_modality,
            "Modality": modality,
            "SkullStripped": True,
            "Mask": job.mask_origin or None,
            "MaskSHA256": None,
            "GeneratedBy": [generated_by()],
            "Model": type(self.tokenizer.network).__name__,
            **self.request,
            "Seed": None,  # nothing is drawn
            "Notes": [],
            "Use": "research only, not for diagnosis",
        }

    def load_scan(self, job: Job) -> tuple[PreparedScan, dict[str, Any]]:
        """Read and prepare a scan; return it with what the sidecar says about the source.

        Raises:
            InputError: The scan or its mask is refused.
        """
        modality = modality_of(job.source, job.modality)
        volume = self.reading.read(job.source)
        mask = None if job.mask is None else self.reading.read(job.mask)
        try:
            scan = self.tokenizer.prepare(volume, modality, mask, self.reading.allow_head)
        except InputError as error:
            raise InputError(error.reason, file=error.file or job.source, remedy=error.remedy) from error
        facts = self.described(job, volume.provenance.sha256 or file_sha256(job.source), modality, modality)
        facts["MaskSHA256"] = None if mask is None else mask.provenance.sha256
        facts["Notes"] = list(volume.provenance.notes)
        if scan.image.shape != (usual := self.tokenizer.preparation.shape):
            sizes = (" x ".join(map(str, shape)) for shape in (scan.image.shape, usual))
            facts["Notes"].append("computed on a grid of {}: the brain does not fit the model's of {}".format(*sizes))
        return scan, facts


def process(jobs: Iterable[Job], work: Work, *, overwrite: bool = False) -> Iterator[Outcome]:
    """Do every job and yield what became of it, in order.

    Args:
        jobs: What is to be done.
        work: The verb.
        overwrite: Whether results that stand are made again, whoever made them.

    Raises:
        OutputError: A result cannot be written; what was written stays.
    """
    size = work.tokenizer.codec.batch
    request = work.request
    reader, writer = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(1, "write")
    pending: deque[Outcome | Future[Outcome]] = deque()

    def load(job: Job) -> Loaded | Outcome:
        return _load(work, job, request, overwrite)

    try:
        for batch in _batches(_ahead(jobs, load, reader, _BATCHES_AHEAD * size), size):
            results = iter(work.compute([item for item in batch if isinstance(item, Loaded)]))
            for item in batch:
                pending.append(item if isinstance(item, Outcome) else writer.submit(_write, next(results), item.reason))
            while len(pending) > 2 * size:
                yield _settled(pending.popleft())
        while pending:
            yield _settled(pending.popleft())
    finally:
        for pool in (reader, writer):
            pool.shutdown(wait=True, cancel_futures=True)


def _ahead(
    jobs: Iterable[Job], load: Callable[[Job], Loaded | Outcome], pool: ThreadPoolExecutor, depth: int
) -> Iterator[Loaded | Outcome]:
    """Yield what ``load`` makes of the jobs, in order, ``depth`` of them ahead."""
    coming: deque[Future[Loaded | Outcome]] = deque()
    for job in jobs:
        coming.append(pool.submit(load, job))
        if len(coming) > depth:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


def _batches(items: Iterable[Loaded | Outcome], size: int) -> Iterator[list[Loaded | Outcome]]:
    """Yield groups with ``size`` cases for the network, or none."""
    batch: list[Loaded | Outcome] = []
    for item in items:
        batch.append(item)
        if sum(isinstance(i, Loaded) for i in batch) in (0, size):
            yield batch
            batch = []
    if batch:
        yield batch


def _load(work: Work, job: Job, request: Mapping[str, Any], overwrite: bool) -> Loaded | Outcome:
    state, reason = ("missing", "") if overwrite else standing(job, request)
    if state == "kept":
        return Outcome(job, "kept")
    try:
        if state == "foreign":
            raise InputError(reason, file=job.target, remedy="give --overwrite, or another output")
        return replace(work.load(job), reason=reason)
    except InputError as error:
        return Outcome(job, "refused", str(error), error)


def _write(result: Result, reason: str) -> Outcome:
    write_result(result.job.target, result.save, result.sidecar)
    return Outcome(result.job, "written", reason)


def _settled(item: Outcome | Future[Outcome]) -> Outcome:
    return item if isinstance(item, Outcome) else item.result()
