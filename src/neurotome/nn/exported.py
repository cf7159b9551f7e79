"""The contract of a network that a training makes: it is written to a model folder and read again."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from neurotome.nn.recorded import Recorded
from neurotome.types import Source


class Exportable(Recorded, ABC):
    """A network with what a model folder needs to know of it.

    Attributes:
        family: What it is, in one word for people.
        modalities: Names of the contrasts it knows; their order gives the ids.
        scratch: Names of own submodules and buffers that training alone needs; an exported model leaves them out, and
            what a part of the network declares as its ``scratch`` as well.
    """

    family: ClassVar[str] = "network"
    modalities: tuple[str, ...]
    scratch: tuple[str, ...] = ()

    @abstractmethod
    def example(self) -> dict[str, Tensor]:
        """Return a small input for the self-test of a model folder; the same whenever it is called."""

    @abstractmethod
    def respond(self, example: Mapping[str, Tensor]) -> Tensor:
        """Return what the network makes of :meth:`example`, in evaluation mode."""

    def check(self, source: Source) -> None:
        """Refuse data that the network cannot take, before it is trained on them.

        Raises:
            ValueError: A shape, a range or a number of channels does not fit.
        """

    def capabilities(self, grid: Sequence[int]) -> dict[str, object]:
        """Return what the network can do, as ``config.json`` states it for programs and the card for people.

        Args:
            grid: Spatial shape of the images it was trained on.
        """
        return {"contrasts": list(self.modalities)}

    def usage(self) -> list[str]:
        """Return the lines of the card that say how the network is used."""
        return []

    def describe(self, grid: Sequence[int]) -> list[str]:
        """Return lines of the card about the network.

        Args:
            grid: Spatial shape of the images it was trained on.
        """
        return []

    def limits(self) -> str:
        """Return a sentence of the card on what may go wrong with its results."""
        return "Its results are synthetic: a structure may be missing, moved or invented."

    def unready(self) -> str:
        """Return why the network must not be used yet and, after a semicolon, what to do; empty where it may."""
        return ""

    def modality_id(self, name: str) -> int:
        """Return the id of a contrast.

        Raises:
            ValueError: The network was not trained on it.
        """
        if name not in self.modalities:
            raise ValueError(f"this {self.family} knows {', '.join(self.modalities)}, not {name}")
        return self.modalities.index(name)

    def exported_state(self) -> dict[str, Tensor]:
        """Return the state without what only training needs."""
        left_out = self.training_only
        return {key: value.detach() for key, value in self.state_dict().items() if not _under(key, left_out)}

    def load_exported(self, state: Mapping[str, Tensor]) -> None:
        """Load an exported state; every key but the training-only ones must be there, and nothing else.

        Raises:
            ValueError: A key is missing, unknown, of another shape, or not finite.
        """
        own = self.exported_state()
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unknown:
            raise ValueError(f"weights do not fit {type(self).__name__}: missing {missing[:3]}, unknown {unknown[:3]}")
        for key, value in state.items():
            if value.shape != own[key].shape:
                raise ValueError(f"weight {key} has shape {tuple(value.shape)}, the network {tuple(own[key].shape)}")
            if not is_finite(value):
                raise ValueError(f"weight {key} holds NaN or Inf; train again or fetch the model folder again")
        self.load_state_dict(dict(state), strict=False)

    def adopt(self, state: Mapping[str, Tensor]) -> None:
        """Make the tensors of a checked exported state this network's own, without a copy.

        For a network built on the meta device; what only training needs starts anew.

        Raises:
            ValueError: Something else than the training-only parts is missing.
        """
        left_out = self.training_only
        self.load_state_dict(dict(state), strict=False, assign=True)
        for name, module in self.named_modules():
            own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
            missing = [f"{name}.{key}".removeprefix(".") for key, tensor in own.items() if tensor.is_meta]
            if any(not _under(key, left_out) for key in missing):
                raise ValueError(f"{type(self).__name__} holds tensors that its exported state lacks: {missing[:3]}")
            for key, tensor in own.items():
                if tensor.is_meta:
                    fresh = torch.zeros_like(tensor, device="cpu")
                    setattr(module, key, nn.Parameter(fresh) if isinstance(tensor, nn.Parameter) else fresh)
            if missing and callable(reset := getattr(module, "reset_parameters", None)):
                reset()

    @property
    def training_only(self) -> tuple[str, ...]:
        """Dotted names of what training alone needs: the ``scratch`` of the network and of each of its submodules."""
        return tuple(
            f"{name}.{own}".removeprefix(".")
            for name, module in self.named_modules()
            for own in getattr(module, "scratch", ())
        )


def _under(key: str, names: Sequence[str]) -> bool:
    """Return whether a tensor of a state lies under one of some names."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def is_finite(value: Tensor) -> bool:
    """Return whether no element is NaN or infinite; one pass, nothing allocated."""
    if not value.is_floating_point() or not value.numel():
        return True
    low, high = torch.aminmax(value)
    return math.isfinite(low) and math.isfinite(high)
