r"""One file of a dataset, read whole: its facts, and what is wrong with it alone.

    range R = p99.5 - p0.5 of the foreground        extreme voxels:  v > p99.5 + 50 R   or   v < p0.5 - 50 R
    rim     = voxels of the brain outside the largest part above 15 % of p99.5, holes filled
    content = SHA-256(shape, voxels in RAS+ order as float32)

A copy in another type, axis order or compression has the same content. The foreground is what differs from a
constant background, or what lies above 0 where there is none. One file is in memory at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Shaped

from neurotome.data.checking.dataset_files import Case
from neurotome.data.checking.finding import Finding
from neurotome.data.checking.privacy import header_findings
from neurotome.data.imaging.geometry import Geometry, Voxels
from neurotome.data.imaging.reader import read_volume
from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation.brain_box import constant_background, is_head, largest_component, share_on_faces
from neurotome.data.preparation.content import content_sha256
from neurotome.data.preparation.intensity import MAX_NEGATIVE
from neurotome.data.preparation.labels import MAX_LABEL
from neurotome.errors import InputError
from neurotome.files.verified import file_sha256

PERCENTILES = (0.5, 10.0, 50.0, 90.0, 99.5)
# in units of the robust range: real scans stay below 20 (contrast-enhanced vessels), a defect of storage does not
EXTREME, ABSURD = 50.0, 1e6
_NEARLY_EMPTY = 1e-3
_THICK = 3.0
# more distinct values than any atlas has labels
_MAX_LABELS = 20000
# Newborns have 350 ml, children of one year 850; below, most often a part of a brain or voxels in other units.
MIN_BRAIN_ML = 600.0
# Of 15 stripped brains at most 10 % are rim, whole or cut; of 7 heads at least 24 %, also if a third of them is left.
_DEFACE = "deface it before you share it"
_DIM, _MAX_RIM = 0.15, 0.2
_SAMPLE = 1_000_000


@dataclass(frozen=True, eq=False)
class Facts:
    """What one file holds; most fields are None where it could not be read.

    Args:
        case: The file.
        findings: What is wrong with the file alone.
        sha256: Of its bytes.
        content: Of its voxels, see the module's text; None where they are constant.
        geometry: Where the voxels lie.
        dtype: Type of the voxels in the file.
        percentiles: Of the foreground, at :data:`PERCENTILES`.
        foreground_ml: Volume of the largest connected part of the foreground.
        centre_mm: Its centre in world mm, only where it looks like a stripped brain.
        head: Whether it looks like a whole head.
        labels: Whole numbers that occur in a label map.
    """

    case: Case
    findings: tuple[Finding, ...] = ()
    sha256: str | None = None
    content: str | None = None
    geometry: Geometry | None = None
    dtype: str | None = None
    percentiles: tuple[float, ...] | None = None
    foreground_ml: float | None = None
    centre_mm: tuple[float, float, float] | None = None
    head: bool = False
    labels: tuple[int, ...] | None = None


def examine(case: Case, volume: int | None = None, use_qform: bool = False) -> Facts:
    """Read one file and return its facts; a file that cannot be read gives a finding, never an error.

    Args:
        case: The file.
        volume: Which volume of a series.
        use_qform: Take the quaternion where quaternion and matrix disagree.
    """
    found = header_findings(case.path, case.name)
    try:
        scan = read_volume(case.path, volume=volume, use_qform=use_qform, nonfinite="keep")
    except (InputError, MemoryError) as error:
        reason = error.reason if isinstance(error, InputError) else "the memory does not hold it"
        remedy = (error.remedy if isinstance(error, InputError) else None) or "repair or remove the file"
        found.insert(0, Finding("unreadable", case.name, reason, remedy))
        return Facts(case, _owned(case, found), _sha256(case))
    found += _header_notes(case, scan)
    if case.role == "other":
        found.append(
            Finding("unused", case.name, "the name states no contrast, or several", "rename it, or list it in a table")
        )
    if case.role in ("label", "mask"):
        own, numbers = _examine_labels(case, scan)
    else:
        own, numbers = _examine_scan(case, scan)
    geometry = Geometry(scan.geometry.shape, scan.geometry.affine)
    content = None if numbers.pop("constant") else content_sha256(scan.array, geometry)
    origin = scan.provenance
    return Facts(case, _owned(case, [*found, *own]), origin.sha256, content, geometry, origin.dtype, **numbers)  # type: ignore[arg-type]  # the other fields


def _owned(case: Case, found: list[Finding]) -> tuple[Finding, ...]:
    """Return the findings with the ids of the file they are about."""
    return tuple(Finding(f.code, f.file, f.reason, f.remedy, case.subject, case.session) for f in found)


def _sha256(case: Case) -> str | None:
    try:
        return file_sha256(case.path)
    except InputError:
        return None


def _header_notes(case: Case, volume: Volume) -> Iterator[Finding]:
    spacing, shape = volume.geometry.spacing_mm, volume.geometry.shape
    for note in volume.provenance.notes:
        if "NaN or infinite" not in note:
            yield Finding("header", case.name, note)
    if min(shape) == 1:
        remedy = "give the whole volume; a slice is prepared as a volume of one slice"
        yield Finding("single-slice", case.name, f"{' x '.join(map(str, shape))} voxels", remedy)
    elif max(spacing) > _THICK * min(spacing):
        sizes = " x ".join(f"{d:.3g}" for d in spacing)
        yield Finding("thick-slices", case.name, f"voxels of {sizes} mm; prepare interpolates between slices")


def _examine_scan(case: Case, volume: Volume) -> tuple[list[Finding], dict[str, object]]:
    """Return what is wrong with the voxels of a scan, and its numbers."""
    array, found = volume.array, []
    finite = np.isfinite(array) if array.dtype.kind == "f" else None
    if finite is not None and not finite.all():
        count = array.size - int(np.count_nonzero(finite))
        reason = f"{count} of {array.size} voxels ({count / array.size:.2g})"
        found.append(Finding("nonfinite", case.name, reason, "replace them by 0, or repair the processing step"))
        if not finite.any():
            return found, {"constant": True}
        array = np.where(finite, array, array.dtype.type(0))
    low, high = float(array.min()), float(array.max())
    if low == high:
        code, remedy = ("empty" if low == 0 else "constant"), "remove the file or copy it again from its source"
        found.append(Finding(code, case.name, f"{array.size} voxels of {low:g}", remedy))
        return found, {"constant": True}
    background = constant_background(array)
    foreground = array > 0 if background is None else array != background
    sample = _sample(array[foreground])
    share = float(np.count_nonzero(foreground)) / array.size
    if share < _NEARLY_EMPTY:
        found.append(
            Finding("nearly-empty", case.name, f"{share:.2%} of the voxels are foreground", "look at the scan")
        )
    if not sample.size:
        return found, {"constant": False}
    percentiles = tuple(float(v) for v in np.percentile(sample, PERCENTILES))
    found += _far_voxels(case, array, percentiles)
    found += _below_zero(case, sample, background)
    numbers = _head(case, volume.geometry, array, max(background or 0.0, 0.0), percentiles[-1], found)
    return found, {"constant": False, "percentiles": percentiles, **numbers}


def _sample(values: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " m"]:
    """Return a regular subset of at most a million values, as double precision."""
    return values[:: max(1, -(-values.size // _SAMPLE))].astype(np.float64)


def _far_voxels(case: Case, array: Voxels, percentiles: tuple[float, ...]) -> Iterator[Finding]:
    low, high = percentiles[0], percentiles[-1]
    size = high - low
    if not size > 0:
        return
    above, below = high + EXTREME * size, low - EXTREME * size
    count = int(np.count_nonzero(array > above)) + int(np.count_nonzero(array < below))
    if not count:
        return
    far = max((float(array.max()) - high) / size, (low - float(array.min())) / size)
    reason = (
        f"{count} voxels as far as {far:.3g} times the range of the others ({low:.4g} to {high:.4g}), "
        f"at most {max(abs(float(array.min())), abs(float(array.max()))):.3g}"
    )
    code = "absurd-voxels" if far > ABSURD else "extreme-voxels"
    yield Finding(code, case.name, reason, "look at them; prepare clips to percentiles, but interpolation spreads them")


def _below_zero(case: Case, sample: Shaped[np.ndarray, " n"], background: float | None) -> Iterator[Finding]:
    if background is not None and background > 0:
        reason = f"the background is {background:g}, and what lies above 0 is taken for brain"
        yield Finding("background", case.name, reason, f"prepare with --mask-threshold {background:g}, or give a mask")
    elif background is not None and (share := float((sample < 0).mean())) > MAX_NEGATIVE:
        reason = f"{share:.0%} of the foreground lie below 0: it seems to be z-scored, and prepare refuses it"
        remedy = "give a brain mask, scans that were not z-scored, or prepare with --intensity zscore"
        yield Finding("negative-foreground", case.name, reason, remedy)


def _head(
    case: Case, geometry: Geometry, array: Voxels, threshold: float, brightest: float, found: list[Finding]
) -> dict[str, object]:
    """Return the size and place of what is taken for the brain; say so where it looks like a whole head."""
    above: Bool[np.ndarray, "x y z"] = array > threshold
    if not above.any() or min(above.shape) == 1:
        return {}
    part = largest_component(above)
    count = int(np.count_nonzero(part))
    volume_ml = count * abs(float(np.linalg.det(geometry.affine[:3, :3]))) / 1000.0
    # prepare takes what lies above 0, unless --mask-threshold says otherwise
    as_prepared = part if threshold == 0 else largest_component(array > 0)
    # what prepare refuses is an error; a head that has a mask, or that it does not read, is a matter of privacy
    code = "whole-head" if case.used and not case.masked else "unstripped"
    if is_head(part, volume_ml):
        reason = f"{volume_ml:.0f} ml lie above {threshold:g}, {share_on_faces(part):.0%} of the box's faces among them"
        remedy = "strip the skull or give a mask; inference refuses it without --mask or --allow-head"
        if (low := float(array.min())) > threshold:
            reason += f"; no voxel is below {low:g}"
            remedy = "give a mask, or --mask-threshold above the background if the skull is stripped"
        found.append(Finding(code, case.name, reason, remedy if code == "whole-head" else _DEFACE))
        return {"foreground_ml": volume_ml, "head": True}
    if code == "whole-head" and is_head(as_prepared, volume_ml * np.count_nonzero(as_prepared) / count):
        reason = f"what lies above 0 fills {share_on_faces(as_prepared):.0%} of the box's faces"
        remedy = f"prepare with --mask-threshold {threshold:g}, or give a mask"
        found.append(Finding(code, case.name, reason, remedy))
    below_zero = any(f.code == "negative-foreground" for f in found)
    found += _odd_brain(case, array, part, volume_ml, threshold + _DIM * (brightest - threshold), below_zero)
    # sums along two axes at a time: the centre without an index for every voxel
    sums = (part.sum(axis=(1, 2)), part.sum(axis=(0, 2)), part.sum(axis=(0, 1)))
    centre = np.array([float(np.arange(s.size) @ s) / count for s in sums])
    x, y, z = (float(v) for v in geometry.affine[:3, :3] @ centre + geometry.affine[:3, 3])
    return {"foreground_ml": volume_ml, "centre_mm": (x, y, z)}


def _odd_brain(
    case: Case, array: Voxels, part: Bool[np.ndarray, "x y z"], volume_ml: float, dim: float, below_zero: bool
) -> Iterator[Finding]:
    """Yield what makes a part that is not too large for a brain unlike one.

    Args:
        case: The file.
        array: Its voxels.
        part: What is taken for brain.
        volume_ml: Its volume.
        dim: Intensity below which a rim is dark.
        below_zero: Whether much of the brain is below zero, so that a rim means nothing.
    """
    if volume_ml < MIN_BRAIN_ML:
        reason = f"{volume_ml:.3g} ml are taken for brain; from the age of one year on it is 850 to 2000"
        remedy = "look at it: a cut brain, a part that lies apart, or voxel sizes in other units than mm"
        yield Finding("brain-size", case.name, reason, remedy)
    bright = array > dim
    if below_zero or not bright.any():
        return
    rim = float(np.count_nonzero(part & ~largest_component(bright)) / np.count_nonzero(part))
    if rim > _MAX_RIM:
        reason = f"{rim:.0%} of what is taken for brain lies around the rest and is below {dim:.4g}"
        remedy = "look at it: strip the skull, or give a mask; a rim of fluid around a shrunken brain is harmless"
        yield Finding("dim-rim", case.name, reason, remedy)


def _examine_labels(case: Case, volume: Volume) -> tuple[list[Finding], dict[str, object]]:
    """Return what is wrong with a label map or a mask, and which labels it holds."""
    array = volume.array
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            odd = array != np.round(array)  # NaN differs from itself
        count = int(np.count_nonzero(odd))
        if count and case.role == "mask" and bool(np.isfinite(array).all()):
            array = (array > 0).astype(np.uint8)  # a probability: what is above 0 counts, as in prepare
        elif count or not bool(np.isfinite(array).all()):
            first = array[odd].ravel()[0] if count else np.inf
            reason = f"{count} of {array.size} voxels are no whole number, {first:g} among them"
            return [Finding("label-values", case.name, reason, "save the label map without interpolation")], {
                "constant": bool(array.min() == array.max())
            }
    labels = _distinct(array)
    found = []
    if len(labels) > _MAX_LABELS:
        reason = f"{len(labels)} distinct values, more than any set of labels"
        return [Finding("label-values", case.name, reason, "is it a scan? rename it")], {"constant": False}
    if labels == (0,):
        code = "mask-empty" if case.role == "mask" else "label-empty"
        found.append(Finding(code, case.name, "every voxel is 0", "" if code == "label-empty" else "give another mask"))
    if case.role == "label" and (labels[0] < 0 or labels[-1] > MAX_LABEL):
        reason = f"labels from {labels[0]} to {labels[-1]}; 0 to {MAX_LABEL} are stored"
        found.append(Finding("label-range", case.name, reason, "map the labels to a smaller set"))
    return found, {"constant": len(labels) == 1, "labels": labels}


def _distinct(array: Voxels) -> tuple[int, ...]:
    """Return the whole numbers that occur, sorted."""
    low, high = int(array.min()), int(array.max())
    if high - low > 1 << 24 or max(high, -low) > 1 << 62:
        return tuple(int(v) for v in np.unique(array))
    # in 64 bits: in the stored type the difference of two labels may not fit
    counts = np.bincount(array.ravel(order="K").astype(np.int64) - low)
    return tuple(int(v) + low for v in np.flatnonzero(counts))
