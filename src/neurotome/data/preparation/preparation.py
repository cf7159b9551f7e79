r"""All views of one session on one grid, with records from which the steps are undone.

    prepared(p) = 2 (v(A p) - low) / (high - low) - 1        inside the brain,  the background's value outside
    restored(i) = low + (prepared(A^-1 i) + 1) / 2 * (high - low)
    A           = source^-1 T reference B                    B: prepared voxel to voxel of the first view

``A`` (one per view) maps a prepared voxel to a voxel of the source; it composes reorientation to RAS+, resampling,
crop, padding and, where views are registered, the rigid motion T from the first view's world to the view's own. The
grid follows the first view's axes in RAS+ order and is centred on the brain box of all views (or on the field of view),
so that an image of the right spacing is only reordered and cropped. How low and high are found is in ``intensity``,
how it is undone in ``record``.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, get_args

import numpy as np
from jaxtyping import Bool, Float

from neurotome.data.imaging.geometry import Affine, Geometry
from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation import bias_field as n4
from neurotome.data.preparation import registration
from neurotome.data.preparation.brain_box import (
    Brain,
    Crop,
    background_of,
    between,
    check_fit,
    find_brain,
    given_brain,
    reference_grid,
    refuse_tiny,
    spacing_text,
)
from neurotome.data.preparation.extras import SIMPLEITK, simpleitk
from neurotome.data.preparation.intensity import KINDS, MEASURED, Intensity, Measured, landmarks, scaled
from neurotome.data.preparation.record import Prepared, Record
from neurotome.data.preparation.resample import Shape3, inside, resample, tidy
from neurotome.errors import InputError, UsageError

PREPARATION_VERSION = 1
_NEGATIVE_REMEDY = "prepare with --measured brain, or give scans that were not z-scored"


@dataclass(frozen=True)
class Preparation:
    """A declared preparation.

    Args:
        spacing_mm: Edge of a prepared voxel, one number or three.
        shape: Voxels of the prepared grid along x, y, z.
        percentiles: Of the brain's intensities; they become -1 and 1.
        mask_threshold: Without a mask, the brain is what lies above this intensity of the source.
        version: Raised only when output bytes change.
        crop: "brain": the grid is centred on the brain box; "centre": on the first view's field of view.
        intensity: "percentile", "minmax" or "zscore"; all are taken inside the brain.
        clip: Standard deviations at which a z-score is clipped, and which become 1; None leaves it unbounded.
        background: Value outside the brain; None for -1, or 0 where the image is unbounded.
        bias_field: "n4" divides the bias field out first; not undone.
        register: Lay every view on the first by a rigid motion; else views that do not lie there are refused.
        use_qform: Read each file's quaternion where it and the matrix disagree.
        volume: Which volume of files that are 4-D series, from 0; None refuses such files.
        measured: Voxels that give the range of intensities: "brain", all of the brain, or "positive", those of it above
            0, so that holes that a mask left in a brain do not count.

    Raises:
        UsageError: A value is out of range, or two contradict each other.
    """

    spacing_mm: float | tuple[float, float, float]
    shape: Shape3
    percentiles: tuple[float, float] = (0.5, 99.5)
    mask_threshold: float = 0.0
    version: int = PREPARATION_VERSION
    crop: Crop = "brain"
    intensity: Intensity = "percentile"
    clip: float | None = None
    background: float | None = None
    bias_field: Literal["none", "n4"] = "none"
    register: bool = False
    use_qform: bool = False
    volume: int | None = None
    measured: Measured = "brain"

    def __post_init__(self) -> None:
        object.__setattr__(self, "spacing_mm", _spacing(self.spacing_mm))
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "percentiles", tuple(float(p) for p in self.percentiles))
        if not all(math.isfinite(s) and 0.05 <= s <= 50 for s in self.spacings):
            raise UsageError(f"spacing_mm is {spacing_text(self.spacings)}; admissible is 0.05 to 50")
        if len(self.shape) != 3 or min(self.shape) < 1 or math.prod(self.shape) > 1 << 30:
            raise UsageError(f"shape is {self.shape}; give three positive numbers, at most 2^30 voxels")
        if len(self.percentiles) != 2 or not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise UsageError(f"percentiles are {self.percentiles}; give two increasing numbers from 0 to 100")
        if not math.isfinite(self.mask_threshold):
            raise UsageError(f"mask_threshold is {self.mask_threshold}; give a finite intensity")
        if self.version != PREPARATION_VERSION:
            raise UsageError(f"preparation version {self.version}; this release knows {PREPARATION_VERSION}")
        if self.volume is not None and self.volume < 0:
            raise UsageError(f"volume is {self.volume}; volumes of a series are counted from 0")
        choices = {"crop": get_args(Crop), "intensity": KINDS, "bias_field": ("none", "n4"), "measured": MEASURED}
        for name, admissible in choices.items():
            if getattr(self, name) not in admissible:
                raise UsageError(f"{name} is {getattr(self, name)!r}; admissible are {', '.join(admissible)}")
        self._check_intensity()

    def _check_intensity(self) -> None:
        if self.clip is not None:
            object.__setattr__(self, "clip", float(self.clip))
            if self.intensity != "zscore":
                raise UsageError(f"clip is {self.clip:g}, but intensity is {self.intensity}; only zscore is clipped so")
            if not 0 < self.clip < math.inf:
                raise UsageError(f"clip is {self.clip:g}; give a positive number of standard deviations")
        if self.intensity != "percentile" and self.percentiles != (0.5, 99.5):
            raise UsageError(f"percentiles are {self.percentiles}, but intensity is {self.intensity}; give one of them")
        if self.background is not None:
            object.__setattr__(self, "background", float(self.background))
            low, high = self.window or (-1e6, 1e6)
            if not low <= self.background <= high:
                raise UsageError(f"background is {self.background:g}; admissible is {low:g} to {high:g}")
            if self.background == self._usual_background:  # one declaration, one digest
                object.__setattr__(self, "background", None)

    @property
    def spacings(self) -> tuple[float, float, float]:
        """Edges of a prepared voxel along x, y, z, in mm."""
        return self.spacing_mm if isinstance(self.spacing_mm, tuple) else (self.spacing_mm,) * 3

    @property
    def window(self) -> tuple[float, float] | None:
        """The range no prepared voxel leaves, or None: a network with a bounded output cannot make such images."""
        return None if self.intensity == "zscore" and self.clip is None else (-1.0, 1.0)

    @property
    def outside(self) -> float:
        """The value outside the brain."""
        return self._usual_background if self.background is None else self.background

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments with which ``read_volume`` and ``read_header`` read a source."""
        return {"volume": self.volume, "use_qform": self.use_qform}

    @property
    def landmark_names(self) -> tuple[str, str]:
        """What the intensities are that become -1 and 1."""
        if self.intensity == "percentile":
            return f"p{self.percentiles[0]:g}", f"p{self.percentiles[1]:g}"
        if self.intensity == "minmax":
            return "min", "max"
        reach = 1.0 if self.clip is None else self.clip
        return f"mean-{reach:g}sd", f"mean+{reach:g}sd"

    def describe(self) -> str:
        """Return the declaration in words."""
        kinds = {
            "percentile": "intensities between the percentiles {:g} and {:g} of the brain".format(*self.percentiles),
            "minmax": "intensities between the smallest and the largest of the brain",
            "zscore": "z-scores of the brain"
            + (", not clipped" if self.clip is None else f", clipped at {self.clip:g} and divided by it"),
        }
        place = "" if self.crop == "brain" else " in the middle of the field of view"
        brain = f", brain above {self.mask_threshold:g}" if self.mask_threshold else ""
        brain += ", range from the voxels above 0" if self.measured == "positive" else ""
        field = ", bias field divided out (N4)" if self.bias_field == "n4" else ""
        motion = ", contrasts registered rigidly" if self.register else ""
        series = "" if self.volume is None else f", volume {self.volume} of series"
        grid = f"{spacing_text(self.spacings)} mm on a grid of {' x '.join(map(str, self.shape))}"
        return f"{grid}{place}, {kinds[self.intensity]}{brain}{field}{motion}{series}"

    @property
    def _usual_background(self) -> float:
        return 0.0 if self.window is None else -1.0

    def check_installed(self) -> None:
        """Check that the packages this preparation needs are there.

        Raises:
            UsageError: One is missing; the message holds the command that installs it.
        """
        if self.register:
            simpleitk("registration")
        if self.bias_field == "n4":
            n4.version()

    def apply(self, views: Mapping[str, Volume], mask: Volume | None = None, *, allow_head: bool = False) -> Prepared:
        """Return the views of one session on one grid.

        Args:
            views: Modality to scan; the first one's axes give the grid.
            mask: The brain (voxels above 0), on any grid, in the world of the view whose grid it shares, else of the
                first; without it every view must be skull-stripped.
            allow_head: Accept a view that is not skull-stripped.

        Raises:
            InputError: No view, a whole head or a z-scored scan without a mask, an empty or constant brain, views that
                do not overlap or do not lie on each other.
            BrainFitError: A brain box larger than ``shape``.
            UsageError: A package that the preparation needs is not installed.
        """
        own, motions = self._brains(views, mask, allow_head)
        brains = _in_first_world(own, motions, views, mask)
        reference = next(iter(views.values())).geometry
        to_reference, needed = reference_grid(brains, reference, self.spacings, self.shape, self.crop)
        check_fit(needed, self.shape, self.spacings, self.crop)
        world = reference.affine @ to_reference
        inside_brain = np.zeros(self.shape, dtype=bool)
        refuse_tiny(brains, self.spacings, next(iter(views.values())).provenance.path)
        for brain in brains:
            inside_brain |= resample(brain.mask, between(world, brain.affine, self.shape), self.shape) >= 0.5
        image = np.full((len(views), *self.shape), self.outside, dtype=np.float32)
        records = {}
        for index, (name, volume) in enumerate(views.items()):
            motion = motions.get(name)
            own_world = world if motion is None else motion @ world
            same = motion is None and np.array_equal(volume.geometry.affine, reference.affine)
            matrix = to_reference if same else between(own_world, volume.geometry.affine, self.shape)
            clean = self._without_bias(name, volume, own_world, inside_brain)
            low, high = self._normalise(name, clean, matrix, inside_brain, image[index])
            background = background_of(volume.array, own[name].mask)
            field = n4.version() if self.bias_field == "n4" else None
            records[name] = Record(volume.geometry, matrix, self.shape, low, high, background, motion, field)
        return Prepared(image, tuple(views), inside_brain, records)

    def needed_shape(
        self, views: Mapping[str, Volume], mask: Volume | None = None, *, allow_head: bool = False
    ) -> Shape3:
        """Return the voxels along x, y, z that the brain of a session needs at this spacing, whatever the shape is.

        The arguments and errors are those of :meth:`apply`, a brain that does not fit aside.
        """
        own, motions = self._brains(views, mask, allow_head)
        reference = next(iter(views.values())).geometry
        brains = _in_first_world(own, motions, views, mask)
        return reference_grid(brains, reference, self.spacings, self.shape, self.crop)[1]

    def _brains(
        self, views: Mapping[str, Volume], mask: Volume | None, allow_head: bool
    ) -> tuple[dict[str, Brain], dict[str, Affine]]:
        """Return the brain of every view in its own world, and the motions between the views."""
        if not views:
            raise InputError("a session without views", remedy="give at least one scan")
        if mask is not None:
            own = dict.fromkeys(views, Brain(given_brain(mask), mask.geometry.affine))
        else:
            how = {"allow_head": allow_head, "signed": self.intensity == "zscore"}
            masks = {m: find_brain(m, volume, self.mask_threshold, **how) for m, volume in views.items()}
            own = {m: Brain(found, views[m].geometry.affine) for m, found in masks.items()}
        return own, self._motions(views, own, mask)

    def _motions(self, views: Mapping[str, Volume], own: Mapping[str, Brain], mask: Volume | None) -> dict[str, Affine]:
        """Return the rigid motions that were found; refuse views that need one where none was asked for."""
        first, *others = views
        reference, brain = views[first], own[first]
        found: dict[str, Affine] = {}
        for name in others:
            volume = views[name]
            if self.register:
                motion = registration.register(reference, brain, volume)
                # as it lies now: the source voxels under a header that the motion has put right
                placed = Geometry(volume.geometry.shape, np.linalg.inv(motion.matrix) @ volume.geometry.affine)
                _refuse_displaced(name, first, Volume(volume.array, placed, volume.provenance), reference, brain, True)
                if motion.displacement_mm:
                    found[name] = motion.matrix
            elif not volume.geometry.same_grid(reference.geometry):  # on one grid they are taken as they are
                _refuse_displaced(name, first, volume, reference, brain, False)
        return found

    def _without_bias(self, name: str, volume: Volume, own_world: Affine, brain: Bool[np.ndarray, "x y z"]) -> Volume:
        if self.bias_field == "none":
            return volume
        grid, shape = volume.geometry.affine, volume.geometry.shape
        on_source = resample(brain, tidy(np.linalg.inv(own_world) @ grid, shape), shape) >= 0.5
        return volume.with_array(n4.corrected(name, volume, on_source))

    def _normalise(
        self,
        name: str,
        volume: Volume,
        matrix: Affine,
        brain: Bool[np.ndarray, "x y z"],
        out: Float[np.ndarray, "x y z"],
    ) -> tuple[float, float]:
        """Write the view into ``out`` and return the two intensities that became -1 and 1."""
        values = resample(volume.array, matrix, self.shape)
        seen = brain & inside(volume.geometry.shape, matrix, self.shape)
        if not seen.any():
            raise InputError(
                f"{name} does not overlap the brain in world space",
                file=volume.provenance.path,
                remedy="register the scans",
            )
        try:
            low, high = landmarks(self.intensity, values[seen], self.percentiles, self.clip, self.measured)
        except ValueError as error:
            raise InputError(f"{name}: {error}", file=volume.provenance.path, remedy=_NEGATIVE_REMEDY) from error
        if not high > low:
            raise InputError(f"{name} is constant inside the brain ({low:g})", file=volume.provenance.path)
        out[seen] = scaled(values[seen], low, high, bounded=self.window is not None)
        return low, high

    @property
    def digest(self) -> str:
        """SHA-256 of the declaration."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def image_digest(self) -> str:
        """SHA-256 of what is done to voxels, not of how files are read: a network can use any store of its digest."""
        return replace(self, use_qform=False, volume=None).digest

    def to_json(self) -> dict[str, Any]:
        """Return a mapping of JSON values.

        Fields after the first five are left out at their defaults, so that a new field leaves the digests of existing
        stores and model folders as they are.
        """
        value = {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}
        later = {f.name: f.default for f in fields(self)[5:]}
        return {key: v for key, v in value.items() if key not in later or v != later[key]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Undo :meth:`to_json`.

        Raises:
            UsageError: An unknown or missing key, or a value out of range.
        """
        try:
            values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
            return cls(**values)
        except UsageError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"not a preparation: {error}") from error


def _spacing(given: float | tuple[float, ...]) -> float | tuple[float, ...]:
    """Return one number, or three that differ."""
    if not isinstance(given, tuple | list):
        return float(given)
    if len(given) not in (1, 3):
        raise UsageError(f"spacing_mm has {len(given)} numbers; give one, or three for x, y and z")
    numbers = tuple(float(s) for s in given)
    return numbers[0] if len(set(numbers)) == 1 else numbers


def _in_first_world(
    own: Mapping[str, Brain], motions: Mapping[str, Affine], views: Mapping[str, Volume], mask: Volume | None
) -> list[Brain]:
    """Return the brains, each once, as they lie in the world of the first view."""
    if mask is None:
        return [
            Brain(brain.mask, np.linalg.inv(motions[m]) @ brain.affine if m in motions else brain.affine)
            for m, brain in own.items()
        ]
    brain = next(iter(own.values()))
    moved = [m for m in motions if views[m].geometry.same_grid(mask.geometry)]
    return [Brain(brain.mask, np.linalg.inv(motions[moved[0]]) @ brain.affine) if moved else brain]


def _refuse_displaced(name: str, first: str, volume: Volume, reference: Volume, brain: Brain, registered: bool) -> None:
    """Refuse a view that does not lie on the first."""
    motion = registration.estimate(reference, brain, volume)
    seen = motion.overlap >= registration.MIN_OVERLAP
    if seen and not motion.is_displaced:
        return
    distance = f"{motion.displacement_mm:.1f} mm apart (more than {registration.MAX_DISPLACEMENT_MM:g})"
    if registered:
        reason = f"{name} could not be registered to {first}: they still seem {distance}"
        remedy = "look at the two scans; leave the session out if they show different heads"
    else:
        reason = f"{name} does not lie on {first} in world space: the brains seem {distance}"
        remedy = f"prepare with --register (`pip install {SIMPLEITK}`), or align the scans of the session first"
    if motion.overlap == 0:
        reason = f"{name} does not overlap the brain of {first} in world space"
    elif not seen:
        reason = f"{name} holds only {motion.overlap:.0%} of the brain of {first} in world space"
    raise InputError(reason, file=volume.provenance.path, remedy=remedy)
