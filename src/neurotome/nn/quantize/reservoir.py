"""What a codebook starts from: tokens of the first training passes, collected on every rank."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from neurotome.types import Vectors


def several() -> bool:
    """Return whether training runs on several ranks."""
    return dist.is_available() and dist.is_initialized()


class Reservoir(nn.Module):
    """A ring of tokens.

    Args:
        dim: Length of a token.
        start_after: Training passes before it is time.
        size: Tokens kept; None for eight per code, at least 8192.
        num_codes: Codes of a codebook, the fewest tokens that can start it.

    Raises:
        ValueError: ``size`` or ``start_after`` is out of range.
    """

    # a resumed run needs the tokens, an exported model does not
    scratch = ("tokens",)
    tokens: Tensor
    state: Tensor

    def __init__(self, dim: int, start_after: int, size: int | None, num_codes: int) -> None:
        size = max(8 * num_codes, 8192) if size is None else size
        if size < num_codes:
            raise ValueError(f"reservoir is {size}; give at least one token per code, {num_codes}")
        super().__init__()
        self.start_after, self.size = start_after, size
        self.register_buffer("tokens", torch.zeros(size, dim))
        self.register_buffer("state", torch.zeros(3, dtype=torch.long))  # training passes, tokens collected, started

    @property
    def started(self) -> bool:
        """Whether the codebook has been set from data."""
        return bool(self.state[2])

    @property
    def fewest_passes(self) -> int:
        """Training passes that are left, at least, until the codebook starts; more where a pass has few tokens."""
        if self.started:
            return 0
        passes, collected, _ = self.state.tolist()
        return max(1, self.start_after + 1 - passes, math.ceil((self.size - collected) / self._most_of_a_pass))

    @property
    def _most_of_a_pass(self) -> int:
        """Tokens that a training pass adds at most, so that several batches enter the start."""
        return max(256, self.size // 12)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load a state; one without the tokens, as exported models have it, has none collected."""
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if f"{prefix}tokens" not in state_dict and f"{prefix}state" in state_dict and not self.state[2]:
            self.state.zero_()

    def mark_started(self) -> None:
        """Note that the codebook has been set."""
        self.state[2] = 1

    def collect(self, vectors: Vectors) -> bool:
        """Keep a random share of the batch's tokens; return whether the ring is full and it is time, on every rank."""
        passes, collected, _ = self.state.tolist()
        take = min(len(vectors), self._most_of_a_pass)
        picked = vectors[torch.randperm(len(vectors), device=vectors.device)[:take]]
        slots = torch.arange(collected, collected + take, device=vectors.device) % self.size
        self.tokens[slots] = picked
        self.state[0], self.state[1] = passes + 1, collected + take
        full = torch.tensor(int(collected + take >= self.size), device=vectors.device)
        if several():
            dist.all_reduce(full, dist.ReduceOp.MIN)
        return passes + 1 > self.start_after and bool(full)
