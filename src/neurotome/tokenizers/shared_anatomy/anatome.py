r"""Anatome: anatomy in front, detail behind it, bits only where there is tissue (ours).

    t(v)  = max over the voxels of cell v > air                            which cells are coded
    a     = q(E(x_m))                where t, else 0                       anatomy: one book for all contrasts
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
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn

from neurotome.nn.modulation import FiLM
from neurotome.nn.nd import depth_to_space, per_axis, space_to_depth
from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.tokenizers.base import Encoded
from neurotome.tokenizers.shared_anatomy.alignment import SharedAnatomy
from neurotome.tokenizers.shared_anatomy.parts import Decoder, Encoder, Parts, pooled
from neurotome.types import Image, ModalityIds

# what air is painted as: the lower end of the window
AIR = -1.0


class Anatome(SharedAnatomy):
    """Aligned anatomy codes, a style vector, and detail codes that refine their image.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Image channels.
        modalities: Contrasts; their order gives the ids.
        channels: Width of the anatomy's encoder and of the decoder.
        num_res_blocks: Residual blocks of the encoder.
        decoder_res_blocks: Residual blocks of the decoder.
        stem_factor: Voxels per latent cell and axis.
        anatomy_channels: Length of an anatomy code.
        num_codes: Anatomy codes.
        detail_channels: Length of a detail code.
        detail_codes: Detail codes.
        detail_width: Width of the detail's encoder.
        style_channels: Length of the style vector.
        style_stages: Widths of the strided stages between encoder and style, so that style sees wider.
        embedding_channels: Length of the contrast's embedding s_m.
        film_hidden: Width of the FiLM networks.
        air: A cell whose brightest voxel is at most this is air: it takes one bit, and is painted as -1.
        norm_groups: Groups of the normalisations; 0 for none (crops and whole volumes then see the same network).
        decay: Weight of the past in the codebooks' moving averages.
        revive_below: Share of the mean count under which a code is revived.
        start_after: Training passes with a continuous latent before the books start from k-means.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        modalities: Sequence[str] = ("T1w", "T2w"),
        channels: int = 32,
        num_res_blocks: int = 1,
        decoder_res_blocks: int = 2,
        stem_factor: int = 2,
        anatomy_channels: int = 8,
        num_codes: int = 64,
        detail_channels: int = 8,
        detail_codes: int = 1024,
        detail_width: int = 16,
        style_channels: int = 16,
        style_stages: Sequence[int] = (64,),
        embedding_channels: int = 16,
        film_hidden: int = 64,
        air: float = -0.95,
        norm_groups: int = 0,
        decay: float = 0.98,
        revive_below: float = 0.05,
        start_after: int = 100,
    ) -> None:
        super().__init__()
        self.modalities, self.air = tuple(modalities), air
        self.anatomy_channels, self.style_channels = anatomy_channels, style_channels
        self.latent_channels = anatomy_channels + detail_channels
        self.factor = stem = per_axis(stem_factor, spatial_dims)
        self.codebook_sizes = {"anatomy": num_codes, "detail": detail_codes, "tissue": 2}
        books = ("quantizer", "detail_quantizer")
        self.training_only = ("seen", *(f"{book}.{name}" for book in books for name in ("tokens", "usage")))
        parts, told, pixels = Parts(spatial_dims, 1, norm_groups, False), len(self.modalities), math.prod(stem)

        # anatomy
        self.encoder = Encoder(
            parts, in_channels, [channels], num_res_blocks, [False], [False], False, stem, told, embedding_channels,
            film_hidden,
        )  # fmt: skip
        self.anatomy_head = parts.conv(channels, anatomy_channels, 1)
        self.quantizer = EMAQuantizer(num_codes, anatomy_channels, decay, revive_below, start_after)
        self.register_buffer("price", torch.zeros(told, num_codes))
        self.register_buffer("seen", torch.zeros(told, 2, num_codes))

        # style and base
        widths = (channels, *style_stages)
        self.style = nn.Sequential(
            *(nn.Sequential(parts.conv(a, b, stride=2), parts.residual(b, b)) for a, b in pairwise(widths)),
            parts.conv(widths[-1], style_channels, 1),
        )
        self.embedding = nn.Embedding(told, embedding_channels)
        self.decoder = Decoder(
            parts, anatomy_channels, in_channels, [channels], decoder_res_blocks, [False], [False], False, stem, "block"
        )
        self.film = FiLM(style_channels + embedding_channels, film_hidden, self.decoder.sites, 1)

        # detail
        self.detail_encoder = nn.Sequential(
            parts.conv(in_channels * pixels, detail_width), parts.residual(detail_width, detail_width), nn.SiLU()
        )
        self.detail_head = nn.Sequential(
            parts.conv(detail_width + anatomy_channels, channels, 1),
            nn.SiLU(),
            parts.conv(channels, detail_channels, 1),
        )
        self.detail_quantizer = EMAQuantizer(detail_codes, detail_channels, decay, revive_below, start_after)
        self.refine_in = parts.conv(detail_channels, channels)
        self.refine_out = parts.conv(channels, in_channels * pixels)

    def encode(self, image: Image, modality: ModalityIds) -> Encoded:
        """See :class:`Tokenizer`; ``aux`` holds ``anatomy`` (before quantisation) and ``anatomy_q``."""
        self.check_input(image, modality)
        x, y, z = self.latent_shape(image.shape[2:])
        tissue: Bool[Tensor, "b x y z"] = F.adaptive_max_pool3d(image, (x, y, z)).amax(dim=1) > self.air
        trunk = self.encoder(image, modality)
        anatomy = self.anatomy_head(trunk).float()
        coded = self.quantizer(anatomy, self.price[modality], tissue)
        looks = self.detail_encoder(space_to_depth(image, self.decoder.stem))
        seen = torch.cat([looks, coded.vectors.detach().to(looks)], dim=1)
        detail = self.detail_quantizer(self.detail_head(seen).float(), where=tissue)
        latent = torch.cat([coded.vectors, detail.vectors], dim=1)
        codes = {"anatomy": coded.codes, "detail": detail.codes, "tissue": tissue.long()}
        aux = {"anatomy": anatomy, "anatomy_q": coded.vectors}
        i, j, k = image.shape[2:]
        style = pooled(self.style(trunk), image, self.air)
        terms = {"commitment": coded.commitment + detail.commitment}
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
        tissue = (anatomy != 0).any(dim=1, keepdim=True)
        first, second = (self._painted(cells, tissue, encoded.shape) for cells in (base, refined))
        return first, second

    def coded(self, encoded: Encoded) -> Bool[Tensor, "b x y z"]:
        """Return which cells hold tissue."""
        return encoded.codes["tissue"].bool()

    def shared(self, encoded: Encoded) -> Encoded:
        """Return the code without its detail."""
        latent = encoded.latent.clone()
        latent[:, self.anatomy_channels :] = 0
        return replace(encoded, latent=latent, codes={k: v for k, v in encoded.codes.items() if k != "detail"})

    def bits(self, shape: Sequence[int]) -> float:
        """See :class:`Tokenizer`; the most an image can take, which is one without air."""
        return (
            math.prod(self.latent_shape(shape)) * (1 + self._cell_bits(self.codebook_sizes)) + 16 * self.style_channels
        )

    def bits_used(self, encoded: Encoded) -> Tensor:
        """See :class:`Tokenizer`: one bit per cell, the codes of the cells with tissue, the style."""
        tissue = encoded.codes["tissue"].flatten(1)
        return tissue.shape[1] + tissue.sum(dim=1).double() * self._cell_bits(encoded.codes) + 16 * self.style_channels

    def _cell_bits(self, names: Iterable[str]) -> int:
        """Return the bits of one cell with tissue."""
        return sum(math.ceil(math.log2(self.codebook_sizes[name])) for name in names if name != "tissue")

    def _painted(self, cells: Tensor, tissue: Tensor, shape: Sequence[int]) -> Image:
        """Return the image of ``(b, c prod(f), x/f, y/f, z/f)``, air as air."""
        image = depth_to_space(torch.where(tissue, cells, AIR), self.decoder.stem, shape).float()
        return image if self.training else image.clamp(-1, 1)
