"""A brain that does not fit a model's grid is prepared on a larger one, as far as the network takes it.

Convolutions, norms and attention do not know their grid; each side that is too short becomes the next multiple of the
network's factor. Spacing, centre and intensities are those of the model.
"""

from dataclasses import replace

from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation.brain_box import BrainFitError
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.record import Prepared
from neurotome.data.preparation.resample import Shape3
from neurotome.errors import InputError
from neurotome.tokenizers.base import Tokenizer


def prepared_for(
    network: Tokenizer, preparation: Preparation, name: str, volume: Volume, mask: Volume | None, allow_head: bool
) -> Prepared:
    """Return a scan as the network takes it: on the model's grid, or on a larger one where the brain needs it.

    Args:
        network: Which takes it.
        preparation: The model's.
        name: Of the contrast.
        volume: The scan.
        mask: Its brain, or None.
        allow_head: Accept a scan that looks like a whole head.

    Raises:
        InputError: The scan cannot be prepared, or the network takes no grid that holds its brain.
    """
    try:
        return preparation.apply({name: volume}, mask, allow_head=allow_head)
    except BrainFitError as error:
        try:
            larger = replace(preparation, shape=_larger(network, preparation.shape, error.needed))
        except ValueError as why:
            raise InputError(
                f"{error.reason}, the model's grid, and the network takes none that holds it ({why})",
                file=error.file,
                remedy="use a model that was trained on a larger grid or on larger voxels",
            ) from error
    return larger.apply({name: volume}, mask, allow_head=allow_head)


def _larger(network: Tokenizer, shape: Shape3, needed: Shape3) -> Shape3:
    """Return the smallest larger shape that the network takes.

    Raises:
        ValueError: There is none.
    """
    if any(s == 1 < n for s, n in zip(shape, needed, strict=True)):
        raise ValueError("it was trained on slices")
    sides = zip(needed, shape, network.factor, strict=True)
    x, y, z = (s if n <= s else -(-n // f) * f for n, s, f in sides)
    network.latent_shape((x, y, z))
    return x, y, z
