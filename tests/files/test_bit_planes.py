"""Signs as bits: the published order, both ways, and what is no plane."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotome.files.bit_planes import WORD, are_signs, pack_bits, unpack_bits


def signs(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1], dtype=np.float32), shape)


def test_bits_lie_as_published():
    """Plane i of a word in bit i, by a loop over every cell."""
    planes = signs(64, 2, 3, 1)
    words = pack_bits(planes)
    assert words.shape == (2, 2, 3, 1)
    assert words.dtype == np.int32
    for word, x, y in np.ndindex(2, 2, 3):
        bits = planes[WORD * word : WORD * (word + 1), x, y, 0] > 0
        assert int(words[word, x, y, 0]) % 2**32 == sum(int(bit) << i for i, bit in enumerate(bits))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.tuples(*[st.integers(1, 4)] * 3), st.booleans(), st.integers(0, 99))
def test_planes_come_back(words, cells, batch, seed):
    planes = signs(*((2,) if batch else ()), WORD * words, *cells, seed=seed)
    packed = pack_bits(planes)
    assert packed.nbytes * 8 == planes.size
    again = unpack_bits(packed)
    assert again.dtype == np.float32
    assert np.array_equal(again, planes)


def test_only_signs_that_fill_words_are_signs():
    planes = signs(32, 2, 2, 2)
    assert are_signs(planes)
    assert not are_signs(planes[:31])
    assert not are_signs(np.where(planes > 0, planes, 0))
    assert not are_signs(planes * 0.5)


def test_what_is_no_plane_is_refused():
    with pytest.raises(ValueError, match="multiple of 32"):
        pack_bits(signs(33, 1, 1, 1))
    with pytest.raises(ValueError, match="int32, not float32"):
        unpack_bits(signs(32, 1, 1, 1))
