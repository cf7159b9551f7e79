"""What is said before a training begins: steps, device, memory, when codebooks start, and what is out of proportion."""

import torch

from neurotome.errors import UsageError
from neurotome.nn.quantize.base import Quantizer
from neurotome.training.base import Method
from neurotome.training.fit import TrainerConfig

# Of the shipped configs those for CPU cores stay below 3e9 weights x steps, those for an accelerator are above 9e10.
FULL_SIZE = 2e10
FULL_SIZE_WEIGHTS = 10_000_000  # and one step of so many weights takes a CPU long, however few there are


def codebooks_start(method: Method) -> int:
    """Return the steps after which every codebook has started, at the earliest; 0 where there is nothing to wait for.

    A pass that finds few tokens fills the reservoir later.
    """
    waits = (m.fewest_passes for m in method.product().modules() if isinstance(m, Quantizer))
    return max(waits, default=0)


def check_budget(method: Method, max_steps: int) -> None:
    """Refuse a training that ends before its codebooks can start: no command would use its model.

    Raises:
        UsageError: It has too few steps.
    """
    if (start := codebooks_start(method)) > max_steps:
        raise UsageError(
            f"trainer.max_steps is {max_steps}, and the codebook starts in step {start} at the earliest, so that the "
            f"model could not be used; give --trainer.max_steps well above {start}, or the quantizer a smaller "
            "start_after or reservoir"
        )


def outlook(method: Method, settings: TrainerConfig) -> list[str]:
    """Return the lines that a training begins with.

    Args:
        method: What is trained.
        settings: How long and on what; its device is resolved.
    """
    weights = sum(p.numel() for p in method.parameters() if p.requires_grad)
    if not weights:
        return []
    where: str = settings.device
    if where == "cpu":
        threads = settings.threads or torch.get_num_threads()
        where = f"cpu, {threads} {'thread' if threads == 1 else 'threads'}"
    arithmetic = "bf16" if settings.precision == "bf16-mixed" else "fp32"
    lines = [
        f"training {weights:,} weights for {settings.max_steps:,} steps on {where}, {arithmetic}; time and memory "
        "follow after the first steps",
        f"memory: {_fixed_bytes(weights, settings) / 2**20:,.0f} MB for weights, gradients and optimiser, and the "
        "activations of a batch",
    ]
    if start := codebooks_start(method):
        lines.append(f"the codebook starts in step {start} at the earliest; the loss jumps there")
    if settings.device == "cpu" and is_full_size(weights, settings.max_steps):
        lines.append(
            "warning: this config is made for an accelerator, and none is used: expect days, and gigabytes of memory. "
            "`neurotome configs` lists those for CPU cores (-demo)"
        )
    return lines


def is_full_size(weights: int, max_steps: int) -> bool:
    """Return whether a training is out of proportion for CPU cores."""
    return weights * max_steps > FULL_SIZE or weights > FULL_SIZE_WEIGHTS


def _fixed_bytes(weights: int, settings: TrainerConfig) -> int:
    """Return the bytes that do not depend on the batch: weights, gradients, two moments, averaged weights."""
    return 4 * weights * (4 + (settings.ema_decay is not None))
