r"""Training a segmenter on label maps.

    L = w_bce BCE(y_k, m_k) + w_dice (1 - Dice(y_k, m_k)) + w_boundary BCE at the borders of m_k,      mean over k

``y_k`` is the logit of structure k, ``m_k`` its mask; every contrast of a session is an image of its own with the
session's label map (:mod:`neurotome.losses.segmentation`).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from neurotome.errors import InputError
from neurotome.losses.segmentation import SegmentationLoss
from neurotome.metrics.overlap import mean_dice, structure_dice
from neurotome.ranges import Share, Weight
from neurotome.tasks.base import Segmenter
from neurotome.training.base import Method, Needs
from neurotome.training.optim import OptimizerConfig
from neurotome.types import Batch


class SegmentationTraining(Method):
    """A segmenter on true labels.

    Args:
        segmenter: The network.
        optimizer: How weights are updated; None for the defaults.
        loss_weights: Weights of the terms; None for 1, 1 and 0.5. ``source`` does not count here.
        noise_sd: Standard deviation of the noise that is added to the image, in its range of 2, >= 0: a segmenter of
            reconstructions must bear images that are not quite scans.
        blur_prob: Probability that a step's images are averaged over windows of three voxels, in [0, 1].

    Raises:
        ValueError: A value is out of range.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        optimizer: OptimizerConfig | None = None,
        loss_weights: SegmentationLoss | None = None,
        noise_sd: Weight = 0.05,
        blur_prob: Share = 0.3,
    ) -> None:
        super().__init__(optimizer)
        self.segmenter, self.loss_weights = segmenter, loss_weights or SegmentationLoss()
        self.noise_sd, self.blur_prob = noise_sd, blur_prob

    def product(self) -> Segmenter:
        """See :class:`Method`."""
        return self.segmenter

    @property
    def needs(self) -> Needs:
        """See :class:`Method`."""
        return Needs(labels=True)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """See :class:`Method`."""
        image, modality = batch.flat()
        masks = self.segmenter.masks(self._labels(batch))  # (b, k, x, y, z)
        target = masks[:, None].expand(-1, batch.image.shape[1], -1, -1, -1, -1)[batch.present]
        logits = self.segmenter(self._degraded(image), modality)
        return self.loss_weights(logits, torch.where(target, 1.0, -1.0))

    def validate(self, batch: Batch) -> Mapping[str, float | Tensor]:
        """Return Dice against the label maps, per structure and their mean, over all contrasts."""
        image, modality = batch.flat()
        truth = self.segmenter.classes(self._labels(batch))
        truth = truth[:, None].expand(-1, batch.image.shape[1], -1, -1, -1)[batch.present]
        names = self.segmenter.structures
        overlap = structure_dice(self.segmenter.segment(image, modality), truth, len(names))
        found = {"mean": float(mean_dice(overlap).nanmean())}
        found |= {name: float(overlap[:, k].nanmean()) for k, name in enumerate(names)}
        return {f"dice/{name}": value for name, value in found.items() if math.isfinite(value)}

    def _labels(self, batch: Batch) -> Tensor:
        """Return the label maps ``(b, x, y, z)``.

        Raises:
            InputError: The batch holds none.
        """
        if batch.label is None or batch.label.ndim != 4:
            raise InputError(
                f"the sessions of {', '.join(batch.subject)} hold no label maps",
                remedy="prepare a dataset that has them: derivatives/truth/sub-*/anat/*_dseg.nii.gz in BIDS, or the "
                "column label of a manifest table",
            )
        return batch.label

    def _degraded(self, image: Tensor) -> Tensor:
        """Return the image blurred now and then, and with noise."""
        if float(torch.rand(())) < self.blur_prob:
            window = [1 if s == 1 else 3 for s in image.shape[2:]]
            pads = [w // 2 for w in window]
            image = torch.nn.functional.avg_pool3d(image, window, 1, pads, count_include_pad=False)
        return image + self.noise_sd * torch.randn_like(image) if self.noise_sd else image
