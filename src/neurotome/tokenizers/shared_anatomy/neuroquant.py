r"""NeuroQuant: one encoder, two streams (Li et al., 2026, arXiv:2604.05171).

    E(x_m) = (z_anat, z_mod)                                   eq. 1
    q(v)   = e_k,  k = argmin_k |z_anat(v) - e_k|^2             eq. 6
    u_m    = concat(GAP(z_mod), s_m)                            eq. 8
    x_hat  = D(q, {(gamma_l, beta_l)(u_m)})                     eq. 9-11

The anatomy is quantised with one codebook for all contrasts; the appearance modulates the decoder. The constructor's
defaults are the published sizes. Departures from the paper are arguments, listed in ``docs/explanation/neuroquant.md``;
they have not been ablated one by one.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from neurotome.nn.adversary import ModalityAdversary
from neurotome.nn.modulation import FiLM, Modulation
from neurotome.nn.nd import per_axis, upsample
from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.tokenizers.base import Encoded
from neurotome.tokenizers.shared_anatomy.alignment import SharedAnatomy
from neurotome.tokenizers.shared_anatomy.parts import Decoder, Encoder, GainField, Parts, foreground_share, pooled
from neurotome.types import Image, ModalityIds, Style

PRIVATE_SCRATCH = ("private.tokens", "private.usage")


class NeuroQuant(SharedAnatomy):
    """Dual-stream tokenizer with a quantised anatomy and a modulating appearance.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Image channels.
        modalities: Contrasts; their order gives the ids.
        channels: Width of each encoder stage; the decoder mirrors it.
        num_res_blocks: Residual blocks per stage.
        attention_levels: Which stages end in multi-axis attention (and the decoder's mirror).
        mid_blocks: Whether residual block, attention, residual block follow the coarsest stage.
        num_heads: Attention heads.
        anatomy_channels: C_a, length of an anatomy code.
        modality_channels: C_m, length of the appearance vector.
        embedding_channels: C_s, length of the modality embedding s_m.
        num_codes: K_a, anatomy codes.
        film_hidden: Width of the FiLM network.
        film_layers: Its hidden layers.
        norm_groups: Groups of the normalisations; 0 removes them (crops and whole volumes then see the same network).
        factored: Whether convolutions in residual blocks are factored into plane and depth.
        stem_factor: Voxels per axis moved into channels before the first convolution and back after the last.
        downsample: Which stages halve the resolution; None means all.
        film_sites: "stage" modulates after the middle and after each stage (paper), "block" inside each residual block;
            "none" builds no appearance stream: the decoder is not told the contrast (the paper's base in its ablation).
        appearance_channels: Further strided stages between trunk and appearance head, so that style sees wider.
        foreground_above: Only voxels brighter than this enter GAP(z_mod); None pools over the whole box (paper).
        decoder_res_blocks: Residual blocks per decoder stage; None for ``num_res_blocks``.
        output: "tanh" (paper), or "clamp": linear in training, clamped to [-1, 1] in evaluation.
        tell_encoder: Whether the encoder is told the contrast: a stem per contrast and FiLM in its blocks.
        gain_factor: Latent cells per axis and cell of the gain field g, which multiplies the brightness of the image:
            the appearance that a vector cannot hold, such as a coil's bias field; 0 for none (paper).
        private_codes: Codes per cell that only the own reconstruction sees, on top of the shared ones; 0 for none.
        private_channels: Length of a private code.
        decay: Weight of the past in the codebooks' moving averages.
        revive_below: Share of the mean count under which a code is revived.
        start_after: Training passes with a continuous latent before the codebooks start from k-means.
        adversary: Whether the modality adversary is built (training only).
        recompute: Whether training computes activations again in the backward pass (gradient checkpointing, stage by
            stage): less memory for more time, the same gradients.

    Raises:
        ValueError: Arguments that do not fit each other.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        modalities: Sequence[str] = ("T1w", "T2w"),
        channels: Sequence[int] = (64, 128, 256, 256),
        num_res_blocks: int = 2,
        attention_levels: Sequence[bool] = (False, False, True, True),
        mid_blocks: bool = True,
        num_heads: int = 8,
        anatomy_channels: int = 64,
        modality_channels: int = 32,
        embedding_channels: int = 32,
        num_codes: int = 4096,
        film_hidden: int = 256,
        film_layers: int = 2,
        norm_groups: int = 32,
        factored: bool = True,
        stem_factor: int = 1,
        downsample: Sequence[bool] | None = None,
        film_sites: Literal["stage", "block", "none"] = "stage",
        appearance_channels: Sequence[int] = (),
        foreground_above: float | None = None,
        output: Literal["tanh", "clamp"] = "tanh",
        decoder_res_blocks: int | None = None,
        tell_encoder: bool = False,
        gain_factor: int = 0,
        private_codes: int = 0,
        private_channels: int = 4,
        decay: float = 0.99,
        revive_below: float = 0.1,
        start_after: int = 0,
        adversary: bool = True,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        downsample = (True,) * len(channels) if downsample is None else tuple(downsample)
        if not len(channels) == len(attention_levels) == len(downsample):
            raise ValueError(
                f"channels has {len(channels)} levels, attention_levels {len(attention_levels)}, downsample "
                f"{len(downsample)}; give one entry per level"
            )
        self.modalities = tuple(modalities)
        self.anatomy_channels, self.modality_channels = anatomy_channels, modality_channels
        self.latent_channels = anatomy_channels + (private_channels if private_codes else 0)
        self.factor = per_axis(stem_factor * 2 ** sum(downsample), spatial_dims)
        self.foreground_above, self.output, self.tell_encoder = foreground_above, output, tell_encoder
        self.training_only = ("adversary", "seen", "quantizer.tokens", "quantizer.usage", *PRIVATE_SCRATCH)
        parts = Parts(spatial_dims, num_heads, norm_groups, factored)
        stem, deepest, num_modalities = per_axis(stem_factor, spatial_dims), channels[-1], len(self.modalities)

        # two streams
        self.encoder = Encoder(
            parts, in_channels, channels, num_res_blocks, attention_levels, downsample, mid_blocks, stem,
            num_modalities if tell_encoder else 0, embedding_channels, film_hidden,
        )  # fmt: skip
        self.anatomy_head = parts.conv(deepest, anatomy_channels, 1)
        styled = film_sites != "none"
        if gain_factor and not styled:
            raise ValueError(f"gain_factor is {gain_factor} with film_sites none; the gain is part of the appearance")
        self.gain: GainField | None = None
        if styled:
            self._build_appearance(parts, (deepest, *appearance_channels), gain_factor)

        # bottleneck
        book = partial(EMAQuantizer, decay=decay, revive_below=revive_below, start_after=start_after)
        self.quantizer = book(num_codes, anatomy_channels)
        # b_nk of tokenizers.alignment, and the running counts that move it
        self.register_buffer("price", torch.zeros(num_modalities, num_codes))
        self.register_buffer("seen", torch.zeros(num_modalities, 2, num_codes))
        self.private = book(private_codes, private_channels) if private_codes else None
        if private_codes:
            self.private_head = nn.Sequential(
                parts.conv(deepest + anatomy_channels, deepest, 1), nn.SiLU(), parts.conv(deepest, private_channels, 1)
            )

        # decoder
        self.decoder = Decoder(
            parts, self.latent_channels, in_channels, channels[::-1],
            num_res_blocks if decoder_res_blocks is None else decoder_res_blocks,
            attention_levels[::-1], downsample[::-1], mid_blocks, stem, film_sites,
        )  # fmt: skip
        self.film = None
        if styled:
            self.embedding = nn.Embedding(num_modalities, embedding_channels)
            self.film = FiLM(modality_channels + embedding_channels, film_hidden, self.decoder.sites, film_layers)
        self.adversary = ModalityAdversary(spatial_dims, anatomy_channels, num_modalities) if adversary else None
        self.encoder.recompute = self.decoder.recompute = recompute

    def _build_appearance(self, parts: Parts, widths: Sequence[int], gain_factor: int) -> None:
        """Build z_mod: strided stages from the trunk, the head of the style vector, and the gain field."""
        self.appearance = nn.Sequential(
            *(nn.Sequential(parts.conv(a, b, stride=2), parts.residual(b, b)) for a, b in pairwise(widths))
        )
        self.modality_head = parts.conv(widths[-1], self.modality_channels, 1)
        self.gain = GainField(parts, widths[-1], gain_factor) if gain_factor else None

    def encode(self, image: Image, modality: ModalityIds) -> Encoded:
        """See :class:`Tokenizer`; ``aux`` holds ``anatomy`` (before quantisation) and ``anatomy_q``."""
        self.check_input(image, modality)
        trunk = self.encoder(image, modality)
        style, gain = self._look(trunk, image)
        anatomy = self.anatomy_head(trunk).float()
        quantised = self.quantizer(anatomy, self.price[modality] if self.tell_encoder else None)
        latent, codes, terms = quantised.vectors, {"anatomy": quantised.codes}, {"commitment": quantised.commitment}
        aux = {"anatomy": anatomy, "anatomy_q": quantised.vectors}
        if self.private is not None:
            seen = torch.cat([trunk, latent.detach().to(trunk.dtype)], dim=1)
            own = self.private(self.private_head(seen).float())
            latent = torch.cat([latent, own.vectors], dim=1)
            codes["private"], terms["private_commitment"] = own.codes, own.commitment
        x, y, z = image.shape[2:]
        return Encoded(latent, codes, style, terms, (x, y, z), aux, gain)

    def decode(self, encoded: Encoded, modality: ModalityIds) -> Image:
        """See :class:`Tokenizer`; ``encoded.style`` is the appearance vector of the contrast to paint.

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
        return image if self.training else image.clamp(-1, 1)

    def shared(self, encoded: Encoded) -> Encoded:
        """Return the code without its private part."""
        if self.private is None:
            return encoded
        public = encoded.latent[:, : self.anatomy_channels]
        silent = torch.zeros_like(encoded.latent[:, self.anatomy_channels :])
        return replace(encoded, latent=torch.cat([public, silent], dim=1), codes={"anatomy": encoded.codes["anatomy"]})

    def bits(self, shape: Sequence[int]) -> float:
        """See :class:`Tokenizer`; private codes are counted, because the own reconstruction uses them."""
        return self._bits(shape, [b for b in (self.quantizer, self.private) if b is not None])

    def bits_used(self, encoded: Encoded) -> Tensor:
        """See :class:`Tokenizer`; private codes are counted where they are there."""
        books = [self.quantizer] + ([self.private] if self.private is not None and "private" in encoded.codes else [])
        return torch.full((len(encoded.latent),), self._bits(encoded.shape, books), dtype=torch.float64)

    def _bits(self, shape: Sequence[int], books: Sequence[EMAQuantizer]) -> float:
        latent = self.latent_shape(shape)
        per_cell = sum(math.ceil(math.log2(book.num_codes)) for book in books)
        floats = (self.modality_channels if self.film is not None else 0) + (
            0 if self.gain is None else math.prod(self.gain.cells(latent))
        )
        return math.prod(latent) * per_cell + 16 * floats

    def _look(self, trunk: Tensor, image: Image) -> tuple[Style | None, Tensor | None]:
        """Return the style vector and the gain field, where the network has them."""
        if self.film is None:
            return None, None
        looks = self.appearance(trunk)
        style = pooled(self.modality_head(looks), image, self.foreground_above)
        if self.gain is None:
            return style, None
        share = foreground_share(image, looks.shape[2:], self.foreground_above)
        return style, self.gain(looks, share, self.latent_shape(image.shape[2:]))
