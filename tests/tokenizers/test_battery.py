"""What every tokenizer must hold; a new one is added to ``LEARNED``, or to ``LOSSLESS`` where it has no weights."""

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch

from neurotome.data.phantom.cohort import SyntheticCohort
from neurotome.data.preparation.preparation import Preparation
from neurotome.models.folder import read_folder, write_model_folder
from neurotome.nn.quantize import (
    BinarySphericalQuantizer,
    EMAQuantizer,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    Quantizer,
    ResidualQuantizer,
)
from neurotome.tokenizers import (
    DCAE,
    KLVAE,
    VQVAE,
    VQVAE2,
    Anatome,
    HaarWavelet,
    Identity,
    MaskCodec,
    NeuroQuant,
    SpaceToDepth,
    Tokenizer,
    VectorAE,
)
from neurotome.tokenizers.shared_anatomy.anatome import AnatomeAppearance, AnatomeTrunk
from neurotome.tokenizers.shared_anatomy.parts import Appearance, Trunk

DEMO_TRUNK = Trunk(
    channels=(8,), attention_levels=(False,), downsample=(False,), mid_blocks=False, num_res_blocks=1,
    decoder_res_blocks=2, norm_groups=0, factored=False, stem_factor=2,
)  # fmt: skip
DEMO_APPEARANCE = Appearance(
    channels=4, stages=(8,), foreground_above=-0.95, embedding_channels=4, film_hidden=16, film_layers=1,
    film_sites="block",
)  # fmt: skip
RESIDUAL = {
    "channels": (4, 8),
    "num_res_blocks": 1,
    "attention_levels": (False, True),
    "mid_blocks": True,
    "norm_groups": 2,
    "stem_factor": 2,
}
HIERARCHY = {
    "scaling_rates": (2, 2),
    "channels": 16,
    "res_channels": 8,
    "num_res_blocks": 1,
    "norm": "group",
}
COMPRESSED = {
    "channels": (8, 16), "num_res_blocks": (1, 1), "attention_levels": (False, True), "depth_factors": (2,),
    "latent_channels": 8, "head_channels": 8, "scales": (),
}  # fmt: skip


# small codebooks start from few tokens, so that a short test sees them started
def codebook(dim: int = 4) -> EMAQuantizer:
    return EMAQuantizer(16, dim, reservoir=64)


def neuroquant(spatial_dims: int = 3, **changes) -> NeuroQuant:
    """As published, small: two stages, normalised, with attention."""
    arguments = {
        "trunk": Trunk(channels=(8, 16), attention_levels=(False, True), num_heads=2, norm_groups=4, num_res_blocks=1),
        "appearance": Appearance(channels=4, embedding_channels=4, film_hidden=16),
        "quantizer": EMAQuantizer(16, 4),
    }
    return NeuroQuant(spatial_dims, **arguments | changes)


def demo(spatial_dims: int = 3, **changes) -> NeuroQuant:
    """In the shape of the shipped demo: one stage on the grid of the latent, without normalisation."""
    arguments = {
        "trunk": DEMO_TRUNK, "appearance": DEMO_APPEARANCE, "quantizer": EMAQuantizer(16, 4), "output": "clamp",
    }  # fmt: skip
    return NeuroQuant(spatial_dims, **arguments | changes)


def aligned(spatial_dims: int = 3, **changes) -> NeuroQuant:
    """The demo with what the alignment asks for."""
    return demo(spatial_dims, contrast_in_encoder=True, private=EMAQuantizer(4, 4), **changes)


def plain_vqvae(spatial_dims: int, quantizer: Quantizer) -> VQVAE:
    return VQVAE(spatial_dims, channels=(16,), num_res_blocks=1, quantizer=quantizer)


LEARNED = {
    "neuroquant": neuroquant,
    "neuroquant-demo": demo,
    "neuroquant-plain": lambda dims: demo(dims, appearance=replace(DEMO_APPEARANCE, film_sites="none")),
    "neuroquant-gain": lambda dims: demo(dims, appearance=replace(DEMO_APPEARANCE, gain_factor=2)),
    "neuroquant-aligned": aligned,
    "kl-vae": lambda dims: KLVAE(dims, **RESIDUAL),
    "maisi-vae": lambda dims: KLVAE(dims, **RESIDUAL, upsampling="trilinear"),
    "kl-vae-demo": lambda dims: KLVAE(
        dims, channels=(16,), attention_levels=(False,), num_res_blocks=1, norm_groups=0, stem_factor=2
    ),
    "vq-vae": lambda dims: plain_vqvae(dims, codebook()),
    "vqgan": lambda dims: VQVAE(dims, blocks="residual", **RESIDUAL, quantizer=codebook()),
    "vq-vae-residual": lambda dims: plain_vqvae(dims, ResidualQuantizer(16, 4, 2, reservoir=64)),
    "vq-vae-fsq": lambda dims: plain_vqvae(dims, FiniteScalarQuantizer((5, 5), 4)),
    "vq-vae-lfq": lambda dims: plain_vqvae(dims, LookupFreeQuantizer(16, 4)),
    "vq-vae-bsq": lambda dims: plain_vqvae(dims, BinarySphericalQuantizer(16, 4)),
    "dc-ae": lambda dims: DCAE(dims, **COMPRESSED),
    "dc-ae-structured": lambda dims: DCAE(dims, **COMPRESSED, structured_from=4, structured_step=2),
    "dc-ae-published": lambda dims: DCAE(
        dims, **COMPRESSED, output_activation="relu", batch_norm_levels=1, axis_order=(2, 0, 1)
    ),
    "vq-vae2": lambda dims: VQVAE2(dims, **HIERARCHY, quantizers=[codebook(), codebook()]),
    "anatome": lambda dims: Anatome(
        dims,
        trunk=AnatomeTrunk(channels=(8,)),
        appearance=AnatomeAppearance(channels=4, stages=(8,), embedding_channels=4, film_hidden=8),
        quantizer=EMAQuantizer(16, 4, 0.98, 0.05),
        detail_quantizer=EMAQuantizer(1024, 8, 0.98, 0.05),
        detail_width=4,
    ),
    "vector-ae": lambda dims: VectorAE(dims, channels=(8, 16, 16), decoder_channels=(16, 8)),
}
LOSSLESS = {
    "identity": Identity,
    "space-to-depth": SpaceToDepth,
    "haar": HaarWavelet,
    "mask": lambda dims: MaskCodec(dims, layout="k8x8"),
}
SMALL = LEARNED | LOSSLESS
ANY_SHAPE = (VQVAE2, VectorAE, Identity)  # they resize, or leave the image as it is, so that every shape is admissible
IDS = torch.tensor([0, 1])


@pytest.fixture(params=SMALL)
def make(request):
    torch.manual_seed(0)
    return SMALL[request.param]


@pytest.fixture(params=LEARNED)
def make_learned(request):
    torch.manual_seed(0)
    return LEARNED[request.param]


@lru_cache(maxsize=1)
def phantom() -> torch.Tensor:
    """Middle of a synthetic brain at 8 mm, T1w and T2w in [-1, 1], ``(2, 1, 16, 16, 16)``; corners are background."""
    views = SyntheticCohort(1, spacing_mm=8.0).subject(0).images
    pair = torch.from_numpy(2 * np.stack([views["T1w"], views["T2w"]]).clip(0, 1) - 1).float()
    for axis in (1, 2, 3):
        pair = pair.narrow(axis, (pair.shape[axis] - 16) // 2, 16)
    return pair[:, None].contiguous()


def image(dims: int, n: int = 2) -> torch.Tensor:
    """The phantom's first contrasts, or their slices in the middle of z."""
    pair = phantom()[:n].clone()
    return pair if dims == 3 else pair[..., 8:9].contiguous()


def test_the_phantom_is_a_brain_in_two_contrasts():
    pair = phantom()
    assert pair.shape == (2, 1, 16, 16, 16)
    inside = pair[0] > -1
    assert torch.equal(inside, pair[1] > -1)
    assert 0.4 < inside.float().mean() < 0.7
    assert torch.corrcoef(pair[:, inside])[0, 1] < -0.2, "what is bright in one contrast is dark in the other"


@pytest.mark.parametrize("dims", [2, 3])
def test_shapes_follow_the_formula(make, dims):
    tokenizer: Tokenizer = make(dims).eval()  # in training a structured latent has some of its channels
    x = image(dims)
    encoded = tokenizer.encode(x, IDS)
    assert encoded.latent.shape == (2, tokenizer.latent_channels, *tokenizer.latent_shape(x.shape[2:]))
    assert tokenizer.decode(encoded, IDS).shape == x.shape
    assert encoded.shape == tuple(x.shape[2:])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_volumes_and_slices_share_the_weights(make, axis):
    tokenizer = make(3)
    x = image(3).narrow(2 + axis, 8, 1)
    assert tokenizer.decode(tokenizer.encode(x, IDS), IDS).shape == x.shape


def test_evaluation_is_deterministic_and_batch_invariant(make):
    tokenizer = make(3).eval()
    x = image(3)
    with torch.no_grad():
        both = tokenizer.decode(tokenizer.encode(x, IDS), IDS)
        again = tokenizer.decode(tokenizer.encode(x, IDS), IDS)
        alone = tokenizer.decode(tokenizer.encode(x[:1], IDS[:1]), IDS[:1])
    assert torch.equal(both, again)
    assert torch.allclose(both[:1], alone, atol=1e-4)


def test_inadmissible_shape_is_refused_with_the_next_one(make):
    tokenizer = make(3)
    if isinstance(tokenizer, ANY_SHAPE):
        x = torch.zeros(2, 1, 16, 15, 13)
        encoded = tokenizer.encode(x, IDS)
        assert encoded.latent.shape[2:] == tokenizer.latent_shape(x.shape[2:])
        assert tokenizer.decode(encoded, IDS).shape == x.shape
        return
    with pytest.raises(ValueError, match=r"pad to \(16, 16, 16\)"):
        tokenizer.encode(torch.zeros(1, 1, 16, 15, 16), IDS[:1])


@pytest.mark.parametrize(
    ("x", "ids", "match"),
    [
        (torch.zeros(2, 16, 16, 16), IDS, "give .b, c, x, y, z."),
        (torch.zeros(2, 3, 16, 16, 16), IDS, r"3 channels, this \w+ takes 1"),
        (torch.zeros(2, 1, 16, 16, 16), IDS + 5, "modality ids"),
        (torch.zeros(2, 1, 16, 16, 16), IDS[:1], "one (integer )?id per image"),
    ],
)
def test_bad_input_is_named(make, x, ids, match):
    with pytest.raises(ValueError, match=match):
        make(3).check_input(x, ids)


def test_a_model_folder_gives_the_network_back(make, tmp_path):
    """Arguments and state go through files; what only training needs stays behind."""
    tokenizer, x = make(3), image(3)
    if list(tokenizer.parameters()):
        tokenizer.encode(x, IDS)  # a step of training, so that what is counted and averaged is not as it was built
    write_model_folder(tmp_path / "model", tokenizer, preparation=Preparation(8.0, (16, 16, 16)), subjects=(), card="")
    twin = read_folder(tmp_path / "model", Tokenizer).network
    assert type(twin) is type(tokenizer)
    assert twin is not tokenizer
    assert not any("adversary" in key or "tokens" in key for key in tokenizer.exported_state())
    tokenizer.eval()
    with torch.no_grad():
        first, second = tokenizer.encode(x, IDS), twin.encode(x, IDS)
        assert torch.equal(first.latent, second.latent)
        assert torch.equal(tokenizer.decode(first, IDS), twin.decode(second, IDS))


def test_a_wrong_state_is_refused(make_learned):
    tokenizer = make_learned(3)
    state = tokenizer.exported_state()
    key = next(name for name, value in state.items() if value.ndim > 1)
    for bad, match in [
        ({k: v for k, v in state.items() if k != key}, "missing"),
        ({**state, "extra": torch.zeros(1)}, "unknown"),
        ({**state, key: torch.zeros(1)}, "shape"),
        ({**state, key: torch.full_like(state[key], math.nan)}, "NaN"),
    ]:
        with pytest.raises(ValueError, match=match):
            tokenizer.load_exported(bad)


@pytest.mark.parametrize("dims", [2, 3])
def test_gradient_reaches_every_parameter_but_the_adversary(make_learned, dims):
    tokenizer = make_learned(dims)
    encoded = tokenizer.encode(image(dims), IDS)
    # FiLM starts at zero, where its inputs have no gradient yet
    if getattr(tokenizer, "film", None) is not None:
        torch.nn.init.normal_(tokenizer.film.mlp[-1].weight, std=0.1)
    if getattr(tokenizer, "contrast_in_encoder", False):
        torch.nn.init.normal_(tokenizer.encoder.film.mlp[-1].weight, std=0.1)
        encoded = tokenizer.encode(image(dims), IDS)
    out = tokenizer.decode(encoded, IDS)
    (out.square().sum() + sum(encoded.terms.values())).backward()
    without = {name for name, p in tokenizer.named_parameters() if p.grad is None}
    assert not {name for name in without if not name.startswith("adversary")}


WEIGHTS = {"kl": 1e-6, "commitment": 0.25, "private_commitment": 0.25, "entropy": 0.1}


def test_overfits_one_phantom(make_learned):
    """A slice of both contrasts comes nearer than a brain of one grey each, in its true outline, ever could."""
    tokenizer, x = make_learned(2), image(2)
    grey = torch.stack([torch.where(view > -1, view[view > -1].median(), -1.0) for view in x])
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=0.01)
    limit, error = 0.9 * (grey - x).abs().mean(), torch.tensor(math.inf)
    for step in range(90):
        encoded = tokenizer.encode(x, IDS)
        error = (tokenizer.decode(encoded, IDS) - x).abs().mean()
        loss = error + sum(WEIGHTS[name] * term for name, term in encoded.terms.items())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
        if step > 40 and error < limit:  # every codebook is in use by then
            break
    assert error < limit


@pytest.mark.parametrize("dims", [2, 3])
def test_the_codes_alone_stand_for_the_latent(make, dims):
    tokenizer = make(dims)
    x = image(dims)
    for _ in range(3 if tokenizer.from_codes else 0):  # a codebook that starts from data has seen some
        tokenizer.encode(x, IDS)
    tokenizer.eval()
    with torch.no_grad():
        encoded = tokenizer.encode(x, IDS)
        assert tokenizer.from_codes == bool(encoded.codes)
        if not tokenizer.from_codes:
            with pytest.raises(ValueError, match="is not that of its codes"):
                tokenizer.lookup(encoded.codes, encoded.shape)
            return
        shapes = {name: tuple(codes.shape[1:]) for name, codes in encoded.codes.items()}
        assert shapes == tokenizer.code_shapes(encoded.shape)
        assert torch.allclose(tokenizer.lookup(encoded.codes, encoded.shape), encoded.latent, atol=1e-5)
        shared = tokenizer.shared(encoded)
        assert torch.allclose(tokenizer.lookup(shared.codes, encoded.shape), shared.latent, atol=1e-5)


def test_bits_are_counted(make):
    tokenizer = make(3).eval()
    encoded = tokenizer.encode(image(3), IDS)
    sizes = tokenizer.codebook_sizes
    expected = sum(math.ceil(math.log2(sizes[name])) * codes[0].numel() for name, codes in encoded.codes.items())
    floats = [encoded.style, encoded.gain, None if encoded.codes else encoded.latent]
    per_number = 1 if isinstance(tokenizer, MaskCodec) else tokenizer.float_bits  # a sign is all there is to a mask
    expected += sum(per_number * stored[0].numel() for stored in floats if stored is not None)
    assert tokenizer.bits((16, 16, 16)) == expected
    assert tokenizer.bits_per_voxel((16, 16, 16)) == expected / 4096


def test_a_network_of_slices_takes_a_volume_slice_by_slice(make):
    """But for those whose style belongs to the whole scan."""
    tokenizer, x = make(2).eval(), image(3)[..., 6:10].contiguous()
    with torch.no_grad():
        encoded = tokenizer.encode(x, IDS)
        whole = tokenizer.decode(encoded, IDS)
        alone = [tokenizer.encode(x[..., z : z + 1], IDS) for z in range(4)]
        if encoded.style is not None:
            styles = torch.stack([one.style for one in alone])
            assert not torch.allclose(styles[0], styles[-1])
            assert encoded.latent.shape[-1] == 4
            return
        slices = torch.cat([tokenizer.decode(one, IDS) for one in alone], dim=-1)
    assert torch.allclose(whole, slices, atol=1e-4)
