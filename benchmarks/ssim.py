"""J10: SSIM-3D, forward and backward, against MONAI's SSIMLoss; outputs are the loss and its gradient."""

# isort: off
from benchmarks import base  # before torch: sets the threads

# isort: on
from collections.abc import Iterator

import torch
from monai.losses import SSIMLoss

from neurotome.metrics.fidelity import ssim

PEER = "MONAI SSIMLoss"


def case(shape: tuple[int, int, int], window: str, size: int, device: str, goal: float | None) -> base.Case:
    """Compare one shape; images in [-1, 1], the output a noisy truth.

    No flat background: there the peer's gradient is off by 3e-4 of its maximum (ours by 7e-6, both against double
    precision; `tests/metrics/test_image_metrics.py`), and the two could not be compared to 1e-5.
    """
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(1, 1, *shape, generator=generator) * 2 - 1
    x = (y + 0.1 * torch.randn(y.shape, generator=generator)).clamp(-1, 1)
    x, y = x.to(device).requires_grad_(), y.to(device)
    loss = SSIMLoss(spatial_dims=3, data_range=2.0, kernel_type=window, win_size=size)

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        value = ssim(x, y, window=window, size=size).mean()
        return value, torch.autograd.grad(1 - value, x)[0]

    def peer() -> tuple[torch.Tensor, torch.Tensor]:
        value = loss(x, y)
        return 1 - value, torch.autograd.grad(value, x)[0]

    name = f"{window} {size}, {'x'.join(map(str, shape))}"
    return base.Case(name, ours, peer, PEER, goal)


def cases(tiny: bool, device: str) -> Iterator[base.Case]:
    """Return the shapes of the goal, or small ones."""
    if tiny:
        yield case((16, 16, 16), "uniform", 7, device, None)
        yield case((16, 16, 16), "gaussian", 11, device, None)
        return
    goal = 5.0 if device.startswith("cuda") else 20.0
    yield case((64, 64, 64), "uniform", 7, device, goal)
    yield case((64, 64, 64), "gaussian", 11, device, goal)
    yield case((144, 192, 144), "uniform", 7, device, goal)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    return base.main("ssim", cases, argv)


if __name__ == "__main__":
    raise SystemExit(main())
