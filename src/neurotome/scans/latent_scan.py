"""The code of one scan: what the tokenizer made of it, and all that decoding back onto its grid needs.

On disk a safetensors file: tensors ``latent`` (as bits, packed, where it holds signs alone), ``style``, ``gain``,
``codes.NAME``, ``mask`` (bits, packed) and, as metadata, contrast, geometry and intensities of the source, preparation,
and the digest of the model that made it. Where a sidecar lies beside it, its SHA-256 is compared first.
"""

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Bool
from torch import Tensor

from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.record import Record
from neurotome.data.stores.latents import ALTERED, promise_of
from neurotome.errors import InputError
from neurotome.files.atomic import write_atomically
from neurotome.files.json_text import parse_json
from neurotome.files.tensors import metadata_of, read_bounded, read_tensors
from neurotome.tokenizers.base import Encoded

FORMAT_VERSION = 1
KEY = "neurotome"
MAX_BYTES = 2**31
REMEDY = "encode the scan again"


@dataclass(frozen=True, eq=False)
class LatentScan:
    """An :class:`Encoded` of batch size 1 on the CPU, and where it came from.

    Args:
        encoded: Without training terms.
        modality: Contrast of the source.
        record: How the source was prepared; undone when decoding.
        mask: Brain mask on the prepared grid; outside it the decoded scan is background.
        preparation: The preparation that made the network's input.
        tokenizer: Digest of the model.
    """

    encoded: Encoded
    modality: str
    record: Record
    mask: Bool[np.ndarray, "x y z"]
    preparation: Preparation
    tokenizer: str

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the file, whole or not at all; return the SHA-256 of its bytes."""
        tensors = {**self.encoded.stored(), "mask": torch.from_numpy(np.packbits(self.mask))}
        head = {
            "format_version": FORMAT_VERSION,
            "tokenizer": self.tokenizer,
            "modality": self.modality,
            "shape": list(self.encoded.shape),
            "preparation": self.preparation.to_json(),
            "record": self.record.to_json(),
        }
        return write_atomically(path, [safetensors.torch.save(tensors, {KEY: json.dumps(head)})])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a latent file.

        Raises:
            InputError: Not a latent file, cut short, of a newer format, with parts that do not fit each other, or with
                other bytes than the sidecar beside it says.
        """
        file = Path(path)
        data = read_bounded(file, MAX_BYTES)
        if promise_of(file) not in (None, hashlib.sha256(data).hexdigest()):
            raise InputError(ALTERED, file=file, remedy=REMEDY)
        tensors = read_tensors(data, file)
        head = _head(data, file)
        try:
            x, y, z = (int(size) for size in head["shape"])
            encoded = Encoded.restored(tensors, (x, y, z))
            record = Record.from_json(head["record"])
            preparation = Preparation.from_json(head["preparation"])
            mask = _unpacked(tensors["mask"], (x, y, z))
            return cls(encoded, str(head["modality"]), record, mask, preparation, str(head["tokenizer"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, InputError) and error.file is not None:
                raise
            raise InputError(f"not a latent of a scan ({error})", file=file, remedy=REMEDY) from error


def _head(data: bytes, file: Path) -> dict[str, Any]:
    """Return the metadata of safetensors bytes that were read before."""
    try:
        head = parse_json(metadata_of(file, data)[KEY])
        version = int(head["format_version"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            "holds no latent of a scan", file=file, remedy="give a file that `neurotome encode` wrote"
        ) from error
    if version > FORMAT_VERSION:
        raise InputError(
            f"latent format {version} is newer than this version reads ({FORMAT_VERSION})",
            file=file,
            remedy="upgrade neurotome",
        )
    return dict(head)


def _unpacked(bits: Tensor, shape: tuple[int, int, int]) -> Bool[np.ndarray, "x y z"]:
    count = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.numel() != math.ceil(count / 8):
        raise ValueError(f"the mask has {bits.numel()} bytes for shape {shape}")
    return np.unpackbits(bits.numpy(), count=count).reshape(shape).astype(bool)
