r"""Intensities: from a scanner's arbitrary units to a declared range and back, by two numbers per view.

    percentile   low, high = two percentiles of the brain
    minmax       low, high = its smallest and its largest value
    zscore       low, high = mean - s std, mean + s std              s = clip, or 1 where nothing is clipped

    image = 2 (v - low) / (high - low) - 1                           clipped to [-1, 1], but for a z-score without clip
    v     = low + (image + 1) / 2 (high - low)                       the way back, whatever the kind

A z-score without clip is ``(v - mean) / std`` and has no bounds; with clip c it is the z-score over c.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

# z-scores are half negative; interpolation leaves a few per cent
MAX_NEGATIVE = 0.2
Intensity = Literal["percentile", "zscore", "minmax"]
Measured = Literal["brain", "positive"]
KINDS: tuple[Intensity, ...] = get_args(Intensity)
MEASURED: tuple[Measured, ...] = get_args(Measured)


def landmarks(
    kind: Intensity,
    values: Float[np.ndarray, " n"],
    percentiles: tuple[float, float],
    clip: float | None,
    measured: Measured = "brain",
) -> tuple[float, float]:
    """Return the two intensities that become -1 and 1.

    Args:
        kind: How they are found.
        values: Of the brain, at least one.
        percentiles: For ``percentile``.
        clip: For ``zscore``, standard deviations that become 1; None for one that is not clipped.
        measured: "brain": of all values; "positive": of those above 0, as the authors of NeuroQuant take them.

    Raises:
        ValueError: Positive values are asked for, and there are none, or a large share is negative.
    """
    if measured == "positive":
        negative = float(np.mean(values < 0))
        if negative > MAX_NEGATIVE or not (values > 0).any():
            raise ValueError(f"the range is to be taken from voxels above 0, but {negative:.0%} of the brain lie below")
        values = values[values > 0]
    if kind == "percentile":
        low, high = (float(v) for v in np.percentile(values, percentiles))
        return low, high
    if kind == "minmax":
        return float(values.min()), float(values.max())
    # in double precision: the sum over millions of voxels loses digits in single
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    reach = std * (1.0 if clip is None else clip)
    return mean - reach, mean + reach


def scaled(
    values: Float[np.ndarray, " n"], low: float, high: float, *, bounded: bool = True
) -> Float[np.ndarray, " n"]:
    """Return ``values`` with ``low`` at -1 and ``high`` at 1, what lies beyond clipped if ``bounded``."""
    share = (values - low) / (high - low)
    return (np.clip(share, 0.0, 1.0) if bounded else share) * 2.0 - 1.0


def restored(image: Float[np.ndarray, "*any"], low: float, high: float) -> Float[np.ndarray, "*any"]:
    """Undo :func:`scaled` in place and return the array."""
    image += 1.0
    image *= np.float32((high - low) / 2.0)
    image += np.float32(low)
    return image
