"""What a dataset looks like, in numbers: shapes, spacings, orientations, intensities, sites.

The scans may be raw, as a check reads them, or those a store was made from, whose grids it remembers.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurotome.data.imaging.geometry import Geometry
from neurotome.data.preparation.resample import ras_to_index
from neurotome.modality import CONTRASTS

_MOST_COMMON = 8


@dataclass(frozen=True, eq=False)
class ScanRecord:
    """What the fingerprint takes from one scan.

    Args:
        subject: Subject id.
        session: Session id, or empty.
        modality: Our name of the contrast.
        site: Site name, or None.
        geometry: Of the source scan.
        intensities: Percentile (as text) to intensity, over the foreground or the brain.
        sha256: Of the file's bytes.
        foreground_ml: Volume of the foreground, if known.
        dtype: Type of the voxels in the file, if known.
    """

    subject: str
    session: str
    modality: str
    site: str | None
    geometry: Geometry
    intensities: dict[str, float]
    sha256: str
    foreground_ml: float | None = None
    dtype: str | None = None


def fingerprint(scans: Iterable[ScanRecord]) -> dict[str, Any]:
    """Return the fingerprint as a mapping of JSON values.

    ``{"digest", "subjects", "sessions", "sites", "complete_sessions", "contrasts": {"T1w": {"scans", "shapes",
    "spacings_mm", "orientations", "types", "extent_mm", "spacing_mm", "foreground_ml", "intensity": {"p50": …}}}}``;
    counts are lists of ``[value, number]``, most common first; a quantity is ``{"min", "median", "max"}`` over scans,
    with one entry per axis (RAS+ order) where it has three. Sites count sessions.
    """
    records = sorted(scans, key=lambda s: (s.subject, s.session, s.modality, s.sha256))
    sessions: dict[tuple[str, str], set[str]] = {}
    for one in records:
        sessions.setdefault((one.subject, one.session), set()).add(one.modality)
    contrasts = [m for m in CONTRASTS if any(r.modality == m for r in records)]
    visits = {(r.subject, r.session, r.site) for r in records}
    lines = [json.dumps([r.subject, r.session, r.modality, r.sha256]) for r in records]
    return {
        "digest": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "subjects": len({r.subject for r in records}),
        "sessions": len(sessions),
        "complete_sessions": sum(len(found) == len(contrasts) for found in sessions.values()),
        "sites": _counts(site for _, _, site in visits if site is not None),
        "contrasts": {m: _contrast([r for r in records if r.modality == m]) for m in contrasts},
    }


def _contrast(records: Sequence[ScanRecord]) -> dict[str, Any]:
    grids = [in_ras(r.geometry) for r in records]
    volumes = [r.foreground_ml for r in records if r.foreground_ml is not None]
    names = dict.fromkeys(name for r in records for name in r.intensities)  # from low to high in every record
    return {
        "scans": len(records),
        "shapes": _counts("x".join(map(str, r.geometry.shape)) for r in records),
        "spacings_mm": _counts("x".join(f"{d:.3g}" for d in r.geometry.spacing_mm) for r in records),
        "orientations": _counts(orientation(r.geometry) for r in records),
        "types": _counts(r.dtype for r in records if r.dtype is not None),
        "spacing_mm": [_spread([g.spacing_mm[axis] for g in grids]) for axis in range(3)],
        "extent_mm": [_spread([g.spacing_mm[axis] * g.shape[axis] for g in grids]) for axis in range(3)],
        "foreground_ml": _spread(volumes) if volumes else None,
        "intensity": {n: _spread([r.intensities[n] for r in records if n in r.intensities]) for n in names},
    }


def orientation(geometry: Geometry) -> str:
    """Return where the axes of an image point to, like ``LPS``; an oblique axis counts for the nearest."""
    to_index = ras_to_index(geometry.affine, geometry.shape)[:3, :3]
    letters = ("LR", "PA", "IS")
    worlds = np.abs(to_index).argmax(axis=1)
    return "".join(letters[world][int(to_index[axis, world] > 0)] for axis, world in enumerate(worlds))


def in_ras(geometry: Geometry) -> Geometry:
    """Return the same grid with its axes in RAS+ order."""
    to_index = ras_to_index(geometry.affine, geometry.shape)
    x, y, z = (geometry.shape[axis] for axis in np.abs(to_index[:3, :3]).argmax(axis=0))
    return Geometry((x, y, z), geometry.affine @ to_index)


def _counts(values: Iterable[str]) -> list[list[Any]]:
    counts = Counter(values)
    return [list(pair) for pair in sorted(counts.items(), key=lambda p: (-p[1], p[0]))[:_MOST_COMMON]]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {name: float(f"{f(values):.6g}") for name, f in (("min", np.min), ("median", np.median), ("max", np.max))}
