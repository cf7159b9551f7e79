"""Published weights as a model folder of ours: read, translated, checked, written; nothing is trained.

Only safetensors files are read: a checkpoint that torch pickled can run code when it is opened.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

import neurotome
from neurotome import modality as contrasts
from neurotome.data.preparation.preparation import Preparation
from neurotome.errors import UsageError, printable
from neurotome.files.tensors import read_bounded, read_tensors
from neurotome.models.folder import WEIGHT_BYTES, check_replaceable, write_model_folder
from neurotome.models.published_monai import autoencoder_kl, vqvae
from neurotome.models.published_neuroquant import neuroquant
from neurotome.models.published_weights import Correspondence, Tensors, Untraced
from neurotome.nn.recorded import bounded_modules
from neurotome.tokenizers.base import Tokenizer

Origin = Literal["monai", "maisi", "neuroquant"]
ORIGINS: tuple[Origin, ...] = get_args(Origin)
NAMES = {
    "monai": "MONAI's autoencoders",
    "maisi": "MAISI (MONAI's AutoencoderKlMaisi)",
    "neuroquant": "NeuroQuant's released code",
}
# what an archive or a stream of pickle begins with
PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
PICKLED_ENDINGS = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")


@dataclass(frozen=True)
class Converted:
    """What a conversion gave.

    Args:
        folder: The model folder.
        digest: What its latents are stamped with.
        network: Its network.
        preparation: What it expects.
    """

    folder: Path
    digest: str
    network: Tokenizer
    preparation: Preparation


def convert(
    file: Path,
    folder: Path,
    origin: Origin,
    preparation: Preparation,
    *,
    modalities: Sequence[str] = ("T1w", "T2w"),
    norm_groups: int = 32,
    num_heads: int = 8,
    intensities: tuple[float, float] = (0.0, 1.0),
    overwrite: bool = False,
) -> Converted:
    """Write the model folder of published weights.

    Args:
        file: A safetensors file on this machine.
        folder: Where the model folder will stand.
        origin: Whose network it is.
        preparation: What the network expects; recorded, because the weights do not tell.
        modalities: Contrasts; their order gives the ids.
        norm_groups: Groups of the normalisations.
        num_heads: Attention heads of NeuroQuant.
        intensities: What -1 and 1 of a prepared image become for MONAI's networks; NeuroQuant sees [-1, 1].
        overwrite: Whether a model folder that is there may be replaced; nothing else ever is.

    Raises:
        UsageError: No such file, a pickled one, tensors that are missing, left over or of another shape, a contrast
            that is not known or named twice, a grid that the network cannot take; something is at the place that may
            not be replaced.
        InputError: Not a safetensors file.
    """
    check_replaceable(folder, overwrite=overwrite)
    content = _content(file)
    if folder.resolve() in file.resolve().parents:
        raise UsageError(f"{printable(folder)}: holds the weights themselves, {printable(file)}; give another folder")
    theirs, names = Tensors(read_tensors(content, file)), _distinct(modalities)
    untraced = Untraced(names, norm_groups, num_heads, intensities)
    try:
        network = _network(theirs, origin, untraced)
        network.latent_shape(preparation.shape)
        network.check_window(preparation.window)
    except ValueError as error:
        raise UsageError(f"{printable(file)}: {error}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    digest = write_model_folder(
        folder,
        network,
        preparation=preparation,
        subjects=(),
        card=_card(network, preparation, origin, sha256),
        provenance={"kind": "converted", "from": origin, "file_sha256": sha256},
        overwrite=overwrite,
    )
    return Converted(folder, digest, network, preparation)


def _content(file: Path) -> bytes:
    """Return the bytes of a file that is no pickle."""
    if not file.is_file():
        raise UsageError(f"{printable(file)}: there is no such file; give a safetensors file on this machine")
    content = b"" if file.suffix.lower() in PICKLED_ENDINGS else read_bounded(file, WEIGHT_BYTES)
    if not content or content.startswith(PICKLED):
        raise UsageError(
            f"{printable(file)}: is a checkpoint that torch pickled, which is not read here; where you trust it, make "
            "a safetensors file of it: python -c \"import torch, safetensors.torch as s; w = torch.load('FILE', "
            "map_location='cpu', weights_only=True); w = w.get('state_dict', w.get('model', w)); "
            "s.save_file({k: v.clone().contiguous() for k, v in w.items()}, 'FILE.safetensors')\""
        )
    return content


def _distinct(modalities: Sequence[str]) -> tuple[str, ...]:
    """Return our names of the contrasts, each of them once."""
    try:
        names = tuple(contrasts.canonical(name) for name in modalities)
    except ValueError as error:
        raise UsageError(f"--modalities: {error}") from error
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--modalities: {' '.join(map(printable, modalities))} names {twice[0]} twice; give it once")
    return names


def _network(theirs: Tensors, origin: Origin, untraced: Untraced) -> Tokenizer:
    with bounded_modules():
        found = _translated(theirs, origin, untraced)
    state = found.state(theirs)
    with torch.random.fork_rng(devices=[]):  # parts that only training needs are drawn anew
        found.network.adopt(state)
    return found.network.eval().requires_grad_(False)


def _translated(theirs: Tensors, origin: Origin, untraced: Untraced) -> Correspondence:
    if theirs.has("encoder.down_blocks."):
        if origin != "neuroquant":
            raise UsageError("these are NeuroQuant's tensors; give --from neuroquant")
        return neuroquant(theirs, untraced)
    if origin == "neuroquant" or not theirs.has("encoder.blocks."):
        raise UsageError(
            f"these are not the tensors of {NAMES[origin]}; give another --from, or the file of its weights"
        )
    if theirs.has("quantizer."):
        return vqvae(theirs, untraced)
    maisi = theirs.original("encoder.blocks.0.weight").endswith(".conv.conv.weight")
    if maisi != (origin == "maisi"):
        right = "maisi" if maisi else "monai"
        raise UsageError(f"these are the tensors of {NAMES[right]}; give --from {right}")
    return autoencoder_kl(theirs, untraced, "trilinear" if maisi else "nearest")


def _card(network: Tokenizer, preparation: Preparation, origin: Origin, sha256: str) -> str:
    """Return the README of a converted model."""
    lines = [
        f"# {type(network).__name__}",
        "",
        f"Tokenizer for brain MRI ({', '.join(network.modalities)}), converted from weights of {NAMES[origin]} by "
        f"neurotome {neurotome.__version__}. Nothing was trained.",
        "",
        "## Use",
        "",
        *network.usage(),
        "",
        "## Data and protocol",
        "",
        f"- Scans are prepared at {preparation.describe()}. This was said at the conversion; weights do not tell it.",
        "- The subjects it was trained on are not known: an evaluation cannot tell whether it has seen them.",
        "- There are no statistics of latents and no styles of training subjects.",
        *(f"- {line}" for line in network.describe(preparation.shape)),
        f"- SHA-256 of the converted file: {sha256}.",
        "",
        "## Limits",
        "",
        f"Research only; not for clinical use. {network.limits()} The licence of the weights is their authors'.",
    ]
    return "\n".join(lines) + "\n"
