r"""Bits only where there is tissue: which cells of a latent are coded, what they cost, and what the others are.

    t(v) = closing of [max over the voxels of cell v > above]    coded where t; elsewhere the zero vector, decoded to -1
    bits = cells + sum_v t(v) * bits of a cell          one bit per cell says which

The closing (dilation, then erosion, by one cell) keeps what is dark within the brain, such as white matter in T2w: as
background it would be a black hole in a translation. About a third of the cells of a prepared grid hold brain. A map
"tissue" holds t; a coarser map of the same code is coded where any of the cells under it is.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from neurotome.tokenizers.encoded import Encoded
from neurotome.types import Image, Latent

# what background is decoded to: the lower end of the window
BACKGROUND = -1.0
TISSUE = "tissue"


def tissue_cells(image: Image, cells: Sequence[int], above: float) -> Bool[Tensor, "b i j k"]:
    """Return which of ``cells`` per axis hold a voxel brighter than ``above`` in any channel, or lie between such."""
    x, y, z = cells
    bright = (F.adaptive_max_pool3d(image, (x, y, z)).amax(dim=1) > above).float()
    window = [3 if n > 1 else 1 for n in cells]
    around = [n - 1 for n in reversed(window) for _ in range(2)]  # beyond the image there is none
    grown = F.max_pool3d(F.pad(bright, around), window, 1)
    return F.max_pool3d(-grown, window, 1) < 0


def coarser(tissue: Bool[Tensor, "b x y z"], cells: Sequence[int]) -> Bool[Tensor, "b i j k"]:
    """Return which cells of a coarser map hold tissue."""
    x, y, z = cells
    return F.adaptive_max_pool3d(tissue.float(), (x, y, z)) > 0


def cells_with_code(latent: Latent) -> Bool[Tensor, "b 1 x y z"]:
    """Return where a latent is not the zero vector."""
    return (latent != 0).any(dim=1, keepdim=True)


def tissue_of(encoded: Encoded) -> Bool[Tensor, "b 1 x y z"]:
    """Return which cells hold tissue: what the code says, or, of a latent alone, where it is not zero."""
    tissue = encoded.codes.get(TISSUE)
    return cells_with_code(encoded.latent) if tissue is None else tissue[:, None].bool()


def only_tissue(latent: Latent, codes: Mapping[str, Tensor]) -> Latent:
    """Return a latent whose cells are zero where a map "tissue", if there is one, says so."""
    return torch.where(codes[TISSUE][:, None].bool(), latent, 0) if TISSUE in codes else latent


def coded_cells(codes: Mapping[str, Tensor], name: str) -> Bool[Tensor, "b x y z"] | None:
    """Return which cells of the map ``name`` have a code; None where all have one."""
    tissue = codes.get(TISSUE)
    return None if tissue is None or name == TISSUE else coarser(tissue.bool(), codes[name].shape[1:])


def coded_only(codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the codes of the cells that have one, ``(n,)`` where a map "tissue" says so, without that map."""
    found = {name: (value, coded_cells(codes, name)) for name, value in codes.items() if name != TISSUE}
    return {name: value if where is None else value[where] for name, (value, where) in found.items()}


def cell_bits(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the bits of one code of each map, ceil(log2 K), without the map of tissue."""
    return {name: math.ceil(math.log2(size)) for name, size in sizes.items() if name != TISSUE}


def bits_with_tissue(codes: Mapping[str, Tensor], cell_bits: Mapping[str, int]) -> Float[Tensor, " b"]:
    """Return the bits of each image: one per cell, and ``cell_bits`` of each map where its cells have a code."""
    total = torch.full((len(codes[TISSUE]),), codes[TISSUE][0].numel(), dtype=torch.float64)
    for name, bits in cell_bits.items():
        if (where := coded_cells(codes, name)) is not None:
            total += where.flatten(1).sum(1).double().to(total) * bits
    return total


def on_background(image: Image, tissue: Bool[Tensor, "b 1 i j k"]) -> Image:
    """Return an image whose voxels are background where their cell holds no tissue."""
    voxels = F.interpolate(tissue.float(), size=image.shape[2:], mode="nearest") > 0
    return torch.where(voxels, image, BACKGROUND)
