r"""SegResNet: a residual encoder and a light decoder (Myronenko, 2018, arXiv:1810.11654); the blocks are MONAI's.

    logits = decoder(encoder([x, one-hot of the contrast at every voxel]))

The border is repeated up to the next multiple of the encoder's stride and cut off again, so that any shape is
admissible; a slice is repeated along its axis of length 1.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from neurotome.ranges import MAY_BE_EMPTY, Dims, PositiveCount, Size
from neurotome.tasks.base import Logits, Segmenter
from neurotome.types import Image, ModalityIds


class SegResNet(Segmenter):
    """Residual network for structures.

    Args:
        spatial_dims: 2 or 3; a network of two dimensions takes slices, whose last axis is 1.
        in_channels: Image channels.
        modalities: Contrasts; their order gives the ids.
        structures: Names of the structures.
        label_ids: For each structure the ids of the label maps that belong to it.
        channels: Width of the first level, a multiple of 8; each further level has twice as many.
        blocks_down: Residual blocks of each level of the encoder.
        blocks_up: Residual blocks of each level of the decoder, one entry fewer.

    Raises:
        ValueError: Structures or ids are not admissible, ``channels`` is no multiple of 8, or the blocks do not fit.
    """

    def __init__(
        self,
        spatial_dims: Dims = 3,
        in_channels: Size = 1,
        modalities: Sequence[str] = ("T1w", "T2w"),
        structures: Sequence[str] = ("csf", "ventricles", "cortex", "deep_grey", "white"),
        label_ids: Sequence[Sequence[PositiveCount]] = ((1,), (2,), (3,), (4,), (5, 6, 7, 8)),
        channels: Size = 16,
        blocks_down: Sequence[Size] = (1, 2, 2, 4),
        blocks_up: Annotated[Sequence[Size], MAY_BE_EMPTY] = (1, 1, 1),
    ) -> None:
        super().__init__(modalities, structures, label_ids)
        if channels % 8:
            raise ValueError(f"channels is {channels}; give a multiple of 8, the number of groups that are normalised")
        if len(blocks_up) != len(blocks_down) - 1:
            raise ValueError(f"blocks_down is {blocks_down}, blocks_up {blocks_up}; the second has one entry fewer")
        # imported late: it takes three seconds, and only a segmenter needs it
        from monai.networks.nets.segresnet import SegResNet as ResidualNet

        self.spatial_dims, self.stride = spatial_dims, 2 ** (len(blocks_down) - 1)
        self.body = ResidualNet(
            spatial_dims=spatial_dims,
            init_filters=channels,
            in_channels=in_channels + len(self.modalities),
            out_channels=len(self.structures),
            blocks_down=tuple(blocks_down),
            blocks_up=tuple(blocks_up),
        )

    def forward(self, image: Image, modality: ModalityIds) -> Logits:
        """See :class:`Segmenter`."""
        b, _, *shape = image.shape
        unseen = math.prod(shape[self.spatial_dims :])
        if unseen > 1:
            raise ValueError(f"image has shape {tuple(image.shape)}; this network takes slices, whose last axis is 1")
        contrast = F.one_hot(modality, len(self.modalities)).to(image.dtype).view(b, -1, 1, 1, 1)
        x = torch.cat([image, contrast.expand(-1, -1, *shape)], dim=1)
        plane = x.flatten(1 + self.spatial_dims)  # a network of two dimensions does not see the last axis
        short = [-s % self.stride for s in plane.shape[2:]]
        pads = [p for s in reversed(short) for p in (0, s)]
        logits: Tensor = self.body(F.pad(plane, pads, mode="replicate"))
        for axis, size in enumerate(plane.shape[2:], start=2):
            logits = logits.narrow(axis, 0, size)
        return logits.float().reshape(b, -1, *shape)
