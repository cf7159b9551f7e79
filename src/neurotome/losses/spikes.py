r"""Updates of batches with an extreme loss are skipped.

    spike:   l > m + k s        m median, s = 1.4826 median |l_i - m| of the last losses l_i (robust deviation)

A batch whose loss is a spike changes no weight. Its loss enters the history all the same, so that a lasting change of
level is accepted after a while; a few outliers hardly change the median.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from neurotome.ranges import Count, Positive, PositiveCount, Range, Ranged

MAD_TO_DEVIATION = 1.4826  # of a normal distribution
FLOOR = 0.01  # smallest deviation, as a share of the median: small changes after constant losses are no spikes


@dataclass(frozen=True)
class SpikeGuard(Ranged):
    """When an update is skipped, and how often that is admitted.

    Args:
        deviations: k, > 0.
        window: Losses remembered, at least ``warmup``.
        warmup: Losses seen before anything is called a spike, at least 2.
        budget: Updates that may be skipped in a run; one more stops it.

    Raises:
        ValueError: A value is out of range.
    """

    deviations: Positive = 8.0
    window: PositiveCount = 200
    warmup: Annotated[int, Range("[2, 1000000000]")] = 50
    budget: Count = 50

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        super().__post_init__()
        if self.window < self.warmup:
            raise ValueError(f"window is {self.window}; give at least warmup, {self.warmup}")


class LossHistory(nn.Module):
    """The last losses and the number of skipped updates; buffers, so that a resumed run knows them.

    Args:
        guard: The rule.
    """

    values: Tensor
    counts: Tensor

    def __init__(self, guard: SpikeGuard) -> None:
        super().__init__()
        self.guard = guard
        self.register_buffer("values", torch.zeros(guard.window))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.long))  # losses seen since forget(), updates skipped

    @property
    def skipped(self) -> int:
        """Updates skipped so far."""
        return int(self.counts[1])

    @torch.no_grad()
    def is_spike(self, loss: Tensor) -> bool:
        """Return whether ``loss`` is a spike beside the history, and remember it."""
        seen = int(self.counts[0])
        recent = self.values[: min(seen, self.guard.window)]
        spike = False
        if seen >= self.guard.warmup:
            middle = recent.median()
            deviation = MAD_TO_DEVIATION * (recent - middle).abs().median()
            spike = bool(loss > middle + self.guard.deviations * torch.maximum(deviation, FLOOR * middle.abs()))
        self.values[seen % self.guard.window] = loss
        self.counts += torch.tensor([1, int(spike)], device=self.counts.device)
        return spike

    @torch.no_grad()
    def forget(self) -> None:
        """Start the history again: the objective has changed."""
        self.counts[0] = 0
