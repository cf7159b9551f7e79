r"""Large volumes through a network in slabs: the result of the whole, to rounding, in a fraction of its memory.

    image = Slabs()(network.decode, encoded, modality)

The network's own code runs, but an operation on a large feature map only notes what is to be computed; that happens at
the end, layer by layer and slab by slab along x. Tiles of the image could not be equal, because group normalisation and
attention use all of it:

- a convolution reads its slab with the neighbouring planes its window reaches, and pads with zeros at the ends alone;
- group normalisation takes its statistics in a first pass over slabs s of n_s voxels, put together in double precision:

      mean = sum_s n_s mean_s / n,     var = sum_s n_s (var_s + (mean_s - mean)^2) / n

- attention along y or z finds its lines in a slab; attention along x takes slabs along another axis;
- what acts on each voxel alone (activation, modulation, sums) is computed with the convolution that reads it.

Planes are given up as soon as nobody reads them again (:mod:`neurotome.nn.slabs.maps`). An operation that
:mod:`neurotome.nn.slabs.operations` does not know gets its inputs whole: the result is right, memory is not saved.
"""

import dataclasses
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from neurotome.nn.slabs.maps import Map
from neurotome.nn.slabs.memory import Blocks
from neurotome.nn.slabs.operations import OPERATIONS, STARTING, instances, replaced

SlabChoice = Literal["auto", "off"] | int
LARGE_VOXELS = 2**20
SMALL_BYTES = 2**24  # 128 channels of 32^3 voxels in single precision
NUM_SLABS, SLAB_BYTES = 32, 2**23  # no thinner slabs than this share, or this size, of a map and what it reads
# torch's CPU convolutions fall off their fast path, up to 19 times slower, where batch * channels * x * y is less
SLOW_BELOW = 20481
# what a tensor knows without its values
_KNOWN = ("__get__", "__len__", "dim", "size", "numel", "element_size", "is_floating_point", "is_complex")


@dataclass(frozen=True)
class Slabs:
    """How thick slabs are, and from which size on maps are cut.

    Args:
        planes: Planes of a slab; None for what suits the map: 1/32 of it, or 8 MiB.
        small: Bytes of a map that is computed at once.

    Raises:
        ValueError: ``planes`` is below 1.
    """

    planes: int | None = None
    small: int = SMALL_BYTES

    def __post_init__(self) -> None:
        if self.planes is not None and self.planes < 1:
            raise ValueError(f"planes is {self.planes}; give at least 1, or None for a share of the map")

    def __call__(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Return ``function(*inputs)`` computed in slabs; all tensors of the result are ordinary ones.

        Raises:
            RuntimeError: Gradients are on.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("slabs keep nothing for a backward pass; use them under torch.inference_mode()")
        with _Noting(self):
            result = function(*inputs)
        return _finished(result)


def computing(slabs: SlabChoice, shape: Sequence[int]) -> Callable[..., Any]:
    """Return what computes ``function(*inputs)`` on volumes of a shape.

    Args:
        slabs: Planes of a slab; "auto" chooses for volumes of more than 2**20 voxels, "off" takes all of them whole.
        shape: Spatial shape.

    Raises:
        ValueError: ``slabs`` is a number below 1.
    """
    if slabs == "off" or (slabs == "auto" and math.prod(shape) <= LARGE_VOXELS):
        return lambda function, *inputs: function(*inputs)
    return Slabs(None if slabs == "auto" else slabs)


class Deferred(Tensor):
    """Stands for a map that is not computed yet; its shape, type and device are known."""

    map: Map
    noting: "_Noting"

    @staticmethod
    def __new__(cls, made: Map, noting: "_Noting") -> "Deferred":
        """Make a tensor without memory of its own."""
        x: Deferred = Tensor._make_wrapper_subclass(cls, made.shape, dtype=made.dtype, device=made.device)
        x.map, x.noting = made, noting
        return x

    def __init__(self, made: Map, noting: "_Noting") -> None:
        super().__init__()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note an operation, also where :class:`Slabs` is not at work any more."""
        noting = next(instances((args, kwargs), Deferred)).noting
        return noting.note(func, tuple(args), dict(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stubs have it as a method
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute what came here past torch's functions."""
        args, kwargs = replaced((args, kwargs or {}), Deferred, lambda x: x.map.whole())
        return func(*args, **kwargs)


class _Noting(TorchFunctionMode):
    """One computation: every operation on tensors comes to :meth:`note`."""

    def __init__(self, slabs: Slabs) -> None:
        super().__init__()
        self.slabs, self.blocks = slabs, Blocks()
        self.read: weakref.WeakSet[Map] = weakref.WeakSet()  # what maps read that are noted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.note(func, tuple(args), dict(kwargs or {}))

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what stands for an operation's result, or the result itself."""
        name = getattr(func, "__name__", "")
        deferred = any(True for _ in instances((args, kwargs), Deferred))
        if deferred and name in _KNOWN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if _is_in_place(name, kwargs):
            return self._change(func, name, args, kwargs)
        if not deferred and name not in STARTING:
            return func(*args, **kwargs)
        made = self._map(func, name, args, kwargs)
        if isinstance(made, tuple):
            return tuple(self._stand_in(each) for each in made)
        if made is not None and (deferred or _bytes(made) > self.slabs.small):
            return self._stand_in(made)
        args, kwargs = replaced((args, kwargs), Deferred, lambda x: x.map.whole())
        return func(*args, **kwargs)

    def _change(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Change a tensor in place; one that stands for a map stands for the changed map from then on."""
        x = args[0] if args else None
        if not isinstance(x, Deferred):
            if self._is_awaited(x):
                raise RuntimeError(f"{name} changes a tensor that slabs are still to read; write it without")
            args, kwargs = replaced((args, kwargs), Deferred, lambda d: d.map.whole())
            return func(*args, **kwargs)
        if name.endswith("_"):
            name = name.removesuffix("_")
            func = getattr(Tensor, name, None)
        made = self._map(func, name, args, {key: value for key, value in kwargs.items() if key != "inplace"})
        if not isinstance(made, Map) or made.shape != x.map.shape or made.dtype != x.map.dtype:
            raise RuntimeError(f"slabs do not know {name} in place; write it without")
        x.map.handle = lambda: None
        x.map = self._planned(made)
        made.handle = weakref.ref(x)
        return x

    def _is_awaited(self, x: Any) -> bool:
        """Return whether maps that are not computed yet read an ordinary tensor's memory."""
        memory = {source.memory() for source in tuple(self.read)} - {None}
        return bool(memory) and isinstance(x, Tensor) and x.untyped_storage().data_ptr() in memory

    def _map(self, func: Any, name: str, args: Any, kwargs: Any) -> Map | tuple[Map, ...] | None:
        """Return an operation's result as a map; None where that is not known."""
        if name not in OPERATIONS:
            return None
        args, kwargs = replaced((args, kwargs), Deferred, lambda x: x.map)
        if name in STARTING:
            place = 1 if name == "along_lines" else 0
            if isinstance(x := args[place], Tensor):
                args = (*args[:place], Map.of(x), *args[place + 1 :])
        return OPERATIONS[name](func, *args, **kwargs)

    def _stand_in(self, made: Map) -> Tensor:
        """Return a small map's values, or a tensor without values that stands for a large map."""
        self._planned(made)
        if made.kept and _bytes(made) <= self.slabs.small:
            return made.whole()
        x = Deferred(made, self)
        made.handle = weakref.ref(x)
        return x

    def _planned(self, made: Map) -> Map:
        """Settle in how many slabs a map is made, and in which memory it is kept."""
        self.read.update(made.inputs)
        made.blocks, made.thickness = self.blocks, self.slabs.planes or _thickness(made)
        return made


def _is_in_place(name: str, kwargs: dict[str, Any]) -> bool:
    """Return whether an operation writes over its first argument, by torch's naming."""
    return bool(kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))


def _thickness(made: Map) -> int:
    """Return how many planes of a map are made at a time."""
    largest = max(_bytes(x) for x in (made, *made.inputs))
    share = max(1 / NUM_SLABS, SLAB_BYTES / max(largest, 1))
    if made.device.type == "cpu":
        share = max(share, *(min(SLOW_BELOW / math.prod(x.shape[:4]), 0.25) for x in made.inputs))
    return math.ceil(made.shape[2] * min(share, 1))


def _bytes(x: Map) -> int:
    return math.prod(x.shape) * x.dtype.itemsize


def _finished(result: Any) -> Any:
    """Return a result with the values of all that stands for a map, also in the fields of dataclasses."""
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        fields = {f.name: _finished(getattr(result, f.name)) for f in dataclasses.fields(result) if f.init}
        return dataclasses.replace(result, **fields)
    return replaced(result, Deferred, lambda x: x.map.whole())
