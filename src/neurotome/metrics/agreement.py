r"""How far two measurements of the same subjects agree, such as a volume on a scan and on its reconstruction.

    pearson    sum (x - mean x)(y - mean y) / sqrt(sum (x - mean x)^2 sum (y - mean y)^2)
    ICC(3,1)   (MS_s - MS_e) / (MS_s + MS_e)           two measurements, two-way mixed, single, consistency

MS_s is the mean square between subjects, MS_e the residual one (Shrout & Fleiss, 1979, doi:10.1037/0033-2909.86.2.420).
Neither knows a difference that is the same for all subjects: the bias belongs beside them.
"""

import math
from collections.abc import Sequence

import numpy as np


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the correlation over subjects; NaN with fewer than two, or where one measurement never changes.

    Raises:
        ValueError: The two differ in length.
    """
    dx, dy = _centred(x, y)
    scale = math.sqrt(float(dx @ dx) * float(dy @ dy))
    return float(dx @ dy) / scale if scale > 0 else math.nan


def icc_consistency(x: Sequence[float], y: Sequence[float]) -> float:
    """Return ICC(3,1) of two measurements; NaN with fewer than two subjects, or where nothing changes.

    Raises:
        ValueError: The two differ in length.
    """
    dx, dy = _centred(x, y)
    # over n - 1 degrees of freedom, both times: between subjects 2 var(mean of both), residual var(difference) / 2
    between, residual = float((dx + dy) @ (dx + dy)) / 2, float((dx - dy) @ (dx - dy)) / 2
    return (between - residual) / (between + residual) if between + residual > 0 else math.nan


def _centred(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    if len(x) != len(y):
        raise ValueError(f"two measurements of the same subjects are needed; got {len(x)} and {len(y)} values")
    both = np.array([x, y], dtype=np.float64)
    dx, dy = both - both.mean(1, keepdims=True) if len(x) else both
    return dx, dy
