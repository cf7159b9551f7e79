"""What the headers of a dataset say before voxels are read: grids, alignment, and the preparation that would fit.

    step = 0.5 mm     spacing = max(1, median over sessions of the finest voxel edge), rounded up to a whole step

Only a spread sample of sessions is read.
"""

import itertools
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from neurotome.data.datasets.fingerprint import orientation
from neurotome.data.datasets.manifest import Manifest, SessionScans
from neurotome.data.imaging.headers import Header, read_header
from neurotome.errors import InputError, printable

_SPACING_STEP = 0.5
_MIN_SPACING = 1.0
# thicker slices than this times the in-plane edge blur anatomy across slices
_THICK = 2.5
_MAX_NAMED = 5


@dataclass
class DatasetHeaders:
    """What the headers of the sampled sessions say.

    Args:
        looked_at: Sessions whose headers were read.
        shapes: Sizes of scans, as ``X x Y x Z``, and how often they occur.
        orientations: Axis codes, such as RAS.
        finest: Finest voxel edge of each session in mm.
        thick: Scans with slices much thicker than their in-plane voxels.
        apart: Sessions whose contrasts lie on different grids.
        refused: Scans whose header is refused, with reason and remedy.
        volume: Which volume of a series was looked at.
        use_qform: Whether the quaternion was taken where it and the matrix disagree.
    """

    volume: int | None = None
    use_qform: bool = False
    looked_at: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    orientations: Counter[str] = field(default_factory=Counter)
    finest: list[float] = field(default_factory=list)
    thick: list[str] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def spacing_mm(self) -> float:
        """The spacing a preparation would take."""
        finest = float(np.median(self.finest)) if self.finest else _MIN_SPACING
        return max(_MIN_SPACING, math.ceil(round(finest / _SPACING_STEP, 3)) * _SPACING_STEP)

    def command(self, manifest: Manifest, path: str, roots: Sequence[str] = ()) -> str:
        """Return the ``prepare`` command that fits the dataset, to be pasted into a shell.

        The store is a folder that is not there yet, beside where the command runs; the grid is fitted by ``prepare``.

        Args:
            manifest: What was found.
            path: As it was given.
            roots: Other folders that were admitted.
        """
        name = Path(path).resolve().name.removesuffix(".tsv").removesuffix(".csv") or "data"
        name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('.-') or 'data'}-{self.spacing_mm:g}mm"
        free = next(
            s for s in itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2))) if not Path(s).exists()
        )
        words = ["neurotome", "prepare", path, free, "--modalities", *manifest.modalities]
        words += ["--spacing", f"{self.spacing_mm:g}"]
        words += [word for root in roots for word in ("--root", root)]
        words += [] if self.volume is None else ["--volume", str(self.volume)]
        return " ".join(map(_quoted, [*words, *(["--use-qform"] if self.use_qform else [])]))

    def to_json(self) -> dict[str, Any]:
        """Return a mapping of JSON values."""
        return {
            "sessions_looked_at": self.looked_at,
            "shapes": dict(self.shapes.most_common(8)),
            "orientations": dict(self.orientations.most_common()),
            "finest_edge_mm": round(float(np.median(self.finest)), 4) if self.finest else None,
            "thick_slices": len(self.thick),
            "contrasts_on_different_grids": len(self.apart),
            "refused": len(self.refused),
        }

    def notes(self, manifest: Manifest) -> list[str]:
        """Return what stands between this dataset and a preparation."""
        of = f"of {self.looked_at} sessions looked at"
        notes = [f"refused: {reason}" for reason in self.refused[:_MAX_NAMED]]
        if len(self.refused) > _MAX_NAMED:
            notes.append(f"and {len(self.refused) - _MAX_NAMED} more headers are refused; `neurotome check` names all")
        if self.apart:
            notes.append(
                f"{len(self.apart)} {of} have contrasts on different grids ({_some(self.apart)}): if they are not "
                "registered to each other, register them before a paired training"
            )
        if self.thick:
            notes.append(
                f"{len(self.thick)} scans have thick slices ({_some(self.thick)}): resampled, they stay blurred"
            )
        count = len(manifest.sessions)
        if without := sum(s.mask is None for s in manifest.sessions):
            notes.append(
                f"{without} of {count} sessions have no brain mask: their scans must be skull-stripped; "
                "whole heads are refused (masks are found as *_desc-brain_mask under derivatives)"
            )
        return notes


def look(
    manifest: Manifest, num_sessions: int, *, volume: int | None = None, use_qform: bool = False
) -> DatasetHeaders:
    """Read the headers of a spread sample of sessions; the choices are those of :func:`read_header`."""
    count = len(manifest.sessions)
    places = sorted({int(i) for i in np.linspace(0, count - 1, min(num_sessions, count))}) if num_sessions else []
    seen = DatasetHeaders(volume, use_qform)
    for place in places:
        _add(seen, manifest, manifest.sessions[place])
    return seen


def _add(seen: DatasetHeaders, manifest: Manifest, session: SessionScans) -> None:
    seen.looked_at += 1
    headers: list[Header] = []
    for path in session.scans.values():
        try:
            header = read_header(path, volume=seen.volume, use_qform=seen.use_qform)
        except InputError as error:
            remedy = f"; {error.remedy}" if error.remedy else ""
            seen.refused.append(f"{printable(manifest.relative(path))}: {error.reason}{remedy}")
            continue
        headers.append(header)
        spacing = sorted(header.geometry.spacing_mm)
        seen.shapes[" x ".join(map(str, header.geometry.shape))] += 1
        seen.orientations[orientation(header.geometry)] += 1
        if spacing[2] > _THICK * spacing[0]:
            seen.thick.append(Path(path).name)
    if headers:
        seen.finest.append(min(min(header.geometry.spacing_mm) for header in headers))
    if any(not header.geometry.same_grid(headers[0].geometry) for header in headers[1:]):
        seen.apart.append(session.name)


def _quoted(word: str) -> str:
    """Return a word as a shell reads it back, on one line, whatever characters it holds."""
    if word.startswith("-") and not word.startswith("--"):
        word = f"./{word}"  # a path, not a flag
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(f"\\x{byte:02x}" for byte in os.fsencode(word)) + "'"


def _some(names: list[str]) -> str:
    return ", ".join(map(printable, names[:3])) + (", ..." if len(names) > 3 else "")
