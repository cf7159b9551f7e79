r"""Whether codebooks are alive, counted over a stretch of training long enough to mean it.

    utilisation  share of codes used at all              perplexity  2 ** entropy of their use

One batch is too few: it may hold fewer cells than the codebook has codes. An alarm wants a few cells per code.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neurotome.metrics.codebook import perplexity, utilisation
from neurotome.nn.quantize.base import Quantizer

ALARM_BELOW = 0.2
CELLS_PER_CODE = 4  # of a live codebook with evenly used codes 98 % are then seen
log = logging.getLogger("neurotome")


class CodebookHealth:
    """Counts of every code of every codebook since the last report.

    Args:
        alarm_below: Utilisation under which a codebook is called collapsed, in [0, 1].
    """

    def __init__(self, alarm_below: float = ALARM_BELOW) -> None:
        self.alarm_below = alarm_below
        self.counts: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, codes: Mapping[str, Tensor], sizes: Mapping[str, int | None]) -> None:
        """Count code maps; a codebook of unknown size is left out. Nothing is read back from an accelerator."""
        for name, found in codes.items():
            size = sizes.get(name)
            if size is None:
                continue
            before = self.counts.get(name, torch.zeros(size, dtype=torch.long))
            self.counts[name] = before.to(found.device)  # a checkpoint's counts come on the CPU
            flat = found.flatten()
            self.counts[name].index_add_(0, flat, torch.ones_like(flat))

    def report(self, step: int | None = None) -> dict[str, float]:
        """Return ``codebook/<measure>/<codebook>`` and start again.

        Args:
            step: Finished steps; with it, a collapsed codebook is also an alarm: a value and a line in the log.
        """
        values: dict[str, float] = {}
        for name, counts in self.counts.items():
            use = values[f"codebook/utilisation/{name}"] = utilisation(counts.cpu())
            values[f"codebook/perplexity/{name}"] = perplexity(counts.cpu())
            if step is None:
                continue
            collapsed = use < self.alarm_below and int(counts.sum()) >= CELLS_PER_CODE * len(counts)
            values[f"codebook/alarm/{name}"] = float(collapsed)
            if collapsed:
                log.warning(
                    "step %d: the codebook %s uses %.0f %% of its %d codes; it is collapsing. Revive codes sooner, "
                    "start them from data later, or take a smaller codebook",
                    step, name, 100 * use, len(counts),
                )  # fmt: skip
        self.counts = {}
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return dict(self.counts)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up counts."""
        self.counts = dict(state)


def codebooks_started(network: nn.Module) -> bool:
    """Return whether every codebook that starts from data has been started; before that its codes mean nothing."""
    return all(m.started for m in network.modules() if isinstance(m, Quantizer))
