r"""What is wrong between the files of a dataset: grids, contrasts, duplicates, splits, labels, outliers.

gap(a, b) = max over the 8 corners of the field of view of |w_a - w_b|        same grid:  gap <= 0.05 voxel
z(x) = |x - median| / max(1.4826 MAD, floor)     over the logarithms of one quantity in one contrast
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from neurotome.data.checking.dataset_files import Case, spelling
from neurotome.data.checking.finding import Finding
from neurotome.data.checking.scan_findings import Facts
from neurotome.data.datasets.fingerprint import in_ras, orientation
from neurotome.data.imaging.geometry import Geometry
from neurotome.files.endings import stem
from neurotome.modality import CONTRASTS

TOLERANCE_VOXELS = 0.05
# of the smaller field of view: below, most of one scan shows what the other does not
_HARDLY = 0.5
# registered brains of one session agree to a few mm; a visit repositions a head by centimetres
_CENTRES_MM = 15.0
_USUAL = 0.5
# fewer scans have no usual range
_MIN_SCANS = 8
_OUTLIER_Z = 6.0
_MIN_MAPS = 4
# of the maps that hold a label, or lack it, for it to be odd
_ODD_SHARE = 0.1
_MAX_NAMED = 12

_NO_BYTES = hashlib.sha256().hexdigest()

Sessions = Mapping[tuple[str, str], Sequence[Facts]]


def between_files(
    facts: Sequence[Facts], splits: Mapping[str, Sequence[str]], labels: Sequence[int] | None = None
) -> Iterator[Finding]:
    """Yield every finding that concerns more than one file.

    Args:
        facts: Of every file, sorted by name.
        splits: Subject to the splits it is put in; empty where nothing is decided.
        labels: The admissible labels, if they were declared.
    """
    groups: dict[tuple[str, str], list[Facts]] = defaultdict(list)
    for one in facts:
        if one.case.subject and (one.case.used or one.case.role in ("label", "mask")):
            groups[one.case.subject, one.case.session].append(one)
    for members in groups.values():
        yield from _one_grid(members)
    yield from _contrasts(groups)
    yield from _duplicates(facts, splits)
    yield from _ids_and_splits([one.case for one in facts], splits)
    yield from _label_sets(facts, labels)
    yield from _outliers(facts)


def _about(one: Facts, code: str, reason: str, remedy: str = "") -> Finding:
    return Finding(code, one.case.name, reason, remedy, one.case.subject, one.case.session)


def _one_grid(members: Sequence[Facts]) -> Iterator[Finding]:
    """Compare every scan, mask and label map of a session with its first scan."""
    order = list(CONTRASTS)
    scans = [m for m in members if m.case.role == "scan" and m.geometry is not None]
    scans.sort(key=lambda m: order.index(m.case.modality))
    if not scans:
        return
    first = scans[0]
    # a map that the manifest does not name is compared with scans of its own folder only: elsewhere an id may be reused
    places = {scan.case.path.parent for scan in scans}
    maps = [m for m in members if m.case.role != "scan" and m.geometry is not None]
    for other in [*scans[1:], *(m for m in maps if m.case.used or m.case.path.parent in places)]:
        is_scan = other.case.role == "scan"
        code, reason = compare_grids(first.geometry, other.geometry)  # type: ignore[arg-type]  # both were read
        if not code or (code == "grid-order" and not is_scan):
            continue
        if is_scan:
            yield _about(other, code, f"{reason} (beside {first.case.modality})", _GRID_REMEDIES[code])
        else:
            code = "label-apart" if code == "grids-apart" else "label-grid"
            remedy = "prepare takes the nearest label by world position; make sure the map belongs to this scan"
            yield _about(other, code, f"{reason} (beside {first.case.modality})", remedy)
    for a, b in pairwise(m for m in scans if m.centre_mm is not None):
        distance = math.dist(a.centre_mm, b.centre_mm)  # type: ignore[arg-type]  # both were found
        if distance > _CENTRES_MM:
            reason = f"the centre of the brain is {distance:.0f} mm from that in {a.case.modality}"
            yield _about(b, "brains-apart", reason, "register the scans of the session")


_GRID_REMEDIES = {
    "grid-order": "",
    "grid-spacing": "prepare resamples it to the grid of the first contrast; nothing is lost but sharpness",
    "grids-differ": "prepare resamples by world position, which is right only if the head did not move in between; "
    "register the scans for paired training",
    "grids-apart": "not for paired training: register the scans, or find out whether they belong together",
}


def compare_grids(a: Geometry, b: Geometry) -> tuple[str, str]:
    """Return the code of the difference between two grids, and its numbers; empty where they are one grid."""
    if a.same_grid(b, TOLERANCE_VOXELS):
        return "", ""
    ras_a, ras_b = in_ras(a), in_ras(b)
    if ras_a.same_grid(ras_b, TOLERANCE_VOXELS):
        return "grid-order", f"axes {orientation(b)} where the other has {orientation(a)}"
    gap_mm = float(np.linalg.norm(ras_a.corners_mm() - ras_b.corners_mm(), axis=1).max())
    voxels = gap_mm / min(*a.spacing_mm, *b.spacing_mm)
    sizes = f"{_grid(b)} where the other has {_grid(a)}"
    if voxels <= TOLERANCE_VOXELS:
        return "grid-spacing", sizes
    share = max(_share_inside(a, b), _share_inside(b, a))
    what = sizes if a.shape != b.shape or _grid(a) != _grid(b) else f"both {_grid(a)}"
    reason = f"corners up to {gap_mm:.3g} mm ({voxels:.3g} voxels) apart, {share:.0%} of the smaller in common; {what}"
    return ("grids-apart" if share < _HARDLY else "grids-differ"), reason


def _grid(geometry: Geometry) -> str:
    return f"{'x'.join(map(str, geometry.shape))} of {'x'.join(f'{d:.3g}' for d in geometry.spacing_mm)} mm"


def _share_inside(a: Geometry, b: Geometry) -> float:
    """Return which share of the field of view of ``a`` lies in that of ``b``, on 16^3 points."""
    steps = [(np.arange(16) + 0.5) / 16 * n - 0.5 for n in a.shape]
    index: Float[np.ndarray, "p 3"] = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
    matrix = np.linalg.inv(b.affine) @ a.affine
    place = index @ matrix[:3, :3].T + matrix[:3, 3]
    return float(((place >= -0.5) & (place <= np.asarray(b.shape) - 0.5)).all(axis=1).mean())


def _contrasts(groups: Sessions) -> Iterator[Finding]:
    """Compare the contrasts of every session with those that sessions usually have."""
    found = {ids: {m.case.modality for m in members if m.case.role == "scan"} for ids, members in groups.items()}
    found = {ids: contrasts for ids, contrasts in found.items() if contrasts}
    counts = Counter(m for contrasts in found.values() for m in contrasts)
    if len(found) < 2:
        return
    usual = {m for m, n in counts.items() if n > _USUAL * len(found)}
    for (subject, session), contrasts in found.items():
        if missing := sorted(usual - contrasts):
            reason = f"{', '.join(missing)} missing; {', '.join(sorted(contrasts))} there"
            remedy = "prepare keeps the session and marks the view as absent"
            yield Finding("missing-contrast", "", reason, remedy, subject, session)
    for modality, n in sorted(counts.items()):
        if modality not in usual:
            yield Finding("rare-contrast", "", f"{modality} in {n} of {len(found)} sessions")


def _duplicates(facts: Sequence[Facts], splits: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Find equal content under two names; files that could not be read are compared by their bytes, if any."""
    same: dict[str, list[Facts]] = defaultdict(list)
    for one in facts:
        key = one.content or (one.sha256 if one.geometry is None else None)
        if key and key != _NO_BYTES:
            same[key].append(one)
    rank = ["leak", "duplicate-subjects", "duplicate-contrasts", "duplicate-sessions", "duplicate-labels"]
    for members in (m for m in same.values() if len(m) > 1):
        members.sort(key=lambda m: (not m.case.used, m.case.name))
        # the first file of every subject stands for the others, so that large groups stay cheap
        seen: dict[tuple[str, str], Facts] = {}
        for one in members:
            pairs = [(code, b) for b in seen.values() if (code := _kind_of_twins(one.case, b.case, splits))]
            pairs.sort(key=lambda p: rank.index(p[0]) if p[0] in rank else len(rank))
            if pairs:
                code, twin = pairs[0]
                how = "the same bytes" if one.sha256 == twin.sha256 else "the same voxels, other bytes,"
                whose = f" (sub-{twin.case.subject})" if twin.case.subject != one.case.subject else ""
                yield _about(one, code, f"{how} as {twin.case.name}{whose}", _TWIN_REMEDIES[code])
            if len(seen) < 100:
                seen.setdefault((one.case.subject, one.case.session), one)


_TWIN_REMEDIES = {
    "leak": "move both into one split, or remove one",
    "duplicate-subjects": "find out whose scan it is and remove the other",
    "duplicate-contrasts": "find out which contrast it is and remove the other",
    "duplicate-sessions": "find out which visit it is from",
    "duplicate-names": "remove one",
    "duplicate-labels": "fine for a mask of a common space; otherwise find out whose it is",
}


def _kind_of_twins(a: Case, b: Case, splits: Mapping[str, Sequence[str]]) -> str:
    is_map = a.role in ("label", "mask") and b.role in ("label", "mask")
    if a.subject != b.subject and a.subject and b.subject:
        if is_map:
            return "duplicate-labels"
        mine, others = set(splits.get(a.subject, ())), set(splits.get(b.subject, ()))
        return "leak" if mine and others and mine != others else "duplicate-subjects"
    if a.session != b.session and a.subject and b.subject:
        return "duplicate-labels" if is_map else "duplicate-sessions"
    if a.role == b.role == "scan" and a.subject and a.modality != b.modality:
        return "duplicate-contrasts"
    return "duplicate-names"


def _ids_and_splits(cases: Iterable[Case], splits: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Find ids in two splits, in none, or spelled in two ways."""
    subjects = sorted({c.subject for c in cases if c.subject and c.used})
    for subject, names in sorted(splits.items()):
        if len(names) > 1:
            remedy = "a subject belongs to one split; decide for one"
            yield Finding("two-splits", "", f"in {' and '.join(names)}", remedy, subject)
    for subject in subjects if splits else []:
        if subject not in splits:
            yield Finding("no-split", "", "no split is given", "add it to the table of splits", subject)
    twins: dict[str, list[str]] = defaultdict(list)
    for subject in sorted({*subjects, *splits}):
        twins[spelling(subject)].append(subject)
    for names in (n for n in twins.values() if len(n) > 1):
        where = {split for name in names for split in splits.get(name, ())}
        code = "two-splits" if len(where) > 1 else "similar-ids"
        reason = f"the ids {', '.join(names)} differ only in case, zeros or Unicode spelling"
        reason += f" and are in {' and '.join(sorted(where))}" if len(where) > 1 else ""
        yield Finding(code, "", reason, "if they are one person, give them one id", names[0])


def _label_sets(facts: Sequence[Facts], declared: Sequence[int] | None) -> Iterator[Finding]:
    """Compare every label map with the declared labels, or with what its kind of map usually holds."""
    maps = [one for one in facts if one.case.role == "label" and one.labels]
    if declared is not None:
        for one in maps:
            if unknown := sorted(set(one.labels or ()) - set(declared)):
                reason = f"{_listed(unknown)} not among the declared {_listed(sorted(declared))}"
                yield _about(one, "label-unknown", reason, "map or declare these labels")
        if missing := sorted(set(declared) - {v for one in maps for v in one.labels or ()}) if maps else []:
            yield Finding(
                "label-missing", "", f"{_listed(missing)} in none of {len(maps)} label maps", "check the labels"
            )
        return
    kinds: dict[str, list[Facts]] = defaultdict(list)
    for one in maps:
        kinds[_kind_of_map(one.case)].append(one)
    for members in (m for m in kinds.values() if len(m) >= _MIN_MAPS):
        counts = Counter(v for one in members for v in one.labels or ())
        few = max(1, int(_ODD_SHARE * len(members)))
        for one in members:
            alone = sorted(v for v in one.labels or () if counts[v] <= few)
            lacking = sorted(v for v, n in counts.items() if n >= len(members) - few and v not in (one.labels or ()))
            occurs = "occurs" if len(alone) == 1 else "occur"
            parts = [f"{_listed(alone)} {occurs} in few other maps"] if alone else []
            parts += [f"{_listed(lacking)} missing, which the others have"] if lacking else []
            if parts:
                yield _about(
                    one, "label-odd", f"{'; '.join(parts)} ({len(members)} maps)", "declare them with --labels"
                )


def _kind_of_map(case: Case) -> str:
    """Return the folder of a dataset and the words of a name that do not identify the subject."""
    folders, _, name = case.name.rpartition("/")
    words = [w for w in stem(name).split("_") if not w.startswith(("sub-", "ses-", "run-"))]
    top = "/".join(f for f in folders.split("/") if not f.startswith(("sub-", "ses-")))
    return f"{top}/{'_'.join(words) if name.startswith('sub-') else ''}"


def _listed(labels: Sequence[int]) -> str:
    more = f" and {len(labels) - _MAX_NAMED} more" if len(labels) > _MAX_NAMED else ""
    return f"{'label' if len(labels) == 1 else 'labels'} {', '.join(map(str, labels[:_MAX_NAMED]))}{more}"


def _outliers(facts: Sequence[Facts]) -> Iterator[Finding]:
    """Find scans whose size, voxels or intensities are far from the others of their contrast."""
    groups: dict[str, list[Facts]] = defaultdict(list)
    for one in facts:
        if one.case.used and one.case.role == "scan" and one.geometry is not None and one.percentiles is not None:
            groups[one.case.modality].append(one)
    for modality, members in groups.items():
        if len(members) < _MIN_SCANS:
            continue
        odd: dict[int, list[str]] = defaultdict(list)
        for what, floor, values in _quantities(members):
            logs = np.log(np.maximum(np.asarray(values, dtype=np.float64), 1e-12))
            middle = float(np.median(logs))
            spread = max(1.4826 * float(np.median(np.abs(logs - middle))), floor)
            for index in map(int, np.flatnonzero(np.abs(logs - middle) > _OUTLIER_Z * spread)):
                odd[index].append(f"{what} {values[index]:.4g} (usually {math.exp(middle):.4g})")
        for index, reasons in odd.items():
            reason = f"{', '.join(reasons)} among {len(members)} {modality}"
            yield _about(members[index], "outlier", reason, "look at it; another protocol, units or part of the body?")


def _quantities(members: Sequence[Facts]) -> Iterator[tuple[str, float, list[float]]]:
    """Yield name, smallest spread (of the logarithm) that counts, and one positive value per scan."""
    grids = [in_ras(m.geometry) for m in members if m.geometry is not None]
    for axis, name in enumerate("xyz"):
        yield f"voxel size in {name} (mm)", 0.05, [g.spacing_mm[axis] for g in grids]
        yield f"extent in {name} (mm)", 0.05, [g.spacing_mm[axis] * g.shape[axis] for g in grids]
    # raw intensities of MRI have no unit and vary by factors between scanners; a factor of hundreds is an error
    yield "intensity range", 0.4, [m.percentiles[-1] - m.percentiles[0] for m in members if m.percentiles]
    if all(m.foreground_ml is not None for m in members):
        yield "foreground (ml)", 0.1, [m.foreground_ml or 0.0 for m in members]
