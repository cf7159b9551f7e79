"""From a model folder to what a scan's tokenizer is made of, or the reason why the model must not be used on scans."""

from pathlib import Path

from neurotome.data.preparation.preparation import Preparation
from neurotome.errors import InputError
from neurotome.losses.segmentation import SegmentationLoss
from neurotome.models.folder import ModelFolder, read_model_folder
from neurotome.nn.quantize.ema import Reservoir
from neurotome.tokenizers.base import Tokenizer
from neurotome.tokenizers.health import books_started

NO_SCANS = (
    "was trained on masks: a scan would be read as one, and its output, the logits of a mask, as a scan",
    "encode the masks of a store with `neurotome encode MODEL STORE OUT --shards` (the overlap on validation subjects "
    "stands in the model's card), or train without `segmentation` for scans",
)
"""Why a tokenizer of masks takes no scan, and what to do."""


def read_pretrained(
    folder: Path, *, masks: bool = False
) -> tuple[ModelFolder[Tokenizer], Preparation, SegmentationLoss | None]:
    """Return a model folder, its preparation, and how a batch becomes the masks it was trained on (None for scans).

    Args:
        folder: The model folder.
        masks: Whether a tokenizer of masks is admitted.

    Raises:
        UsageError: No such folder.
        InputError: Damaged, changed, of a newer format, not of this package; its codebook has not seen data; it was
            trained on masks and these are not admitted.
    """
    content = read_model_folder(folder)
    try:
        preparation = Preparation.from_json(content.preparation)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"not a preparation ({error})", file=folder / "preprocess.json") from error
    try:
        content.network.check_window(preparation.window)
    except ValueError as error:
        raise InputError(str(error), file=folder / "preprocess.json") from error
    if not books_started(content.network):
        raise InputError(
            "its codebook has not started: training ended before it had seen any data, so that its codes are noise",
            file=folder,
            remedy=longer(content.network),
        )
    if content.masks is None:
        return content, preparation, None
    if not masks:
        raise InputError(NO_SCANS[0], file=folder, remedy=NO_SCANS[1])
    return content, preparation, SegmentationLoss(source=content.masks["source"])


def longer(network: Tokenizer) -> str:
    """Return what a codebook that has not started waits for, as a remedy."""
    waiting = [m for m in network.modules() if isinstance(m, Reservoir) and not m.started]
    passes, tokens = (max((values[i] for values in map(_waits_for, waiting)), default=0) for i in (0, 1))
    return (
        f"train for more steps: a codebook starts after {passes} of them (start_after) and once it has collected "
        f"{tokens} latent cells (reservoir)"
    )


def _waits_for(book: Reservoir) -> tuple[int, int]:
    return book.start_after, book.reservoir
