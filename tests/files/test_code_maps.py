"""Code maps in the bits they need: they come back, and what does not describe them is refused."""

import numpy as np
import pytest

from neurotome.files.code_maps import pack_codes, unpack_codes

SHAPE = (5, 3, 7)


def maps(largest: int, tissue: float | None = None, dtype: str = "int64") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(largest)
    found = {"anatomy": rng.integers(0, largest + 1, SHAPE), "coarse": rng.integers(0, largest + 1, (2, 1, 3))}
    found["anatomy"].flat[0] = largest
    if tissue is not None:
        inside = rng.random(SHAPE) < tissue
        found = {name: codes * inside if codes.shape == SHAPE else codes for name, codes in found.items()}
        found["tissue"] = inside
    return {name: codes.astype(dtype) for name, codes in found.items()}


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
@pytest.mark.parametrize("tissue", [None, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("largest", [0, 1, 2, 63, 64, 255, 4095, 2**31 - 1])
def test_what_is_packed_comes_back(largest: int, tissue: float | None, dtype: str) -> None:
    if largest > 255 and dtype == "uint8":
        pytest.skip("beyond the type")
    whole = maps(largest, tissue, dtype)
    packed, layout = pack_codes(whole)
    back = unpack_codes(packed, layout)
    assert list(back) == list(whole)
    assert all(np.array_equal(back[name], codes) and back[name].shape == codes.shape for name, codes in whole.items())
    assert {codes.dtype for codes in back.values()} == {np.dtype("int32")}
    cells = np.prod(SHAPE) if tissue is None else whole["tissue"].astype(int).sum()
    assert packed["anatomy"].nbytes == -(-int(cells) * int(whole["anatomy"].max()).bit_length() // 8)


def test_the_order_of_bits_is_the_one_that_is_written_down() -> None:
    packed, layout = pack_codes({"a": np.array([[[1, 2, 4]]])})
    assert layout == {"a": {"shape": [1, 1, 3], "bits": 3}}
    assert packed["a"].tolist() == [0b00_010_001, 0b1]


def test_a_code_outside_the_tissue_is_not_lost() -> None:
    whole = maps(9, 0.5)
    whole["anatomy"][tuple(np.argwhere(whole["tissue"] == 0)[0])] = 3
    packed, layout = pack_codes(whole)
    assert "where" not in layout["anatomy"]
    assert np.array_equal(unpack_codes(packed, layout)["anatomy"], whole["anatomy"])


@pytest.mark.parametrize("wrong", [np.array([[[-1]]]), np.array([[[2**31]]])])
def test_numbers_that_are_no_codes_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="codes of a"):
        pack_codes({"a": wrong})


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 5}, {"bits": -1}, {"bits": 64}, {"shape": [5, 3, 8]}, {"shape": [5, 3, -7]}, {"shape": [0, 3, 7]},
        {"where": "coarse"}, {"where": "nowhere"}, {"where": "anatomy"}, {"shape": [10**9, 10**9, 10**9]},
    ],
)  # fmt: skip
def test_a_layout_that_lies_is_refused(change: dict) -> None:
    packed, layout = pack_codes(maps(9, 0.5))
    layout["anatomy"] = {**layout["anatomy"], **change}
    with pytest.raises(ValueError, match="codes anatomy"):
        unpack_codes(packed, layout)


def test_maps_and_layout_have_the_same_names() -> None:
    packed, layout = pack_codes(maps(9))
    for one, other in (({}, layout), (packed, {}), ({"a": packed["anatomy"]}, layout)):
        with pytest.raises(ValueError, match="described are"):
            unpack_codes(one, other)
