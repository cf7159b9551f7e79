"""Translate a scan into another contrast, from file to file."""

from pathlib import Path
from typing import Any

from neurotome.apply.files import Job, modality_of, write_result
from neurotome.apply.reconstruct import described, read_mask
from neurotome.apply.tokenizer import ScanTokenizer
from neurotome.data.nifti import read_volume


def translate_file(
    tokenizer: ScanTokenizer,
    job: Job,
    to: str,
    *,
    style_from: Path | None = None,
    allow_head: bool = False,
) -> dict[str, Any]:
    """Write a scan's anatomy in the contrast ``to``, on the scan's own grid; return the sidecar.

    Args:
        tokenizer: The model.
        job: Scan and result.
        to: Target contrast.
        style_from: A scan of that contrast that lends style and intensity range; None for the training mean.
        allow_head: Skip the check for a whole head.
    """
    volume, modality = read_volume(job.source), modality_of(job.source, job.modality)
    reference = None if style_from is None else read_volume(style_from)
    result = tokenizer.translate(volume, to, reference, modality, read_mask(job.mask), allow_head)
    lent = "mean over training subjects" if style_from is None else f"of {style_from.name}"
    sidecar = described(tokenizer, job, volume, modality, tokenizer.known(to)) | {
        "Description": "a scan's anatomy painted in a contrast that was not measured",
        "Style": lent,
        "IntensityUnits": f"range {lent}; not comparable with the source",
    }
    write_result(job.target, result.save, sidecar)
    return sidecar
