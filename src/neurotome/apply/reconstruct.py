"""Encode, decode and reconstruct, from file to file."""

from pathlib import Path
from typing import Any

from neurotome.apply.files import Job, modality_of, write_result
from neurotome.apply.latent_scan import LatentScan
from neurotome.apply.tokenizer import ScanTokenizer
from neurotome.data.nifti import read_volume
from neurotome.data.volume import Volume
from neurotome.errors import InputError


def reconstruct_file(tokenizer: ScanTokenizer, job: Job, *, allow_head: bool = False) -> dict[str, Any]:
    """Write what is left of a scan after encoding and decoding, on the scan's own grid; return the sidecar."""
    volume, modality = read_volume(job.source), modality_of(job.source, job.modality)
    code = tokenizer.encode(volume, modality, read_mask(job.mask), allow_head)
    sidecar = described(tokenizer, job, volume, modality, modality) | {
        "Description": "a scan encoded to discrete or continuous codes and decoded again",
        "BitsPerVoxel": round(tokenizer.network.bits_per_voxel(code.encoded.shape), 4),
        "IntensityUnits": "those of the source",
    }
    result = tokenizer.decode(code)
    write_result(job.target, result.save, sidecar)
    return sidecar


def encode_file(tokenizer: ScanTokenizer, job: Job, *, allow_head: bool = False) -> dict[str, Any]:
    """Write the code of a scan; return the sidecar."""
    volume, modality = read_volume(job.source), modality_of(job.source, job.modality)
    code = tokenizer.encode(volume, modality, read_mask(job.mask), allow_head)
    sidecar = described(tokenizer, job, volume, modality, modality) | {
        "Description": "the code of a scan; decode it with the same model",
        "LatentShape": list(code.encoded.latent.shape[1:]),
        "BitsPerVoxel": round(tokenizer.network.bits_per_voxel(code.encoded.shape), 4),
    }
    write_result(job.target, code.save, sidecar)
    return sidecar


def decode_file(tokenizer: ScanTokenizer, job: Job) -> dict[str, Any]:
    """Write the scan of a code, in its own contrast or in ``job.modality``; return the sidecar.

    Raises:
        InputError: The code was made by another model.
    """
    code = LatentScan.load(job.source)
    try:
        result = tokenizer.decode(code, job.modality)
    except InputError as error:
        raise InputError(error.reason, file=job.source, remedy=error.remedy) from error
    target = job.modality or code.modality
    own = target == code.modality
    sidecar = described(tokenizer, job, None, code.modality, target) | {
        "Description": "a scan decoded from its code",
        "Style": "of the source" if own else "mean over training subjects",
        "IntensityUnits": "those of the source" if own else "mean range over training subjects",
    }
    write_result(job.target, result.save, sidecar)
    return sidecar


def described(
    tokenizer: ScanTokenizer, job: Job, volume: Volume | None, source_modality: str, modality: str
) -> dict[str, Any]:
    """Return what every sidecar of a result says. Names are those of files, never folders: a path may name a person."""
    return {
        "Synthetic": True,
        "Sources": [job.source.name],
        "SourceSHA256": None if volume is None else volume.provenance.sha256,
        "SourceModality": source_modality,
        "Modality": modality,
        "SkullStripped": True,
        "Model": type(tokenizer.network).__name__,
        "ModelSHA256": tokenizer.digest,
        "Notes": [] if volume is None else list(volume.provenance.notes),
        "Use": "research only, not for diagnosis",
    }


def read_mask(path: Path | None) -> Volume | None:
    """Read a brain mask, if one is given."""
    return None if path is None else read_volume(path)
