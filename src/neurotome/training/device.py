"""Where and in which arithmetic a network computes."""

from typing import Literal, get_args

import torch

from neurotome.errors import UsageError

Precision = Literal["fp32", "bf16"]


def chosen_device(name: str) -> str:
    """Return the device of a name: ``auto`` takes an accelerator where there is one.

    Raises:
        UsageError: The named device is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if there[device])
    if not there.get(name, False):
        raise UsageError(f"--device {name}: this machine has none; give --device cpu, or auto")
    return name


def check_precision(name: str) -> None:
    """Refuse what is no precision.

    Raises:
        UsageError: ``name`` is neither ``fp32`` nor ``bf16``.
    """
    if name not in get_args(Precision):
        raise UsageError(f"precision is {name!r}; give {' or '.join(get_args(Precision))}")


def trainer_precision(name: Precision) -> Literal["32-true", "bf16-mixed"]:
    """Return the trainer's name of a precision.

    Raises:
        UsageError: There is no such precision.
    """
    check_precision(name)
    return "32-true" if name == "fp32" else "bf16-mixed"
