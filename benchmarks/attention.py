"""J11: attention along three axes, forward and backward, against explicit scores; outputs are image and gradient."""

# isort: off
from benchmarks import base  # before torch: sets the threads

# isort: on
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.peers.axis_attention import PlainAxisAttention
from neurotome.nn.attention import MultiAxisAttention

CHANNELS, HEADS, GROUPS = 16, 1, 4


def sides(device: str) -> tuple[nn.Module, nn.Module]:
    """Return both modules with the same weights."""
    torch.manual_seed(0)
    ours = MultiAxisAttention(3, CHANNELS, HEADS, GROUPS).to(device)
    peer = nn.Sequential(*(PlainAxisAttention(CHANNELS, HEADS, axis, GROUPS) for axis in range(3))).to(device)
    for a, b in zip(ours, peer, strict=True):
        weights, biases = a.qkv.weight.chunk(3), a.qkv.bias.chunk(3)
        for conv, weight, bias in zip((b.query, b.key, b.value), weights, biases, strict=True):
            conv.weight.data.copy_(weight[:, :, None, None, None])
            conv.bias.data.copy_(bias)
        b.out.weight.data.copy_(a.out.weight[:, :, None, None, None])
        b.out.bias.data.copy_(a.out.bias)
    return ours, peer


def case(size: int, device: str, goal: float | None, memory: float | None) -> base.Case:
    """Compare one cube."""
    ours, peer = sides(device)
    x = torch.randn(1, CHANNELS, size, size, size, generator=torch.Generator().manual_seed(1)).to(device)
    x.requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(device)

    def run(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        y = module(x)
        return y, torch.autograd.grad((y * weight).sum(), x)[0]

    return base.Case(
        f"{size}^3, {CHANNELS} channels", lambda: run(ours), lambda: run(peer), "softmax(QK^T)V", goal, 1e-4, memory
    )


def cases(tiny: bool, device: str) -> Iterator[base.Case]:
    """Return the sizes of the goal, or a small one."""
    if tiny:
        yield case(8, device, None, None)
        return
    yield case(48, device, None, None)
    for size in (64, 96):
        yield case(size, device, 2.0 if device.startswith("cuda") else 1.8, 1 / 1.7)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    return base.main("attention", cases, argv)


if __name__ == "__main__":
    raise SystemExit(main())
