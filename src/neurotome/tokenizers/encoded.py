"""What a tokenizer makes of images: one object that knows how it is stored, joined and cut.

A field of another name or kind is added here and nowhere else: every operation below runs over the fields.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from neurotome.files.bit_planes import are_signs, pack_bits, unpack_bits
from neurotome.files.code_maps import pack_codes, unpack_codes

# what only training looks at: it stays behind when a code is stored or moved
TRAINING_ONLY = ("terms", "aux")
CODES = "codes."


@dataclass(frozen=True, repr=False)
class Encoded:
    """What a tokenizer makes of an image.

    Args:
        latent: What the decoder receives, ``(b, d, x, y, z)``; with d = 0 it is still to be looked up from the codes
            (:meth:`neurotome.tokenizers.base.Tokenizer.lookup`).
        codes: Named code maps ``(b, x, y, z)``, the first one is the anatomy; empty for continuous tokenizers.
        style: Appearance vector ``(b, d)``, or None.
        terms: The bottleneck's own named losses, scalars.
        shape: Spatial shape of the source image.
        aux: Tensors that only training looks at (continuous codes before quantisation, for example).
        gain: Log gain on a coarse grid, ``(b, 1, x, y, z)``: the part of the appearance a vector cannot hold, or None.
    """

    latent: Tensor
    codes: Mapping[str, Tensor]
    style: Tensor | None
    terms: Mapping[str, Tensor]
    shape: tuple[int, int, int]
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    gain: Tensor | None = None

    def __repr__(self) -> str:
        """Return the tensors' shapes in one line."""
        parts = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.named())
        return f"{type(self).__name__}({parts}, of images {tuple(self.shape)})"

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that make the code, by name: ``latent``, ``codes.anatomy``, ``style``."""
        for name in (f.name for f in fields(self) if f.name not in TRAINING_ONLY):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                yield name, value
            elif isinstance(value, Mapping):
                yield from ((f"{name}.{key}", tensor) for key, tensor in value.items())

    def mapped(self, change: Callable[[str, Tensor], Tensor]) -> Self:
        """Return the code with every tensor changed, given its name; what only training looks at stays behind."""
        values: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in TRAINING_ONLY:
                value = {}
            elif isinstance(value, Tensor):
                value = change(f.name, value)
            elif isinstance(value, Mapping):
                value = {key: change(f"{f.name}.{key}", tensor) for key, tensor in value.items()}
            values[f.name] = value
        return type(self)(**values)

    def to(self, device: torch.device) -> Self:
        """Return the code on another device."""
        return self.mapped(lambda _, tensor: tensor.to(device))

    def single(self, index: int) -> Self:
        """Return the code of one image of a batch, on the CPU, floats in single precision."""

        def one(tensor: Tensor) -> Tensor:
            part = tensor[index : index + 1].cpu()
            return part.float() if part.is_floating_point() else part.clone()

        return self.mapped(lambda _, tensor: one(tensor))

    def take(self, index: Tensor) -> Self:
        """Return the code of the images at ``index``, with what training looks at but its losses."""
        aux = {name: value[index] for name, value in self.aux.items()}
        return replace(self.mapped(lambda _, tensor: tensor[index]), aux=aux)

    @classmethod
    def joined(cls, codes: "Sequence[Encoded]") -> "Encoded":
        """Return codes of the same :attr:`kind` as one batch."""
        parts = [dict(code.named()) for code in codes]
        return codes[0].mapped(lambda name, _: torch.cat([part[name] for part in parts]))

    @property
    def kind(self) -> Any:
        """What codes have in common that fit into one batch: the same tensors of the same shapes."""
        return tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in self.named()), self.shape

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors as they lie in a shard: nothing is lost.

        Codes have 32 bits, a latent of signs alone one bit each, and floats that half precision holds exactly 16.
        """
        found = {}
        for name, tensor in self.named():
            plain = tensor.detach().cpu()
            if not plain.is_floating_point():
                plain = plain.to(torch.int32)  # holds every codebook, and is half of what networks return
            elif name == "latent" and are_signs(values := plain.numpy()):
                plain = torch.from_numpy(pack_bits(values))
            elif torch.equal((half := plain.half()).to(plain.dtype), plain):
                plain = half
            found[name] = plain.contiguous()
        return found

    def packed(self, *, latent: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors in the bits they need, and the layout of the codes; for a batch of 1.

        As :meth:`stored`, with packed codes (:mod:`neurotome.files.code_maps`).

        Args:
            latent: Whether the latent is stored.
        """
        maps = {name.removeprefix(CODES): t for name, t in self.named() if name.startswith(CODES)}
        codes, layout = pack_codes({name: tensor[0].cpu().numpy() for name, tensor in maps.items()})
        found = {f"{CODES}{name}": torch.from_numpy(data) for name, data in codes.items()}
        for name, tensor in self.stored().items():
            if name not in found and (latent or name != "latent"):
                found[name] = tensor
        return found, layout

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], layout: Mapping[str, Any], shape: tuple[int, int, int]) -> Self:
        """Undo :meth:`packed`; a latent that was not stored has no channels.

        Raises:
            KeyError: There is neither a latent nor a code.
            ValueError: The codes are not what the layout says.
        """
        names = [name for name in tensors if name.startswith(CODES)]
        codes = unpack_codes({name.removeprefix(CODES): np.asarray(tensors[name]) for name in names}, layout)
        rest = {name: tensor for name, tensor in tensors.items() if name not in names}
        maps = {f"{CODES}{name}": torch.from_numpy(cells)[None] for name, cells in codes.items()}
        if "latent" not in rest and maps:
            rest["latent"] = torch.zeros(1, 0, *next(iter(maps.values())).shape[1:])
        return cls.restored(rest | maps, shape)

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int, int]) -> Self:
        """Undo :meth:`stored`, floats in single precision; tensors of other names are left out.

        Raises:
            KeyError: There is no latent.
        """
        tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        latent = tensors["latent"]
        if not latent.is_floating_point():
            latent = torch.from_numpy(unpack_bits(np.asarray(latent)))
        values: dict[str, Any] = {"latent": latent, "shape": shape}
        for f in fields(cls):
            if f.name in values:
                continue
            if f.name in TRAINING_ONLY or f.default_factory is dict or f.name == "codes":
                prefix = f"{f.name}."
                found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
                values[f.name] = {key: v if v.is_floating_point() else v.long() for key, v in found.items()}
            else:
                values[f.name] = tensors.get(f.name)
        return cls(**values)
