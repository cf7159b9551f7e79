"""The only place that distinguishes two dimensions from three.

Images always have three spatial axes. A slice is a volume with one axis of length 1, and the same weights serve it:

- a kernel uses its central slice along an axis of length 1 (what zero padding would leave of it),
- stride, pooling and up-sampling skip that axis,
- ``spatial_dims=2`` builds kernels of depth 1, and the last axis must then be 1.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import wrap_torch_function

Triple = tuple[int, int, int]
Flat = tuple[bool, bool, bool]
XYZ: Triple = (0, 1, 2)
SOLID: Flat = (False, False, False)


def per_axis(value: int, spatial_dims: int) -> Triple:
    """Return ``value`` along every axis that a network of this dimension works on, and 1 along the others.

    Raises:
        ValueError: ``spatial_dims`` is neither 2 nor 3.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims is {spatial_dims}; give 2 (slices) or 3 (volumes)")
    return (value, value, value if spatial_dims == 3 else 1)


def flat_axes(shape: Sequence[int]) -> Flat:
    """Return which of the last three axes have length 1."""
    x, y, z = shape[-3:]
    return x == 1, y == 1, z == 1


class Conv(nn.Module):
    """Convolution that keeps its window centred: ``ceil(size / stride)`` voxels out along each axis.

    A window of even length k has k/2 - 1 voxels before its centre and as many of padding on both sides, as patch
    discriminators and strided encoders with k = 4 have it: ``size / 2`` voxels out of an even size at stride 2, one
    voxel less than ``size`` at stride 1. Along an axis of length 1 the voxel stays.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Kernel length, one for all axes or one per axis.
        stride: Step along axes longer than 1.
        bias: Whether a constant is added.
        groups: Groups of channels that do not see each other; as many as channels for one kernel per channel.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Triple = 3,
        stride: int = 1,
        bias: bool = True,
        groups: int = 1,
    ) -> None:
        super().__init__()
        kernel = per_axis(kernel_size, spatial_dims) if isinstance(kernel_size, int) else kernel_size
        if any(k < 1 for k in kernel):
            raise ValueError(f"kernel_size is {kernel}; lengths are positive")
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups is {groups}; it must divide {in_channels} channels in and {out_channels} out")
        self.kernel, self.stride, self.groups = kernel, per_axis(stride, spatial_dims), groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *kernel))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as :class:`torch.nn.Conv3d` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, out, x / stride, y / stride, z / stride)``."""
        flat = flat_axes(x.shape)
        weight: Tensor = self.weight
        for axis, (is_flat, k) in enumerate(zip(flat, self.kernel, strict=True)):
            if is_flat and k > 1:
                weight = weight.narrow(2 + axis, (k - 1) // 2, 1)
        stride = tuple(1 if f else s for f, s in zip(flat, self.stride, strict=True))
        padding = tuple((k - 1) // 2 for k in weight.shape[2:])
        if weight.shape[2] > x.shape[2] and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # torch 2.13: where the window is longer than the first axis, the bfloat16 gradient of the weight holds
            # memory that nobody wrote, now and then Inf
            with torch.autocast("cpu", enabled=False):
                return F.conv3d(x.float(), weight, self.bias, stride, padding, groups=self.groups)
        return F.conv3d(x, weight, self.bias, stride, padding, groups=self.groups)

    def extra_repr(self) -> str:
        """Return the sizes, as torch's layers do."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, kernel={self.kernel}, stride={self.stride}"


class FactoredConv(nn.Module):
    """A 3x3x3 convolution as one within the plane and one along the first axis (Li et al., 2026, released code).

    The second starts as the identity, so that training begins slice-wise.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels in.
        out_channels: Channels out.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        y, z = per_axis(3, spatial_dims)[1:]
        self.plane = Conv(spatial_dims, in_channels, out_channels, (1, y, z))
        self.depth = Conv(spatial_dims, out_channels, out_channels, (3, 1, 1))
        nn.init.dirac_(self.depth.weight)
        if self.depth.bias is not None:
            nn.init.zeros_(self.depth.bias)

    def forward(self, x: Tensor, skip_depth: bool = False) -> Tensor:
        """Map ``(b, c, x, y, z)`` to ``(b, out, x, y, z)``; ``skip_depth`` leaves the second one out."""
        h = self.plane(x)
        return h if skip_depth else self.depth(h)


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate linearly to ``size``; an axis that stays at length 1 is left alone."""
    return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)


def checked_order(order: Sequence[int]) -> Triple:
    """Return an order of the three axes.

    Raises:
        ValueError: Not each of 0, 1 and 2 once.
    """
    if sorted(order) != [0, 1, 2]:
        raise ValueError(f"axis_order is {tuple(order)}; give each of 0 (x), 1 (y) and 2 (z) once")
    first, second, third = order
    return first, second, third


@wrap_torch_function(lambda x, factor, order=XYZ: (x,))
def space_to_depth(x: Tensor, factor: Triple, order: Triple = XYZ) -> Tensor:
    """Move blocks of ``factor`` voxels into channels, ``(b, c, x, y, z)`` to ``(b, c * prod(factor), x/f, y/f, z/f)``.

    Of a block's voxels, those along the last axis of ``order`` become neighbouring channels. Along an axis of length 1
    the voxel stands for the whole block.
    """
    for axis, (f, is_flat) in enumerate(zip(factor, flat_axes(x.shape), strict=True)):
        if is_flat and f > 1:
            x = x.repeat_interleave(f, dim=2 + axis)
    b, c, *size = x.shape
    i, j, k = factor
    x = x.reshape(b, c, size[0] // i, i, size[1] // j, j, size[2] // k, k)
    inner = (3 + 2 * axis for axis in order)
    return x.permute(0, 1, *inner, 2, 4, 6).reshape(b, c * i * j * k, size[0] // i, size[1] // j, size[2] // k)


@wrap_torch_function(lambda x, factor, shape, order=XYZ: (x,))
def depth_to_space(x: Tensor, factor: Triple, shape: Sequence[int], order: Triple = XYZ) -> Tensor:
    """Undo :func:`space_to_depth` for an image of spatial ``shape``; along an axis of length 1 blocks are averaged."""
    i, j, k = factor
    b, c, *size = x.shape
    x = x.reshape(b, c // (i * j * k), *(factor[axis] for axis in order), *size)
    along_x, along_y, along_z = (2 + order.index(axis) for axis in range(3))
    x = x.permute(0, 1, 5, along_x, 6, along_y, 7, along_z)
    x = x.reshape(b, c // (i * j * k), size[0] * i, size[1] * j, size[2] * k)
    for axis, (f, is_flat) in enumerate(zip(factor, flat_axes(shape), strict=True)):
        if is_flat and f > 1:
            x = x.mean(dim=2 + axis, keepdim=True)
    return x


class BatchNorm(nn.BatchNorm3d):
    """Batch normalisation of ``(b, c, x, y, z)``; slices and volumes keep the same running statistics."""


def channels_last(network: nn.Module) -> None:
    """Lay channels beside each other in memory, in which convolutions run fastest, where that is safe.

    Not where a group is normalised: for this layout torch's CPU kernel takes the variance as E[x^2] - E[x]^2 in single
    precision, which is off by 4 % at a mean of 100 standard deviations. Weights of other than three axes have no such
    layout.
    """
    grouped = any(isinstance(module, nn.GroupNorm) for module in network.modules())
    if not grouped and all(p.ndim != 4 for p in network.parameters()):
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stubs lack it
