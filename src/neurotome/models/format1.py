"""What a model folder of format 1 holds, in today's terms: flat arguments become groups and parts, tensors are renamed.

A part is ``{"class": NAME, "arguments": {...}}``, a group of arguments a mapping of its fields. Only names and plain
values are known here; classes that did not change pass through, and so does what is not known, for the constructor to
refuse.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

# of today's group: its fields, each with the name it had
TRUNK = {
    name: name
    for name in (
        "channels", "num_res_blocks", "decoder_res_blocks", "attention_levels", "mid_blocks", "num_heads", "downsample",
        "stem_factor", "norm_groups", "factored",
    )
}  # fmt: skip
APPEARANCE = {
    "channels": "modality_channels",
    "stages": "appearance_channels",
    **{
        name: name
        for name in (
            "foreground_above", "embedding_channels", "film_hidden", "film_layers", "film_sites", "gain_factor",
        )
    },
}  # fmt: skip
AVERAGES = {name: name for name in ("decay", "revive_below", "start_after", "reservoir")}
ANATOME_TRUNK = {name: name for name in ("num_res_blocks", "decoder_res_blocks", "stem_factor", "norm_groups")}
ANATOME_APPEARANCE = {
    "channels": "style_channels",
    "stages": "style_stages",
    "foreground_above": "air",
    "embedding_channels": "embedding_channels",
    "film_hidden": "film_hidden",
}
TENSORS = (
    (r"^price$", "offset"),
    (r"^quantizer\.book\.", "quantizer."),
    (r"^books\.", "quantizers."),
    (r"^(quantizer|private|detail_quantizer|quantizers\.\d+)\.state$", r"\1.reservoir.state"),
)


def upgraded(
    name: str, arguments: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return today's arguments and tensors of a network that was stored in format 1.

    Args:
        name: Its class.
        arguments: Its arguments, flat.
        state: Its tensors; may be empty.
    """
    rest = dict(arguments)
    if name not in CLASSES:
        return rest, dict(state)
    return {**CLASSES[name](rest), **rest}, {_renamed(key): value for key, value in state.items()}


def _renamed(key: str) -> str:
    for pattern, today in TENSORS:
        key = re.sub(pattern, today, key)
    return key


def _group(rest: dict[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """Take the fields of a group out of flat arguments."""
    return {today: rest.pop(before) for today, before in fields.items() if before in rest}


def _codebook(num_codes: Any, dim: Any, averages: Mapping[str, Any]) -> dict[str, Any]:
    return {"class": "EMAQuantizer", "arguments": {"num_codes": num_codes, "dim": dim, **averages}}


def _neuroquant(rest: dict[str, Any]) -> dict[str, Any]:
    averages = _group(rest, AVERAGES)
    private, private_dim = rest.pop("private_codes", 0), rest.pop("private_channels", 4)
    return {
        "trunk": _group(rest, TRUNK),
        "appearance": _group(rest, APPEARANCE),
        "quantizer": _codebook(rest.pop("num_codes", 4096), rest.pop("anatomy_channels", 64), averages),
        "private": _codebook(private, private_dim, averages) if private else None,
        "contrast_in_encoder": rest.pop("tell_encoder", False),
    }


def _anatome(rest: dict[str, Any]) -> dict[str, Any]:
    averages = {"decay": 0.98, "revive_below": 0.05, "start_after": 100} | _group(rest, AVERAGES)
    detail = rest.pop("detail_codes", 1024), rest.pop("detail_channels", 8)
    return {
        "trunk": {"channels": [rest.pop("channels", 32)], **_group(rest, ANATOME_TRUNK)},
        "appearance": _group(rest, ANATOME_APPEARANCE),
        "quantizer": _codebook(rest.pop("num_codes", 64), rest.pop("anatomy_channels", 8), averages),
        "detail_quantizer": _codebook(*detail, averages),
    }


def _vqvae(rest: dict[str, Any]) -> dict[str, Any]:
    averages, dim = _group(rest, AVERAGES), rest.pop("latent_channels", 4)
    kind, codes = rest.pop("quantizer", "ema"), rest.pop("num_codes", 512)
    codebooks, levels = rest.pop("num_books", 1), rest.pop("fsq_levels", [8, 8, 8])
    parts = {
        "ema": _codebook(codes, dim, averages),
        "residual": {
            "class": "ResidualQuantizer",
            "arguments": {"num_codes": codes, "dim": dim, "num_codebooks": codebooks, **averages},
        },
        "fsq": {"class": "FiniteScalarQuantizer", "arguments": {"levels": levels, "dim": dim}},
        "lfq": {"class": "LookupFreeQuantizer", "arguments": {"num_codes": codes, "dim": dim}},
        "bsq": {"class": "BinarySphericalQuantizer", "arguments": {"num_codes": codes, "dim": dim}},
    }
    return {"quantizer": parts.get(str(kind), {"class": kind, "arguments": {}})}


def _vqvae2(rest: dict[str, Any]) -> dict[str, Any]:
    averages, dim = _group(rest, AVERAGES), rest.pop("code_channels", 32)
    codes = rest.pop("num_codes", 512)
    levels = rest.get("scaling_rates", (4, 2, 2))
    sizes = (
        codes if isinstance(codes, list | tuple) else [codes] * (len(levels) if isinstance(levels, list | tuple) else 0)
    )
    return {"quantizers": [_codebook(size, dim, averages) for size in sizes]}


CLASSES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "NeuroQuant": _neuroquant,
    "Anatome": _anatome,
    "VQVAE": _vqvae,
    "VQVAE2": _vqvae2,
}
