"""Published weights as model folders: MONAI's own networks on the other side, tensors that do not fit, pickles."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from neurotome.cli.main import main
from neurotome.data.preparation.preparation import Preparation
from neurotome.errors import InputError, UsageError
from neurotome.models.conversion import _network, convert
from neurotome.models.folder import read_folder
from neurotome.models.published_weights import Tensors, Untraced
from neurotome.models.self_test import compared
from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.scans.tokenizer import ScanTokenizer
from neurotome.tokenizers import KLVAE, NeuroQuant, Tokenizer
from neurotome.tokenizers.shared_anatomy.parts import Appearance, Trunk

nets = pytest.importorskip("monai.networks.nets")
maisi = pytest.importorskip("monai.apps.generation.maisi.networks.autoencoderkl_maisi")
PREPARED = Preparation(2.0, (16, 16, 16))
IDS = torch.tensor([0, 1])


def autoencoder_kl(dims: int = 3, blocks: int = 2, mid: bool = True, attention=(False, True), **more) -> nn.Module:
    return nets.AutoencoderKL(
        dims, 1, 1, (blocks, blocks), (4, 8), attention, 3, 4, with_encoder_nonlocal_attn=mid,
        with_decoder_nonlocal_attn=mid, **more,
    )  # fmt: skip


def autoencoder_maisi(**more) -> nn.Module:
    return maisi.AutoencoderKlMaisi(
        3, 1, 1, (2, 2, 2), (4, 8, 8), (False,) * 3, 4, 4, num_splits=1, save_mem=False, **more
    )


def vqvae(dims: int = 3, layers: int = 2) -> nn.Module:
    return nets.VQVAE(
        dims, 1, 1, (4, 8), layers, (6, 5), ((2, 4, 1, 1),) * 2, ((2, 4, 1, 1, 0),) * 2, num_embeddings=8,
        embedding_dim=4,
    )  # fmt: skip


def saved(network: nn.Module, folder: Path, **changes) -> Path:
    """Return a file of a network's state; a change of None leaves a tensor out."""
    state = {name: value.clone().contiguous() for name, value in network.state_dict().items()}
    for name, value in changes.items():
        state.pop(name, None)
        state |= {} if value is None else {name: value}
    save_file(state, folder / "theirs.safetensors")
    return folder / "theirs.safetensors"


def loaded(file: Path, origin: str, **more) -> Tokenizer:
    out = file.parent / "model"
    convert(file, out, origin, PREPARED, norm_groups=4, **more)
    return read_folder(out, Tokenizer).network


def theirs_of(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return their image; the mean is decoded, where a call would draw from the posterior."""
    network.eval()
    with torch.no_grad():
        return network.reconstruct(x) if hasattr(network, "reconstruct") else network(x)[0]


CASES = {
    "attention": (lambda: autoencoder_kl(), "monai", 3),
    "plain": (lambda: autoencoder_kl(blocks=1, mid=False, attention=(False, False)), "monai", 3),
    "attention without a middle": (lambda: autoencoder_kl(mid=False), "monai", 3),
    "one matrix": (lambda: autoencoder_kl(use_combined_linear=True, attention=(True, True)), "monai", 3),
    "no last layer": (lambda: autoencoder_kl(include_fc=False), "monai", 3),
    "slices": (lambda: autoencoder_kl(2), "monai", 2),
    "maisi": (autoencoder_maisi, "maisi", 3),
    "vq-vae": (vqvae, "monai", 3),
    "vq-vae of slices": (lambda: vqvae(2, 1), "monai", 2),
}


@pytest.mark.parametrize("intensities", [(-1.0, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("name", CASES)
def test_the_converted_network_gives_their_image(name, intensities, tmp_path):
    torch.manual_seed(0)
    make, origin, dims = CASES[name]
    theirs = make()
    if "quantizer.quantizer.ema_w" in theirs.state_dict():
        theirs.train()(torch.randn(2, 1, *(16,) * dims))  # a codebook that has moved
    ours = loaded(saved(theirs, tmp_path), origin, intensities=intensities)
    low, high = intensities
    x = torch.rand(2, 1, 8, 16, 8 if dims == 3 else 1) * 2 - 1
    seen = (x + 1) / 2 * (high - low) + low
    expected = theirs_of(theirs, seen if dims == 3 else seen[..., 0]).view(x.shape)
    expected = ((expected - low) / (high - low) * 2 - 1).clamp(-1, 1)
    found = ours.decode(ours.encode(x, IDS), IDS)
    assert (found.abs() < 1).float().mean() > 0.3
    assert torch.allclose(found, expected, atol=1e-5)


def test_maisi_needs_its_interpolation(tmp_path):
    theirs = autoencoder_maisi()
    ours = loaded(saved(theirs, tmp_path), "maisi", intensities=(-1.0, 1.0))
    arguments = {**ours.arguments, "upsampling": "nearest"}
    nearest = KLVAE(**arguments).eval()
    nearest.load_state_dict(ours.state_dict())
    x = torch.rand(2, 1, 8, 8, 8) * 2 - 1
    expected = theirs_of(theirs, x)
    assert (nearest.respond({"image": x, "modality": IDS}) - expected).abs().max() > 1e-3


def test_the_published_shape_of_maisi_is_found_from_the_tensors(tmp_path):
    theirs = maisi.AutoencoderKlMaisi(3, 1, 1, (2, 2, 2), (64, 128, 256), (False,) * 3, 4, num_splits=1)
    made = convert(saved(theirs, tmp_path), tmp_path / "m", "maisi", PREPARED)
    assert made.network.arguments["channels"] == [64, 128, 256]
    assert sum(p.numel() for p in made.network.parameters()) == 20_944_897


NAMES = (  # of ours, and of the released code
    (r"^(anatomy|modality)_head\.", lambda m: f"encoder.head_{'anat' if m[1] == 'anatomy' else 'mod'}."),
    (r"^encoder\.stages\.", "encoder.down_blocks."), (r"^decoder\.stages\.", "decoder.up_blocks."),
    (r"\.blocks\.", ".res."), (r"\.attention\.", ".attn."), (r"\.plane\.", ".spatial_conv."),
    (r"\.depth\.", ".depth_conv."), (r"mid\.0\.", "mid_res1."), (r"mid\.1\.", "mid_attn."), (r"mid\.2\.", "mid_res2."),
    (r"(attn)\.(\d)\.", lambda m: f"{m[1]}.attn_{'dhw'[int(m[2])]}."), (r"(mid_attn)\.(\d)\.", None),
    (r"(attn_[dhw])\.out\.", r"\1.proj."), (r"\.(down|up)\.(weight|bias)", r".\1.conv.\2"),
    (r"^(encoder|decoder)\.norm\.", r"\1.norm_out."), (r"^embedding\.", "modality_embedding."),
    (r"^film\.", "film_generator."), (r"quantizer\.codebook", "quantizer.embedding"),
    (r"quantizer\.counts", "quantizer.ema_cluster_size"), (r"quantizer\.sums", "quantizer.ema_w"),
    (r"^adversary\.", "modality_adversary.net."),
)  # fmt: skip


def released(name: str) -> str:
    for pattern, new in NAMES:
        name = re.sub(pattern, new, name) if new is not None else name
    return name


class Released(nn.Module):
    """A network of ours under the names of the released code."""

    def __init__(self) -> None:
        super().__init__()
        self.ours = NeuroQuant(
            trunk=Trunk((8, 16), 1, attention_levels=(False, True), num_heads=2, norm_groups=4, skip_depth=True),
            appearance=Appearance(6, embedding_channels=5, film_hidden=16), quantizer=EMAQuantizer(16, 4),
        )  # fmt: skip
        for parameter in self.ours.parameters():
            nn.init.normal_(parameter, std=0.2)
        self.ours.quantizer.start(torch.randn(16, 4), torch.ones(16))

    def state_dict(self):
        own = {released(name): value for name, value in self.ours.state_dict().items()}
        own = {n: v for n, v in own.items() if not n.startswith(("offset", "seen", "quantizer.reservoir"))}
        return {
            **own, "quantizer.initialized": torch.tensor(True), "quantizer.init_reservoir": torch.empty(0, 4)
        }  # fmt: skip


def test_neuroquant_comes_under_its_released_names(tmp_path):
    torch.manual_seed(0)
    theirs = Released()
    names = theirs.state_dict().keys()
    assert {
        "encoder.down_blocks.1.attn.attn_h.proj.weight", "encoder.down_blocks.0.res.0.conv1.depth_conv.bias",
        "decoder.up_blocks.0.up.conv.weight", "decoder.mid_attn.attn_w.qkv.weight", "encoder.head_mod.weight",
        "film_generator.mlp.4.bias", "encoder.norm_out.weight", "encoder.down_blocks.1.down.conv.weight",
    } <= names  # fmt: skip
    ours = loaded(saved(theirs, tmp_path), "neuroquant", num_heads=2)
    for shape in ((16, 16, 16), (1, 16, 16)):
        example = {"image": torch.rand(2, 1, *shape) * 2 - 1, "modality": IDS}
        assert torch.allclose(ours.respond(example), theirs.ours.eval().respond(example), atol=1e-6)
    assert not ours.unready()
    with pytest.raises(UsageError, match=r"knows 2 contrasts; give --modalities"):
        loaded(saved(theirs, tmp_path), "neuroquant", num_heads=2, modalities=("T1w",), overwrite=True)
    cold = saved(theirs, tmp_path, **{"quantizer.initialized": torch.tensor(False)})
    with pytest.raises(UsageError, match="codebook has not started"):
        loaded(cold, "neuroquant", num_heads=2, overwrite=True)


def test_the_folder_is_an_ordinary_one(tmp_path):
    convert(saved(vqvae(), tmp_path), tmp_path / "model", "monai", PREPARED, norm_groups=4)
    content = read_folder(tmp_path / "model", Tokenizer)
    assert compared(content.network, content.self_test, tmp_path).largest == 0
    assert content.preparation == PREPARED
    assert content.provenance["kind"] == "converted"
    assert content.provenance["from"] == "monai"
    assert "not known" in content.card
    assert not content.training_subjects.subjects
    assert not content.training_subjects.complete
    tokenizer = ScanTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.modalities == ("T1w", "T2w")
    with pytest.raises(UsageError, match="something already"):
        convert(tmp_path / "theirs.safetensors", tmp_path / "model", "monai", PREPARED)


def test_nothing_but_a_model_folder_is_overwritten(tmp_path, capsys):
    (tmp_path / "of theirs").mkdir()
    file = saved(vqvae(), tmp_path / "of theirs")
    words = ["convert", "--from", "monai", str(file), "--norm-groups", "4", "--overwrite", "--shape", *["16"] * 3]
    for out in (file.parent, tmp_path, file):
        assert main([*words, "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert "give another folder" in error
        assert error.count("\n") == 1
    assert file.is_file()
    assert main([*words, "--out", str(tmp_path / "m")]) == 0
    file = (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "self_test.safetensors")
    words[3] = str(file)
    (tmp_path / "link").symlink_to(tmp_path / "m")
    for out in ("m", "link"):
        assert main([*words, "--out", str(tmp_path / out)]) == 2
        assert "holds the weights themselves" in capsys.readouterr().err
    assert file.is_file()


FAULTS = {
    "missing": ({"encoder.blocks.1.norm1.weight": None}, r"missing: encoder\.blocks\.1\.norm1\.weight"),
    "missing convolution": ({"decoder.blocks.0.conv.weight": None}, "missing"),
    "missing block": ({f"decoder.blocks.0.conv.{part}": None for part in ("weight", "bias")}, r"decoder\.blocks\.0\."),
    "surplus": ({"encoder.extra.weight": torch.ones(1)}, r"surplus: encoder\.extra\.weight"),
    "another shape": (
        {"encoder.blocks.1.norm1.bias": torch.ones(3)},
        r"another shape or type: encoder.*\(3,\).*for \(4,\)",
    ),
    "another shape of one of three": (
        {"encoder.blocks.5.attn.to_k.weight": torch.ones(8, 7)},
        r"type: encoder\.blocks\.5\.attn\.to_k",
    ),
    "another type": ({"quant_conv_mu.conv.bias": torch.ones(3, dtype=torch.complex64)}, "complex"),
    "whole numbers": (
        {"quant_conv_mu.conv.bias": torch.ones(3, dtype=torch.int64)},
        r"another shape or type: quant_conv_mu.*int64",
    ),
    "two of one name": ({"encoder.blocks.0.weight": torch.ones(1)}, "would be one"),
    "transposed convolutions": ({"decoder.blocks.7.deconv.weight": torch.ones(4, 4, 3, 3, 3)}, r"deconv\.weight"),
    "channels": ({"encoder.blocks.0.conv.weight": torch.ones(4, 2, 3, 3, 3)}, "2 channels go in and 1 come out"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_tensors_that_do_not_fit_are_named(fault, tmp_path, capsys):
    changes, message = FAULTS[fault]
    file = saved(autoencoder_kl(), tmp_path, **changes)
    out = tmp_path / "m"
    code = main(["convert", "--from", "monai", str(file), "--out", str(out), "--norm-groups", "4"])
    error = capsys.readouterr().err
    assert code == (3 if fault == "another type" else 2), error
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("make", "origin", "match"),
    [
        (autoencoder_maisi, "monai", "give --from maisi"),
        (autoencoder_kl, "maisi", "give --from monai"),
        (autoencoder_kl, "neuroquant", "not the tensors of NeuroQuant"),
        (Released, "monai", "give --from neuroquant"),
        (lambda: nn.Linear(2, 2), "monai", "not the tensors of MONAI"),
        (lambda: nets.AutoencoderKL(3, 1, 1, (1, 2), (4, 8), (False, False), 3, 4), "monai", "residual blocks"),
        (lambda: autoencoder_kl(use_convtranspose=True), "monai", "deconv"),
    ],
)
def test_other_networks_are_refused(make, origin, match, tmp_path):
    with pytest.raises(UsageError, match=match):
        loaded(saved(make(), tmp_path), origin)


@pytest.mark.parametrize(("make", "origin"), [(autoencoder_kl, "monai"), (vqvae, "monai"), (Released, "neuroquant")])
def test_whatever_is_wrong_with_a_tensor_is_named(make, origin):
    state, generator = make().state_dict(), torch.Generator().manual_seed(0)
    untraced = Untraced(norm_groups=4, num_heads=2)
    _network(Tensors(state), origin, untraced)
    names = [name for name in state if not name.startswith(("modality_adversary", "quantizer.init"))]
    changes = (
        lambda t: None, lambda t: t.new_zeros(()), lambda t: t.new_zeros((0, *t.shape[1:])), lambda t: t[None],
        lambda t: torch.cat([t, t]), lambda t: t.flatten(), lambda t: t.to(torch.int32), lambda t: t.new_zeros(1),
    )  # fmt: skip
    for change in changes:
        for name in (names[int(i)] for i in torch.randint(len(names), (6,), generator=generator)):
            changed = {n: v for n, v in state.items() if n != name}
            value = change(state[name])
            if value is not None and value.shape == state[name].shape and value.dtype == state[name].dtype:
                continue  # nothing has changed
            with pytest.raises(ValueError, match=r"\S"):
                _network(Tensors(changed | ({} if value is None else {name: value})), origin, untraced)


@pytest.mark.parametrize("ending", [".pt", ".pth", ".ckpt", ".safetensors"])
def test_pickles_are_never_opened(ending, tmp_path, capsys):
    file = tmp_path / f"weights{ending}"
    torch.save({"a": torch.ones(1)}, file)
    assert main(["convert", "--from", "monai", str(file), "--out", str(tmp_path / "m")]) == 2
    error = capsys.readouterr().err
    assert "safetensors.torch" in error
    assert "weights_only=True" in error
    assert not (tmp_path / "m").exists()


def test_bad_files_and_grids_are_named(tmp_path, capsys):
    (tmp_path / "x.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(InputError, match="safetensors"):
        convert(tmp_path / "x.safetensors", tmp_path / "m", "monai", PREPARED)
    with pytest.raises(UsageError, match="no such file"):
        convert(tmp_path / "nowhere.safetensors", tmp_path / "m", "monai", PREPARED)
    file = str(saved(autoencoder_kl(), tmp_path))
    words = ["convert", "--from", "monai", file, "--out", str(tmp_path / "m"), "--norm-groups", "4"]
    for more, match in (
        (["--shape", "15", "16", "16"], "multiple of"), (["--modalities", "T9w"], "T9w"),
        (["--modalities", "T1w", "T1"], "names T1w twice"),
        (["--intensities", "1", "0"], "increasing"), (["--norm-groups", "3"], "norm_groups"),
        (["--spacing", "0"], "spacing_mm"), (["--percentiles", "9", "1"], "percentiles"),
    ):  # fmt: skip
        assert main([*words, *more]) == 2
        assert re.search(match, capsys.readouterr().err)
    assert not (tmp_path / "m").exists()
    assert main([*words, "--shape", "16", "32", "16", "--spacing", "2"]) == 0
    assert "KLVAE, latent 3 x 8 x 16 x 8" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "m")]) == 0
    said = capsys.readouterr().out
    assert "converted" in said
    assert "warning: not all subjects it was trained on are known" in said
