"""Latents of single scans on disk, as :class:`neurotome.scans.latent_scan.LatentScan` writes them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from neurotome.data.datasets.text_files import read_json
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.record import Record
from neurotome.errors import InputError
from neurotome.files.code_maps import unpack_codes
from neurotome.files.json_text import parse_json
from neurotome.files.tensors import map_tensors, read_header

SCAN_FORMAT = 2  # 1 holds codes of 32 bits, a mask that is not deflated, and every latent
METADATA_KEY = "neurotome"
ALTERED = "its content is not what the sidecar beside it promises"
ENCODE = "encode the scan again"
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


def promise_of(file: Path) -> str | None:
    """Return the SHA-256 that the sidecar beside a single latent gives; None where there is none.

    Raises:
        InputError: The sidecar cannot be read.
    """
    sidecar = file.with_suffix(".json")
    found = read_json(sidecar).get("ResultSHA256") if sidecar.is_file() else None
    return None if found is None else str(found)


def single_arrays(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of a single latent, codes as maps ``(1, x, y, z)``."""
    arrays = map_tensors(file)
    try:
        layout = parse_json(read_header(file)[0]["__metadata__"][METADATA_KEY]).get("codes")
        if layout is None:
            return arrays
        packed = {name.removeprefix("codes."): a for name, a in arrays.items() if name.startswith("codes.")}
        return arrays | {f"codes.{name}": codes[None] for name, codes in unpack_codes(packed, layout).items()}
    except _MALFORMED as error:
        raise InputError(f"its codes are damaged ({error})", file=file, remedy=ENCODE) from error


def single_head(file: Path) -> dict[str, Any]:
    """Return the metadata of a single latent file, with shape, preparation and record read."""
    header, _, _ = read_header(file)
    try:
        head = parse_json(header["__metadata__"][METADATA_KEY])
        version = int(head["format_version"])
        if version > SCAN_FORMAT:
            raise InputError(
                f"latent format {version} is newer than this version reads ({SCAN_FORMAT})",
                file=file,
                remedy="upgrade neurotome",
            )
        x, y, z = (int(size) for size in head["shape"])
        # files of before say the model's grid, also where the scan needed a larger one
        preparation = replace(Preparation.from_json(head["preparation"]), shape=(x, y, z))
        parts = {"record": Record.from_json(head["record"]), "preparation": preparation}
        named = {key: str(head[key]) for key in ("tokenizer", "modality")}
    except _MALFORMED as error:
        if isinstance(error, InputError) and error.file is not None:
            raise
        remedy = "give a file that `neurotome encode` wrote"
        raise InputError(f"holds no latent of a scan ({error!r})", file=file, remedy=remedy) from error
    return {**parts, **named, "shape": (x, y, z)}
