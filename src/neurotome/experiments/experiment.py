"""From a config to the objects of a training: check everything, then build.

config -> check -> Experiment -> build -> method, data, trainer
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch

from neurotome.data.stores.base import Reader, TrainingData
from neurotome.data.stores.volumes import Volumes
from neurotome.errors import UsageError
from neurotome.experiments.config import Config, class_blocks
from neurotome.experiments.schema import Call, check, check_class, parameters
from neurotome.files.yaml_text import yaml_text
from neurotome.models.registry import public_classes
from neurotome.training.base import Method
from neurotome.training.fit import TrainerConfig
from neurotome.training.optim import OptimizerConfig

SETTINGS = {"trainer": TrainerConfig, "optimizer": OptimizerConfig}
# what the caller says and what may differ between a run and its resume
FROM_CALLER = {"trainer": ("seed", "device", "threads", "quiet"), "optimizer": ()}


@dataclass(frozen=True)
class Experiment:
    """A checked config.

    Args:
        name: Of the config.
        method: What is trained.
        data: A TrainingData.
        trainer: A TrainerConfig.
        optimizer: An OptimizerConfig.
        seed: Of weights, order and augmentation.
    """

    name: str
    method: Call
    data: Call
    trainer: Call
    optimizer: Call
    seed: int

    def resolved(self) -> str:
        """Return the config with every default written out; it can be read again."""
        data = {"class_path": self.data.target.__name__, "init_args": self.data.resolved()}
        tree = {"method": self.method.resolved(), "data": data}
        tree |= {section: getattr(self, section).resolved() for section in SETTINGS}
        for section, names in FROM_CALLER.items():
            for name in names:
                tree[section].pop(name, None)
        tree["method"]["init_args"].pop("optimizer", None)
        return yaml_text({**tree, "seed": self.seed})

    def build_method(self) -> Method:
        """Return the method with freshly drawn weights, a function of the seed alone."""
        torch.manual_seed(self.seed)
        extra = {"optimizer": self.optimizer.build()} if "optimizer" in parameters(self.method.target) else {}
        return self.method.build(**extra)

    def method_for(self, reader: Reader) -> Method:
        """Return the method, after it has looked at the data that it will be trained on.

        Raises:
            UsageError: A constructor refused a value, or the data do not fit the method.
        """
        method = self.build_method()
        try:
            method.check(reader.source(method.product().modalities))
        except ValueError as error:
            raise UsageError(f"the data do not fit the config: {error}") from error
        return method


def check_experiment(config: Config, modalities: tuple[str, ...] | None = None) -> Experiment:
    """Check a config against the constructors it names.

    Args:
        config: As read.
        modalities: The store's contrasts; given to every part that takes ``modalities`` where the config names none.

    Raises:
        UsageError: A key, value or class is not admissible; the config fixes contrasts that the store does not hold.
    """
    tree = copy.deepcopy(config.tree)
    if modalities is not None:
        _give_modalities(tree["method"], modalities)
    method = check_class(Method, tree["method"], "method", skip=("optimizer",))
    data = check_class(TrainingData, tree["data"], "data")
    settings = {
        section: check(kind, {} if tree.get(section) is None else tree[section], section, FROM_CALLER[section])
        for section, kind in SETTINGS.items()
    }
    return Experiment(config.name, method, data, seed=tree["seed"], **settings)


def plain_keys() -> list[str]:
    """Return the dotted keys of the settings that every config has."""
    sections = {"data": Volumes, **SETTINGS}
    return ["seed", *(f"{section}.{name}" for section, kind in sections.items() for name in parameters(kind))]


def _give_modalities(method: Any, modalities: tuple[str, ...]) -> None:
    known = public_classes(object)
    for block in class_blocks(method):
        target = known.get(str(block["class_path"]))
        if target is None or "modalities" not in parameters(target):
            continue  # what is not public is refused by the check that follows
        if not isinstance(block.get("init_args"), dict):
            block["init_args"] = {}
        fixed = block["init_args"].setdefault("modalities", list(modalities))
        if isinstance(fixed, list) and set(fixed) != set(modalities):
            raise UsageError(
                f"the config's modalities are {', '.join(map(str, fixed))}, the store holds {', '.join(modalities)}; "
                "leave modalities out of the config to take those of the store, or prepare a store with these"
            )
