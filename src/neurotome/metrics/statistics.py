r"""Intervals over subjects.

Values are resampled by subject: voxels, slices and scans of one brain are not independent. An interval is the 95 %
bias-corrected and accelerated bootstrap (BCa; Efron, 1987, doi:10.1080/01621459.1987.10478410) of scipy. With few
subjects it is too short (about 90 % coverage for a nominal 95 % with n = 8), so n is printed beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

DRAWS = 2000
ROUNDING = 1e-12  # values that differ by less, relative to the largest, are equal


@dataclass(frozen=True)
class Interval:
    """A mean over subjects with its interval.

    Args:
        mean: Mean of the values.
        low: Lower end; NaN with fewer than two values.
        high: Upper end; NaN with fewer than two values.
        n: Number of values.
    """

    mean: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, object]:
        """Return ``{"mean", "ci95", "n"}``; what is not finite becomes None, as JSON knows no NaN."""
        ends = [self.low, self.high] if math.isfinite(self.low) and math.isfinite(self.high) else None
        return {"mean": self.mean if math.isfinite(self.mean) else None, "ci95": ends, "n": self.n}


def bootstrap_interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Return the mean of ``values``, one per subject, with its interval.

    Args:
        values: One value per subject.
        seed: Of the resampling; the same values and seed give the same interval.

    Raises:
        ValueError: No value.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"an interval needs one value per subject, at least one; got shape {x.shape}")
    mean, n = float(x.mean()), x.size
    if n < 2 or not np.isfinite(x).all():
        return Interval(mean, math.nan, math.nan, n)
    if np.ptp(x) <= ROUNDING * np.abs(x).max():
        return Interval(mean, mean, mean, n)
    found = bootstrap((x,), np.mean, n_resamples=DRAWS, method="BCa", rng=np.random.default_rng(seed))
    return Interval(mean, float(found.confidence_interval.low), float(found.confidence_interval.high), n)


def paired_interval(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Interval:
    """Return the mean of ``first - second``, subject by subject, with its interval.

    Raises:
        ValueError: The two differ in length.
    """
    if len(first) != len(second):
        raise ValueError(f"a paired difference needs the same subjects; got {len(first)} and {len(second)} values")
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return bootstrap_interval(difference.tolist(), seed=seed)
