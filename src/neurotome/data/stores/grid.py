r"""The grid of a store: how large it must be for every brain, and what it then takes.

shape = max over sessions of the voxels a brain needs, each side rounded up to a multiple
field = shape * spacing
bytes = sessions * voxels * (4 contrasts + 1 mask)          and 1 byte a voxel for 8-bit labels
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from neurotome.data.preparation.brain_box import spacing_text
from neurotome.data.preparation.resample import Shape3
from neurotome.errors import InputError

# the factor of the published NeuroQuant, which those of every shipped 3-D network divide but for dc-ae and vector-ae
MULTIPLE = 16
_MAX_NAMED = 10


@dataclass(frozen=True)
class Failure:
    """A session that could not be prepared, and why.

    Args:
        subject: Subject id.
        session: Session id, or empty.
        reason: With file and remedy.
        needed: Voxels that its brain needs, where that is more than the grid has.
    """

    subject: str
    session: str
    reason: str
    needed: Shape3 | None = None

    @property
    def name(self) -> str:
        """Subject and session in one word."""
        return f"sub-{self.subject}" + (f" ses-{self.session}" if self.session else "")


@dataclass(frozen=True)
class StoreGrid:
    """The grid of a store.

    Args:
        spacings: Of a voxel in mm.
        shape: Voxels along x, y, z.
        sessions: How many lie on it.
        contrasts: Of a session.
        labelled: Sessions that have a label map.
        fitted: Whether it was fitted to the brains.
    """

    spacings: tuple[float, float, float]
    shape: Shape3
    sessions: int
    contrasts: int
    labelled: int
    fitted: bool

    @property
    def field_mm(self) -> tuple[float, float, float]:
        """Edges of the field of view."""
        x, y, z = (round(n * s, 3) for n, s in zip(self.shape, self.spacings, strict=True))
        return x, y, z

    @property
    def num_bytes(self) -> int:
        """About what the store takes on disk."""
        return math.prod(self.shape) * (self.sessions * (4 * self.contrasts + 1) + self.labelled)

    def __str__(self) -> str:
        """Return grid, field and size on one line."""
        size = self.num_bytes / 1e9
        return (
            f"grid {' x '.join(map(str, self.shape))} of {spacing_text(self.spacings)} mm = "
            f"{' x '.join(f'{edge:g}' for edge in self.field_mm)} mm{', fitted to the brains' * self.fitted}; about "
            + (f"{size:.1f} GB" if size >= 1 else f"{max(1000 * size, 0.1):.1f} MB")
            + f" for {self.sessions} session{'s' * (self.sessions != 1)}"
        )


def fitted_shape(needs: Iterable[Shape3], multiple: int = MULTIPLE) -> Shape3:
    """Return the smallest shape whose sides are multiples and that holds all of the needs, of which there is one.

    An axis along which all are slices stays one.
    """
    largest = (max(sides) for sides in zip(*needs, strict=True))
    x, y, z = (1 if side == 1 else math.ceil(side / multiple) * multiple for side in largest)
    return x, y, z


def left_out(failures: Sequence[Failure], total: int, grid: StoreGrid, *, stored: bool, centred: bool) -> InputError:
    """Return one error that names every failed session, those that do not fit the grid with one remedy for all.

    Args:
        failures: At least one.
        total: Sessions that there were.
        grid: Onto which they should have been laid.
        stored: Whether there is a store of the others, which another shape replaces.
        centred: Whether the grid lies around the field of view, not around the brain.
    """
    large = [f for f in failures if f.needed is not None]
    lines = [f"{f.name}: {f.reason}" for f in failures if f.needed is None]
    remedies = []
    if large:
        named = [f"{f.name} ({' x '.join(map(str, f.needed or ()))})" for f in large[:_MAX_NAMED]]
        more = f" and {len(large) - _MAX_NAMED} more" if len(large) > _MAX_NAMED else ""
        size = f"{' x '.join(map(str, grid.shape))} voxels of {spacing_text(grid.spacings)} mm"
        lines.insert(0, f"{len(large)} need a larger grid than {size}: {', '.join(named)}{more}")
        needs = fitted_shape(f.needed for f in large if f.needed is not None)
        shape = (s if all(f.needed[a] <= s for f in large if f.needed) else needs[a] for a, s in enumerate(grid.shape))
        remedies.append(
            f"give --shape {' '.join(map(str, shape))}, which holds them all, or leave --shape out"
            + (", or --crop brain" if centred else "")
            + (", with --overwrite" if stored else "")
        )
    if len(large) < len(failures):
        which = "the other sessions" if large else "these sessions"
        remedies.append(f"repair or remove {which} and run the same command again")
    kept = "; the others are stored" if stored else "; nothing was stored"
    return InputError(
        f"{len(failures)} of {total} sessions were left out{kept}. " + " | ".join(lines), remedy="; ".join(remedies)
    )
