"""A scan on its way through the network: prepared for it, and decoded by it."""

import os
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation.record import Record


class SyntheticVolume(Volume):
    """A volume that a model made; its header always says so."""

    def save(self, path: str | os.PathLike[str], *, synthetic: bool = True) -> str:
        """Write a NIfTI file marked as synthetic and return the SHA-256 of its bytes."""
        return super().save(path, synthetic=True)


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A scan as the network sees it, and what is needed to lead a result back.

    Args:
        image: In [-1, 1], ``(x, y, z)``.
        modality: Its contrast.
        record: How it was prepared.
        mask: Brain mask on the prepared grid.
    """

    image: Float[np.ndarray, "x y z"]
    modality: str
    record: Record
    mask: Bool[np.ndarray, "x y z"]


@dataclass(frozen=True, eq=False)
class DecodedScan:
    """What the network decoded, not yet on the source's grid.

    Args:
        image: In [-1, 1], on the prepared grid, ``(x, y, z)``.
        record: How the source was prepared, with the intensity range of the result.
        mask: Brain mask on the prepared grid.
    """

    image: Float[np.ndarray, "x y z"]
    record: Record
    mask: Bool[np.ndarray, "x y z"]

    def volume(self) -> SyntheticVolume:
        """Return the result on the source's grid, in intensities."""
        restored = self.record.restore(self.image, self.mask)
        return SyntheticVolume(restored.array, restored.geometry, restored.provenance)
