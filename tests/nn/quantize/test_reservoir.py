"""When a codebook can start, and what a state without tokens means."""

import pytest
import torch

from neurotome.nn.quantize import EMAQuantizer, ResidualQuantizer
from neurotome.nn.quantize.reservoir import Reservoir


@pytest.mark.parametrize(
    ("start_after", "size", "passes"), [(0, 64, 1), (5, 64, 6), (0, 3000, 12), (0, 4096, 13), (40, 4096, 41)]
)
def test_the_fewest_passes_are_those_that_plenty_of_tokens_take(start_after: int, size: int, passes: int) -> None:
    reservoir = Reservoir(2, start_after, size, 8)
    for done in range(passes):
        assert reservoir.fewest_passes == passes - done
        assert reservoir.collect(torch.randn(5000, 2)) == (done == passes - 1)
    reservoir.mark_started()
    assert reservoir.fewest_passes == 0


@pytest.mark.parametrize("kind", [EMAQuantizer, lambda *a, **k: ResidualQuantizer(*a, num_codebooks=2, **k)])
def test_tokens_that_are_not_loaded_are_not_counted(kind) -> None:
    """An exported model leaves the tokens out; a start from it must not take rows of zeros for tokens."""
    old = kind(8, 2, reservoir=512)
    old.train()
    old(torch.randn(1, 2, 5, 5, 5))
    assert old.reservoir.state.tolist() == [1, 125, 0]
    state = old.state_dict()
    whole, part = kind(8, 2, reservoir=512), kind(8, 2, reservoir=512)
    whole.load_state_dict(state)
    assert whole.reservoir.state.tolist() == [1, 125, 0]  # a resume goes on
    part.load_state_dict({k: v for k, v in state.items() if not k.endswith("tokens")}, strict=False)
    assert part.reservoir.state.tolist() == [0, 0, 0]
    part.train()
    while not part.started:
        part(torch.randn(1, 2, 5, 5, 5))
    assert part.reservoir.tokens.abs().sum(1).min() > 0
