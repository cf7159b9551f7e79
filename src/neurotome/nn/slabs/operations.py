r"""What each operation needs of its input to make planes ``lo`` to ``hi`` of its result, by torch's names.

    convolution         [lo s - p, (hi - 1) s - p + k)            kernel k, stride s, padding p
    its transpose       [(lo + p - k) / s + 1, (hi - 1 + p) / s]
    resize by f         [lo / f - 1, hi / f + 1)
    blocks of f         [lo f, hi f), and back [lo / f, hi / f)
    one voxel           [lo, hi)

Each function takes the operation itself and its arguments, feature maps among them, and returns the result as a map, or
None where it does not know how to.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neurotome.nn.nd import XYZ, flat_axes
from neurotome.nn.slabs.maps import Map

Operation = Callable[..., Map | tuple[Map, ...] | None]


def replaced(tree: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Return nested sequences and mappings with every instance of ``kind`` changed."""
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: replaced(value, kind, change) for key, value in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(replaced(value, kind, change) for value in tree)
    return tree


def instances(tree: Any, kind: type) -> Iterator[Any]:
    """Return the instances of ``kind`` in nested sequences and mappings."""
    if isinstance(tree, kind):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from instances(value, kind)
    elif type(tree) in (tuple, list):
        for value in tree:
            yield from instances(value, kind)


def on_each_voxel(func: Any, *args: Any, **kwargs: Any) -> Map | None:
    """An operation that uses no other plane: on voxels, channels, or within planes."""
    length = next(instances((args, kwargs), Map)).shape[2]
    # a tensor with as many planes is cut as a map is; one without an extent along x goes to every slab as it is
    args, kwargs = replaced((args, kwargs), Tensor, lambda t: Map.of(t) if t.ndim == 5 and t.shape[2] > 1 else t)
    given: list[Map] = list(instances((args, kwargs), Map))
    if any(x.shape[2] != length for x in given):
        return None
    if any(t.ndim > 2 and t.shape[-3] != 1 for t in instances((args, kwargs), Tensor)):
        return None
    like, words = replaced((args, kwargs), Map, lambda x: torch.empty(x.shape, dtype=x.dtype, device="meta"))
    like, words = replaced((like, words), Tensor, lambda t: t.to("meta"))
    result = func(*like, **words)
    if result.ndim != 5 or result.shape[2] != length or result.device.type != "meta":
        return None

    def planes(lo: int, hi: int) -> Tensor:
        positional, named = replaced((args, kwargs), Map, lambda x: x.read(lo, hi))
        made: Tensor = func(*positional, **named)
        return made

    return Map(planes, given, result.shape, result.dtype, given[0].device, kept=None)


def to_type(func: Any, x: Map, *args: Any) -> Map | None:
    """Another type, never another device."""
    return on_each_voxel(func, x, *args) if all(isinstance(arg, torch.dtype) for arg in args) else None


def chunk(func: Any, x: Map, chunks: int, dim: int = 0) -> tuple[Map, ...] | None:
    """Parts along the channels."""
    if dim != 1 or x.shape[1] % chunks:
        return None
    size = x.shape[1] // chunks
    parts = [on_each_voxel(torch.narrow, x, 1, i * size, size) for i in range(chunks)]
    return tuple(part for part in parts if part is not None)


def convolution(
    func: Any,
    x: Map,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Map | None:
    """Planes with the neighbours the window reaches; zeros beyond the ends alone."""
    if isinstance(padding, str) or set(_triple(dilation)) != {1}:
        return None
    steps, pads, kernel, length = _triple(stride), _triple(padding), weight.shape[2:], x.shape[2]
    size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.shape[2:], pads, kernel, steps, strict=True)]
    s, p, k = steps[0], pads[0], kernel[0]

    def planes(lo: int, hi: int) -> Tensor:
        a, b = lo * s - p, (hi - 1) * s - p + k
        front, back = max(-a, 0), max(b - length, 0)
        slab = x.read(max(a, 0), min(b, length))
        if front != back:
            slab, front = F.pad(slab, (0, 0, 0, 0, front, back)), 0
        made: Tensor = func(slab, weight, bias, steps, (front, *pads[1:]), 1, groups)
        return made

    shape = (x.shape[0], weight.shape[0], *size)
    return Map(planes, [x], shape, _dtype(x), x.device, kept=True, first=lambda lo: max(lo * s - p, 0))


def transposed(
    func: Any,
    x: Map,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Map | None:
    """Planes from all that reach them."""
    if set(_triple(dilation)) != {1} or set(_triple(output_padding)) != {0}:
        return None
    steps, pads, kernel, length = _triple(stride), _triple(padding), weight.shape[2:], x.shape[2]
    size = [(n - 1) * s - 2 * p + k for n, p, k, s in zip(x.shape[2:], pads, kernel, steps, strict=True)]
    s, p, k = steps[0], pads[0], kernel[0]

    def first(lo: int) -> int:
        return max((lo + p - k) // s + 1, 0)

    def planes(lo: int, hi: int) -> Tensor:
        a, b = first(lo), min((hi - 1 + p) // s + 1, length)
        made: Tensor = func(x.read(a, b), weight, bias, steps, (0, *pads[1:]), 0, groups)
        return made.narrow(2, lo - (a * s - p), hi - lo)

    shape = (x.shape[0], weight.shape[1] * groups, *size)
    return Map(planes, [x], shape, _dtype(x), x.device, kept=True, first=first)


def resized(func: Any, x: Map, size: Any = None, **kwargs: Any) -> Map | None:
    """Interpolation to a multiple of the planes: a plane more on both sides, cut off again."""
    if size is None or isinstance(size, int) or size[0] % x.shape[2] or kwargs.get("align_corners"):
        return None
    f, length = size[0] // x.shape[2], x.shape[2]

    def planes(lo: int, hi: int) -> Tensor:
        a, b = max(lo // f - 1, 0), min(-(-hi // f) + 1, length)
        made: Tensor = func(x.read(a, b), size=((b - a) * f, *size[1:]), **kwargs)
        return made.narrow(2, lo - a * f, hi - lo)

    probe = func(torch.zeros(1, 1, 1, 1, 1, dtype=x.dtype, device=x.device), size=(1, 1, 1), **kwargs)
    first = lambda lo: max(lo // f - 1, 0)  # noqa: E731  # a range, not a function with a name
    return Map(planes, [x], (*x.shape[:2], *size), probe.dtype, x.device, kept=False, first=first)


def group_norm(
    func: Any, x: Map, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Map | None:
    """``x * scale + shift`` per channel, from statistics of all planes that a first pass takes."""
    b, c = x.shape[:2]
    found: list[Tensor] = []

    def prepare() -> None:
        mean, variance = statistics(x, num_groups)  # (b, groups)
        rstd = (variance + eps).rsqrt()
        scale = rstd.repeat_interleave(c // num_groups, dim=1)  # (b, c)
        shift = -mean.repeat_interleave(c // num_groups, dim=1) * scale
        if weight is not None:
            scale, shift = scale * weight, shift * weight
        shift = shift if bias is None else shift + bias
        found.extend(f.float().view(b, c, 1, 1, 1) for f in (scale, shift))

    def planes(lo: int, hi: int) -> Tensor:
        scale, shift = found
        return torch.addcmul(shift, scale, x.read(lo, hi)).to(dtype)

    probe = torch.zeros(1, c, 1, 1, 2, dtype=x.dtype, device=x.device)
    dtype = func(probe, num_groups, weight, bias, eps).dtype
    return Map(planes, [x], x.shape, dtype, x.device, kept=False, prepare=prepare)


def statistics(x: Map, num_groups: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance ``(b, groups)`` of a map, in double precision, slab by slab."""
    counts, means, variances = [], [], []
    for lo, hi in x.slabs():
        slab = x.read(lo, hi).float().reshape(x.shape[0], num_groups, -1)
        mean = slab.mean(dim=2, keepdim=True)
        counts.append(slab.shape[2])
        means.append(mean[..., 0].double())
        variances.append((slab - mean).square_().mean(dim=2).double())
    n = torch.tensor(counts, dtype=torch.float64, device=x.device).view(-1, 1, 1)
    each, within = torch.stack(means), torch.stack(variances)  # (slabs, b, groups)
    mean = (n * each).sum(0) / n.sum()
    return mean, (n * (within + (each - mean).square())).sum(0) / n.sum()


def batch_norm(func: Any, x: Map, *args: Any, training: bool = False, **kwargs: Any) -> Map | None:
    """With running statistics every voxel stands alone; with the batch's own it does not."""
    return None if training else on_each_voxel(func, x, *args, training=False, **kwargs)


def pad(func: Any, x: Map, pads: Sequence[int], mode: str = "constant", value: float | None = None) -> Map | None:
    """Planes of a constant in front and behind."""
    if mode != "constant" or len(pads) > 6 or min(pads) < 0:
        return None
    before, behind = (*pads, 0, 0, 0, 0, 0, 0)[4:6] if len(pads) == 6 else (0, 0)
    inner, length = (*pads, 0, 0, 0, 0)[:4], x.shape[2]

    def planes(lo: int, hi: int) -> Tensor:
        a = min(max(lo - before, 0), length - 1)
        b = max(min(hi - before, length), a + 1)
        front, back = max(a + before - lo, 0), max(hi - before - b, 0)
        made: Tensor = func(x.read(a, b), (*inner, front, back), mode, value)
        return made.narrow(2, lo - (a + before - front), hi - lo)

    z, y = (x.shape[4] + sum(inner[:2]), x.shape[3] + sum(inner[2:]))
    shape = (*x.shape[:2], length + before + behind, y, z)
    first = lambda lo: min(max(lo - before, 0), length - 1)  # noqa: E731  # a range, not a function with a name
    return Map(planes, [x], shape, x.dtype, x.device, kept=False, first=first)


def narrow(func: Any, x: Map, dim: int, start: int, length: int) -> Map | None:
    """A range of planes, or of what each plane holds."""
    if dim != 2:
        return on_each_voxel(func, x, dim, start, length)
    shape = (*x.shape[:2], length, *x.shape[3:])
    return Map(
        lambda lo, hi: x.read(lo + start, hi + start), [x], shape, x.dtype, x.device,
        kept=False, first=lambda lo: lo + start,
    )  # fmt: skip


def space_to_depth(func: Any, x: Map, factor: Sequence[int], order: Sequence[int] = XYZ) -> Map | None:
    """See :func:`neurotome.nn.nd.space_to_depth`."""
    step = 1 if x.shape[2] == 1 else factor[0]
    size = [max(n // f, 1) for n, f in zip(x.shape[2:], factor, strict=True)]
    shape = (x.shape[0], x.shape[1] * math.prod(factor), *size)
    return Map(
        lambda lo, hi: func(x.read(lo * step, hi * step), factor, order), [x], shape, x.dtype, x.device,
        kept=False, first=lambda lo: lo * step,
    )  # fmt: skip


def depth_to_space(
    func: Any, x: Map, factor: Sequence[int], shape: Sequence[int], order: Sequence[int] = XYZ
) -> Map | None:
    """See :func:`neurotome.nn.nd.depth_to_space`."""
    flat = flat_axes(shape)
    step = 1 if flat[0] else factor[0]
    size = [n if is_flat else n * f for n, f, is_flat in zip(x.shape[2:], factor, flat, strict=True)]

    def planes(lo: int, hi: int) -> Tensor:
        a = lo // step
        made: Tensor = func(x.read(a, -(-hi // step)), factor, shape, order)
        return made.narrow(2, lo - a * step, hi - lo)

    out = (x.shape[0], x.shape[1] // math.prod(factor), *size)
    return Map(planes, [x], out, x.dtype, x.device, kept=False, first=lambda lo: lo // step)


def along_lines(func: Any, f: Callable[[Tensor], Tensor], x: Map, axis: int) -> Map | None:
    """Lines along y or z lie in a slab; for those along x the map is overwritten in slabs along another axis."""
    line = [2 if a == axis else 1 for a in range(3)]
    dtype = f(torch.zeros(1, x.shape[1], *line, dtype=x.dtype, device=x.device)).dtype
    if axis > 0:
        return Map(lambda lo, hi: f(x.read(lo, hi)), [x], x.shape, dtype, x.device, kept=True)
    found: list[Tensor] = []
    across = 3 if x.shape[3] >= x.shape[4] else 4

    def prepare() -> None:
        y = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, dtype), device=x.device)
        for lo, hi in x.slabs():
            y.narrow(2, lo, hi - lo).copy_(x.read(lo, hi))
        thickness = math.ceil(x.shape[across] * x.thickness / x.shape[2])
        for lines in torch.split(y, thickness, dim=across):
            lines.copy_(f(lines.to(x.dtype)))
        found.append(y.to(dtype))

    return Map(lambda lo, hi: found[0][:, :, lo:hi], [x], x.shape, dtype, x.device, kept=False, prepare=prepare)


def _triple(value: Any) -> tuple[int, int, int]:
    if isinstance(value, int):
        return value, value, value
    x, y, z = value
    return x, y, z


def _dtype(x: Map) -> torch.dtype:
    """Return the type of a convolution's result."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


_ON_EACH_VOXEL = (
    "silu relu leaky_relu gelu tanh sigmoid softplus exp log sqrt rsqrt square pow abs neg clamp add sub rsub __rsub__ "
    "mul div __rdiv__ addcmul lerp where float half bfloat16 double detach contiguous mean sum cat repeat_interleave"
)
#: by the name of torch's function or of ours
OPERATIONS: dict[str, Operation] = {
    **dict.fromkeys(_ON_EACH_VOXEL.split(), on_each_voxel),
    "to": to_type,
    "chunk": chunk,
    "conv3d": convolution,
    "conv_transpose3d": transposed,
    "interpolate": resized,
    "group_norm": group_norm,
    "batch_norm": batch_norm,
    "pad": pad,
    "narrow": narrow,
    "space_to_depth": space_to_depth,
    "depth_to_space": depth_to_space,
    "along_lines": along_lines,
}
#: what makes a large map of an ordinary tensor
STARTING = ("conv3d", "conv_transpose3d", "interpolate", "group_norm", "along_lines")
