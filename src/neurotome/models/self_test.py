"""The self-test of a model folder: a small input, and what the network made of it when it was exported.

    passed      |y - y_stored| <= TOLERANCE for at least SHARE of the values

Other machines round otherwise, and a latent between two codes may then fall on the other side; a wrong weight, layer or
library changes nearly every value.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neurotome.errors import InputError
from neurotome.nn.exported import Exportable

TOLERANCE = 1e-3  # of values on [-1, 1]
SHARE = 0.99
INPUT, OUTPUT = "input.", "output"
FETCH_AGAIN = "copy or train the model folder again"


@dataclass(frozen=True)
class SelfTest:
    """How far a network's output is from the stored one.

    Args:
        share: Share of the values within the tolerance.
        largest: Largest absolute difference; infinite where an output has another shape or is not finite.
    """

    share: float
    largest: float

    @property
    def passed(self) -> bool:
        """Whether the network computes what it did when it was exported."""
        return self.share >= SHARE


@torch.inference_mode()
def made(network: Exportable) -> dict[str, Tensor]:
    """Return the tensors of a self-test: the network's example, and what it makes of it now."""
    training = network.training
    network.eval()
    try:
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        example = {name: value.to(device) for name, value in network.example().items()}
        inputs = {f"{INPUT}{name}": value for name, value in example.items()}
        return {**inputs, OUTPUT: network.respond(example)}
    finally:
        network.train(training)


@torch.inference_mode()
def compared(network: Exportable, stored: Mapping[str, Tensor], file: Path) -> SelfTest:
    """Return how far the network's output is from the one in ``stored``.

    Args:
        network: In evaluation mode.
        stored: Tensors of ``self_test.safetensors``.
        file: Where they come from, for messages.

    Raises:
        InputError: They are not the input and the output of such a network.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    example = {k.removeprefix(INPUT): v.to(device) for k, v in stored.items() if k.startswith(INPUT)}
    try:
        output, expected = network.respond(example).float().cpu(), stored[OUTPUT].float()
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"does not fit the network ({error})", file=file, remedy=FETCH_AGAIN) from error
    if not expected.numel():
        raise InputError("holds an output without values", file=file, remedy=FETCH_AGAIN)
    if output.shape != expected.shape:
        return SelfTest(0.0, float("inf"))
    difference = (output - expected).abs().nan_to_num(float("inf"))
    return SelfTest(float((difference <= TOLERANCE).double().mean()), float(difference.max()))
