"""Encode, decode and reconstruct: the work that each of the three verbs does for every scan."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from neurotome.apply.names import Job
from neurotome.apply.work import Loaded, Reading, Result, Work
from neurotome.errors import InputError
from neurotome.files.verified import file_sha256
from neurotome.scans.latent_scan import LatentScan
from neurotome.scans.stages import DecodedScan, PreparedScan
from neurotome.scans.tokenizer import ScanTokenizer


class Encoding(Work):
    """Scans to codes.

    Args:
        tokenizer: The model.
        reading: How scans are read.
        float_latent: Store what the decoder receives also where the codes stand for it.
    """

    verb = "encode"

    def __init__(self, tokenizer: ScanTokenizer, reading: Reading | None = None, float_latent: bool = False) -> None:
        super().__init__(tokenizer, reading)
        self.float_latent = float_latent

    def options(self) -> dict[str, Any]:
        """See :class:`Work`; only what differs from the default is named, so that older results stay what they are."""
        return {"FloatLatent": True} if self.float_latent else {}

    def load(self, job: Job) -> Loaded:
        """See :class:`Work`."""
        return Loaded(job, *self.load_scan(job))

    def compute(self, loaded: Sequence[Loaded]) -> list[Result]:
        """See :class:`Work`."""
        codes = self.tokenizer.encode_batch(scans(loaded))
        return [self._result(one, code) for one, code in zip(loaded, codes, strict=True)]

    def _result(self, one: Loaded, code: LatentScan) -> Result:
        sidecar = one.facts | {
            "Description": "the code of a scan; decode it with the same model",
            "LatentShape": list(code.encoded.latent.shape[1:]),
            "BitsPerVoxel": bits_per_voxel(self.tokenizer, code),
        }
        return Result(one.job, partial(code.save, float_latent=self.float_latent), sidecar)


class Reconstruction(Work):
    """Scans to what is left of them after encoding and decoding, on their own grids."""

    verb = "reconstruct"

    def load(self, job: Job) -> Loaded:
        """See :class:`Work`."""
        return Loaded(job, *self.load_scan(job))

    def compute(self, loaded: Sequence[Loaded]) -> list[Result]:
        """See :class:`Work`."""
        codes = self.tokenizer.encode_batch(scans(loaded))
        decoded = self.tokenizer.decode_batch(codes)
        return [
            decoded_result(
                one,
                image,
                Description="a scan encoded to discrete or continuous codes and decoded again",
                BitsPerVoxel=bits_per_voxel(self.tokenizer, code),
                IntensityUnits="those of the source",
            )
            for one, code, image in zip(loaded, codes, decoded, strict=True)
        ]


class Decoding(Work):
    """Codes to scans, in their own contrast or in another one.

    Args:
        tokenizer: The model that made them.
        to: Contrast of the result; None for each code's own.
        reading: Not used; codes are read in one way only.
    """

    verb = "decode"

    def __init__(self, tokenizer: ScanTokenizer, to: str | None = None, reading: Reading | None = None) -> None:
        super().__init__(tokenizer, reading)
        self.to = to if to is None else tokenizer.known(to)

    def options(self) -> dict[str, Any]:
        """See :class:`Work`."""
        return {"To": self.to}

    def load(self, job: Job) -> Loaded:
        """See :class:`Work`; a code of another model is refused."""
        code = LatentScan.load(job.source)
        try:
            self.tokenizer.check_latent(code)
        except InputError as error:
            raise InputError(error.reason, file=job.source, remedy=error.remedy) from error
        facts = self.described(job, file_sha256(job.source), code.modality, self.to or code.modality)
        return Loaded(job, code, facts)

    def compute(self, loaded: Sequence[Loaded]) -> list[Result]:
        """See :class:`Work`."""
        decoded = self.tokenizer.decode_batch([one.item for one in loaded], self.to)
        return [
            decoded_result(
                one,
                image,
                Description="a scan decoded from its code",
                Style="of the source" if own else "mean over training subjects",
                IntensityUnits="those of the source"
                if own
                else "arbitrary; scaled to the mean range of the training subjects",
            )
            for one, image in zip(loaded, decoded, strict=True)
            for own in [self.to in (None, one.item.modality)]
        ]


def scans(loaded: Sequence[Loaded]) -> list[PreparedScan]:
    """Return what the network gets."""
    return [one.item for one in loaded]


def decoded_result(one: Loaded, decoded: DecodedScan, **facts: Any) -> Result:
    """Return the result of a case; the image is brought back to its source's grid when it is saved."""
    return Result(one.job, lambda path: decoded.volume().save(path), one.facts | facts)


def bits_per_voxel(tokenizer: ScanTokenizer, code: LatentScan) -> float:
    """Return what a code takes per prepared voxel."""
    return round(float(tokenizer.network.bits_used(code.encoded).mean()) / math.prod(code.encoded.shape), 4)
