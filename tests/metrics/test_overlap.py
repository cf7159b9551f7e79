"""Dice of structures, by brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neurotome.metrics.overlap import mean_dice, structure_dice, volume_difference


@given(seed=st.integers(0, 999), k=st.integers(1, 4))
def test_equals_counting_voxels(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, k + 1, (2, 3, 2, 2)) for _ in range(2))
    found = structure_dice(torch.from_numpy(a), torch.from_numpy(b), k).numpy()
    for image in range(2):
        for label in range(1, k + 1):
            x, y = a[image] == label, b[image] == label
            size = x.sum() + y.sum()
            expected = 2 * (x & y).sum() / size if size else np.nan
            assert found[image, label - 1] == pytest.approx(expected, nan_ok=True)


def test_same_other_and_absent() -> None:
    a = torch.tensor([1, 1, 2, 0]).view(1, 4, 1, 1)
    b = torch.tensor([2, 2, 1, 0]).view(1, 4, 1, 1)
    assert structure_dice(a, a, 2).tolist() == [[1, 1]]
    assert structure_dice(a, b, 2).tolist() == [[0, 0]]
    overlap = structure_dice(a, a.to(torch.uint8), 3)
    assert overlap[0, 2].isnan()
    assert mean_dice(overlap).tolist() == [1]
    assert mean_dice(structure_dice(0 * a, 0 * a, 2)).isnan().all()


def test_volumes_count_voxels_wherever_they_lie() -> None:
    a = torch.tensor([1, 1, 1, 2, 0, 0]).view(1, 6, 1, 1)
    b = torch.tensor([0, 1, 1, 2, 2, 0]).view(1, 6, 1, 1)
    found = volume_difference(a, b, 3)
    assert found[0, :2].tolist() == [0.5, -0.5]
    assert found[0, 2].isnan()
    with pytest.raises(ValueError, match="one grid"):
        volume_difference(a, b[:, :1], 2)


def test_what_does_not_fit_is_named() -> None:
    a = torch.ones(1, 2, 2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="one grid"):
        structure_dice(a, a[:, :1], 1)
    for wrong in (2 * a, -a):
        with pytest.raises(ValueError, match="admissible are 0 to 1"):
            structure_dice(a, wrong, 1)
