"""The range of intensities that a network's weights were made for, where it is not [-1, 1]."""

import math
from collections.abc import Sequence

from neurotome.types import Image


class IntensityRange:
    """The affine map between [-1, 1], which every tokenizer takes and gives, and what the weights see.

    Args:
        intensities: What -1 and 1 become for the network, such as (0, 1) for MAISI.

    Raises:
        ValueError: Not two finite increasing numbers.
    """

    def __init__(self, intensities: Sequence[float]) -> None:
        if len(intensities) != 2 or not -math.inf < intensities[0] < intensities[1] < math.inf:
            raise ValueError(f"intensities are {tuple(intensities)}; give two finite increasing numbers")
        self.low, high = intensities
        self.half = (high - self.low) / 2
        self.same = (self.low, high) == (-1, 1)

    def enter(self, image: Image) -> Image:
        """Map an image from [-1, 1] to the range."""
        return image if self.same else (image + 1) * self.half + self.low

    def leave(self, image: Image) -> Image:
        """Map an image from the range to [-1, 1]."""
        return image if self.same else (image - self.low) / self.half - 1
