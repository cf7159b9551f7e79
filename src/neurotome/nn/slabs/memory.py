"""Where the planes of feature maps lie while they are needed.

What is freed in small parts between others the system seldom gets back: of maps in many slabs, made while others are
given up, holes would stay. So memory is handed out and taken back in blocks of one size.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK_BYTES = 2**23


class Blocks:
    """Memory for planes in blocks of one size: as many planes of the first map as make up 8 MiB.

    The widths of networks being powers of two, a block holds whole planes of most other maps too.
    """

    def __init__(self) -> None:
        self._bytes = 0
        self._free: list[Tensor] = []
        self._lent: dict[int, Tensor] = {}

    def take(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return memory for planes of a map ``(b, c, x, y, z)``: as many as a block holds, at least one."""
        b, c, _, y, z = shape
        plane = max(b * c * y * z * dtype.itemsize, 1)
        self._bytes = self._bytes or -(-BLOCK_BYTES // plane) * plane
        number = max(self._bytes // plane, 1)
        fits = [i for i, block in enumerate(self._free) if block.numel() >= number * plane and block.device == device]
        if fits:
            block = self._free.pop(fits[0])
        else:
            self._free.clear()
            block = torch.empty(max(number * plane, self._bytes), dtype=torch.uint8, device=device)
        planes = block[: number * plane].view(dtype).view(b, c, number, y, z)
        self._lent[planes.data_ptr()] = block
        return planes

    def give(self, planes: Tensor) -> None:
        """Take memory back."""
        self._free.append(self._lent.pop(planes.data_ptr()))


class Kept:
    """The planes of a map that are at hand: from some plane on, up to some plane.

    Args:
        shape: Of the map, ``(b, c, x, y, z)``.
        blocks: Where memory comes from and goes to; None for one tensor.
        x: The tensor.
    """

    def __init__(self, shape: Sequence[int], blocks: Blocks | None = None, x: Tensor | None = None) -> None:
        self._shape, self._blocks = tuple(shape), blocks
        self._pieces: list[tuple[int, Tensor]] = [] if x is None else [(0, x)]  # where each begins

    def write(self, lo: int, slab: Tensor) -> None:
        """Keep the planes from ``lo`` on; they come in order."""
        while slab.shape[2]:
            start, piece = self._pieces[-1] if self._pieces else (0, slab[:, :, :0])
            end = start + piece.shape[2]
            if end == lo and self._blocks is not None:
                start, piece = lo, self._blocks.take(self._shape, slab.dtype, slab.device)
                piece = piece.narrow(2, 0, min(piece.shape[2], self._shape[2] - lo))
                self._pieces.append((start, piece))
            number = min(start + piece.shape[2] - lo, slab.shape[2])
            piece.narrow(2, lo - start, number).copy_(slab.narrow(2, 0, number))
            lo, slab = lo + number, slab.narrow(2, number, slab.shape[2] - number)

    def read(self, lo: int, hi: int) -> Tensor:
        """Return planes.

        Raises:
            RuntimeError: They were given up.
        """
        parts = []
        for start, piece in self._pieces:
            a, b = max(lo, start), min(hi, start + piece.shape[2])
            if a < b:
                parts.append(piece.narrow(2, a - start, b - a))
        if sum(part.shape[2] for part in parts) != hi - lo:
            raise RuntimeError(f"planes {lo} to {hi} of a feature map {self._shape} are needed, but were given up")
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    @property
    def tensor(self) -> Tensor | None:
        """All planes, where one tensor holds them."""
        return self._pieces[0][1] if self._blocks is None and self._pieces else None

    def whole(self) -> Tensor:
        """Return all planes as one tensor, which holds them from then on."""
        if self._blocks is not None:
            first = self._pieces[0][1]
            x = torch.empty(self._shape, dtype=first.dtype, device=first.device)
            for start, piece in self._pieces:
                x.narrow(2, start, piece.shape[2]).copy_(piece)
            self.give_up()
            self._blocks, self._pieces = None, [(0, x)]
        return self._pieces[0][1]

    def give_up(self, below: float = math.inf) -> None:
        """Give up the planes below one."""
        while self._pieces and self._pieces[0][0] + self._pieces[0][1].shape[2] <= below:
            piece = self._pieces.pop(0)[1]
            if self._blocks is not None:
                self._blocks.give(piece)

    def __del__(self) -> None:
        """Hand the memory back."""
        self.give_up()
