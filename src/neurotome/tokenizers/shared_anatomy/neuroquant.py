r"""NeuroQuant: one encoder, two streams (Li et al., 2026, arXiv:2604.05171).

    E(x_m) = (z_anat, z_mod)                                   eq. 1
    q(v)   = e_k,  k = argmin_k |z_anat(v) - e_k|^2             eq. 6
    u_m    = concat(GAP(z_mod), s_m)                            eq. 8
    x_hat  = D(q, {(gamma_l, beta_l)(u_m)})                     eq. 9-11

The anatomy is quantised with one codebook for all contrasts; the appearance modulates the decoder. The constructor's
defaults are the published sizes. Departures from the paper are arguments, listed in ``docs/explanation/fidelity.md``;
they have not been ablated one by one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from neurotome.nn.adversary import ModalityAdversary
from neurotome.nn.modulation import FiLM, Modulation
from neurotome.nn.nd import per_axis, upsample
from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.ranges import Dims, Finite, Size
from neurotome.tokenizers.base import Encoded
from neurotome.tokenizers.shared_anatomy.alignment import SharedAnatomy
from neurotome.tokenizers.shared_anatomy.parts import (
    AnatomyDecoder,
    AnatomyEncoder,
    Appearance,
    GainField,
    Parts,
    Trunk,
    foreground_share,
    pooled,
)
from neurotome.tokenizers.tissue import (
    TISSUE,
    bits_with_tissue,
    cell_bits,
    cells_with_code,
    on_background,
    only_tissue,
    tissue_cells,
)
from neurotome.types import Image, Latent, ModalityIds, Style

PUBLISHED_TRUNK, PUBLISHED_APPEARANCE = Trunk(), Appearance()


class NeuroQuant(SharedAnatomy):
    """Dual-stream tokenizer with a quantised anatomy and a modulating appearance.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Image channels.
        modalities: Contrasts; their order gives the ids.
        trunk: Sizes of encoder and decoder.
        appearance: Sizes of the appearance stream and of the modulation.
        quantizer: Codebook of the anatomy; its ``dim`` is C_a. None for the published 4096 codes of 64 numbers.
        private: Codebook of the codes that only the own reconstruction uses, on top of the shared ones; None for none.
        contrast_in_encoder: Whether the contrast is known to the encoder: a stem per contrast and FiLM in its blocks.
        output: "tanh" (paper), or "clamp": linear in training, clamped to [-1, 1] in evaluation.
        adversary: Whether the modality adversary is built (training only).
        recompute: Whether training computes activations again in the backward pass (gradient checkpointing, stage by
            stage): less memory for more time, the same gradients.
        tissue_above: Cells whose brightest voxel is at most this are background: they take one bit, have no code, and
            are decoded to -1 (ours, see :mod:`neurotome.tokenizers.tissue`); None codes every cell (paper).

    Raises:
        ValueError: ``spatial_dims`` is neither 2 nor 3, or a width does not fit ``num_heads`` or ``norm_groups``.
    """

    scratch = ("adversary", "seen")
    from_codes = True

    def __init__(
        self,
        spatial_dims: Dims = 3,
        in_channels: Size = 1,
        modalities: Sequence[str] = ("T1w", "T2w"),
        trunk: Trunk = PUBLISHED_TRUNK,
        appearance: Appearance = PUBLISHED_APPEARANCE,
        quantizer: EMAQuantizer | None = None,
        private: EMAQuantizer | None = None,
        contrast_in_encoder: bool = False,
        output: Literal["tanh", "clamp"] = "tanh",
        adversary: bool = True,
        recompute: bool = False,
        tissue_above: Finite | None = None,
    ) -> None:
        super().__init__()
        quantizer = quantizer or EMAQuantizer(4096, 64)
        self.modalities, self.factor = tuple(modalities), per_axis(trunk.factor, spatial_dims)
        self.anatomy_channels, self.modality_channels = quantizer.dim, appearance.channels
        self.latent_channels = quantizer.dim + (private.dim if private else 0)
        self.codebook_sizes = {"anatomy": quantizer.num_codes} | ({"private": private.num_codes} if private else {})
        self.foreground_above, self.output = appearance.foreground_above, output
        self.contrast_in_encoder, self.tissue_above = contrast_in_encoder, tissue_above
        if tissue_above is not None:
            self.codebook_sizes[TISSUE] = 2
        parts, deepest, contrasts = Parts(spatial_dims, trunk), trunk.channels[-1], len(self.modalities)

        # two streams
        self.encoder = AnatomyEncoder(parts, in_channels, contrasts if contrast_in_encoder else 0, appearance)
        self.anatomy_head = parts.conv(deepest, quantizer.dim, 1)
        styled = appearance.film_sites != "none"
        self.gain: GainField | None = None
        if styled:
            widths = (deepest, *appearance.stages)
            self.appearance = nn.Sequential(*parts.strided(widths))
            self.modality_head = parts.conv(widths[-1], appearance.channels, 1)
            self.gain = GainField(parts, widths[-1], appearance.gain_factor) if appearance.gain_factor else None

        # bottleneck
        quantizer.draw()
        self.quantizer = quantizer
        # b_nk of the alignment, and the running counts that move it
        self.register_buffer("offset", torch.zeros(contrasts, quantizer.num_codes))
        self.register_buffer("seen", torch.zeros(contrasts, 2, quantizer.num_codes))
        self.private = private
        if private:
            private.draw()
            self.private_head = nn.Sequential(
                parts.conv(deepest + quantizer.dim, deepest, 1), nn.SiLU(), parts.conv(deepest, private.dim, 1)
            )

        # decoder
        self.decoder = AnatomyDecoder(parts, self.latent_channels, in_channels, appearance.film_sites)
        self.film = None
        if styled:
            width = appearance.channels + appearance.embedding_channels
            self.embedding = nn.Embedding(contrasts, appearance.embedding_channels)
            self.film = FiLM(width, appearance.film_hidden, self.decoder.sites, appearance.film_layers)
        self.adversary = ModalityAdversary(spatial_dims, quantizer.dim, contrasts) if adversary else None
        self.encoder.recompute = self.decoder.recompute = recompute

    def encode(self, image: Image, modality: ModalityIds) -> Encoded:
        """See :class:`Tokenizer`; ``aux`` holds ``anatomy``, before quantisation."""
        self.check_input(image, modality)
        trunk = self.encoder(image, modality)
        style, gain = self._appearance(trunk, image)
        anatomy = self.anatomy_head(trunk).float()
        x, y, z = image.shape[2:]
        tissue = None
        if self.tissue_above is not None:
            tissue = tissue_cells(image, self.latent_shape((x, y, z)), self.tissue_above)
        found = self.quantizer(anatomy, self.offset[modality] if self.contrast_in_encoder else None, tissue)
        latent, codes, terms = found.vectors, {"anatomy": found.codes[0]}, dict(found.terms)
        aux = {"anatomy": anatomy}
        if self.private is not None:
            seen = torch.cat([trunk, latent.detach().to(trunk.dtype)], dim=1)
            own = self.private(self.private_head(seen).float(), where=tissue)
            latent = torch.cat([latent, own.vectors], dim=1)
            codes["private"], terms["private_commitment"] = own.codes[0], own.terms["commitment"]
        if tissue is not None:
            codes[TISSUE] = tissue.long()
        return Encoded(latent, codes, style, terms, (x, y, z), aux, gain)

    def decode(self, encoded: Encoded, modality: ModalityIds) -> Image:
        """See :class:`Tokenizer`; ``encoded.style`` is the appearance vector of the contrast to synthesise.

        Raises:
            ValueError: The code carries no style.
        """
        self.check_code(encoded, modality)
        films: Sequence[Modulation] = ()
        if self.film is not None:
            if encoded.style is None:
                raise ValueError("the code has no style; give one, for example the target contrast's training mean")
            films = self.film(torch.cat([encoded.style, self.embedding(modality)], dim=1))  # u_m, eq. 8-9
        image = self.decoder(encoded.latent, films, encoded.shape).float()
        image = torch.tanh(image) if self.output == "tanh" else image
        if encoded.gain is not None:
            image = (image + 1) * upsample(encoded.gain, encoded.shape).exp() - 1
        if self.tissue_above is not None:  # of the anatomy in the latent, which in training may be another view's
            image = on_background(image, cells_with_code(self.anatomy(encoded)))
        return image if self.training else image.clamp(-1, 1)

    def lookup(self, codes: Mapping[str, Tensor], shape: Sequence[int]) -> Latent:
        """See :class:`Tokenizer`."""
        latent = self.quantizer.lookup([codes["anatomy"]])
        if self.private is not None:
            private = latent.new_zeros(len(latent), self.private.dim, *latent.shape[2:])
            if "private" in codes:
                private = self.private.lookup([codes["private"]])
            latent = torch.cat([latent, private], dim=1)
        return only_tissue(latent, codes)

    def shared(self, encoded: Encoded) -> Encoded:
        """Return the code without its private part."""
        if self.private is None:
            return encoded
        public = encoded.latent[:, : self.anatomy_channels]
        zeroed = torch.zeros_like(encoded.latent[:, self.anatomy_channels :])
        codes = {name: found for name, found in encoded.codes.items() if name != "private"}
        return replace(encoded, latent=torch.cat([public, zeroed], dim=1), codes=codes)

    def bits(self, shape: Sequence[int]) -> float:
        """See :class:`Tokenizer`; private codes are counted, because the own reconstruction uses them."""
        per_cell = sum(cell_bits(self.codebook_sizes).values()) + (self.tissue_above is not None)
        return math.prod(self.latent_shape(shape)) * per_cell + self._float_bits(shape)

    def bits_used(self, encoded: Encoded) -> Tensor:
        """See :class:`Tokenizer`; private codes are counted where they are there, codes where there is tissue."""
        bits = cell_bits({name: self.codebook_sizes[name] for name in encoded.codes})
        if self.tissue_above is not None:
            return bits_with_tissue(encoded.codes, bits) + self._float_bits(encoded.shape)
        total = math.prod(self.latent_shape(encoded.shape)) * sum(bits.values()) + self._float_bits(encoded.shape)
        return torch.full((len(encoded.latent),), total, dtype=torch.float64)

    def _float_bits(self, shape: Sequence[int]) -> int:
        """Return the bits of the style and of the gain."""
        gain = 0 if self.gain is None else math.prod(self.gain.cells(self.latent_shape(shape)))
        return self.float_bits * ((self.modality_channels if self.film is not None else 0) + gain)

    def _appearance(self, trunk: Tensor, image: Image) -> tuple[Style | None, Tensor | None]:
        """Return the style vector and the gain field, where the network has them."""
        if self.film is None:
            return None, None
        features = self.appearance(trunk)
        style = pooled(self.modality_head(features), image, self.foreground_above)
        if self.gain is None:
            return style, None
        share = foreground_share(image, features.shape[2:], self.foreground_above)
        return style, self.gain(features, share, self.latent_shape(image.shape[2:]))
