r"""A moving average of the weights.

    average <- average + (1 - d) (weight - average)          after every step
    d = min(decay, (1 + n) / (10 + n))                       n updates so far: the average starts near the weights

Parameters are averaged. Buffers are not: a codebook's counts and sums are statistics of the *live* codes, and averages
of batch-norm statistics taken apart fit no weights. The averaged model therefore has the live model's buffers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from neurotome.errors import UsageError


class EMA:
    """Averages of the parameters of some modules.

    Args:
        modules: The modules by name; a parameter they share is averaged once.
        decay: Share of the old average that survives a step, in [0, 1).
        warmup: Whether the decay starts small, so that the first weights are soon forgotten.

    Raises:
        UsageError: ``decay`` is outside its range.
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise UsageError(f"ema_decay is {decay}; give a number in [0, 1), or null for no averaging")
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        named = {f"{module}.{name}": p for module in modules for name, p in modules[module].named_parameters()}
        first = {id(p): name for name, p in reversed(named.items())}
        self._live = {name: p for name, p in named.items() if first[id(p)] == name}
        self._average = {name: p.detach().clone(memory_format=torch.preserve_format) for name, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        self.updates += 1
        if self._live:
            torch._foreach_lerp_(list(self._average.values()), [p.detach() for p in self._live.values()], 1 - decay)

    def follow(self) -> None:
        """Move the averages to the device of their weights."""
        self._average = {name: value.to(self._live[name].device) for name, value in self._average.items()}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the context the modules hold the averaged parameters (and their own buffers)."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._live.items():
            parameter.data, self._average[name] = self._average[name], parameter.data

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates and the averages by parameter name."""
        return {"updates": self.updates, "average": dict(self._average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state.

        Raises:
            ValueError: The names or shapes are those of other modules.
        """
        average: Mapping[str, Tensor] = state["average"]
        strange = sorted(average.keys() ^ self._average.keys())
        if strange:
            raise ValueError(f"the averaged weights are of another model: {', '.join(strange[:3])} fit nothing here")
        self.updates = int(state["updates"])
        for name, value in average.items():
            if value.shape != self._average[name].shape:
                raise ValueError(f"averaged weight {name} has shape {tuple(value.shape)}, the model another")
            self._average[name].copy_(value)
