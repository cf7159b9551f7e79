r"""Anatome: anatomy in front, detail behind it, bits only where there is tissue (ours).

    t(v)  = closing of [max over the voxels of cell v > background]        which cells are coded
    a     = q(E(x_m))                where t, else 0                       anatomy: one codebook for all contrasts
    u_m   = concat(GAP(E_s(x_m)), s_m)                                     style
    h     = B(a, FiLM(u_m)),  b = W h                                      base: what all contrasts share
    d     = q_d(E_d(x_m, sg[a]))     where t, else 0                       detail: what this scan alone shows
    x_hat = b + R(h, d)                                                    where a != 0, else -1

The base is a translation where a and u come from different scans, and it is trained as one whether or not there is a
detail: private bits refine it and cannot take over its work, as they do where one decoder reads both. The detail has an
encoder of its own, because the pull that aligns the contrasts' anatomy takes from a shared one what a single contrast
shows. About a third of the cells of a prepared grid hold brain, so one bit per cell for t pays for three times as many
bits in the cells that need them. What was tried on the way stands in ``docs/explanation/anatome.md``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurotome.nn.modulation import FiLM
from neurotome.nn.nd import depth_to_space, per_axis, space_to_depth
from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.ranges import MAY_BE_EMPTY, Dims, Finite, Size, SizeOrNone
from neurotome.tokenizers.base import Encoded
from neurotome.tokenizers.shared_anatomy.alignment import SharedAnatomy
from neurotome.tokenizers.shared_anatomy.parts import (
    AnatomyDecoder,
    AnatomyEncoder,
    Appearance,
    Parts,
    Trunk,
    pooled,
)
from neurotome.tokenizers.tissue import (
    BACKGROUND,
    bits_with_tissue,
    cell_bits,
    cells_with_code,
    on_background,
    only_tissue,
    tissue_cells,
)
from neurotome.types import Image, Latent, ModalityIds


@dataclass(frozen=True)
class AnatomeTrunk(Trunk):
    """Sizes of the anatomy's encoder and of the decoder, all on the grid of the latent; arguments as :class:`Trunk`.

    Raises:
        ValueError: A stage halves the resolution, or the lists have not one entry per level.
    """

    channels: Sequence[Size] = (32,)
    num_res_blocks: Size = 1
    decoder_res_blocks: Size | None = 2
    attention_levels: Sequence[bool] = (False,)
    mid_blocks: bool = False
    num_heads: Size = 1
    downsample: Sequence[bool] | None = (False,)
    stem_factor: Size = 2
    norm_groups: SizeOrNone = 0
    factored: bool = False

    def __post_init__(self) -> None:
        """Refuse what the detail could not be added to."""
        super().__post_init__()
        if any(self.halved):
            raise ValueError(f"downsample is {self.halved}; give False for every stage, and stem_factor for the cells")


@dataclass(frozen=True)
class AnatomeAppearance(Appearance):
    """Sizes of style and modulation; arguments as :class:`Appearance`, which has no gain here.

    ``foreground_above`` also says which cells are coded: one whose brightest voxel is at most this is background. It
    takes one bit and is decoded to -1.

    Raises:
        ValueError: There is no style, no such level, or a gain.
    """

    channels: Size = 16
    stages: Annotated[Sequence[Size], MAY_BE_EMPTY] = (64,)
    foreground_above: Finite | None = -0.95
    embedding_channels: Size = 16
    film_hidden: Size = 64
    film_layers: Size = 1
    film_sites: Literal["stage", "block", "none"] = "block"

    def __post_init__(self) -> None:
        """Refuse what this network does not have."""
        super().__post_init__()
        if self.film_sites == "none" or self.foreground_above is None or self.gain_factor:
            raise ValueError(
                f"film_sites is {self.film_sites}, foreground_above {self.foreground_above}, gain_factor "
                f"{self.gain_factor}; give film_sites stage or block, a number, and gain_factor 0"
            )


DEFAULT_TRUNK, DEFAULT_APPEARANCE = AnatomeTrunk(), AnatomeAppearance()


class Anatome(SharedAnatomy):
    """Aligned anatomy codes, a style vector, and detail codes that refine their image.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Image channels.
        modalities: Contrasts; their order gives the ids.
        trunk: Sizes of the anatomy's encoder and of the decoder.
        appearance: Sizes of style and modulation, and the level of the background.
        quantizer: Codebook of the anatomy; None for 64 codes of 8 numbers.
        detail_quantizer: Codebook of the detail; None for 1024 codes of 8 numbers.
        detail_width: Width of the detail's encoder.

    Raises:
        ValueError: ``spatial_dims`` is neither 2 nor 3, or a width does not fit ``num_heads`` or ``norm_groups``.
    """

    scratch = ("seen",)
    from_codes = True

    def __init__(
        self,
        spatial_dims: Dims = 3,
        in_channels: Size = 1,
        modalities: Sequence[str] = ("T1w", "T2w"),
        trunk: AnatomeTrunk = DEFAULT_TRUNK,
        appearance: AnatomeAppearance = DEFAULT_APPEARANCE,
        quantizer: EMAQuantizer | None = None,
        detail_quantizer: EMAQuantizer | None = None,
        detail_width: Size = 16,
    ) -> None:
        super().__init__()
        quantizer = quantizer or EMAQuantizer(64, 8, 0.98, 0.05, 100)
        detail_quantizer = detail_quantizer or EMAQuantizer(1024, 8, 0.98, 0.05, 100)
        self.modalities, self.style_channels = tuple(modalities), appearance.channels
        self.foreground_above = BACKGROUND if appearance.foreground_above is None else appearance.foreground_above
        self.anatomy_channels, self.latent_channels = quantizer.dim, quantizer.dim + detail_quantizer.dim
        self.factor = per_axis(trunk.factor, spatial_dims)
        self.codebook_sizes = {"anatomy": quantizer.num_codes, "detail": detail_quantizer.num_codes, "tissue": 2}
        parts, contrasts, width = Parts(spatial_dims, trunk), len(self.modalities), trunk.channels[-1]
        finest, pixels = trunk.channels[0], math.prod(parts.stem)

        # anatomy
        self.encoder = AnatomyEncoder(parts, in_channels, contrasts, appearance)
        self.anatomy_head = parts.conv(width, quantizer.dim, 1)
        quantizer.draw()
        self.quantizer = quantizer
        self.register_buffer("offset", torch.zeros(contrasts, quantizer.num_codes))
        self.register_buffer("seen", torch.zeros(contrasts, 2, quantizer.num_codes))

        # style and base
        widths = (width, *appearance.stages)
        self.style = nn.Sequential(*parts.strided(widths), parts.conv(widths[-1], appearance.channels, 1))
        self.embedding = nn.Embedding(contrasts, appearance.embedding_channels)
        self.decoder = AnatomyDecoder(parts, quantizer.dim, in_channels, appearance.film_sites)
        styled = appearance.channels + appearance.embedding_channels
        self.film = FiLM(styled, appearance.film_hidden, self.decoder.sites, appearance.film_layers)

        # detail
        self.detail_encoder = nn.Sequential(
            parts.conv(in_channels * pixels, detail_width), parts.residual(detail_width, detail_width), nn.SiLU()
        )
        self.detail_head = nn.Sequential(
            parts.conv(detail_width + quantizer.dim, finest, 1), nn.SiLU(), parts.conv(finest, detail_quantizer.dim, 1)
        )
        detail_quantizer.draw()
        self.detail_quantizer = detail_quantizer
        self.refine_in = parts.conv(detail_quantizer.dim, finest)
        self.refine_out = parts.conv(finest, in_channels * pixels)

    def encode(self, image: Image, modality: ModalityIds) -> Encoded:
        """See :class:`Tokenizer`; ``aux`` holds ``anatomy``, before quantisation."""
        self.check_input(image, modality)
        tissue = tissue_cells(image, self.latent_shape(image.shape[2:]), self.foreground_above)
        trunk = self.encoder(image, modality)
        anatomy = self.anatomy_head(trunk).float()
        coded = self.quantizer(anatomy, self.offset[modality], tissue)
        features = self.detail_encoder(space_to_depth(image, self.decoder.stem))
        seen = torch.cat([features, coded.vectors.detach().to(features)], dim=1)
        detail = self.detail_quantizer(self.detail_head(seen).float(), where=tissue)
        latent = torch.cat([coded.vectors, detail.vectors], dim=1)
        codes = {"anatomy": coded.codes[0], "detail": detail.codes[0], "tissue": tissue.long()}
        aux = {"anatomy": anatomy}
        i, j, k = image.shape[2:]
        style = pooled(self.style(trunk), image, self.foreground_above)
        terms = {"commitment": coded.terms["commitment"] + detail.terms["commitment"]}
        return Encoded(latent, codes, style, terms, (i, j, k), aux)

    def decode(self, encoded: Encoded, modality: ModalityIds) -> Image:
        """See :class:`Tokenizer`; where the detail is zero the image is the base's.

        Raises:
            ValueError: The code carries no style.
        """
        return self.decode_both(encoded, modality)[1]

    def decode_both(self, encoded: Encoded, modality: ModalityIds) -> tuple[Image, Image]:
        """Return the base image b and the refined one x_hat.

        Raises:
            ValueError: The code carries no style.
        """
        self.check_code(encoded, modality)
        if encoded.style is None:
            raise ValueError("the code has no style; give one, for example the target contrast's training mean")
        anatomy, detail = encoded.latent[:, : self.anatomy_channels], encoded.latent[:, self.anatomy_channels :]
        films = self.film(torch.cat([encoded.style, self.embedding(modality)], dim=1))
        h = self.decoder.features(anatomy, films, encoded.shape)
        base = self.decoder.conv_out(h)
        detailed = (detail != 0).any(dim=1, keepdim=True)
        refined = base + self.refine_out(F.silu(h + self.refine_in(detail))) * detailed
        tissue = cells_with_code(anatomy)
        first, second = (self._image(cells, tissue, encoded.shape) for cells in (base, refined))
        return first, second

    def lookup(self, codes: Mapping[str, Tensor], shape: Sequence[int]) -> Latent:
        """See :class:`Tokenizer`; cells without tissue hold zeros."""
        anatomy = self.quantizer.lookup([codes["anatomy"]])
        detail = anatomy.new_zeros(len(anatomy), self.detail_quantizer.dim, *anatomy.shape[2:])
        if "detail" in codes:
            detail = self.detail_quantizer.lookup([codes["detail"]])
        return only_tissue(torch.cat([anatomy, detail], dim=1), codes)

    def shared(self, encoded: Encoded) -> Encoded:
        """Return the code without its detail."""
        latent = encoded.latent.clone()
        latent[:, self.anatomy_channels :] = 0
        return replace(encoded, latent=latent, codes={k: v for k, v in encoded.codes.items() if k != "detail"})

    def bits(self, shape: Sequence[int]) -> float:
        """See :class:`Tokenizer`; the most an image can take, which is one without background."""
        per_cell = 1 + sum(cell_bits(self.codebook_sizes).values())
        return math.prod(self.latent_shape(shape)) * per_cell + self.float_bits * self.style_channels

    def bits_used(self, encoded: Encoded) -> Tensor:
        """See :class:`Tokenizer`: one bit per cell, the codes of the cells with tissue, the style."""
        bits = cell_bits({name: self.codebook_sizes[name] for name in encoded.codes})
        return bits_with_tissue(encoded.codes, bits) + self.float_bits * self.style_channels

    def _image(self, cells: Tensor, tissue: Tensor, shape: Sequence[int]) -> Image:
        """Return the image of ``(b, c prod(f), x/f, y/f, z/f)``; cells without tissue are background."""
        image = on_background(depth_to_space(cells, self.decoder.stem, shape).float(), tissue)
        return image if self.training else image.clamp(-1, 1)
