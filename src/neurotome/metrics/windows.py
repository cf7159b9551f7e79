r"""Sliding windows over three spatial axes: means, one axis after the other, and their adjoints.

    (W m)(i) = sum_k w_k m(i + k)          k runs over the window, i over the places where it lies fully inside
    (W' g)(j) = sum_k w_k g(j - k)         the adjoint; g is zero outside

A box takes few additions per axis by doubling: a sum over 7 places is 1 -> 2 -> 3 -> 6 -> 7, four instead of six. They
are done on flat memory, where a shift along an axis is a shift by its stride: every addition is one contiguous pass,
and what wraps around an edge is never a valid place. Pieces stay in cache. A Gaussian is a banded matrix product per
axis. An axis of length 1 has a window of 1: a slice is a volume.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# measured on a core with 1 MB of L2: 1.5 to 3 MB are equal, no pieces at all are 2 to 3 times slower
PIECE_BYTES = 3 << 20


class Window(ABC):
    """A separable window with unit sum.

    Args:
        shape: Spatial shape of the maps it slides over.
        size: Places per axis; an axis of length 1 takes one.

    Raises:
        ValueError: The window is longer than an axis, or has no place.
    """

    def __init__(self, shape: Sequence[int], size: int) -> None:
        if size < 1:
            raise ValueError(f"the window has {size} places; give at least 1")
        if short := [s for s in shape if 1 < s < size]:
            raise ValueError(
                f"a window of {size} does not fit into an axis of length {short[0]} of shape {tuple(shape)}: "
                'give a smaller `size`, or `border="same"`'
            )
        self.shape = tuple(shape)
        self.sizes = tuple(1 if s == 1 else size for s in shape)
        self.valid = tuple(s - w + 1 for s, w in zip(self.shape, self.sizes, strict=True))

    @abstractmethod
    def mean(self, maps: Tensor) -> Tensor:
        """Return the weighted mean of ``maps`` (n, x, y, z) at every valid place, ``(n, *valid)``."""

    @abstractmethod
    def adjoint(self, maps: Tensor) -> Tensor:
        """Return the transpose of :meth:`mean` applied to ``maps`` ``(n, *valid)``, of shape ``(n, x, y, z)``."""


class BoxWindow(Window):
    """Equal weights, by shifted additions on flat memory."""

    def __init__(self, shape: Sequence[int], size: int) -> None:
        super().__init__(shape, size)
        _, y, z = self.shape
        self.strides = (y * z, z, 1)
        self.volume = math.prod(self.sizes)

    @torch.no_grad()
    def mean(self, maps: Tensor) -> Tensor:
        """See :class:`Window`."""
        maps = maps.contiguous()
        x, y, z = self.valid
        halo = self.sizes[0] - 1
        out = maps.new_empty(len(maps), x, y, z)
        buffers: list[Tensor] = []
        for i, j, start, stop in self._pieces(maps, x):
            planes = stop - start + halo
            buffers = buffers or [maps.new_empty((j - i) * planes * self.strides[0]) for _ in range(3)]
            total = self._sum(maps[i:j, start : stop + halo].reshape(-1), buffers)
            places = total.as_strided((j - i, stop - start, y, z), (planes * self.strides[0], *self.strides))
            # dividing, not multiplying by the reciprocal, keeps constant regions exact
            torch.div(places, self.volume, out=out[i:j, start:stop])
        return out

    @torch.no_grad()
    def adjoint(self, maps: Tensor) -> Tensor:
        """See :class:`Window`."""
        x, y, z = self.valid
        halo = self.sizes[0] - 1
        # with this many zeros before it, a sum over earlier places is the same sum over later places
        lead = sum((w - 1) * s for w, s in zip(self.sizes[1:], self.strides[1:], strict=True))
        out = maps.new_empty(len(maps), *self.shape)
        buffers: list[Tensor] = []
        for i, j, start, stop in self._pieces(maps, self.shape[0]):
            planes = stop - start + halo
            length = lead + (j - i) * planes * self.strides[0]
            buffers = buffers or [maps.new_empty(length) for _ in range(4)]
            source = buffers[3][:length].zero_()
            body = source[lead:].view(j - i, planes, *self.shape[1:])
            first, last = max(0, start - halo), min(x, stop)
            at = first - (start - halo)
            torch.div(maps[i:j, first:last], self.volume, out=body[:, at : at + last - first, :y, :z])
            total = self._sum(source, buffers[:3])
            out[i:j, start:stop] = total.as_strided(
                (j - i, stop - start, *self.shape[1:]), (planes * self.strides[0], *self.strides)
            )
        return out

    def _sum(self, flat: Tensor, buffers: Sequence[Tensor]) -> Tensor:
        """Return ``out[f]``, the sum of ``flat[f + k]`` over the window's places k, in one of three buffers."""
        for size, stride in zip(self.sizes, self.strides, strict=True):
            free = [b for b in buffers if b.data_ptr() != flat.data_ptr()]
            flat = _running_sum(flat, size, stride, free[0], free[1])
        return flat

    def _pieces(self, maps: Tensor, planes: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield ranges of maps and of output planes whose input is about ``PIECE_BYTES``, the largest first."""
        n, plane_bytes = len(maps), maps.element_size() * self.strides[0]
        if maps.device.type != "cpu":
            yield 0, n, 0, planes
            return
        group = PIECE_BYTES // (plane_bytes * self.shape[0])
        if group:
            yield from ((i, min(i + group, n), 0, planes) for i in range(0, n, group))
            return
        step = max(8, PIECE_BYTES // plane_bytes - self.sizes[0] + 1)
        for i in range(n):
            yield from ((i, i + 1, start, min(start + step, planes)) for start in range(0, planes, step))


def _running_sum(x: Tensor, size: int, stride: int, a: Tensor, b: Tensor) -> Tensor:
    """Return ``sum_k x[f + k stride]``, k < size, by doubling; it lies in ``a`` or ``b``, or is ``x`` (size 1)."""
    total, places, length = x, 1, len(x)
    for bit in bin(size)[3:]:
        length -= places * stride
        total = torch.add(total[:length], total[places * stride :][:length], out=a[:length])
        a, b, places = b, a, 2 * places
        if bit == "1":
            length -= stride
            total = total[:length].add_(x[places * stride :][:length])
            places += 1
    return total


class GaussianWindow(Window):
    """Gaussian weights cut to ``size`` places, by banded matrix products.

    Args:
        shape: Spatial shape of the maps.
        size: Places per axis.
        sigma: Standard deviation in voxels.
        like: Gives dtype and device of the matrices.
    """

    def __init__(self, shape: Sequence[int], size: int, sigma: float, like: Tensor) -> None:
        super().__init__(shape, size)
        self.bands = [
            gaussian_band(s, w, sigma).to(like) if w > 1 else None for s, w in zip(self.shape, self.sizes, strict=True)
        ]

    @torch.no_grad()
    def mean(self, maps: Tensor) -> Tensor:
        """See :class:`Window`."""
        return apply_bands(maps, self.bands)

    @torch.no_grad()
    def adjoint(self, maps: Tensor) -> Tensor:
        """See :class:`Window`."""
        return apply_bands(maps, [None if band is None else band.t() for band in self.bands])


def gaussian_weights(size: int, sigma: float) -> Tensor:
    """Return ``size`` Gaussian weights with unit sum, in double precision."""
    k = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-0.5 * (k / sigma) ** 2)
    return weights / weights.sum()


def gaussian_band(length: int, size: int, sigma: float) -> Tensor:
    """Return the matrix (length - size + 1, length) whose rows are the window at every valid place."""
    band = torch.zeros(length - size + 1, length, dtype=torch.float64)
    for k, weight in enumerate(gaussian_weights(size, sigma)):
        band.diagonal(k).fill_(weight)
    return band


def apply_bands(maps: Tensor, bands: Sequence[Tensor | None]) -> Tensor:
    """Multiply the three spatial axes of ``maps`` (n, x, y, z) by one matrix (out, in) each; None leaves an axis."""
    along_x, along_y, along_z = bands
    if along_z is not None:
        maps = maps @ along_z.t()  # (n, x, y, z')
    if along_y is not None:
        maps = along_y @ maps  # (n, x, y', z')
    if along_x is not None:
        maps = (along_x @ maps.flatten(2)).view(len(maps), -1, *maps.shape[2:])  # (n, x', y', z')
    return maps
