r"""A discriminator of patches (Isola et al., 2017, arXiv:1611.07004).

    D(x) = conv(leaky(norm(conv(... leaky(conv(x))))))          one logit per patch, above 0 for real

Channels start at c, double with every layer and are convolved with windows of 4; all layers but the last halve the
image. One set of weights serves slices and volumes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from neurotome.nn.nd import Conv
from neurotome.nn.residual import normalisation
from neurotome.types import Image

SLOPE = 0.2  # of the leaky rectifier below zero (Isola et al.)


class PatchDiscriminator(nn.Module):
    """Logits of overlapping patches: real or reconstructed.

    The last of the hidden layers does not stride, so that with three of them a patch is 70 voxels wide.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of an image.
        channels: Width c of the first layer.
        num_layers: Layers after the first.
        norm_groups: Groups of the normalisation.

    Raises:
        ValueError: There is no layer, or a width is not a multiple of ``norm_groups``.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        channels: int = 64,
        num_layers: int = 3,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        if num_layers < 1 or channels < 1:
            raise ValueError(f"num_layers is {num_layers}, channels {channels}; give at least 1 of each")
        self.stem = Conv(spatial_dims, in_channels, channels, 4, stride=2)
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for layer in range(num_layers):
            width = channels * 2**layer
            stride = 1 if layer == num_layers - 1 else 2
            self.convs.append(Conv(spatial_dims, width, 2 * width, 4, stride=stride, bias=False))
            # differs from the paper: groups instead of the batch, because the statistics of two scans are none, and so
            # that nothing but parameters decides what a patch is worth
            self.norms.append(normalisation(2 * width, norm_groups))
        self.head = Conv(spatial_dims, channels * 2**num_layers, 1, 4)
        for module in self.modules():
            if isinstance(module, Conv):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, x: Image) -> Tensor:
        """Map images ``(b, c, x, y, z)`` to logits ``(b, 1, ...)``, one per patch."""
        h = F.leaky_relu(self.stem(x), SLOPE)  # (b, c, x/2, y/2, z/2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = F.leaky_relu(norm(conv(h)), SLOPE)
        return self.head(h)
