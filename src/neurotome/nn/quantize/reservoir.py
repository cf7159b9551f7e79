"""What a codebook starts from: tokens of the first training passes, collected on every rank."""

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

    def mark_started(self) -> None:
        """Note that the codebook has been set."""
        self.state[2] = 1

    def collect(self, vectors: Vectors) -> bool:
        """Keep a random share of the batch's tokens; return whether the ring is full and it is time, on every rank."""
        passes, collected, _ = self.state.tolist()
        take = min(len(vectors), max(256, self.size // 12))
        picked = vectors[torch.randperm(len(vectors), device=vectors.device)[:take]]
        slots = torch.arange(collected, collected + take, device=vectors.device) % self.size
        self.tokens[slots] = picked
        self.state[0], self.state[1] = passes + 1, collected + take
        full = torch.tensor(int(collected + take >= self.size), device=vectors.device)
        if several():
            dist.all_reduce(full, dist.ReduceOp.MIN)
        return passes + 1 > self.start_after and bool(full)
