"""The grid that holds every brain, what it takes, and what is said where brains do not fit."""

import pytest
import torch

from neurotome.data.stores.grid import MULTIPLE, Failure, StoreGrid, fitted_shape, left_out
from neurotome.experiments.config import load_config, shipped
from neurotome.experiments.experiment import check_experiment
from neurotome.tokenizers.base import Tokenizer


@pytest.mark.parametrize(
    ("needs", "multiple", "shape"),
    [
        ([(45, 58, 50)], 16, (48, 64, 64)),
        ([(45, 58, 50), (49, 1, 64)], 16, (64, 64, 64)),
        ([(16, 16, 17)], 16, (16, 16, 32)),
        ([(45, 58, 50)], 1, (45, 58, 50)),
        ([(45, 58, 1), (44, 50, 1)], 16, (48, 64, 1)),
    ],
)
def test_the_smallest_grid_of_multiples(needs, multiple, shape):
    assert fitted_shape(needs, multiple) == shape


def test_a_fitted_grid_suits_the_shipped_networks_in_three_dimensions():
    """The help of ``prepare --multiple`` names those that it does not suit."""
    odd = set()
    for name in (n for n, file in shipped().items() if file.parent.name == "tokenizer" and not n.endswith("-2d")):
        experiment = check_experiment(load_config(name), ("T1w", "T2w"))
        with torch.device("meta"):
            network = experiment.build_method().tokenizer
        assert isinstance(network, Tokenizer)
        if network.factor[2] > 1 and any(MULTIPLE % f for f in network.factor):
            odd.add(name)
    assert odd == {"dc-ae", "vector-ae", "vector-ae-demo"}


def test_a_grid_says_its_field_and_what_it_takes():
    grid = StoreGrid((3.0, 3.0, 3.0), (48, 64, 56), 48, 2, 48, True)
    assert grid.num_bytes == 48 * 64 * 56 * 48 * (4 * 2 + 1 + 1)
    assert str(grid) == (
        "grid 48 x 64 x 56 of 3 mm = 144 x 192 x 168 mm, fitted to the brains; about 82.6 MB for 48 sessions"
    )
    one = StoreGrid((1.0, 1.0, 3.3), (144, 192, 44), 1000, 3, 0, False)
    assert str(one) == "grid 144 x 192 x 44 of 1 x 1 x 3.3 mm = 144 x 192 x 145.2 mm; about 15.8 GB for 1000 sessions"


def test_many_that_do_not_fit_get_one_remedy():
    grid = StoreGrid((3.0,) * 3, (48, 48, 40), 20, 1, 0, False)
    failures = [Failure(str(n), "", "x", (49 + n, 40, 10)) for n in range(15)]
    error = left_out(failures, 20, grid, stored=True, centred=True)
    assert str(error).startswith(
        "15 of 20 sessions were left out; the others are stored. 15 need a larger grid than 48"
    )
    assert "sub-0 (49 x 40 x 10), " in error.reason
    assert error.reason.endswith("and 5 more")
    assert error.remedy == (
        "give --shape 64 48 40, which holds them all, or leave --shape out, or --crop brain, with --overwrite"
    )
    other = left_out([Failure("a", "2", "broken")], 1, grid, stored=False, centred=False)
    assert other.reason == "1 of 1 sessions were left out; nothing was stored. sub-a ses-2: broken"
    assert other.remedy == "repair or remove these sessions and run the same command again"
