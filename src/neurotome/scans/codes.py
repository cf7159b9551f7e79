"""Codes of several scans as one batch, and back: every tensor of an :class:`Encoded` is treated alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from neurotome.tokenizers.base import Encoded

# what only training looks at
TRAINING_ONLY = ("terms", "aux")

T = TypeVar("T")


def full(items: Sequence[T], size: int) -> list[list[T]]:
    """Return batches of exactly ``size``; the last item fills up the last one."""
    padded = [*items, *[items[-1]] * (-len(items) % size)] if items else []
    return [padded[at : at + size] for at in range(0, len(padded), size)]


def alike(codes: Sequence[Encoded]) -> list[list[int]]:
    """Return the places of codes that fit into one batch: those with the same tensors of the same shapes."""
    groups: dict[Any, list[int]] = {}
    for place, code in enumerate(codes):
        kind = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in _tensors(code))
        groups.setdefault((kind, code.shape), []).append(place)
    return list(groups.values())


def single(encoded: Encoded, index: int) -> Encoded:
    """Return the code of one image of a batch, on the CPU, floats in single precision; training terms stay behind."""

    def one(tensor: Tensor) -> Tensor:
        part = tensor[index : index + 1].cpu()
        return part.float() if part.is_floating_point() else part.clone()

    return _mapped(encoded, lambda _, tensor: one(tensor))


def moved(encoded: Encoded, device: torch.device) -> Encoded:
    """Return a code on another device."""
    return _mapped(encoded, lambda _, tensor: tensor.to(device))


def joined(codes: Sequence[Encoded]) -> Encoded:
    """Return codes that are alike as one batch."""
    parts = [dict(_tensors(code)) for code in codes]
    return _mapped(codes[0], lambda name, _: torch.cat([part[name] for part in parts]))


def _mapped(encoded: Encoded, change: Callable[[str, Tensor], Tensor]) -> Encoded:
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(encoded)):
        value = getattr(encoded, name)
        if name in TRAINING_ONLY:
            value = {}
        elif isinstance(value, Tensor):
            value = change(name, value)
        elif isinstance(value, Mapping):
            value = {key: change(f"{name}.{key}", tensor) for key, tensor in value.items()}
        values[name] = value
    return Encoded(**values)


def _tensors(encoded: Encoded) -> Iterator[tuple[str, Tensor]]:
    for name in (field.name for field in fields(encoded)):
        value = getattr(encoded, name)
        if name in TRAINING_ONLY:
            continue
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{key}", tensor) for key, tensor in value.items())
