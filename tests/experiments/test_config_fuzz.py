"""Values out of place in every shipped config: an error with exit code 2, or a training that steps."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from neurotome.data.stores.loaders import TrainingModule
from neurotome.errors import UsageError
from neurotome.experiments.config import Config, load_config, merged, shipped
from neurotome.experiments.experiment import check_experiment
from neurotome.files.yaml_text import parse_yaml, yaml_text

NAMES = sorted(shipped())
NUMBERS = ("0", "-1", "1", "2", "3", "0.5", "1e-300", "1e300", "1000000000", ".nan", ".inf", "1e400", "1" + "0" * 40)
OTHERS = ("null", "true", "false", "''", "text", "[]", "[0]", "[1]", "[-1, 2]", "[[]]", "{}", "{a: 1}", "[null]")
DEMOS = [name for name in NAMES if name.endswith("-demo")]
QUICK, ALL = 6, 2000


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the dotted path of every block, list and value of a config."""
    if path:
        yield path
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in parts:
        yield from leaves(value, (*path, str(key)))


def changes(name: str) -> Iterator[tuple[str, str]]:
    """Yield random keys of a config, defaults included, with values that may not fit."""
    draw = random.Random(name)
    paths = list(leaves(whole(name).tree))
    while True:
        yield ".".join(draw.choice(paths)), draw.choice(NUMBERS + OTHERS)


def whole(name: str) -> Config:
    """Return a config in its tiny size with every default written out."""
    config = load_config(name).shrunk()
    resolved = parse_yaml(check_experiment(config, ("T1w", "T2w")).resolved(), name)
    return Config(name, merged(config.tree, resolved), {}, config.text)


def outcome(config: Path, override: tuple[str, str], store: Path) -> str:
    """Return ``refused``, or ``steps`` after a step of each kind; anything else raises."""
    try:
        tree = load_config(str(config), [override])
        reader = check_experiment(tree).data.build().open(store)
        experiment = check_experiment(tree, reader.modalities)
        settings = experiment.trainer.build(seed=experiment.seed, device="cpu", threads=None, quiet=True)
        method = experiment.method_for(reader)
    except UsageError as error:
        if "a value does not fit (" in str(error):  # a library's words where ours should stand
            raise
        return "refused"
    if not any(p.requires_grad for p in method.parameters()):
        return "steps"
    module = TrainingModule(reader, max(settings.max_steps, 2), modalities=method.product().modalities)
    method.max_steps = max(settings.max_steps, 2)
    optimizer = method.configure_optimizers()
    for batch in itertools.islice(module.train_dataloader(), 2):
        method.loss(batch)["loss"].backward()
        optimizer.step()
        method.step += 1
    return "steps"


def campaign(name: str, count: int, store: Path, folder: Path) -> None:
    torch.manual_seed(0)
    file = folder / f"{name}.yaml"
    file.write_text(yaml_text(whole(name).tree))
    assert outcome(file, ("seed", "1"), store) == "steps"
    faults = []
    for key, value in itertools.islice(changes(name), count):
        try:
            outcome(file, (key, value), store)
        except Exception as error:  # every one is a finding
            faults.append(f"--{key} {value}: {type(error).__name__}: {str(error)[:200]}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", DEMOS)
def test_a_value_out_of_place_is_refused_or_works(name: str, phantom_store: Path, tmp_path: Path) -> None:
    campaign(name, QUICK, phantom_store, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_thousand_values_out_of_place(name: str, phantom_store: Path, tmp_path: Path) -> None:
    campaign(name, -(-ALL // len(NAMES)), phantom_store, tmp_path)
