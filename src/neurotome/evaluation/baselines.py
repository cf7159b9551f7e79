r"""What a method must beat, fitted on the training split.

    mean_image          y(v) = mean over training subjects of y(v)
    trilinear           y = U D x             D averages blocks of the latent grid's cells, U is trilinear
    lookup_full_rate    y(v) = f(x(v))        "no bottleneck": is given the whole source
    lookup_equal_rate   y = f(U D x)          the same f behind the latent grid
    lookup_refitted     y = g(U D x)          g fitted on what it is applied to
    monotone_map        y(v) = m(x(v))        m the rising or falling curve nearest to the training subjects
    monotone_ceiling    y(v) = c(x(v))        c the nearest one to this very scan: no monotone curve reaches more

The last two need no network; the last one is given the answer, so it is no rival but the end of what turning the
intensities of the source upside down can reach.

f is the mean target intensity per source intensity inside the brain, a histogram of 256 bins smoothed by its counts.
The background is the mask's, so that no baseline pays for it. Of the plain ways down, averaging blocks and antialiased
trilinear, the first keeps more and is the one used: a rival should be as strong as it can be.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import isotonic_regression
from torch import Tensor

from neurotome.metrics.windows import apply_bands, gaussian_weights
from neurotome.types import Image, Mask

BINS = 256
SMOOTHING_BINS = 1.5
BACKGROUND = -1.0

Curve = Float[Tensor, " bins"]


def down_up(image: Image, factor: Sequence[int]) -> Image:
    """Return ``image`` after averaging blocks of ``factor`` voxels and trilinear interpolation back.

    The centre of a cell is the centre of its block; beyond the outermost centres the value stays. A last block may be
    shorter (tokenizers that resize take any shape). An axis of length 1 stays.
    """
    bands = [
        _interpolation(s, f).to(image) @ _averaging(s, f).to(image) if s > 1 and f > 1 else None
        for s, f in zip(image.shape[2:], factor, strict=True)
    ]
    return apply_bands(image.flatten(0, 1), bands).view_as(image)


def _averaging(length: int, factor: int) -> Tensor:
    """Return the weights ``(cells, length)`` of the voxels of each block."""
    inside = torch.arange(length) // factor == torch.arange(-(-length // factor))[:, None]
    return inside.double() / inside.sum(1, keepdim=True)


def _interpolation(length: int, factor: int) -> Tensor:
    """Return the weights ``(length, cells)`` of the cells around each voxel."""
    cells = -(-length // factor)
    place = ((torch.arange(length, dtype=torch.float64) + 0.5) / factor - 0.5).clamp(0, cells - 1)
    return (1 - (place[:, None] - torch.arange(cells, dtype=torch.float64)).abs()).clamp_min(0)


class Lookup:
    """A voxel-wise function from one contrast to another, learned as a smoothed histogram regression."""

    def __init__(self) -> None:
        self.total = torch.zeros(BINS, dtype=torch.float64)
        self.count = torch.zeros(BINS, dtype=torch.float64)

    def update(self, source: Image, target: Image, mask: Mask) -> None:
        """Count one pair of images in [-1, 1] inside the brain."""
        x, y = source[mask].double(), target[mask].double()
        bins = ((x + 1) / 2 * BINS).long().clamp(0, BINS - 1)
        self.count += torch.bincount(bins, minlength=BINS)
        self.total += torch.bincount(bins, weights=y, minlength=BINS)

    def curve(self) -> Curve:
        """Return the mean target at the centre of each bin; a bin nobody saw takes the nearest value seen.

        Raises:
            ValueError: Nothing was counted.
        """
        if not self.count.sum():
            raise ValueError("a lookup needs at least one training session that holds both contrasts")
        reach = int(4 * SMOOTHING_BINS)
        weights = gaussian_weights(2 * reach + 1, SMOOTHING_BINS).view(1, 1, -1)
        total, count = (
            torch.conv1d(v.view(1, 1, -1), weights, padding=reach).view(-1) for v in (self.total, self.count)
        )
        seen = (count > 0).nonzero().view(-1)
        return (total[seen] / count[seen]).float()[_nearest(seen)]

    def monotone_curve(self) -> Curve:
        """Return the rising or falling curve with the least squared error over everything counted, as :meth:`curve`."""
        seen = self.count.nonzero().view(-1)
        count = self.count[seen]
        fitted = monotone((self.total[seen] / count).numpy(), count.numpy())
        return torch.from_numpy(fitted).float()[_nearest(seen)]

    def __call__(self, source: Image, mask: Mask) -> Image:
        """Return the looked-up target, linear between bin centres, with background outside the mask."""
        return mapped(source, self.curve(), mask)


def mapped(source: Image, curve: Curve, mask: Mask) -> Image:
    """Return the values of ``curve`` at the source's intensities, linear between bins, background outside the mask."""
    curve = curve.to(source.device)
    place = ((source + 1) / 2 * BINS - 0.5).clamp(0, BINS - 1)
    low = place.floor().long().clamp_max(BINS - 2)
    share = place - low
    return torch.where(mask, (1 - share) * curve[low] + share * curve[low + 1], BACKGROUND)


def _nearest(seen: Tensor) -> Tensor:
    """Return for every bin the index of the nearest bin in ``seen``."""
    return (torch.arange(BINS)[:, None] - seen).abs().argmin(1)


def monotone(y: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the rising or falling sequence nearest to ``y`` in weighted squares, whichever is nearer."""
    fits = [isotonic_regression(y, weights=weights, increasing=rising).x for rising in (True, False)]
    nearest = min(fits, key=lambda fit: float(np.dot(weights, (fit - y) ** 2)))
    return np.ascontiguousarray(nearest)  # a falling fit comes back as a view with a negative stride


def monotone_ceiling(source: Image, target: Image, mask: Mask) -> Image:
    """Return what the best monotone curve of all makes of ``source``: the one with the least error to ``target``.

    Every intensity that occurs has a value of its own, so that no monotone function of intensity has a smaller squared
    error inside the brain. An empty mask gives background.
    """
    output = torch.full_like(source, BACKGROUND)
    x, y = source[mask].double().cpu().numpy(), target[mask].double().cpu().numpy()
    if len(x):
        _, place, count = np.unique(x, return_inverse=True, return_counts=True)
        means = np.bincount(place, weights=y) / count
        output[mask] = torch.from_numpy(monotone(means, count.astype(np.float64))[place]).to(output)
    return output


class Baselines:
    """All baselines of a set of contrasts, fitted session by session.

    Args:
        modalities: Contrasts.
        factor: Voxels per latent cell and axis.
    """

    def __init__(self, modalities: Sequence[str], factor: Sequence[int]) -> None:
        self.factor = tuple(factor)
        self.pairs = [(a, b) for a in modalities for b in modalities if a != b]
        self._sums: dict[str, Tensor] = {}
        self._counts = dict.fromkeys(modalities, 0)
        self._full = {pair: Lookup() for pair in self.pairs}
        self._refitted = {pair: Lookup() for pair in self.pairs}

    def update(self, views: dict[str, Image], mask: Mask) -> None:
        """Fit one training session; ``views`` maps contrasts to images ``(1, c, x, y, z)``, missing ones left out."""
        coarse = {name: down_up(image, self.factor) for name, image in views.items()}
        for name, image in views.items():
            self._sums[name] = self._sums[name] + image if name in self._sums else image.double()
            self._counts[name] += 1
        for a, b in self.pairs:
            if a in views and b in views:
                self._full[a, b].update(views[a], views[b], mask)
                self._refitted[a, b].update(coarse[a], views[b], mask)

    def reconstruct(self, name: str, image: Image, mask: Mask) -> dict[str, Image]:
        """Return the baselines of a reconstruction of ``image``."""
        outputs = {"trilinear": torch.where(mask, down_up(image, self.factor), BACKGROUND)}
        if self._counts[name]:
            mean = (self._sums[name] / self._counts[name]).to(image)
            outputs["mean_image"] = mean.expand_as(image)
        return outputs

    def translate(self, source: str, target: str, image: Image, truth: Image, mask: Mask) -> dict[str, Image]:
        """Return the baselines of a translation of ``image``; no curve was learned where no training pair exists.

        ``truth``, the target's scan, is read by the ceiling alone.
        """
        outputs = {"monotone_ceiling": monotone_ceiling(image, truth, mask)}
        if self._counts[target]:
            outputs["mean_image"] = (self._sums[target] / self._counts[target]).to(image).expand_as(image)
        if self._full[source, target].count.sum():
            coarse = down_up(image, self.factor)
            outputs["lookup_full_rate"] = self._full[source, target](image, mask)
            outputs["lookup_equal_rate"] = self._full[source, target](coarse, mask)
            outputs["lookup_refitted"] = self._refitted[source, target](coarse, mask)
            outputs["monotone_map"] = mapped(image, self._full[source, target].monotone_curve(), mask)
        return outputs
