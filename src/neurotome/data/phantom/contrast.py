r"""How tissue becomes signal: the signal equations, the sites, and one scan's chain from signal to image.

    S   = PD exp(-TE/T2) M(T1)
    M   = sin(a) (1 - E) / (1 - cos(a) E),  E = exp(-TR/T1)       gradient echo; a = 90 degrees is spin echo
    M   = |1 - 2 exp(-TI/T1) + E|                                 inversion recovery (TI > 0)
    1/T1 = 1/T1_0 + r1 C                                          gadolinium of concentration C
    I   = [ (psf * sum_k p_k S_k (1 + sum_j s_kj d_j)) exp(bias) + noise ]^gamma,   s_kj = d log S_k / d log q_j

``d_j`` are the relative deviations of q = (T1, T2, PD) at a voxel: regional ones that all people share, individual
ones, and iron. A scan's style is the vector :meth:`Scan.vector`: three sequence factors, gamma, blur, noise, bias
amplitude and its nine coefficients, slice thickness. A site is a fixed point in that space.
"""

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy import ndimage

from neurotome.modality import CONTRASTS, canonical

# T1 ms, T2 ms, PD relative to white matter, gadolinium mmol/l: fitted to the ratios in the tests (test_contrast.py).
TISSUES: dict[str, tuple[float, float, float, float]] = {
    "sulcal_csf": (3600, 1000, 1.38, 0.02),
    "ventricle": (3800, 1700, 1.42, 0.0),
    "cortex": (1270, 84, 1.16, 0.02),
    "deep_grey": (1080, 74, 1.12, 0.02),
    "white": (730, 67.5, 1.0, 0.02),
    "necrosis": (2550, 220, 1.36, 0.01),
    "oedema": (1420, 124, 1.26, 0.01),
    "rim": (1200, 94, 1.16, 0.27),
}
TISSUE_NAMES = tuple(TISSUES)
RELAXIVITY = 4.5e-3  # of gadolinium chelates at 3 T, per ms and mmol/l


@dataclass(frozen=True)
class Sequence:
    """Acquisition parameters: TR, TE, TI in ms (TI 0: no inversion), flip angle in degrees."""

    repetition_ms: float
    echo_ms: float
    inversion_ms: float
    flip_deg: float
    gadolinium: bool = False


SEQUENCES: dict[str, Sequence] = {
    "T1w": Sequence(18, 4, 0, 30),
    "T2w": Sequence(5000, 90, 0, 90),
    "FLAIR": Sequence(9000, 110, 2500, 90),
    "PDw": Sequence(5000, 20, 0, 90),
    "T1c": Sequence(18, 4, 0, 30, gadolinium=True),
}
VOXEL_SD = 1 / np.sqrt(8 * np.log(2))  # of a Gaussian whose full width at half maximum is 1
THICK_SLICES = ("T2w", "FLAIR", "PDw")
SLICES_MM = (1.0, 1.0, 3.0, 5.0)  # by site, in turn


@dataclass(frozen=True)
class Scan:
    """The style factors of one scan.

    Args:
        modality: Contrast.
        site: Index of the site.
        repetition_factor: TR over the nominal TR.
        echo_factor: TE over the nominal TE.
        third_factor: TI, or the flip angle where there is no inversion, over its nominal value.
        gamma: Exponent of the intensity curve.
        blur_mm: Standard deviation of the point spread.
        noise_sd: Standard deviation of the complex noise's parts, relative to the 99.5 percentile of the brain.
        snr: Mean white matter over the noise.
        bias_amplitude: Size of the log field that 95 % of the brain stays below.
        bias: Coefficients of x y z, xx yy zz, xy xz yz of the log field before it is scaled.
        slice_mm: Slice thickness along z.
        sequence: The resulting parameters.
    """

    modality: str
    site: int
    repetition_factor: float
    echo_factor: float
    third_factor: float
    gamma: float
    blur_mm: float
    snr: float
    bias_amplitude: float
    bias: tuple[float, ...]
    slice_mm: float
    sequence: Sequence
    noise_sd: float = 0.0

    def vector(self) -> Float[np.ndarray, " 17"]:
        """Return the style as a vector; factors as logarithms."""
        factors = np.log([self.repetition_factor, self.echo_factor, self.third_factor, self.gamma])
        rest = [self.blur_mm, self.noise_sd, self.bias_amplitude, self.slice_mm]
        return np.concatenate([factors, rest, np.asarray(self.bias)])

    def record(self) -> dict[str, object]:
        """Return the factors as plain values for JSON."""
        return asdict(self)


def signal(sequence: Sequence, tissue: Float[np.ndarray, "k 4"]) -> Float[np.ndarray, " k"]:
    """Return the signal of tissues given as rows of T1 ms, T2 ms, PD and gadolinium mmol/l."""
    t1, t2, density, gadolinium = np.asarray(tissue, dtype=np.float64).T
    if sequence.gadolinium:
        t1 = 1 / (1 / t1 + RELAXIVITY * gadolinium)
    recovery = np.exp(-sequence.repetition_ms / t1)
    if sequence.inversion_ms > 0:
        magnetisation = np.abs(1 - 2 * np.exp(-sequence.inversion_ms / t1) + recovery)
    else:
        flip = np.deg2rad(sequence.flip_deg)
        magnetisation = np.sin(flip) * (1 - recovery) / (1 - np.cos(flip) * recovery)
    return density * np.exp(-sequence.echo_ms / t2) * magnetisation


def sensitivities(sequence: Sequence, tissue: Float[np.ndarray, "k 4"]) -> Float[np.ndarray, "k 3"]:
    """Return ``d S_k / d log q_j`` for q = T1, T2, PD by central differences."""
    step, columns = 0.02, []
    for j in range(3):
        up, down = np.array(tissue, dtype=np.float64), np.array(tissue, dtype=np.float64)
        up[:, j] *= np.exp(step)
        down[:, j] *= np.exp(-step)
        columns.append((signal(sequence, up) - signal(sequence, down)) / (2 * step))
    return np.stack(columns, axis=1)


def site_scan(modality: str, site: int, rng: np.random.Generator) -> Scan:
    """Return one scan's style: the site's fixed point, moved by 2 % (the bias coefficients by a third of their size).

    Args:
        modality: Contrast.
        site: Index of the site, 0 or more.
        rng: For this subject at this site.
    """
    name = canonical(modality)
    nominal = SEQUENCES[name]
    at_site = _spread(site, 8, 0)
    of_sequence = 0.94 + 0.12 * _spread(site, 3, 1 + list(CONTRASTS).index(name))
    jitter = np.exp(0.01 * rng.standard_normal(3))
    repetition, echo, third = of_sequence * jitter
    inverted = nominal.inversion_ms > 0
    if inverted:
        third = third**0.4  # CSF is nulled within a few per cent of TI: no site would miss that by 6 %
    elif nominal.flip_deg == 90:
        third = 1.0
    wobble = np.exp(0.02 * rng.standard_normal(4))
    coil = np.random.Generator(np.random.PCG64([90, site])).standard_normal(9)
    return Scan(
        modality=name,
        site=site,
        repetition_factor=float(repetition),
        echo_factor=float(echo),
        third_factor=float(third),
        gamma=float(_between(0.85, 1.18, at_site[0]) * wobble[0]),
        blur_mm=float(_between(0.35, 0.8, at_site[1]) * wobble[1]),
        snr=float(_between(22, 55, at_site[2]) * wobble[2]),
        bias_amplitude=float(_between(0.06, 0.22, at_site[3]) * wobble[3]),
        bias=tuple(float(b) for b in 0.95 * coil + 0.3 * rng.standard_normal(9)),
        slice_mm=SLICES_MM[site % len(SLICES_MM)] if name in THICK_SLICES else 1.0,
        sequence=Sequence(
            nominal.repetition_ms * float(repetition),
            nominal.echo_ms * float(echo),
            nominal.inversion_ms * float(third),
            nominal.flip_deg * (1.0 if inverted else float(third)),
            nominal.gadolinium,
        ),
    )


def acquire(
    tissue_signal: Float[np.ndarray, "x y z"],
    head: Bool[np.ndarray, "x y z"],
    mask: Bool[np.ndarray, "x y z"],
    white: Float[np.ndarray, "x y z"],
    scan: Scan,
    spacing_mm: float,
    rng: np.random.Generator,
) -> tuple[Float32[np.ndarray, "x y z"], float]:
    """Return the image and the noise's standard deviation, both relative to the brain's 99.5 percentile.

    Args:
        tissue_signal: Signal of every voxel, 0 outside ``head``.
        head: Where there is tissue or CSF.
        mask: The stripped brain, within ``head``; the image is exactly 0 outside.
        white: Share of white matter, to which the SNR refers.
        scan: Style factors.
        spacing_mm: Size of a voxel.
        rng: For the noise.
    """
    # a voxel is a mean over its own extent: a Gaussian as wide at half its height
    in_plane = np.hypot(scan.blur_mm, VOXEL_SD * spacing_mm)
    along_z = np.hypot(in_plane, np.sqrt(max(scan.slice_mm**2 - spacing_mm**2, 0) / 12))
    sigma = np.array([in_plane, in_plane, along_z]) / spacing_mm
    share = ndimage.gaussian_filter(head.astype(np.float32), sigma, truncate=3.0)[mask]
    inside = ndimage.gaussian_filter(tissue_signal.astype(np.float32), sigma, truncate=3.0)[mask] / share
    inside = inside * np.exp(scan.bias_amplitude * bias_field(mask, scan.bias))
    level = float(np.average(inside, weights=white[mask] ** 4)) / scan.snr
    noise = rng.standard_normal((2, *mask.shape), dtype=np.float32)[:, mask] * level
    inside = np.hypot(inside + noise[0], noise[1])
    top = float(np.percentile(inside, 99.5))
    image = np.zeros(mask.shape, dtype=np.float32)
    image[mask] = (inside / top) ** scan.gamma
    return image, level / top


def bias_field(mask: Bool[np.ndarray, "x y z"], coefficients: tuple[float, ...]) -> Float[np.ndarray, " n"]:
    """Return a quadratic log field inside the mask with zero mean, in [-1, 1] for 95 % of the brain."""
    index = np.nonzero(mask)
    u, v, w = (2 * i / (n - 1) - 1 for i, n in zip(index, mask.shape, strict=True))
    terms = (u, v, w, u * u, v * v, w * w, u * v, u * w, v * w)
    field = sum(c * t for c, t in zip(coefficients, terms, strict=True))
    field = field - np.mean(field)
    return field / np.percentile(np.abs(field), 95)


def _spread(site: int, count: int, stream: int) -> Float[np.ndarray, " n"]:
    """Return ``count`` numbers in [0, 1] that spread evenly over the sites (additive recurrence of root primes)."""
    roots = np.sqrt(np.array([2, 3, 5, 7, 11, 13, 17, 19])[:count]) + 0.618034 * stream
    return (0.5 + (site + 1) * roots) % 1.0


def _between(low: float, high: float, share: float) -> float:
    """Return the point of an interval."""
    return low + (high - low) * share
