"""The code of one scan: what the tokenizer made of it, and all that decoding back onto its grid needs.

On disk a safetensors file: tensors ``codes.NAME`` (packed: :mod:`neurotome.files.code_maps`), ``style``, ``gain``,
``latent`` (where no codes stand for it, or on request; as bits where it holds signs alone), ``mask`` (bits, deflated)
and, as metadata, the layout of the codes, contrast, geometry and intensities of the source, preparation, and the digest
of the model that made it. Floats lie in half precision where that holds them. Where a sidecar lies beside it, its
SHA-256 is compared first. Format 1, with codes of 32 bits and every latent, is read.
"""

import hashlib
import json
import math
import os
import zlib
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
from neurotome.data.stores.single_latents import ALTERED, METADATA_KEY, SCAN_FORMAT, promise_of
from neurotome.errors import InputError
from neurotome.files.atomic import write_atomically
from neurotome.files.json_text import parse_json
from neurotome.files.tensors import inflated, metadata_of, read_bounded, read_tensors
from neurotome.tokenizers.base import Encoded

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
        from_codes: Whether the model looks the latent up from the codes, so that a file holds the codes alone. The
            latent of such a file has no channels until the model decodes it.
    """

    encoded: Encoded
    modality: str
    record: Record
    mask: Bool[np.ndarray, "x y z"]
    preparation: Preparation
    tokenizer: str
    from_codes: bool = False

    def __repr__(self) -> str:
        """Return contrast, codes, size and model in one line."""
        parts = [f"{name} {tuple(t.shape[1:])}" for name, t in self.encoded.named() if t.numel()]
        return f"LatentScan({self.modality}, {', '.join(parts)}, model {self.tokenizer[:12]})"

    def save(self, path: str | os.PathLike[str], *, float_latent: bool = False) -> str:
        """Write the file, whole or not at all; return the SHA-256 of its bytes.

        Args:
            path: A ``.safetensors`` file; an existing one is replaced.
            float_latent: Store what the decoder receives, 32 bits a number, also where the codes stand for it.
        """
        latent = bool(self.encoded.latent.shape[1]) and (float_latent or not self.from_codes)
        tensors, layout = self.encoded.packed(latent=latent)
        tensors["mask"] = torch.frombuffer(
            bytearray(zlib.compress(np.packbits(self.mask).tobytes(), 9)), dtype=torch.uint8
        )
        head = {
            "format_version": SCAN_FORMAT,
            "codes": layout,
            "from_codes": self.from_codes,
            "tokenizer": self.tokenizer,
            "modality": self.modality,
            "shape": list(self.encoded.shape),
            "preparation": self.preparation.to_json(),
            "record": self.record.to_json(),
        }
        return write_atomically(path, [safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(head)})])

    @classmethod
    def given(cls, latent: Any) -> Self:
        """Return a code that is given, or read from the path that is given.

        Raises:
            TypeError: It is neither.
            InputError: As :meth:`load`.
        """
        if isinstance(latent, str | os.PathLike):
            return cls.load(latent)
        if not isinstance(latent, cls):
            raise TypeError(f"latent is a {type(latent).__name__}; give what encode returned, or the path of its file")
        return latent

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
            whole = int(head["format_version"]) == 1
            encoded = (
                Encoded.restored(tensors, (x, y, z))
                if whole
                else Encoded.unpacked({k: v for k, v in tensors.items() if k != "mask"}, head["codes"], (x, y, z))
            )
            record = Record.from_json(head["record"])
            preparation = Preparation.from_json(head["preparation"])
            mask = _unpacked(tensors["mask"], (x, y, z), deflated=not whole)
            made_by, from_codes = str(head["tokenizer"]), bool(head.get("from_codes", False))
            return cls(encoded, str(head["modality"]), record, mask, preparation, made_by, from_codes)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, zlib.error) as error:
            if isinstance(error, InputError) and error.file is not None:
                raise
            raise InputError(f"not a latent of a scan ({error})", file=file, remedy=REMEDY) from error


def _head(data: bytes, file: Path) -> dict[str, Any]:
    """Return the metadata of safetensors bytes that were read before."""
    try:
        head = parse_json(metadata_of(file, data)[METADATA_KEY])
        version = int(head["format_version"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            "holds no latent of a scan", file=file, remedy="give a file that `neurotome encode` wrote"
        ) from error
    if version > SCAN_FORMAT:
        raise InputError(
            f"latent format {version} is newer than this version reads ({SCAN_FORMAT})",
            file=file,
            remedy="upgrade neurotome",
        )
    return dict(head)


def _unpacked(stored: Tensor, shape: tuple[int, int, int], *, deflated: bool) -> Bool[np.ndarray, "x y z"]:
    count = math.prod(shape)
    data = stored.numpy().tobytes() if stored.dtype == torch.uint8 else b""
    data = inflated(data, math.ceil(count / 8)) if deflated else data
    if len(data) != math.ceil(count / 8):
        raise ValueError(f"the mask has {len(data)} bytes for shape {shape}")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count).reshape(shape).astype(bool)
