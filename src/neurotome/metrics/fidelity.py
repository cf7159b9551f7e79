r"""How close an image is to the truth: PSNR, structural similarity at one and at many scales, and sharpness.

    PSNR = 10 log10(range² / mean (x - y)²)
    SSIM = (2 m_x m_y + c1)(2 s_xy + c2) / ((m_x² + m_y² + c1)(s_xx + s_yy + c2))        (Wang et al., 2004)
    MS-SSIM = SSIM_S^w_S  prod_{s<S} c_s^w_s    c the second factor of SSIM, S scales        (Wang et al., 2003)
    HF   = sum (x - G x)² / sum (y - G y)²      G is a Gaussian of sigma = 1 voxel; 1 is as sharp as the truth y

m and s are means and (population) covariances over a sliding window, c1 = (0.01 range)², c2 = (0.03 range)². Images
lie in [-1, 1], so the range is 2 unless said. Four windowed means suffice, of x, y, x² + y² and xy, since s_xx and s_yy
occur in their sum alone; the gradient needs as many adjoints.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from neurotome.metrics.windows import BoxWindow, GaussianWindow, Window, apply_bands, gaussian_weights
from neurotome.types import Image, Mask

PerImage = Float[Tensor, " b"]
# Wang, Simoncelli, Bovik: Multiscale structural similarity, 2003 (doi:10.1109/ACSSC.2003.1292216), finest scale first
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def psnr(x: Image, y: Image, data_range: float = 2.0, mask: Mask | None = None) -> PerImage:
    """Return the peak signal-to-noise ratio of each image in dB; infinite where the images are equal.

    Args:
        x: Output.
        y: Truth.
        data_range: Largest admissible minus smallest admissible value, 2 on [-1, 1].
        mask: Voxels that count, ``(b, 1, x, y, z)``; all of them if None. NaN where it is empty.
    """
    _same_shape(x, y)
    return 10 * torch.log10(data_range**2 / mean_over((_at_least_single(x) - _at_least_single(y)) ** 2, mask))


def ssim(
    x: Image,
    y: Image,
    *,
    mask: Mask | None = None,
    window: str = "uniform",
    size: int = 7,
    sigma: float = 1.5,
    data_range: float = 2.0,
    border: str = "valid",
) -> PerImage:
    """Return the mean structural similarity of each image, differentiable in ``x`` and ``y``.

    Args:
        x: Output.
        y: Truth.
        mask: Average over these window centres only, ``(b, 1, x, y, z)``; NaN where none is left.
        window: "uniform" (the box of the training loss) or "gaussian" (Wang et al. use 11 places, sigma 1.5).
        size: Places per axis; an axis of length 1 takes one.
        sigma: Standard deviation of the Gaussian in voxels.
        data_range: Largest admissible minus smallest admissible value.
        border: "valid" takes windows that lie fully inside, "same" one per voxel with the border voxel repeated, "zero"
            one per voxel with zeros outside.

    Raises:
        ValueError: Shapes differ, or the window does not fit.
    """
    similarity = ssim_map(x, y, window=window, size=size, sigma=sigma, data_range=data_range, border=border)
    return mean_over(similarity, None if mask is None else window_centres(mask, similarity.shape[2:]))


def ssim_map(
    x: Image,
    y: Image,
    *,
    window: str = "uniform",
    size: int = 7,
    sigma: float = 1.5,
    data_range: float = 2.0,
    border: str = "valid",
) -> Float[Tensor, "b c *windows"]:
    """Return the structural similarity at every place of the window; arguments as in :func:`ssim`.

    With ``border="valid"`` an axis shrinks by ``size - 1``: the first value belongs to voxel ``(size - 1) // 2``.
    """
    _same_shape(x, y)
    if window not in ("uniform", "gaussian"):
        raise ValueError(f'window is {window!r}; admissible are "uniform" and "gaussian"')
    if border not in ("valid", "same", "zero"):
        raise ValueError(f'border is {border!r}; admissible are "valid", "same" and "zero"')
    x, y = _at_least_single(x), _at_least_single(y)
    if border != "valid":
        pads = [p for s in x.shape[:1:-1] for p in ((size - 1) // 2 * (s > 1), size // 2 * (s > 1))]
        mode = "replicate" if border == "same" else "constant"
        x, y = F.pad(x, pads, mode=mode), F.pad(y, pads, mode=mode)
    shape = x.shape[2:]
    slider: Window = BoxWindow(shape, size) if window == "uniform" else GaussianWindow(shape, size, sigma, x)
    constants = ((0.01 * data_range) ** 2, (0.03 * data_range) ** 2)
    apply: Callable[..., Tensor] = _StructuralSimilarity.apply
    similarity = apply(x.flatten(0, 1), y.flatten(0, 1), slider, constants)
    return similarity.view(*x.shape[:2], *similarity.shape[1:])


def num_scales(shape: Sequence[int], size: int = 7) -> int:
    """Return how many scales a box admits: the window must fit into the coarsest, and there are at most five.

    Axes of length 1 do not count. At 32x40x40 and a window of 7 there are three: 32, 16 and 8 voxels.

    Raises:
        ValueError: The window is longer than an axis.
    """
    shortest = min((s for s in shape if s > 1), default=size)
    if shortest < size:
        raise ValueError(f"a window of {size} does not fit into shape {tuple(shape)}; give a smaller size")
    return min(len(SCALE_WEIGHTS), 1 + int(math.log2(shortest // size)))


@torch.no_grad()
def ms_ssim(
    x: Image, y: Image, *, mask: Mask | None = None, size: int = 7, data_range: float = 2.0, scales: int | None = None
) -> PerImage:
    r"""Return the multi-scale structural similarity of each image, with a uniform window.

        c_s    = mean of (2 s_xy + c2) / (s_xx + s_yy + c2) at scale s < S, the finer ones
        SSIM_S = mean of the whole of SSIM at the coarsest

    as the authors' code takes the means: over places first, negative ones as 0, then powers. From scale to scale the
    images are averaged over blocks of two voxels per axis (an odd last voxel is dropped), the mask keeps blocks that
    are at least half inside. Small volumes do not admit the five scales of the paper: the first ``scales`` weights
    are used, divided by their sum. With one scale it is SSIM. Values of different numbers of scales do not compare.

    Args:
        x: Output.
        y: Truth.
        mask: Average over these window centres only, ``(b, 1, x, y, z)``; NaN where a scale has none.
        size: Places of the window per axis; an axis of length 1 takes one.
        data_range: Largest admissible minus smallest admissible value.
        scales: Number of scales; None for as many as the box admits.

    Raises:
        ValueError: Shapes differ, or the box does not admit so many scales.
    """
    _same_shape(x, y)
    admissible = num_scales(x.shape[2:], size)
    count = admissible if scales is None else scales
    if not 1 <= count <= admissible:
        raise ValueError(f"scales is {count}; shape {tuple(x.shape[2:])} admits 1 to {admissible}")
    weights = [w / sum(SCALE_WEIGHTS[:count]) for w in SCALE_WEIGHTS[:count]]
    x, y = _at_least_single(x), _at_least_single(y)
    value = x.new_ones(len(x))
    for scale, weight in enumerate(weights):
        if scale:
            x, y = _halved(x), _halved(y)
            mask = None if mask is None else _halved(mask.float()) >= 0.5
        luminance, contrast = _similarity_parts(x, y, size, data_range)
        similarity = contrast if scale < count - 1 else luminance * contrast
        centres = None if mask is None else window_centres(mask, similarity.shape[2:])
        value = value * mean_over(similarity, centres).clamp_min(0) ** weight
    return value


def _halved(x: Image) -> Tensor:
    """Return the means of blocks of two voxels per axis; an axis of length 1 stays."""
    return F.avg_pool3d(x, [1 if s == 1 else 2 for s in x.shape[2:]])


def _similarity_parts(x: Image, y: Image, size: int, data_range: float) -> tuple[Tensor, Tensor]:
    """Return luminance and contrast-structure ``(b, c, *windows)`` at every valid place of a uniform window."""
    window = BoxWindow(x.shape[2:], size)
    maps = torch.stack([x, y, x * x + y * y, x * y]).flatten(0, 2)
    moments = window.mean(maps).view(4, *x.shape[:2], *window.valid)
    a, b, c, e = _factors(moments, ((0.01 * data_range) ** 2, (0.03 * data_range) ** 2))
    return a / c, b / e


class _StructuralSimilarity(torch.autograd.Function):
    """SSIM of maps ``(n, x, y, z)`` with its gradient by hand, so that nothing but four maps is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, window: Window, constants: tuple[float, float]) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            maps = x.new_empty(4, *x.shape)
            maps[0], maps[1] = x, y
            torch.mul(x, x, out=maps[2]).addcmul_(y, y)
            torch.mul(x, y, out=maps[3])
            moments = window.mean(maps.flatten(0, 1)).view(4, len(x), *window.valid)
            a, b, c, e = _factors(moments, constants)
            ctx.save_for_backward(x, y, moments)
            ctx.window, ctx.constants = window, constants
            return a.mul_(b).div_(c.mul_(e))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, y, moments = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        with torch.autocast(x.device.type, enabled=False):
            # S = a b / (c e); dS/d E[xy] = 2 a / (c e); dS/d E[x² + y²] = -S / e; dS/dm_x and dS/dm_y mirror each other
            a, b, c, e = _factors(moments, ctx.constants)
            m_x, m_y = moments[0], moments[1]
            g = gradient / (c * e)
            d_product, d_square = 2 * g * a, -g * a * b / e
            cross, own = 2 * g * (b - a), 2 * g * a * b * (1 / e - 1 / c)
            d_means = [
                torch.addcmul(cross * n, own, m) for m, n, w in ((m_x, m_y, wanted[0]), (m_y, m_x, wanted[1])) if w
            ]
            maps = ctx.window.adjoint(torch.cat([d_product, d_square, *d_means])).view(-1, *x.shape)
            means = iter(maps[2:])
            gradients = [
                next(means).addcmul_(image, maps[1], value=2).addcmul_(other, maps[0]) if w else None
                for image, other, w in ((x, y, wanted[0]), (y, x, wanted[1]))
            ]
        return gradients[0], gradients[1], None, None


def _factors(moments: Tensor, constants: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the two numerators (luminance, structure) and the two denominators from the four windowed means."""
    m_x, m_y, squares, product = moments
    c1, c2 = constants
    m_xy = m_x * m_y
    m_squares = torch.addcmul(m_x * m_x, m_y, m_y)
    structure = (product - m_xy).mul_(2).add_(c2)
    spread = (squares - m_squares).add_(c2)
    return m_xy.mul_(2).add_(c1), structure, m_squares.add_(c1), spread


def high_frequency_ratio(output: Image, truth: Image, mask: Mask | None = None, sigma: float = 1.0) -> PerImage:
    """Return the energy of fine detail (x minus its Gaussian blur) in ``output`` over that in ``truth``.

    One means as sharp as the truth, less is blurred, more is noisier. The blur mirrors at the border and is cut at four
    standard deviations.

    Args:
        output: Image under test.
        truth: Image to compare with.
        mask: Voxels that count, ``(b, 1, x, y, z)``; all of them if None.
        sigma: Standard deviation of the Gaussian in voxels.
    """
    _same_shape(output, truth)
    return mean_over(fine_detail(output, sigma) ** 2, mask) / mean_over(fine_detail(truth, sigma) ** 2, mask)


def fine_detail(x: Image, sigma: float = 1.0) -> Image:
    """Return ``x - G x`` with a Gaussian of ``sigma`` voxels."""
    x = _at_least_single(x)
    bands = [None if s == 1 else _mirrored_blur(s, sigma).to(x) for s in x.shape[2:]]
    with torch.autocast(x.device.type, enabled=False):
        return x - apply_bands(x.flatten(0, 1), bands).view_as(x)


def _mirrored_blur(length: int, sigma: float) -> Tensor:
    """Return the matrix (length, length) of a Gaussian blur of a line that mirrors at its ends (half-sample)."""
    reach = int(4 * sigma + 0.5)
    rows = torch.arange(length)
    blur = torch.zeros(length, length, dtype=torch.float64)
    for k, weight in zip(range(-reach, reach + 1), gaussian_weights(2 * reach + 1, sigma), strict=True):
        place = (rows + k) % (2 * length)
        blur.index_put_((rows, torch.minimum(place, 2 * length - 1 - place)), weight, accumulate=True)
    return blur


def window_centres(mask: Mask, windows: Sequence[int]) -> Bool[Tensor, "b 1 *windows"]:
    """Return the part of ``mask`` at the centres of the windows of a map with spatial shape ``windows``."""
    for axis, (length, places) in enumerate(zip(mask.shape[2:], windows, strict=True), start=2):
        mask = mask.narrow(axis, (length - places) // 2, places)
    return mask


def mean_over(values: Float[Tensor, "b c *spatial"], mask: Bool[Tensor, "b 1 *spatial"] | None) -> PerImage:
    """Return the mean of each image's values where ``mask`` holds; NaN where it is empty."""
    if mask is None:
        return values.flatten(1).mean(1)
    weights = mask.to(values.dtype).expand_as(values).flatten(1)
    return (values.flatten(1) * weights).sum(1) / weights.sum(1)


def _at_least_single(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _same_shape(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape:
        raise ValueError(f"output has shape {tuple(x.shape)}, truth {tuple(y.shape)}; they must be equal")
