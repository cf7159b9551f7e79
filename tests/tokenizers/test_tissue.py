"""Bits only where there is tissue, in every tokenizer that can leave background out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.tokenizers.encoded import Encoded
from neurotome.tokenizers.tissue import coarser, coded_only, on_background, tissue_cells
from neurotome.tokenizers.vq_vae2 import VQVAE2
from tests.tokenizers.test_battery import HIERARCHY, LEARNED, aligned, codebook, demo, plain_vqvae

ABOVE = -0.95
IDS = torch.tensor([0, 1])
SIDE = 16


def scans(seed: int = 0) -> torch.Tensor:
    """Two scans with tissue in the corner of 10 voxels a side, and one bright voxel far from it in the second."""
    x = torch.full((2, 1, SIDE, SIDE, SIDE), -1.0)
    x[:, :, :10, :10, :10] = torch.rand(2, 1, 10, 10, 10, generator=torch.Generator().manual_seed(seed)) - 0.5
    x[1, 0, 15, 0, 15] = 0.5
    return x


def started(tokenizer):
    for module in tokenizer.modules():
        if isinstance(module, EMAQuantizer):
            module.start(torch.randn(module.num_codes, module.dim), torch.full((module.num_codes,), 9.0))
    return tokenizer.eval()


def vqvae(dims: int = 3, above: float | None = ABOVE):
    tokenizer = plain_vqvae(dims, EMAQuantizer(16, 4))
    return type(tokenizer)(**{**tokenizer.arguments, "tissue_above": above})


def hierarchy(dims: int = 3, **changes) -> VQVAE2:
    arguments = {**HIERARCHY, "scaling_rates": (2, 2), "quantizers": [EMAQuantizer(16, 4), EMAQuantizer(8, 4)]}
    return VQVAE2(dims, **{**arguments, "tissue_above": ABOVE, **changes})


# name: network, bits of a cell of the finest map, bits of one of the coarser, floats of 16 bits
MAKE = {
    "neuroquant-demo": (lambda d=3: demo(d, tissue_above=ABOVE), 4, 0, 4),
    "neuroquant-aligned": (lambda d=3: aligned(d, tissue_above=ABOVE), 4 + 2, 0, 4),
    "vq-vae": (vqvae, 4, 0, 0),
    "vq-vae2": (hierarchy, 4, 3, 0),
    "anatome": (lambda d=3: LEARNED["anatome"](d), 4 + 10, 0, 4),
}


def voxels(cells: torch.Tensor) -> torch.Tensor:
    return cells.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)[:, None]


@pytest.mark.parametrize("name", MAKE)
def test_tissue_is_coded_and_paid_for_and_the_rest_is_background(name):
    torch.manual_seed(0)
    make, fine_bits, coarse_bits, floats = MAKE[name]
    tokenizer, x = started(make()), scans()
    encoded = tokenizer.encode(x, IDS)
    tissue = torch.zeros(2, 8, 8, 8, dtype=torch.bool)
    tissue[:, :5, :5, :5] = True
    tissue[1, 7, 0, 7] = True
    assert torch.equal(encoded.codes["tissue"].bool(), tissue)
    assert tokenizer.codebook_sizes["tissue"] == 2
    assert torch.equal((encoded.latent != 0).any(dim=1), tissue)
    for other in (encoded, Encoded(encoded.latent, {}, encoded.style, {}, encoded.shape)):  # the latent says it too
        image = tokenizer.decode(other, IDS)
        assert (image[~voxels(tissue)] == -1).all()
        assert (image[voxels(tissue)] != -1).any()
    # 5 x 5 x 5 cells, 3 x 3 x 3 of the coarser map, one more of both in the second scan
    expected = [8**3 + n * fine_bits + m * coarse_bits + 16 * floats for n, m in ((125, 27), (126, 28))]
    assert tokenizer.bits_used(encoded).tolist() == expected
    whole = tokenizer.encode(torch.rand(2, 1, SIDE, SIDE, SIDE), IDS)
    most = 8**3 * (1 + fine_bits) + 4**3 * coarse_bits + 16 * floats
    assert tokenizer.bits_used(whole).tolist() == [most, most]
    assert tokenizer.bits((SIDE,) * 3) == most
    assert {name: len(found) for name, found in coded_only(encoded.codes).items()} == {
        name: 27 + 28 if name == "level1" else 125 + 126 for name in encoded.codes if name != "tissue"
    }


@pytest.mark.parametrize("name", ["neuroquant-demo", "neuroquant-aligned", "vq-vae", "vq-vae2"])
def test_without_the_option_every_cell_is_coded(name):
    torch.manual_seed(0)
    make = MAKE[name][0]
    with_tissue = started(make())
    plain = started(type(with_tissue)(**{**with_tissue.arguments, "tissue_above": None}))
    plain.load_state_dict(with_tissue.state_dict())
    x = torch.rand(2, 1, SIDE, SIDE, SIDE)  # no background: both are the same
    ours, theirs = with_tissue.encode(x, IDS), plain.encode(x, IDS)
    assert "tissue" not in theirs.codes
    assert torch.allclose(ours.latent, theirs.latent)
    assert torch.allclose(with_tissue.decode(ours, IDS), plain.decode(theirs, IDS))
    assert plain.bits_used(plain.encode(scans(), IDS)).tolist() == [plain.bits((SIDE,) * 3)] * 2


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("dims", [2, 3])
def test_background_alone_has_no_code_also_in_training(name, dims):
    tokenizer = started(MAKE[name][0](dims)).train()
    x = torch.full((2, 1, SIDE, SIDE, 4), -1.0)
    encoded = tokenizer.encode(x, IDS)
    assert not encoded.codes["tissue"].any()
    assert (tokenizer.decode(encoded, IDS) == -1).all()
    x[0, 0, 3, 3, 1] = 0.5
    assert tokenizer.encode(x, IDS).codes["tissue"].sum() == 1


def test_a_translation_leaves_out_private_codes_and_keeps_the_tissue():
    tokenizer = started(aligned(tissue_above=ABOVE))
    shared = tokenizer.shared(tokenizer.encode(scans(), IDS))
    assert set(shared.codes) == {"anatomy", "tissue"}
    assert tokenizer.bits_used(shared).tolist() == [512 + n * 4 + 64 for n in (125, 126)]
    mixed = replace(shared, latent=shared.latent[[1, 1]])  # the anatomy's own background, whatever the codes say
    assert (tokenizer.decode(mixed, IDS)[:, 0, 15, 0, 15] != -1).all()


def test_hidden_levels_leave_the_background_where_it_is():
    tokenizer = started(hierarchy(hide_prob=1.0)).train()
    encoded = tokenizer.encode(scans(), IDS)
    tissue = voxels(encoded.codes["tissue"].bool())
    image = tokenizer.decode(encoded, IDS)
    assert (image[~tissue] == -1).all()
    assert (image[tissue] != -1).all()


def test_cells_of_a_shape_that_is_no_multiple():
    x = torch.full((1, 2, 7, 5, 9), -1.0)
    x[0, 1, 6, 4, 8] = 0.0  # a second channel counts
    tissue = tissue_cells(x, (3, 2, 4), ABOVE)
    assert tissue.nonzero().tolist() == [[0, 2, 1, 3]]
    assert coarser(tissue, (1, 1, 2)).tolist() == [[[[False, True]]]]
    image = on_background(torch.zeros(1, 1, 7, 5, 9), tissue[:, None])
    assert image[0, 0, 6, 4, 8] == 0
    assert (image == -1).sum() > 250


def test_a_codebook_of_several_is_coded_where_there_is_tissue():
    from neurotome.nn.quantize.library import BinarySphericalQuantizer, FiniteScalarQuantizer, ResidualQuantizer

    for quantizer in (
        ResidualQuantizer(16, 4, 2, reservoir=64),
        FiniteScalarQuantizer((5, 5, 3, 3), 4),
        BinarySphericalQuantizer(16, 4),
    ):
        base = plain_vqvae(3, quantizer)
        tokenizer = type(base)(**{**base.arguments, "quantizer": quantizer, "tissue_above": ABOVE})
        for _ in range(2):
            encoded = tokenizer.encode(scans(), IDS)
        bits = tokenizer.bits_used(encoded).tolist()
        assert bits == [512 + n * quantizer.bits for n in (125, 126)]
        image = tokenizer.eval().decode(tokenizer.encode(scans(), IDS), IDS)
        assert (image[:, 0, 12:, 12:, :8] == -1).all()
        empty = tokenizer.train().encode(torch.full((2, 1, SIDE, SIDE, SIDE), -1.0), IDS)
        assert not empty.codes["tissue"].any()


def test_codebook_starts_are_not_counted_as_tissue():
    """Before a codebook starts the latent passes as it is, where there is tissue."""
    tokenizer = plain_vqvae(3, codebook())
    tokenizer = type(tokenizer)(
        **{**tokenizer.arguments, "quantizer": EMAQuantizer(16, 4, start_after=9), "tissue_above": ABOVE}
    )
    encoded = tokenizer.train().encode(scans(), IDS)
    assert torch.equal((encoded.latent != 0).any(1), encoded.codes["tissue"].bool())


@pytest.mark.parametrize("shape", [(6, 5, 7), (6, 5, 1), (1, 4, 6)])
def test_what_is_dark_within_the_brain_is_tissue(shape):
    """The closing is that of scipy on a grid without an end: holes of one or two cells are filled."""
    image = torch.where(torch.rand(4, 1, *shape, generator=torch.Generator().manual_seed(1)) > 0.6, 0.0, -1.0)
    found = tissue_cells(image, shape, ABOVE).numpy()
    window = np.ones([3 if n > 1 else 1 for n in shape])
    for cells, one in zip(found, (image[:, 0] > ABOVE).numpy(), strict=True):
        around = np.pad(one, 2)
        assert (cells == ndimage.binary_closing(around, window)[2:-2, 2:-2, 2:-2]).all()
    brain = torch.zeros(1, 1, 9, 9, 9)
    brain[..., 2:4, 4, 4] = -1
    brain[..., 5:8, 1:4, 1:4] = -1
    tissue = tissue_cells(brain, (9, 9, 9), ABOVE)[0]
    assert tissue[2:4, 4, 4].all()
    assert not tissue[6, 2, 2]
