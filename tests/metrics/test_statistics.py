import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from neurotome.metrics.statistics import bootstrap_interval, paired_interval


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_agrees_with_scipy(method):
    x = np.random.default_rng(0).gamma(1.0, 1.0, 25)
    ours = bootstrap_interval(x.tolist(), draws=50_000, method=method)
    name = {"bca": "BCa", "percentile": "percentile"}[method]
    peer = bootstrap((x,), np.mean, n_resamples=50_000, method=name, rng=np.random.default_rng(0))
    assert ours.mean == pytest.approx(x.mean())
    assert ours.low == pytest.approx(peer.confidence_interval.low, abs=0.03)
    assert ours.high == pytest.approx(peer.confidence_interval.high, abs=0.03)


def test_covers_the_mean_of_a_gaussian():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(300):
        interval = bootstrap_interval(rng.normal(3.0, 2.0, 30).tolist(), draws=400, seed=i)
        hits += interval.low <= 3.0 <= interval.high
    assert 0.90 <= hits / 300 <= 0.985


def test_bca_follows_the_skew():
    x = np.random.default_rng(3).lognormal(0, 1.2, 20)
    bca, plain = bootstrap_interval(x.tolist()), bootstrap_interval(x.tolist(), method="percentile")
    assert bca.high > plain.high
    assert bca.low > plain.low


def test_is_a_function_of_values_and_seed():
    x = np.random.default_rng(1).normal(size=12).tolist()
    assert bootstrap_interval(x, seed=4) == bootstrap_interval(x, seed=4)
    assert bootstrap_interval(x, seed=4) != bootstrap_interval(x, seed=5)
    narrow, wide = (bootstrap_interval(x, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_degenerate_values():
    one = bootstrap_interval([2.5])
    assert (one.mean, one.n, math.isnan(one.low)) == (2.5, 1, True)
    assert one.to_json() == {"mean": 2.5, "ci95": None, "n": 1}
    same = bootstrap_interval([1.0, 1.0, 1.0])
    assert (same.low, same.high) == (1.0, 1.0)
    assert bootstrap_interval([1.0, math.nan]).to_json() == {"mean": None, "ci95": None, "n": 2}
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="admissible"):
        bootstrap_interval([1.0, 2.0], method="t")


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
