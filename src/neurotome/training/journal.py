"""What a run says while it goes: rows of metrics and TensorBoard events."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any

from torch import Tensor

from neurotome.files.atomic import output_error
from neurotome.training.run_folder import RunFolder

BEGUN = "begun/"  # key of a row that marks the step in which something began


class Journal:
    """Means of the terms since the last row, written to ``metrics.jsonl`` and as TensorBoard events.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self._writer: Any = None
        self._mark = time.perf_counter()
        self._step = 0

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Count the terms of one step; nothing is read back from an accelerator."""
        for name, term in terms.items():
            if name in self.sums:
                self.sums[name].add_(term)
                self.counts[name] += 1
            else:
                self.sums[name] = term.float().clone()
                self.counts[name] = 1

    def means(self) -> dict[str, float]:
        """Return the means of the terms and start over."""
        means = {f"train/{name}": float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means

    def open(self, step: int) -> None:
        """Open the event file; events after ``step``, from before a fault, are void."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._writer = SummaryWriter(str(self.folder.root / "events"), purge_step=step + 1)

    def write(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Append a row."""
        self.folder.append({"step": step, "seconds": round(seconds, 3), **values})
        try:
            self.open(step - 1)
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        except OSError as error:
            raise output_error(self.folder.root / "events", error) from error

    def pause(self) -> AbstractContextManager[None]:
        """Time spent within the context does not count as training in ``steps_per_s``."""
        return _Pause(self)

    def lap(self, step: int) -> float:
        """Return the steps per second of training since the last lap."""
        now = time.perf_counter()
        rate = (step - self._step) / max(now - self._mark, 1e-9)
        self._mark, self._step = now, step
        return rate

    def shift(self, seconds: float) -> None:
        """Leave ``seconds`` out of the current lap."""
        self._mark += seconds

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            with suppress(OSError):  # metrics.jsonl holds the same numbers
                self._writer.close()
            self._writer = None


class _Pause(AbstractContextManager[None]):
    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.begin = 0.0

    def __enter__(self) -> None:
        self.begin = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.journal.shift(time.perf_counter() - self.begin)
