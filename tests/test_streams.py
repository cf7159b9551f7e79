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
