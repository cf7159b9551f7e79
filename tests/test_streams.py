"""Random streams: each number once, and nothing draws beside them."""

import ast
from pathlib import Path

import numpy as np

from neurotome import streams

SRC = Path(streams.__file__).parent


def test_every_stream_has_a_number_of_its_own() -> None:
    numbers = {name: value for name, value in vars(streams).items() if name.isupper()}
    assert len(set(numbers.values())) == len(numbers) >= 7


def test_a_generator_depends_on_seed_stream_and_place() -> None:
    draws = {
        tuple(streams.generator(*where).integers(2**62, size=2))
        for where in ((0, 1), (1, 1), (0, 2), (0, 1, 0, 1), (0, 1, 1), (0, 1, 0, 2))
    }
    assert len(draws) == 6
    again = np.random.Generator(np.random.PCG64(np.random.SeedSequence((3, streams.VOXEL_DRAW, 7, 1))))
    assert streams.generator(3, streams.VOXEL_DRAW, 7, 1).random() == again.random()


def test_no_other_module_makes_streams_of_a_training() -> None:
    """The phantom has spawn keys of its own: one tree a cohort."""
    found = {
        file.relative_to(SRC).as_posix()
        for file in SRC.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "SeedSequence"
    }
    assert found == {"streams.py", "data/phantom/cohort.py"}


def test_torch_draws_from_fixed_seeds_alone_beside_the_streams() -> None:
    """A generator of torch seeded with the run's own seed would share its number with every other one."""
    seeds = {
        (file.relative_to(SRC).as_posix(), ast.unparse(node.args[0]))
        for file in SRC.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Generator().manual_seed")
    }
    assert {seed for _, seed in seeds} <= {"0"}, seeds
