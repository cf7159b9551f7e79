"""A scan in memory: its voxels, where they lie in the head, and where they came from."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np

from neurotome.data.imaging.geometry import Geometry, Voxels
from neurotome.errors import InputError, OutputError, UsageError


@dataclass(frozen=True)
class Provenance:
    """Where voxels came from.

    Args:
        path: The file, or None for a computed volume.
        sha256: Of the file's bytes.
        dtype: Type of the voxels in the file.
        notes: What the reader decided, one sentence each.
    """

    path: str | None = None
    sha256: str | None = None
    dtype: str = "float32"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Stored:
    """The voxels exactly as they lie in a file: values are slope * raw + inter."""

    raw: Voxels
    slope: float
    inter: float


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan: voxels after scaling, their geometry and their origin.

    Args:
        array: ``(x, y, z)`` in the axis order of the file.
        geometry: Where the voxels lie.
        provenance: Where they came from.
        stored: The raw voxels and scaling of the file; None once the voxels are computed.

    Raises:
        InputError: The array's shape is not that of the geometry.
    """

    array: Voxels
    geometry: Geometry
    provenance: Provenance = field(default_factory=Provenance)
    stored: Stored | None = None

    def __post_init__(self) -> None:
        if self.array.shape != self.geometry.shape:
            raise InputError(f"the array has shape {self.array.shape} but the geometry {self.geometry.shape}")
        if self.stored is not None and self.array.flags.writeable:
            # in-place changes would be lost on save, which writes the stored voxels
            self.array.setflags(write=False)

    def __repr__(self) -> str:
        """Return size, spacing and file in one line."""
        size = " x ".join(map(str, self.geometry.shape))
        spacing = " x ".join(f"{d:.3g}" for d in self.geometry.spacing_mm)
        name = "" if self.provenance.path is None else f", {Path(self.provenance.path).name}"
        return f"{type(self).__name__}({size} voxels of {spacing} mm, {self.array.dtype}{name})"

    def with_array(self, array: Voxels, *notes: str) -> Self:
        """Return a computed volume on the same grid; it is written as float32 with slope 1."""
        origin = replace(self.provenance, dtype=str(array.dtype), notes=self.provenance.notes + notes)
        return replace(self, array=array, provenance=origin, stored=None)

    def save(self, path: str | os.PathLike[str], *, synthetic: bool = False) -> str:
        """Write a NIfTI file on this grid and return the SHA-256 of its bytes.

        An unmodified volume keeps its type, byte order, slope and raw voxels; a computed one is float32 with slope 1.

        Args:
            path: A ``.nii`` or ``.nii.gz`` file; an existing one is replaced.
            synthetic: Whether the voxels were made by a model, which the header's ``descrip`` then says.

        Raises:
            UsageError: The suffix is not one of NIfTI, or ``path`` is the file the volume was read from.
            OutputError: The file cannot be written; nothing is left behind.
        """
        from neurotome.data.imaging.nifti_writer import write_nifti  # imports nibabel, which a volume does not need

        path = Path(path)
        source = self.provenance.path
        if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
            raise UsageError(f"{path}: this is the file the image was read from; choose another name")
        stored = self.stored
        if stored is None:
            with np.errstate(over="ignore"):
                stored = Stored(self.array.astype("<f4"), 1.0, 0.0)
            if not np.isfinite(stored.raw).all():
                raise OutputError("the voxels to be written hold NaN, infinity or numbers beyond single precision")
        return write_nifti(path, self.geometry, stored.raw, stored.slope, stored.inter, synthetic=synthetic)
