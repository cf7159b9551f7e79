"""What is stored in format 1: flat arguments and tensors under their old names."""

import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from neurotome.data.preparation.preparation import Preparation
from neurotome.errors import InputError
from neurotome.models.folder import read_folder, write_model_folder
from neurotome.models.format1 import upgraded
from neurotome.models.registry import built_part
from neurotome.models.subjects import TrainingSubjects
from neurotome.tokenizers import VQVAE, VQVAE2, Anatome, NeuroQuant
from neurotome.tokenizers.base import Tokenizer
from neurotome.tokenizers.shared_anatomy.parts import Appearance, Trunk
from neurotome.types import Images

IDS = torch.tensor([0, 1])
AVERAGES = {"decay": 0.98, "revive_below": 0.05, "start_after": 2}
NEUROQUANT = {
    "spatial_dims": 3, "in_channels": 1, "modalities": ["T1w", "T2w"], "channels": [8, 8], "num_res_blocks": 1,
    "attention_levels": [False, True], "mid_blocks": False, "num_heads": 2, "anatomy_channels": 3,
    "modality_channels": 5, "embedding_channels": 6, "num_codes": 16, "film_hidden": 7, "film_layers": 1,
    "norm_groups": 4, "factored": True, "stem_factor": 2, "downsample": [True, False], "film_sites": "block",
    "appearance_channels": [8], "foreground_above": -0.9, "output": "clamp", "decoder_res_blocks": 2,
    "tell_encoder": True, "gain_factor": 2, "private_codes": 4, "private_channels": 2, **AVERAGES, "adversary": False,
    "recompute": True,
}  # fmt: skip
ANATOME = {
    "spatial_dims": 3, "in_channels": 1, "modalities": ["T1w", "T2w"], "channels": 8, "num_res_blocks": 2,
    "decoder_res_blocks": 1, "stem_factor": 2, "anatomy_channels": 4, "num_codes": 16, "detail_channels": 3,
    "detail_codes": 32, "detail_width": 4, "style_channels": 5, "style_stages": [6], "embedding_channels": 7,
    "film_hidden": 9, "air": -0.8, "norm_groups": 0, **AVERAGES,
}  # fmt: skip
VQ = {
    "spatial_dims": 3, "in_channels": 1, "modalities": ["T1w", "T2w"], "blocks": "plain", "channels": [8],
    "num_res_blocks": 1, "res_channels": None, "attention_levels": [], "mid_blocks": False, "norm_groups": 32,
    "stem_factor": 1, "latent_channels": 4, "quantizer": "ema", "num_codes": 16, "num_books": 1,
    "fsq_levels": [4, 4, 3], **AVERAGES, "reservoir": 64, "recompute": False,
}  # fmt: skip
HIERARCHY = {
    "spatial_dims": 3, "in_channels": 1, "modalities": ["T1w", "T2w"], "scaling_rates": [2, 2], "channels": 8,
    "res_channels": 4, "num_res_blocks": 1, "code_channels": 3, "num_codes": [16, 8], "norm": "none", **AVERAGES,
    "reservoir": None, "hide_prob": 0.1,
}  # fmt: skip
FOLDERS = {
    "neuroquant": ("NeuroQuant", NEUROQUANT),
    "neuroquant-plain": ("NeuroQuant", NEUROQUANT | {"film_sites": "none", "gain_factor": 0, "private_codes": 0}),
    "anatome": ("Anatome", ANATOME),
    "ema": ("VQVAE", VQ),
    "residual": ("VQVAE", VQ | {"quantizer": "residual", "num_books": 2}),
    "fsq": ("VQVAE", VQ | {"quantizer": "fsq", "num_codes": 48}),
    "lfq": ("VQVAE", VQ | {"quantizer": "lfq"}),
    "bsq": ("VQVAE", VQ | {"quantizer": "bsq"}),
    "vq-vae2": ("VQVAE2", HIERARCHY),
    "vq-vae2-one-size": ("VQVAE2", HIERARCHY | {"num_codes": 16}),
}
# tensors as they were called, and are
RENAMED = {
    "neuroquant": {
        "price": "offset", "quantizer.state": "quantizer.reservoir.state", "private.state": "private.reservoir.state",
    },
    "anatome": {
        "price": "offset", "quantizer.state": "quantizer.reservoir.state",
        "detail_quantizer.state": "detail_quantizer.reservoir.state",
    },
    "ema": {
        "quantizer.book.codebook": "quantizer.codebook", "quantizer.book.counts": "quantizer.counts",
        "quantizer.book.sums": "quantizer.sums", "quantizer.book.state": "quantizer.reservoir.state",
    },
    "vq-vae2": {
        f"books.{i}.{before}": f"quantizers.{i}.{today}" for i in (0, 1)
        for before, today in (
            ("codebook", "codebook"), ("counts", "counts"), ("sums", "sums"), ("state", "reservoir.state"),
        )
    },
}  # fmt: skip
RENAMED["neuroquant-plain"] = {k: v for k, v in RENAMED["neuroquant"].items() if "private" not in k}
RENAMED["vq-vae2-one-size"] = RENAMED["vq-vae2"]


def built(folder: str) -> Tokenizer:
    name, arguments = FOLDERS[folder]
    return built_part({"class": name, "arguments": upgraded(name, arguments, {})[0]}, Tokenizer)


def stored(network: Tokenizer, folder: str) -> dict[str, Tensor]:
    """The exported state under the names of format 1."""
    before = {today: old for old, today in RENAMED.get(folder, {}).items()}
    found = {before.get(key, key): value for key, value in network.exported_state().items()}
    assert len(found.keys() - network.exported_state().keys()) == len(before)
    return found


def write_format1(place: Path, folder: str, network: Tokenizer, **more: object) -> str:
    """Write a model folder of format 1 and return the digest that format 1 gave it."""
    name, arguments = FOLDERS[folder]
    contents = {
        "model.safetensors": safetensors.torch.save(stored(network, folder)),
        "preprocess.json": json.dumps(Preparation(3.0, (16, 16, 16)).to_json()).encode(),
        "latent_stats.json": b'{"mean": [0.5]}',
        "styles.safetensors": safetensors.torch.save({"T1w/all/mean": torch.ones(5)}),
        "README.md": b"a card",
    }
    hashes = {file: hashlib.sha256(data).hexdigest() for file, data in contents.items()}
    config = {
        "format_version": 1, "class": name, "arguments": arguments, "modalities": ["T1w", "T2w"],
        "training_subjects": {"salt": "s", "sha256": ["h"]}, "sha256": hashes, **more,
    }  # fmt: skip
    place.mkdir()
    for file, data in {**contents, "config.json": json.dumps(config).encode()}.items():
        (place / file).write_bytes(data)
    parts = [name, arguments, hashes["model.safetensors"], hashes["preprocess.json"]]
    parts += [more["masks"]] if "masks" in more else []
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("folder", FOLDERS)
def test_old_tensors_are_those_of_the_network_that_the_old_arguments_give(folder):
    torch.manual_seed(0)
    source, twin = built(folder), built(folder)
    name, arguments = FOLDERS[folder]
    twin.load_exported(upgraded(name, arguments, stored(source, folder))[1])
    x = 2 * torch.rand(2, 1, 8, 8, 8) - 1
    with torch.no_grad():
        first, second = (network.eval().encode(x, IDS) for network in (source, twin))
        assert torch.equal(first.latent, second.latent)
        assert torch.equal(source.decode(first, IDS), twin.decode(second, IDS))


def test_every_argument_of_neuroquant_arrives():
    network = built("neuroquant")
    assert isinstance(network, NeuroQuant)
    assert network.arguments["trunk"] == Trunk(
        channels=(8, 8), num_res_blocks=1, decoder_res_blocks=2, attention_levels=(False, True), mid_blocks=False,
        num_heads=2, downsample=(True, False), stem_factor=2, norm_groups=4, factored=True,
    )  # fmt: skip
    assert network.arguments["appearance"] == Appearance(
        channels=5, stages=(8,), foreground_above=-0.9, embedding_channels=6, film_hidden=7, film_layers=1,
        film_sites="block", gain_factor=2,
    )  # fmt: skip
    for quantizer, size in ((network.quantizer, (16, 3)), (network.private, (4, 2))):
        assert tuple(quantizer.codebook.shape) == size
        assert (quantizer.decay, quantizer.revive_below, quantizer.reservoir.start_after) == (0.98, 0.05, 2)
    rest = ("contrast_in_encoder", "output", "adversary", "recompute")
    assert [network.arguments[name] for name in rest] == [True, "clamp", False, True]
    assert built("neuroquant-plain").private is None


def test_every_argument_of_the_others_arrives():
    anatome = built("anatome")
    assert isinstance(anatome, Anatome)
    trunk, appearance = anatome.arguments["trunk"], anatome.arguments["appearance"]
    assert (trunk.channels, trunk.num_res_blocks, trunk.decoder_res_blocks) == ((8,), 2, 1)
    assert (appearance.channels, appearance.stages, appearance.foreground_above) == (5, (6,), -0.8)
    assert tuple(anatome.detail_quantizer.codebook.shape) == (32, 3)
    sizes = {"ema": (16,), "residual": (16, 16), "fsq": (48,), "lfq": (16,), "bsq": (16,)}
    for folder, expected in sizes.items():
        network = built(folder)
        assert isinstance(network, VQVAE)
        assert network.quantizer.sizes == expected
        assert network.quantizer.dim == 4
    assert built("ema").quantizer.reservoir.size == built("residual").quantizer.reservoir.size == 64
    hierarchy = built("vq-vae2")
    assert isinstance(hierarchy, VQVAE2)
    assert [tuple(quantizer.codebook.shape) for quantizer in hierarchy.quantizers] == [(16, 3), (8, 3)]
    assert hierarchy.hide_prob == 0.1


def test_other_classes_pass_through_and_what_is_unknown_is_left_to_the_constructor():
    arguments, state = {"channels": [8]}, {"price": torch.ones(1)}
    assert upgraded("KLVAE", arguments, state) == (arguments, state)
    assert upgraded("VQVAE", VQ | {"colour": 3}, {})[0]["colour"] == 3
    with pytest.raises((TypeError, ValueError)):
        built_part({"class": "VQVAE", "arguments": upgraded("VQVAE", VQ | {"quantizer": "guess"}, {})[0]}, Tokenizer)


@pytest.mark.parametrize("folder", ["neuroquant", "anatome", "ema", "vq-vae2"])
def test_a_folder_of_format_1_is_read_and_keeps_its_digest(tmp_path: Path, folder: str):
    torch.manual_seed(0)
    network = built(folder).eval()
    digest = write_format1(tmp_path / "m", folder, network)
    content = read_folder(tmp_path / "m", Tokenizer)
    assert content.digest == digest  # latents are stamped with it
    assert (content.images, content.frozen, content.capabilities, content.self_test) == (Images(), {}, {}, None)
    assert content.training_subjects == TrainingSubjects("s", frozenset("h"))
    assert (content.preparation.shape, content.stats, content.card) == ((16, 16, 16), {"mean": [0.5]}, "a card")
    assert torch.equal(content.styles["T1w/all/mean"], torch.ones(5))
    assert content.unready == network.unready() != ""
    example = network.example()
    expected = network.respond(example)
    assert torch.allclose(content.network.respond(example), expected, atol=1e-5)  # kernels depend on memory's alignment
    today = write_model_folder(
        tmp_path / "today", content.network, preparation=content.preparation, subjects=content.training_subjects,
        card=content.card,
    )  # fmt: skip
    assert today != digest
    assert json.loads((tmp_path / "today" / "config.json").read_text())["digest"] == today
    back = read_folder(tmp_path / "today", Tokenizer)
    assert torch.allclose(back.network.respond(example), expected, atol=1e-5)


def test_a_folder_of_format_1_says_that_it_is_of_masks(tmp_path: Path):
    masks = {"source": "label", "groups": ["every label above 0"]}
    digest = write_format1(tmp_path / "m", "ema", built("ema"), images="masks", masks=masks)
    content = read_folder(tmp_path / "m", Tokenizer)
    assert content.images == Images("masks", masks)
    assert content.digest == digest
    for number, wrong in enumerate(({"images": "masks"}, {"images": "meshes"}, {"images": "scans", "masks": masks})):
        write_format1(tmp_path / str(number), "ema", built("ema"), **wrong)
        with pytest.raises(InputError, match=r"the key (masks|images) is missing or of another kind"):
            read_folder(tmp_path / str(number), Tokenizer)
