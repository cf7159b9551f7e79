import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from neurotome.metrics.codebook import brain_cells, code_counts, entropy_bits, perplexity, utilisation


def test_closed_forms():
    equal = torch.full((64,), 5)
    assert utilisation(equal) == 1
    assert perplexity(equal) == pytest.approx(64)
    assert entropy_bits(equal) == pytest.approx(6)
    one = torch.tensor([0, 7, 0, 0])
    assert (utilisation(one), perplexity(one), entropy_bits(one)) == (0.25, 1.0, 0.0)
    assert math.isnan(perplexity(torch.zeros(4, dtype=torch.long)))


@given(st.lists(st.integers(0, 50), min_size=2, max_size=30).filter(any))
@settings(max_examples=40, deadline=None)
def test_entropy_agrees_with_scipy(counts):
    ours = entropy_bits(torch.tensor(counts))
    assert ours == pytest.approx(float(entropy(counts, base=2)), abs=1e-9)
    assert perplexity(torch.tensor(counts)) <= len(counts) + 1e-9


def test_counts_by_hand_and_inside_a_mask():
    codes = torch.tensor([[[[0, 3], [3, 1]]]])
    assert code_counts(codes, 5).tolist() == [1, 1, 0, 2, 0]
    assert code_counts(codes, 5, codes == 3).tolist() == [0, 0, 0, 2, 0]
    assert code_counts(codes, 5, codes == 4).tolist() == [0] * 5


@pytest.mark.parametrize("wrong", [[0, 5], [-1, 2]])
def test_foreign_codes_are_refused(wrong):
    with pytest.raises(ValueError, match="another tokenizer"):
        code_counts(torch.tensor(wrong), 5)


def test_a_cell_counts_from_half_brain_on():
    mask = torch.zeros(1, 1, 4, 4, 1, dtype=torch.bool)
    mask[0, 0, :2, :2] = torch.tensor([[True, True], [False, False]])[..., None]  # half
    mask[0, 0, 2, 2] = True  # a quarter
    cells = brain_cells(mask, (2, 2, 1))
    assert cells[0, :, :, 0].tolist() == [[True, False], [False, False]]
    with pytest.raises(ValueError, match="does not divide"):
        brain_cells(mask, (5, 2, 1))


def test_cells_of_a_grid_that_does_not_divide_overlap_and_a_lone_cell_is_brain():
    mask = torch.zeros(1, 1, 5, 1, 1, dtype=torch.bool)
    mask[0, 0, :2] = True
    # voxels 0-1, 1-3, 3-4 of the five
    assert brain_cells(mask, (3, 1, 1)).flatten().tolist() == [True, False, False]
    assert brain_cells(mask, (1, 1, 1)).flatten().tolist() == [True]
