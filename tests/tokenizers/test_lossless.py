"""Tokenizers without parameters: exact inverses, the wavelet's energy and bands, and the mask codec to the last bit."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotome.nn.nd import depth_to_space
from neurotome.tokenizers import HaarWavelet, Identity, MaskCodec, SpaceToDepth
from neurotome.tokenizers.lossless import BLOCKS

IDS = torch.tensor([0, 1])
ALL = {
    "identity": Identity,
    "space-to-depth": SpaceToDepth,
    "haar": HaarWavelet,
    "haar-medgen": lambda *a, **k: HaarWavelet(*a, axis_order=(2, 1, 0), **k),
    "haar-wdm": lambda *a, **k: HaarWavelet(*a, low_divisor=3.0, **k),
    "mask": lambda *a, **k: MaskCodec(*a, layout="k8x8", **k),
}


def image(shape=(16, 16, 16), channels: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn((2, channels, *shape), generator=torch.Generator().manual_seed(seed))


def haar_matrix(dims: int) -> torch.Tensor:
    """The bands of a block of 2 voxels per axis, by hand: rows LLL, LLH, ..., HHH, columns x y z."""
    low, high = np.array([1.0, 1.0]) / math.sqrt(2), np.array([1.0, -1.0]) / math.sqrt(2)
    rows = []
    for band in range(2**dims):
        vectors = [high if band >> (dims - 1 - axis) & 1 else low for axis in range(dims)]
        row = vectors[0]
        for vector in vectors[1:]:
            row = np.kron(row, vector)
        rows.append(row)
    return torch.tensor(np.array(rows), dtype=torch.float32)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_goes_in_comes_out(name, dims, channels):
    tokenizer = ALL[name](dims, channels)
    x = image((16, 16, 8), channels)
    x = x.sign() if name == "mask" else x
    encoded = tokenizer.encode(x, IDS)
    assert encoded.latent.shape == (2, tokenizer.latent_channels, *tokenizer.latent_shape(x.shape[2:]))
    assert not encoded.codes
    assert not encoded.terms
    assert encoded.style is None
    error = (tokenizer.decode(encoded, IDS) - x).abs().max()
    assert error <= (0 if name in ("identity", "space-to-depth", "mask") else 1e-5)
    assert not list(tokenizer.parameters())
    assert not tokenizer.exported_state()
    assert type(tokenizer)(**tokenizer.arguments).factor == tokenizer.factor


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_along_any_axis_come_back(name, axis):
    tokenizer = ALL[name](3)
    x = image().narrow(2 + axis, 3, 1).contiguous()
    x = x.sign() if name == "mask" else x
    encoded = tokenizer.encode(x, IDS)
    assert encoded.latent.shape[1:] == (tokenizer.latent_channels, *tokenizer.latent_shape(x.shape[2:]))
    assert torch.allclose(tokenizer.decode(encoded, IDS), x, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in ALL if n != "identity"])
def test_a_shape_that_does_not_divide_is_refused_with_the_next_one(name):
    with pytest.raises(ValueError, match=r"pad to \(16, 16, 16\)"):
        ALL[name](3).encode(torch.zeros(2, 1, 15, 16, 16), IDS)


@pytest.mark.parametrize("name", ALL)
def test_wrong_ids_are_refused(name):
    with pytest.raises(ValueError, match="modality ids"):
        ALL[name](3).encode(image(), IDS + 7)


@pytest.mark.parametrize("name", ALL)
def test_bits(name):
    tokenizer = ALL[name](3)
    expected = {"mask": 1.0}.get(name, 32.0)
    assert tokenizer.bits_per_voxel((16, 16, 16)) == expected
    assert tokenizer.window is None


@pytest.mark.parametrize("dims", [2, 3])
def test_the_wavelet_is_its_matrix(dims):
    x = image((4, 6, 8))
    found = HaarWavelet(dims).encode(x, IDS).latent
    matrix = haar_matrix(dims)
    assert torch.allclose(matrix @ matrix.T, torch.eye(2**dims), atol=1e-6)
    blocks = SpaceToDepth(dims).encode(x, IDS).latent
    assert torch.allclose(found, torch.einsum("kc,bcxyz->bkxyz", matrix, blocks), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.tuples(*[st.integers(1, 5)] * 3), st.booleans())
def test_the_wavelet_keeps_energy_and_inverts(seed, halves, flat):
    shape = tuple(1 if flat and axis == 1 else 2 * n for axis, n in enumerate(halves))
    x = image(shape, 2, seed)
    wavelet = HaarWavelet(3, 2)
    encoded = wavelet.encode(x, IDS)
    assert encoded.latent.square().sum() == pytest.approx(float(x.square().sum()), rel=1e-5)
    assert torch.allclose(wavelet.decode(encoded, IDS), x, atol=1e-5)


def test_the_low_band_of_a_constant_grows_by_root_eight_and_the_convention_divides_it():
    x = torch.full((2, 1, 8, 8, 8), 0.5)
    low = HaarWavelet(3).encode(x, IDS).latent
    assert torch.allclose(low[:, 0], torch.tensor(0.5 * math.sqrt(8)))
    assert low[:, 1:].abs().max() == 0
    third = HaarWavelet(3, low_divisor=3.0).encode(x, IDS).latent
    assert torch.allclose(third[:, 0], low[:, 0] / 3)


def test_bands_lie_together_channel_after_channel():
    x = torch.zeros(2, 2, 4, 4, 4)
    x[:, 1] = 1
    latent = HaarWavelet(3, 2).encode(x, IDS).latent
    assert latent[:, 1].min() > 0
    assert latent[:, [0, *range(2, 16)]].abs().max() == 0


MASKS = {
    "ones": torch.ones,
    "zeros": torch.zeros,
    "checkerboard": lambda *size: torch.from_numpy(np.indices(size).sum(0) % 2).float(),
    "random": lambda *size: torch.randint(0, 2, size, generator=torch.Generator().manual_seed(1)).float(),
}


@pytest.mark.parametrize("layout", BLOCKS)
@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_comes_back_to_the_last_bit(layout, kind):
    mask = MASKS[kind](1, 1, 256, 256, 1) * 2 - 1
    codec = MaskCodec(2, layout=layout)
    encoded = codec.encode(mask, IDS[:1])
    cells, floats = {"f32": (8, 32), "f64": (4, 128), "f128": (2, 512), "k8x8": (32, 2)}[layout]
    assert encoded.latent.shape == (1, 32 * floats, cells, cells, 1)
    assert set(encoded.latent.unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(codec.decode(encoded, IDS[:1]), mask)
    assert encoded.latent.numel() == 256 * 256 == codec.bits((256, 256, 1))


def test_a_volume_of_masks_in_slices_or_blocks():
    mask = MASKS["random"](2, 1, 32, 64, 8) * 2 - 1
    for depth in (1, 4):
        codec = MaskCodec(3, depth=depth)
        encoded = codec.encode(mask, IDS)
        assert encoded.latent.shape == (2, 1024 * depth, 1, 2, 8 // depth)
        assert torch.equal(codec.decode(encoded, IDS), mask)
        assert codec.bits((32, 64, 8)) == 32 * 64 * 8


def test_planes_of_a_network_are_read_by_their_sign():
    codec = MaskCodec(2, layout="k8x8")
    mask = MASKS["random"](2, 1, 16, 16, 1) * 2 - 1
    encoded = codec.encode(mask, IDS)
    noisy = encoded.latent * (0.1 + torch.rand(encoded.latent.shape))
    assert torch.equal(depth_to_space(noisy.sign(), codec.factor, (16, 16, 1)), mask)
    from dataclasses import replace

    assert torch.equal(codec.decode(replace(encoded, latent=noisy), IDS), mask)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: HaarWavelet(low_divisor=0.0), "low_divisor is 0.0; give a number > 0"),
        (lambda: SpaceToDepth(block=0), "block is 0"),
        (lambda: MaskCodec(layout="f16"), "f32 or f64 or f128 or k8x8"),
        (lambda: MaskCodec(depth=0), "depth is 0"),
        (lambda: Identity(4), "spatial_dims is 4"),
    ],
)
def test_what_is_not_admissible_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_bands_are_counted_in_the_order_asked_for():
    x = image((4, 4, 4))[:1]
    ours, theirs = HaarWavelet(), HaarWavelet(axis_order=(2, 1, 0))
    bands, ids = ours.encode(x, IDS[:1]).latent, IDS[:1]
    reversed_bits = [int(f"{band:03b}"[::-1], 2) for band in range(8)]
    assert torch.allclose(theirs.encode(x, ids).latent, bands[:, reversed_bits], atol=1e-6)
    # high along z alone is the fifth band where z is counted in front
    waves = torch.tensor([1.0, -1.0]).repeat(2).expand(1, 1, 4, 4, 4)
    energy = theirs.encode(waves, ids).latent.square().sum((0, 2, 3, 4))
    assert energy.argmax() == 4
    assert energy[4] == pytest.approx(64)
    assert torch.allclose(theirs.decode(theirs.encode(x, ids), ids), x, atol=1e-5)
    with pytest.raises(ValueError, match="axis_order is"):
        HaarWavelet(axis_order=(0, 1))
