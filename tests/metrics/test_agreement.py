"""Agreement of two measurements, beside other implementations."""

import numpy as np
import pytest
from scipy import stats

from neurotome.metrics.agreement import icc_consistency, pearson

RNG = np.random.default_rng(0)
TRUE = RNG.normal(3000, 300, 12)


def anova_icc(x: np.ndarray, y: np.ndarray) -> float:
    """ICC(3,1) from the table of a two-way analysis of variance, as Shrout and Fleiss write it."""
    ratings = np.stack([x, y], 1)
    n, k = ratings.shape
    grand = ratings.mean()
    subjects = k * sum((row.mean() - grand) ** 2 for row in ratings) / (n - 1)
    left = ratings - ratings.mean(1, keepdims=True) - ratings.mean(0, keepdims=True) + grand
    error = (left**2).sum() / ((n - 1) * (k - 1))
    return (subjects - error) / (subjects + (k - 1) * error)


@pytest.mark.parametrize("noise", [0.0, 30.0, 300.0, 3000.0])
def test_as_others_compute_it(noise: float) -> None:
    other = 0.7 * TRUE - 50 + noise * RNG.normal(size=12)
    assert icc_consistency(TRUE, other) == pytest.approx(anova_icc(TRUE, other))
    assert pearson(TRUE, other) == pytest.approx(stats.pearsonr(TRUE, other).statistic)


def test_ends_and_what_they_do_not_see() -> None:
    assert icc_consistency(TRUE, TRUE + 500) == pytest.approx(1)
    assert icc_consistency(TRUE, -TRUE) == pytest.approx(-1)
    assert pearson(TRUE, 2 * TRUE) == pytest.approx(1)
    assert icc_consistency(TRUE, 2 * TRUE) == pytest.approx(0.8)  # 2 * 2 / (1 + 4): scale is seen


def test_nothing_to_agree_on() -> None:
    same = np.full(4, 7.0)
    for few in (same, same[:1], same[:0]):
        assert np.isnan(pearson(few, few))
        assert np.isnan(icc_consistency(few, few))
    with pytest.raises(ValueError, match="12 and 4"):
        pearson(TRUE, same)
