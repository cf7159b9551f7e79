"""A code is stored, joined and cut field by field, whatever fields there are."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
import safetensors.torch
import torch
from torch import Tensor

from neurotome.tokenizers.encoded import Encoded

SHAPE = (8, 12, 4)
LATENTS = {
    "floats": lambda rng: torch.randn(3, 5, 4, 6, 2, generator=rng),
    "signs": lambda rng: torch.randint(0, 2, (3, 32, 4, 6, 2), generator=rng) * 2.0 - 1,
    "signs of another number": lambda rng: torch.randint(0, 2, (3, 5, 4, 6, 2), generator=rng) * 2.0 - 1,
}


@dataclass(frozen=True)
class Extended(Encoded):
    """With a field and a group of fields that the package does not know."""

    density: Tensor | None = None
    maps: Mapping[str, Tensor] = field(default_factory=dict)


def code(latent: str = "floats", codes: int = 2, style: bool = True, gain: bool = True, **more: object) -> Extended:
    """Three images' code."""
    rng = torch.Generator().manual_seed(0)
    names = ("anatomy", "private")[:codes]
    return Extended(
        LATENTS[latent](rng),
        {name: torch.randint(0, 99, (3, 4, 6, 2), generator=rng) for name in names},
        torch.randn(3, 7, generator=rng) if style else None,
        {"commitment": torch.ones(())},
        SHAPE,
        {"before": torch.arange(3.0)},
        torch.randn(3, 1, 2, 3, 1, generator=rng) if gain else None,
        **more,
    )


def same(a: Encoded, b: Encoded) -> bool:
    first, second = dict(a.named()), dict(b.named())
    return (
        type(a) is type(b)
        and a.shape == b.shape
        and first.keys() == second.keys()
        and all(torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first)
    )


@pytest.mark.parametrize(
    ("latent", "codes", "style", "gain", "extended"),
    itertools.product(LATENTS, range(3), (False, True), (False, True), (False, True)),
)
def test_what_is_stored_comes_back(latent: str, codes: int, style: bool, gain: bool, extended: bool) -> None:
    more = {"density": torch.rand(3, 2), "maps": {"a": torch.rand(3, 1), "b": torch.arange(3)}} if extended else {}
    whole = code(latent, codes, style, gain, **more)
    for one in (whole, whole.single(1)):
        tensors = safetensors.torch.load(safetensors.torch.save(one.stored()))
        back = Extended.restored(tensors, SHAPE)
        assert same(back, one)
        assert back.terms == back.aux == {}
        plain = Encoded.restored(tensors, SHAPE)  # who does not know a field leaves it out
        assert dict(plain.named()).keys() == dict(one.named()).keys() - {"density", "maps.a", "maps.b"}
    packed = latent == "signs"
    assert (whole.stored()["latent"].dtype == torch.int32) == packed
    assert {v.dtype for k, v in whole.stored().items() if k.startswith("codes.")} <= {torch.int32}
    with pytest.raises(KeyError, match="latent"):
        Extended.restored({}, SHAPE)


def test_a_batch_is_cut_into_images_and_joined_again() -> None:
    whole = code(density=torch.rand(3, 2).double(), maps={"a": torch.rand(3, 1).half()})
    parts = [whole.single(i) for i in range(3)]
    assert parts[1].density.shape == (1, 2)
    assert parts[1].density.dtype == parts[1].maps["a"].dtype == torch.float32
    assert same(
        Encoded.joined(parts), replace(whole, density=whole.density.float(), maps={"a": whole.maps["a"].float()})
    )
    assert parts[0].terms == parts[0].aux == {}
    assert same(Encoded.joined(parts[::-1]).single(0), parts[2])


def test_some_images_of_a_batch_are_taken_with_what_training_looks_at() -> None:
    whole = code(density=torch.rand(3, 2))
    taken = whole.take(torch.tensor([2, 0]))
    assert taken.aux["before"].tolist() == [2, 0]
    assert taken.terms == {}
    assert torch.equal(taken.density, whole.density[[2, 0]])
    assert torch.equal(taken.codes["private"], whole.codes["private"][[2, 0]])


def test_codes_of_one_kind_have_the_same_tensors_of_the_same_shapes() -> None:
    whole = code()
    assert whole.kind == replace(whole, latent=whole.latent + 1, terms={}).kind
    others = [
        replace(whole, style=None), replace(whole, codes={}), replace(whole, shape=(8, 12, 8)),
        replace(whole, latent=whole.latent[..., :1]), replace(whole, latent=whole.latent.half()),
        replace(whole, density=torch.rand(3, 2)),
    ]  # fmt: skip
    assert len({whole.kind, *(other.kind for other in others)}) == 7


def test_a_code_moves_with_all_its_tensors() -> None:
    moved = code(density=torch.rand(3, 2), maps={"a": torch.rand(3, 1)}).to(torch.device("meta"))
    assert {name for name, tensor in moved.named() if tensor.is_meta} == {
        "latent", "codes.anatomy", "codes.private", "style", "gain", "density", "maps.a",
    }  # fmt: skip
