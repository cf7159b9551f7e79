"""Every tokenizer gives in slabs what it gives whole."""

import pytest
import torch

from neurotome.nn.slabs.computing import Slabs
from tests.tokenizers.test_battery import IDS, SMALL, image


def stirred(name: str, dims: int) -> torch.nn.Module:
    """Return a network none of whose branches is zeroed, as some are at the start of training."""
    torch.manual_seed(0)
    network = SMALL[name](dims).eval()
    for parameter in network.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize("planes", [1, 3, 40])
@pytest.mark.parametrize("name", SMALL)
def test_a_volume_is_decoded_and_encoded_the_same(name, planes):
    network, x = stirred(name, 3), image(3)
    slabs = Slabs(planes, small=0)
    with torch.inference_mode():
        encoded = network.encode(x, IDS)
        whole, ours = network.decode(encoded, IDS), slabs(network.decode, encoded, IDS)
        again = slabs(network.encode, x, IDS)
    assert ours.shape == whole.shape
    assert float((ours - whole).abs().max() / whole.abs().max()) < 1e-5
    assert all(type(v) is torch.Tensor for v in (again.latent, *again.codes.values(), *again.aux.values()))
    agreeing = [float((again.codes[key] == encoded.codes[key]).float().mean()) for key in encoded.codes]
    assert min(agreeing, default=1.0) > 0.99  # a code may change where two are equally near
    if not encoded.codes:
        assert torch.allclose(again.latent, encoded.latent, atol=1e-5 * float(encoded.latent.abs().max()))


@pytest.mark.parametrize("name", SMALL)
def test_a_slice_is_decoded_the_same(name):
    network, x = stirred(name, 2), image(2)
    with torch.inference_mode():
        encoded = network.encode(x, IDS)
        whole, ours = network.decode(encoded, IDS), Slabs(5, small=0)(network.decode, encoded, IDS)
    assert float((ours - whole).abs().max() / whole.abs().max()) < 1e-5


def test_mixed_precision_stays_within_its_own():
    network, x = stirred("neuroquant", 3), image(3)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = network.encode(x, IDS)
        whole, ours = network.decode(encoded, IDS), Slabs(3, small=0)(network.decode, encoded, IDS)
    assert float((ours - whole).abs().max()) < 2**-5
    assert float((ours - whole).abs().mean()) < 2**-8
