"""What every tokenizer must hold; a new one is added to ``SMALL``."""

import math

import pytest
import torch

from neurotome.tokenizers import NeuroQuant, Tokenizer

NEUROQUANT = {
    "channels": (8, 16), "attention_levels": (False, True), "num_heads": 2, "norm_groups": 4, "anatomy_channels": 4,
    "modality_channels": 4, "embedding_channels": 4, "num_codes": 16, "film_hidden": 16, "num_res_blocks": 1,
}  # fmt: skip
DEMO = {
    "channels": (8,), "attention_levels": (False,), "downsample": (False,), "mid_blocks": False, "num_res_blocks": 1,
    "decoder_res_blocks": 2, "anatomy_channels": 4, "modality_channels": 4, "embedding_channels": 4, "num_codes": 16,
    "film_hidden": 16, "film_layers": 1, "norm_groups": 0, "factored": False, "stem_factor": 2, "film_sites": "block",
    "appearance_channels": (8,), "foreground_above": -0.95, "output": "clamp",
}  # fmt: skip
SMALL = {
    "neuroquant": lambda dims: NeuroQuant(spatial_dims=dims, **NEUROQUANT),
    "neuroquant-demo": lambda dims: NeuroQuant(spatial_dims=dims, **DEMO),
    "neuroquant-aligned": lambda dims: NeuroQuant(spatial_dims=dims, **DEMO, tell_encoder=True, private_codes=4),
}
IDS = torch.tensor([0, 1])


@pytest.fixture(params=SMALL)
def make(request):
    torch.manual_seed(0)
    return SMALL[request.param]


def image(dims: int, n: int = 2) -> torch.Tensor:
    """Blobs on a background of -1, the second contrast inverted."""
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 3, indexing="ij"))
    blob = torch.exp(-(grid.square().sum(0)) / 0.3)
    pair = torch.stack([2 * blob - 1, torch.where(blob > 0.3, 0.4 - blob, torch.tensor(-1.0))])[:, None][:n]
    return pair if dims == 3 else pair[..., 8:9].contiguous()


@pytest.mark.parametrize("dims", [2, 3])
def test_shapes_follow_the_formula(make, dims):
    tokenizer: Tokenizer = make(dims)
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
    with pytest.raises(ValueError, match=r"pad to \(16, 16, 16\)"):
        make(3).encode(torch.zeros(1, 1, 16, 15, 16), IDS[:1])


@pytest.mark.parametrize(
    ("x", "ids", "match"),
    [
        (torch.zeros(2, 16, 16, 16), IDS, "give .b, c, x, y, z."),
        (torch.zeros(2, 1, 16, 16, 16), IDS + 5, "modality ids"),
        (torch.zeros(2, 1, 16, 16, 16), IDS[:1], "one id per image"),
    ],
)
def test_bad_input_is_named(make, x, ids, match):
    with pytest.raises(ValueError, match=match):
        make(3).check_input(x, ids)


def test_arguments_rebuild_the_network_and_the_state_round_trips(make):
    tokenizer = make(3).eval()
    twin = type(tokenizer)(**tokenizer.arguments).eval()
    state = tokenizer.exported_state()
    assert not any("adversary" in key or "tokens" in key or "usage" in key for key in state)
    twin.load_exported(state)
    x = image(3)
    with torch.no_grad():
        assert torch.equal(tokenizer.decode(tokenizer.encode(x, IDS), IDS), twin.decode(twin.encode(x, IDS), IDS))


def test_a_wrong_state_is_refused(make):
    tokenizer = make(3)
    state = tokenizer.exported_state()
    key = "anatomy_head.weight"
    for bad, match in [
        ({k: v for k, v in state.items() if k != key}, "missing"),
        ({**state, "extra": torch.zeros(1)}, "unknown"),
        ({**state, key: torch.zeros(1)}, "shape"),
        ({**state, key: torch.full_like(state[key], math.nan)}, "NaN"),
    ]:
        with pytest.raises(ValueError, match=match):
            tokenizer.load_exported(bad)


@pytest.mark.parametrize("dims", [2, 3])
def test_gradient_reaches_every_parameter_but_the_adversary(make, dims):
    tokenizer = make(dims)
    encoded = tokenizer.encode(image(dims), IDS)
    # FiLM starts at zero, where its inputs have no gradient yet
    torch.nn.init.normal_(tokenizer.film.mlp[-1].weight, std=0.1)
    if tokenizer.tell_encoder:
        torch.nn.init.normal_(tokenizer.encoder.film.mlp[-1].weight, std=0.1)
        encoded = tokenizer.encode(image(dims), IDS)
    out = tokenizer.decode(encoded, IDS)
    (out.square().sum() + sum(encoded.terms.values())).backward()
    silent = {name for name, p in tokenizer.named_parameters() if p.grad is None}
    assert not {name for name in silent if not name.startswith("adversary")}


def test_overfits_one_phantom(make):
    tokenizer = make(3)
    x = image(3)
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    first = None
    for _ in range(60):
        encoded = tokenizer.encode(x, IDS)
        loss = (tokenizer.decode(encoded, IDS) - x).abs().mean() + 0.25 * sum(encoded.terms.values())
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.4 * first


def test_bits_are_counted(make):
    tokenizer = make(3)
    books = [tokenizer.quantizer.num_codes] + ([tokenizer.private.num_codes] if tokenizer.private else [])
    cells = math.prod(tokenizer.latent_shape((16, 16, 16)))
    expected = cells * sum(math.log2(k) for k in books) + 16 * 4
    assert tokenizer.bits((16, 16, 16)) == expected
    assert tokenizer.bits_per_voxel((16, 16, 16)) == expected / 4096
