r"""What every training of a tokenizer watches: whether its codebooks are alive, and which batch it finds hardest.

window    ``window_steps`` steps; what is left at the end of a run belongs to the last one
codebooks counted over a window, once they have started; a collapsed one is an alarm
hardest   images of the batch with the highest reconstruction loss of the window
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from neurotome.nn.nd import channels_last
from neurotome.ranges import PositiveCount, Share
from neurotome.tokenizers.base import Encoded, Tokenizer
from neurotome.tokenizers.health import ALARM_BELOW, CodebookHealth, codebooks_started
from neurotome.tokenizers.tissue import coded_only
from neurotome.training.base import Method
from neurotome.training.optim import OptimizerConfig
from neurotome.training.worst_batch import WorstBatch
from neurotome.types import Batch, Image, ModalityIds, Scalar

STATE = "watched_training"  # key of what a checkpoint keeps beside weights and buffers


class WatchedTraining(Method):
    """A tokenizer's training with the above.

    Args:
        tokenizer: The network.
        optimizer: How weights are updated.
        window_steps: Length of a window; choose it so that a window sees every session.
        alarm_below: Share of a codebook's codes in use under which it is called collapsed, in [0, 1]; 0 never.

    Raises:
        ValueError: A value is out of range.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        optimizer: OptimizerConfig | None,
        window_steps: PositiveCount = 500,
        alarm_below: Share = ALARM_BELOW,
    ) -> None:
        super().__init__(optimizer)
        self.tokenizer = tokenizer
        channels_last(tokenizer)
        self.window_steps = window_steps
        self._started: bool | None = None  # before this step; None before the first of this process
        self.health, self.worst = CodebookHealth(alarm_below), WorstBatch()
        self._validated = CodebookHealth()

    def product(self) -> Tokenizer:
        """See :class:`Method`; codebooks are buffers, which an average copies."""
        return self.tokenizer

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """See :class:`Method`; also look whether codebooks have started before this step."""
        super().on_train_batch_start(batch, batch_idx)
        if not self._started:
            self._started = codebooks_started(self.tokenizer)

    def begun(self) -> Mapping[str, str]:
        """Say in which step the codebooks have started."""
        if self._started is not False or not codebooks_started(self.tokenizer):
            return {}
        return {"codebook": "the codebook has started: latents are quantised from here on, and the loss jumps"}

    def counted(self, encoded: Encoded) -> Mapping[str, Tensor]:
        """Return the codes by which the use of a codebook is counted: those of the cells that have one."""
        return coded_only(encoded.codes)

    @torch.no_grad()
    def watch(
        self,
        near: Scalar,
        image: Image,
        output: Image,
        encoded: Encoded,
        modality: ModalityIds,
        subjects: Sequence[str],
    ) -> dict[str, Tensor]:
        """Count codes, keep the hardest batch, and return the codebooks' measures where a window ends.

        Args:
            near: Reconstruction loss of the batch.
            image: What was to be reconstructed, ``(n, c, x, y, z)``.
            output: What came out, in the same range.
            encoded: The code in between.
            modality: Contrast of each image.
            subjects: Subject of each image.
        """
        if codebooks_started(self.tokenizer):
            codes = self.counted(encoded)
            self.health.add(codes, self._sizes(encoded))
        if self._starts_window():
            self.worst.forget()
        if self._must_check(near):
            names = [self.tokenizer.modalities[i] for i in modality.tolist()]
            self.worst.offer(float(near), self.step + 1, image, output, subjects, names)
        if not self._ends_window():
            return {}
        return {name: near.new_tensor(value) for name, value in self.health.report(self.step + 1).items()}

    def start_validation(self) -> None:
        """Forget codes of a validation that was cut short."""
        self._validated = CodebookHealth()

    def watch_validation(self, encoded: Encoded) -> None:
        """Count the codes of a validation batch."""
        if codebooks_started(self.tokenizer):
            self._validated.add(self.counted(encoded), self._sizes(encoded))

    def finish_validation(self) -> Mapping[str, float | Tensor]:
        """Return the use of every codebook over the whole validation split."""
        return self._validated.report()

    def panels(self) -> tuple[Mapping[str, Tensor], Sequence[Mapping[str, str]]] | None:
        """Return images of the batch with the highest loss of this window."""
        return self.worst.panels()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is neither weight nor buffer."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[STATE] = {"health": self.health.state_dict(), "worst": self.worst.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the step and what is neither weight nor buffer."""
        super().on_load_checkpoint(checkpoint)
        self.health.load_state_dict(checkpoint[STATE]["health"])
        self.worst.load_state_dict(checkpoint[STATE]["worst"])

    def _sizes(self, encoded: Encoded) -> dict[str, int | None]:
        """Return the number of codes behind each code map, None where it is not known."""
        return {name: self.tokenizer.codebook_sizes.get(name) for name in encoded.codes}

    def _ends_window(self) -> bool:
        """Return whether this step is the last of a window."""
        done, left = self.step + 1, self.max_steps - self.step - 1
        return left == 0 or (done % self.window_steps == 0 and left >= self.window_steps)

    def _starts_window(self) -> bool:
        """Return whether this step is the first of a window."""
        return self.step % self.window_steps == 0 and (
            self.step == 0 or self.max_steps - self.step >= self.window_steps
        )
