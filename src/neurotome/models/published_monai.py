r"""MONAI's autoencoders as ours.

AutoencoderKL, AutoencoderKlMaisi    KLVAE, whose decoder interpolates for MAISI
VQVAE                                VQVAE, plain blocks
"""

import re
from collections.abc import Sequence
from typing import Literal

import torch

from neurotome.errors import UsageError
from neurotome.models.published_weights import (
    ATTENTION,
    CONV,
    RESIDUAL,
    Correspondence,
    Tensors,
    Untraced,
    codebook,
    one,
)
from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.tokenizers.kl_vae import KLVAE
from neurotome.tokenizers.vq_vae import VQVAE


def autoencoder_kl(theirs: Tensors, untraced: Untraced, upsampling: Literal["nearest", "trilinear"]) -> Correspondence:
    """Return our network for an AutoencoderKL.

    Args:
        theirs: Its tensors.
        untraced: What the tensors do not tell.
        upsampling: How its decoder goes up, which they do not tell either.

    Raises:
        UsageError: The network cannot be told from the tensors, or has what ours has not.
    """
    encoder, decoder = theirs.kinds("encoder"), theirs.kinds("decoder")
    for part, kinds in (("encoder", encoder), ("decoder", decoder)):
        if not re.fullmatch("C[RAC]+NC", kinds):
            raise UsageError(f"the {part} is no AutoencoderKL's: its blocks are {kinds}")
    inner, outer = encoder[1:-2], decoder[1:-2]
    mid = inner.endswith("RAR")
    if mid and not outer.startswith("RAR"):
        raise UsageError("the encoder has attention in its middle and the decoder has not; ours has both or neither")
    down = [_level(part) for part in (inner[:-3] if mid else inner).split(CONV)]
    up = [_level(part) for part in (outer[3:] if mid else outer).split(CONV)]
    attention, widths, block = [attends for _, attends in down], [], 1
    if attention != [attends for _, attends in up][::-1]:
        raise UsageError("encoder and decoder do not attend at the same levels; ours do")
    for number, attends in down:
        widths.append(theirs.kernel(f"encoder.blocks.{block}.conv2.weight")[0])
        block += number * (2 if attends else 1) + 1
    kernel = theirs.kernel("encoder.blocks.0.weight")
    _same_channels(kernel[1], theirs.kernel(f"decoder.blocks.{len(decoder) - 1}.weight")[0])
    with torch.device("meta"):
        network = KLVAE(
            len(kernel) - 2, kernel[1], untraced.modalities, widths, one([n for n, _ in down], "encoder"),
            one([n for n, _ in up], "decoder"), attention, mid, 1, theirs.kernel("quant_conv_mu.weight")[0],
            untraced.norm_groups, upsampling=upsampling, intensities=untraced.intensities,
        )  # fmt: skip
    found = Correspondence(network)
    middle = [f"mid.{i}" for i in range(3)] if mid else []
    levels = [[f"levels.{i}.blocks.{k}" for k in range(n * (2 if a else 1))] for i, (n, a) in enumerate(down)]
    order = ["conv_in", *_between(levels, "down.{}.conv"), *middle, "norm", "conv_out"]
    _walk(found, theirs, "encoder", order, encoder)
    levels = [[f"levels.{i}.blocks.{k}" for k in range(n * (2 if a else 1))] for i, (n, a) in enumerate(up)]
    order = ["conv_in", *middle, *_between(levels, "up.{}.conv"), "norm", "conv_out"]
    _walk(found, theirs, "decoder", order, decoder)
    for ours, name in (
        ("mean", "quant_conv_mu"), ("log_variance", "quant_conv_log_sigma"), ("from_latent", "post_quant_conv")
    ):  # fmt: skip
        found.layer(ours, name)
    return found


def _level(kinds: str) -> tuple[int, bool]:
    """Return the residual blocks of a level, and whether it attends."""
    if not re.fullmatch("R+|(RA)+", kinds):
        raise UsageError(f"a level with the blocks {kinds or 'none'}: ours attends after each residual block or none")
    return kinds.count(RESIDUAL), ATTENTION in kinds


def _between(levels: Sequence[Sequence[str]], resize: str) -> list[str]:
    """Return the blocks of the levels with what changes the resolution between them."""
    found: list[str] = []
    for i, level in enumerate(levels):
        found += [*level, *([resize.format(i)] if i < len(levels) - 1 else [])]
    return found


def _walk(found: Correspondence, theirs: Tensors, part: str, order: Sequence[str], kinds: str) -> None:
    """Note MONAI's blocks in their order."""
    for i, (ours, kind) in enumerate(zip(order, kinds, strict=True)):
        own, block = f"{part}.{ours}", f"{part}.blocks.{i}"
        if kind == RESIDUAL:
            for layer in ("norm1", "conv1", "norm2", "conv2"):
                found.layer(f"{own}.{layer}", f"{block}.{layer}")
            if f"{own}.skip.weight" in dict(found.network.named_parameters()):
                found.layer(f"{own}.skip", f"{block}.nin_shortcut")
        elif kind == ATTENTION:
            found.layer(f"{own}.norm", f"{block}.norm")
            apart = [f"{block}.attn.to_{letter}" for letter in "qkv"]
            found.layer(f"{own}.qkv", *([f"{block}.attn.qkv"] if theirs.has(f"{block}.attn.qkv.") else apart))
            if theirs.has(f"{block}.attn.out_proj."):
                found.layer(f"{own}.out", f"{block}.attn.out_proj")
            else:  # without a last layer what it would get is what it gives
                width = theirs.shape(f"{block}.norm.weight", 1)[0]
                found.constants |= {f"{own}.out.weight": torch.eye(width), f"{own}.out.bias": torch.zeros(width)}
        else:
            found.layer(own, block)


def vqvae(theirs: Tensors, untraced: Untraced) -> Correspondence:
    """Return our network for a VQVAE.

    Args:
        theirs: Their tensors.
        untraced: What the tensors do not tell.

    Raises:
        UsageError: Their network cannot be told from the tensors, or has what ours has not.
    """
    encoder, decoder = theirs.kinds("encoder"), theirs.kinds("decoder")
    levels = re.findall("CR*", encoder[:-1])
    number = one([len(level) - 1 for level in levels], "encoder")
    if encoder != ("C" + "R" * number) * len(levels) + "C" or decoder != "C" + ("R" * number + "C") * len(levels):
        raise UsageError(f"the blocks are {encoder} and {decoder}, not those of a VQVAE")
    step = number + 1
    starts = [f"encoder.blocks.{i * step}.weight" for i in range(len(levels))]
    odd = [name for name in starts if set(theirs.kernel(name)[2:]) != {4}]
    if odd:
        raise UsageError(
            f"{theirs.original(odd[0])} has windows of {theirs.kernel(odd[0])[2:]}; ours go down with windows of 4"
        )
    kernel, last = theirs.kernel(starts[0]), f"decoder.blocks.{len(decoder) - 1}.weight"
    _same_channels(kernel[1], theirs.kernel(last)[1])
    units = [f"encoder.blocks.{i * step + 1}.conv1.weight" for i in range(len(levels))]
    inner = [theirs.kernel(name)[0] for name in units] if number else None
    embedding = "quantizer.quantizer.embedding.weight"
    with torch.device("meta"):
        network = VQVAE(
            len(kernel) - 2, kernel[1], untraced.modalities, "plain", [theirs.kernel(name)[0] for name in starts],
            number, inner, quantizer=EMAQuantizer(*theirs.shape(embedding, 2)), intensities=untraced.intensities,
        )  # fmt: skip
    found = Correspondence(network)
    for i in range(len(levels)):
        found.layer(f"encoder.levels.{i * (number + 2)}", f"encoder.blocks.{i * step}")
        found.layer(f"decoder.up.{i}", f"decoder.blocks.{(i + 1) * step}")
        for k in range(number):
            for conv in ("conv1", "conv2"):
                found.layer(
                    f"encoder.levels.{i * (number + 2) + 2 + k}.{conv}", f"encoder.blocks.{i * step + 1 + k}.{conv}"
                )
                found.layer(f"decoder.units.{i}.{k}.{conv}", f"decoder.blocks.{i * step + 1 + k}.{conv}")
    found.layer("encoder.conv_out", f"encoder.blocks.{len(encoder) - 1}")
    found.layer("decoder.conv_in", "decoder.blocks.0")
    codebook(found, embedding, "quantizer.quantizer.")
    return found


def _same_channels(inwards: int, outwards: int) -> None:
    if inwards != outwards:
        raise UsageError(f"{inwards} channels go in and {outwards} come out; a tokenizer gives back what it takes")
