import math

import numpy as np
import pytest

from neurotome.metrics.statistics import bootstrap_interval, paired_interval

# (values, seed) and the interval of the shipped tables: 2000 draws, BCa
FROZEN = {
    "gauss": (lambda rng: rng.normal(24, 2, 8), 0, (22.992053535793826, 24.953301180051003)),
    "skew": (lambda rng: rng.lognormal(0, 1.2, 20), 3, (0.5318075520735929, 1.0844112350085222)),
    "ties": (lambda rng: np.round(rng.normal(0, 1, 30), 1), 1, (-0.3, 0.27999999999999997)),
    "two": (lambda rng: rng.normal(0, 1, 2), 0, (-0.6756622510056528, 1.438522591656152)),
}


def test_intervals_stay_those_of_the_shipped_tables():
    rng = np.random.default_rng(7)
    for name, (draw, seed, ends) in FROZEN.items():
        found = bootstrap_interval(draw(rng).tolist(), seed=seed)
        assert (found.low, found.high) == pytest.approx(ends, rel=1e-12), name


def test_covers_the_mean_of_a_gaussian():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(300):
        interval = bootstrap_interval(rng.normal(3.0, 2.0, 30).tolist(), seed=i)
        hits += interval.low <= 3.0 <= interval.high
    assert 0.90 <= hits / 300 <= 0.985


def test_the_interval_follows_the_skew():
    x = np.random.default_rng(3).lognormal(0, 1.2, 20)
    found = bootstrap_interval(x.tolist())
    assert found.high - found.mean > 1.5 * (found.mean - found.low)


def test_is_a_function_of_values_and_seed():
    x = np.random.default_rng(1).normal(size=12).tolist()
    assert bootstrap_interval(x, seed=4) == bootstrap_interval(x, seed=4)
    assert bootstrap_interval(x, seed=4) != bootstrap_interval(x, seed=5)


def test_degenerate_values():
    one = bootstrap_interval([2.5])
    assert (one.mean, one.n, math.isnan(one.low)) == (2.5, 1, True)
    assert one.to_json() == {"mean": 2.5, "ci95": None, "n": 1}
    same = bootstrap_interval([1.0, 1.0, 1.0])
    assert (same.low, same.high) == (1.0, 1.0)
    nearly = bootstrap_interval([3.3 - 1.1, 2.2, 2.2, 2.2])  # BCa is undefined where values differ by rounding alone
    assert nearly.low == nearly.high == nearly.mean
    assert bootstrap_interval([1.0, math.nan]).to_json() == {"mean": None, "ci95": None, "n": 2}
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])


def test_paired_differences_ignore_what_subjects_share():
    rng = np.random.default_rng(2)
    subject = 10 * rng.normal(size=20)
    a = (subject + 1 + 0.1 * rng.normal(size=20)).tolist()
    interval = paired_interval(a, subject.tolist())
    assert interval.mean == pytest.approx(1, abs=0.1)
    assert interval.high - interval.low < 0.2
    assert interval == bootstrap_interval((np.array(a) - subject).tolist())
    with pytest.raises(ValueError, match="same subjects"):
        paired_interval([1.0], [1.0, 2.0])
