"""NeuroQuant's released code (Li et al., 2026) as our NeuroQuant; its axes d, h, w are our x, y, z."""

import torch

from neurotome.errors import UsageError
from neurotome.models.published_weights import Correspondence, Tensors, Untraced, codebook, one
from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.tokenizers.shared_anatomy.neuroquant import NeuroQuant
from neurotome.tokenizers.shared_anatomy.parts import Appearance, Trunk


def neuroquant(theirs: Tensors, untraced: Untraced) -> Correspondence:
    """Return our network for theirs.

    Args:
        theirs: Their tensors.
        untraced: What the tensors do not tell.

    Raises:
        UsageError: Their network cannot be told from the tensors, or has what ours has not.
    """
    contrasts, embedding = theirs.shape("modality_embedding.weight", 2)
    if contrasts != len(untraced.modalities):
        raise UsageError(f"the network knows {contrasts} contrasts; give --modalities so many, in the order of its ids")
    if "quantizer.initialized" in theirs.tensors and not bool(theirs.tensors["quantizer.initialized"].all()):
        raise UsageError("the codebook has not started (quantizer.initialized): these are weights of before")
    stages = range(theirs.count("encoder.down_blocks."))
    number = one([theirs.count(f"encoder.down_blocks.{i}.res.") for i in stages], "encoder")
    attention = [theirs.has(f"encoder.down_blocks.{i}.attn.") for i in stages]
    widths = [theirs.kernel(f"encoder.down_blocks.{i}.res.0.conv1.spatial_conv.weight")[0] for i in stages]
    trunk = Trunk(
        widths, number, attention_levels=attention, num_heads=untraced.num_heads, norm_groups=untraced.norm_groups,
        skip_depth=True,
    )  # fmt: skip
    appearance = Appearance(
        theirs.kernel("encoder.head_mod.weight")[0], embedding_channels=embedding,
        film_hidden=theirs.shape("film_generator.mlp.0.weight", 2)[0],
    )  # fmt: skip
    with torch.device("meta"):
        network = NeuroQuant(
            3, theirs.kernel("encoder.conv_in.weight")[1], untraced.modalities, trunk, appearance,
            EMAQuantizer(*theirs.shape("quantizer.embedding", 2)),
        )  # fmt: skip
    unused = ("modality_adversary.", "quantizer.initialized", "quantizer.init_reservoir")
    found = Correspondence(network, unused=unused)
    for i in stages:
        _stage(found, f"encoder.stages.{i}", f"encoder.down_blocks.{i}", number, attention[i])
        found.layer(f"encoder.stages.{i}.down", f"encoder.down_blocks.{i}.down")
        _stage(found, f"decoder.stages.{i}", f"decoder.up_blocks.{i}", number, attention[-1 - i])
        found.layer(f"decoder.stages.{i}.up", f"decoder.up_blocks.{i}.up")
    for part in ("encoder", "decoder"):
        for layer in ("conv_in", "mid.0", "mid.1", "mid.2", "norm"):
            name = {"mid.0": "mid_res1", "mid.1": "mid_attn", "mid.2": "mid_res2", "norm": "norm_out"}.get(layer, layer)
            ours, name = f"{part}.{layer}", f"{part}.{name}"
            if name.endswith("attn"):
                _axes(found, ours, name)
            elif "mid" in name:
                _residual(found, ours, name)
            else:
                found.layer(ours, name)
    found.layer("anatomy_head", "encoder.head_anat")
    found.layer("modality_head", "encoder.head_mod")
    found.layer("decoder.conv_out", "decoder.conv_out")
    found.layer("embedding", "modality_embedding", bias=False)
    for i in (0, 2, 4):
        found.layer(f"film.mlp.{i}", f"film_generator.mlp.{i}")
    codebook(found, "quantizer.embedding", "quantizer.")
    found.constants["offset"] = torch.zeros(network.exported_state()["offset"].shape)
    return found


def _stage(found: Correspondence, ours: str, theirs: str, number: int, attends: bool) -> None:
    for k in range(number):
        _residual(found, f"{ours}.blocks.{k}", f"{theirs}.res.{k}")
    if attends:
        _axes(found, f"{ours}.attention", f"{theirs}.attn")


def _residual(found: Correspondence, ours: str, theirs: str) -> None:
    for i in (1, 2):
        found.layer(f"{ours}.norm{i}", f"{theirs}.norm{i}")
        for own, name in (("plane", "spatial_conv"), ("depth", "depth_conv")):
            found.layer(f"{ours}.conv{i}.{own}", f"{theirs}.conv{i}.{name}")
    if f"{ours}.skip.weight" in dict(found.network.named_parameters()):
        found.layer(f"{ours}.skip", f"{theirs}.skip")


def _axes(found: Correspondence, ours: str, theirs: str) -> None:
    for i, axis in enumerate("dhw"):
        for own, name in (("norm", "norm"), ("qkv", "qkv"), ("out", "proj")):
            found.layer(f"{ours}.{i}.{own}", f"{theirs}.attn_{axis}.{name}")
