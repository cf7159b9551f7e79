r"""Feature maps that are made, kept and given up plane by plane along x.

    y[lo:hi] = f(x[first(lo) : ...])          a map is a function of the planes of its inputs

A *kept* map (a convolution, a sum of two maps) is computed once, slab after slab; what is cheap (a normalisation, an
activation, a resize) is computed anew by whoever reads it. While a kept map is made, planes of its inputs that nobody
will read again are given up, so that together they take hardly more than the larger of the two. Maps that read the same
input and wait for nothing else (a block's first convolution and its skip) are made together, for the same reason.
"""

import itertools
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from neurotome.nn.slabs.memory import Blocks, Kept

Planes = Callable[[int, int], Tensor]
"""From the first plane and the one after the last to those planes, ``(b, c, hi - lo, y, z)``."""

_NUMBER = itertools.count()


class Map:
    """A feature map ``(b, c, x, y, z)``, computed when somebody needs it.

    Args:
        planes: Computes planes from the inputs.
        inputs: What it reads.
        shape: Its shape.
        dtype: Its type.
        device: Where it lives.
        kept: Whether its planes are kept once computed; None where they come from several kept maps.
        first: The first plane of the inputs that is read for the planes from one on; None for the same one.
        prepare: Called once before the first plane is computed, with every input at hand.

    Attributes:
        thickness: Planes of a slab; all, until somebody sets it.
        blocks: Where its planes are kept; set by whoever sets the thickness.
        handle: Returns the tensor that stands for the map, or None once nobody has it any more.
    """

    def __init__(
        self,
        planes: Planes,
        inputs: Sequence["Map"],
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        *,
        kept: bool | None,
        first: Callable[[int], int] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.shape, self.dtype, self.device = tuple(shape), dtype, device
        self.inputs, self.thickness = tuple(inputs), self.shape[2]
        self.blocks: Blocks | None = None
        self.handle: Callable[[], Any] = lambda: None
        self._planes: Planes | None = planes
        self._first, self._prepare = first, prepare
        self._kept_planes: Kept | None = None
        self._number = next(_NUMBER)  # inputs have lower ones
        self._autocast = (torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type))
        # nobody is kept alive by those who read it
        self._readers: weakref.WeakSet[Map] = weakref.WeakSet()
        for source in self.inputs:
            source._readers.add(self)
        self.kept = len(self._sources()) > 1 if kept is None else kept

    @classmethod
    def of(cls, x: Tensor) -> "Map":
        """Return a tensor as a map whose planes are all there."""
        made = cls(_nothing, (), x.shape, x.dtype, x.device, kept=True)
        made._put(Kept(x.shape, None, x))
        return made

    def read(self, lo: int, hi: int) -> Tensor:
        """Return planes; what is not kept is computed. Of a map whose inputs are there (:meth:`ready`)."""
        if self._planes is not None:
            dtype, enabled = self._autocast
            with torch.autocast(self.device.type, dtype=dtype, enabled=enabled):
                return self._planes(lo, hi)
        if self._kept_planes is None:
            raise RuntimeError("a feature map is read before it is made")
        return self._kept_planes.read(lo, hi)

    def ready(self) -> None:
        """Make all that reading needs: the kept maps behind it, and statistics of its inputs."""
        waiting: set[Map] = set()
        found = [self]
        while found:
            near = [source for source in found.pop().inputs if source not in waiting]
            waiting.update(near)
            found += near
        order = sorted(waiting, key=lambda source: -source._number)
        waiting.clear()
        while order:  # holding nothing that is done
            source = order.pop()
            if source.kept:
                source.keep()
            else:
                source._settle()
        self._settle()

    def slabs(self) -> Iterator[tuple[int, int]]:
        """Return the ranges of planes that are computed at a time."""
        for lo in range(0, self.shape[2], self.thickness):
            yield lo, min(lo + self.thickness, self.shape[2])

    def keep(self, into: Kept | None = None) -> None:
        """Compute all planes and keep them, together with the maps that wait for the same inputs alone."""
        if self._kept_planes is not None:
            return
        self.ready()
        group = [self, *self._siblings()]
        stores = [into or Kept(self.shape, self.blocks), *(Kept(member.shape, member.blocks) for member in group[1:])]
        ending = [source for source in self._sources() if source._ends_with(group)]
        for lo, hi in min(group, key=lambda member: member.thickness).slabs():
            for member, store in zip(group, stores, strict=True):
                store.write(lo, member.read(lo, hi))
            for source in ending:
                source._give_up(min(member._reads_from(source, hi) for member in group))
        for source in ending:
            source._give_up(math.inf)
        for member, store in zip(group, stores, strict=True):
            member._put(store)

    def whole(self) -> Tensor:
        """Return the map as one tensor."""
        if self._kept_planes is None:
            x = torch.empty(self.shape, dtype=self.dtype, device=self.device)
            self.kept = True
            self.keep(Kept(self.shape, None, x))
            return x
        return self._kept_planes.whole()

    def memory(self) -> int | None:
        """Return the address of the tensor that holds the map and that others may hold too."""
        x = None if self._kept_planes is None else self._kept_planes.tensor
        return None if x is None else x.untyped_storage().data_ptr()

    def _settle(self) -> None:
        if self._prepare is not None:
            self._prepare()
            self._prepare = None

    def _sources(self) -> set["Map"]:
        """Return the kept maps that it reads, also through others."""
        found: set[Map] = set()
        for source in self.inputs:
            found |= {source} if source.kept else source._sources()
        return found

    def _siblings(self) -> list["Map"]:
        """Return other maps to be kept that can be made with this one: same planes, and every source is there."""
        near = {reader for source in self._sources() for reader in source._kept_readers()} - {self}
        found = [
            reader
            for reader in near
            if reader.shape[2] == self.shape[2] and all(source._kept_planes is not None for source in reader._sources())
        ]
        for reader in found:
            reader.ready()
        return found

    def _kept_readers(self) -> set["Map"]:
        found: set[Map] = set()
        for reader in tuple(self._readers):
            found |= {reader} if reader.kept else reader._kept_readers()
        return found

    def _ends_with(self, group: Sequence["Map"]) -> bool:
        """Return whether nobody can ask for it once the group is made."""
        if self.handle() is not None:
            return False
        return all(reader in group or (not reader.kept and reader._ends_with(group)) for reader in tuple(self._readers))

    def _reads_from(self, source: "Map", lo: int) -> float:
        """Return the first plane of a source that is still read for the planes from ``lo`` on."""
        if self is source:
            return lo
        below = lo if self._first is None else self._first(lo)
        return min((near._reads_from(source, below) for near in self.inputs), default=math.inf)

    def _give_up(self, below: float) -> None:
        if self._kept_planes is not None:
            self._kept_planes.give_up(below)

    def _put(self, planes: Kept) -> None:
        """Keep the planes and forget where they came from."""
        self._kept_planes, self._planes, self._prepare = planes, None, None
        for source in self.inputs:
            source._readers.discard(self)
        self.inputs = ()


def _nothing(lo: int, hi: int) -> Tensor:
    raise RuntimeError(f"planes {lo} to {hi} of a finished map are not computed")
