"""From a config to the objects of a training: check everything, then build.

config -> check -> Experiment -> build -> method, plan, trainer
"""

import copy
from dataclasses import dataclass
from typing import Any

import yaml

from neurotome.errors import UsageError
from neurotome.experiments.config import Config, class_blocks
from neurotome.experiments.schema import Call, check, check_class, parameters
from neurotome.models.folder import public_classes
from neurotome.training.base import Method

SETTINGS = ("data", "trainer", "optimizer")
# what the command line says and what may differ between a run and its resume
FROM_COMMAND = {"trainer": ("seed", "device", "threads", "quiet"), "data": (), "optimizer": ()}


@dataclass(frozen=True)
class Experiment:
    """A checked config.

    Args:
        name: Of the config.
        method: What is trained.
        data: A TrainingPlan.
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
        tree = {section: getattr(self, section).resolved() for section in ("method", *SETTINGS)}
        for section, names in FROM_COMMAND.items():
            for name in names:
                tree[section].pop(name, None)
        tree["method"]["init_args"].pop("optimizer", None)
        return yaml.safe_dump({**tree, "seed": self.seed}, sort_keys=False, allow_unicode=True)

    def build_method(self) -> Method:
        """Return the method with freshly drawn weights, a function of the seed alone."""
        import torch

        torch.manual_seed(self.seed)
        extra = {"optimizer": self.optimizer.build()} if "optimizer" in parameters(self.method.target) else {}
        return self.method.build(**extra)


def check_experiment(config: Config, modalities: tuple[str, ...] | None = None) -> Experiment:
    """Check a config against the constructors it names.

    Args:
        config: As read.
        modalities: The store's contrasts; given to every part that takes ``modalities`` and is not told by the config.

    Raises:
        UsageError: A key, value or class is not admissible; the config fixes contrasts that the store does not hold.
    """
    tree = copy.deepcopy(config.tree)
    if modalities is not None:
        _tell_modalities(tree["method"], modalities)
    method = check_class(Method, tree["method"], "method", skip=("optimizer",))
    settings = {
        section: check(settings_class(section), tree.get(section) or {}, section, FROM_COMMAND[section])
        for section in SETTINGS
    }
    return Experiment(config.name, method, seed=tree["seed"], **settings)


def settings_class(section: str) -> type:
    """Return the dataclass whose fields are a section's keys."""
    from neurotome.data.stores.batches import TrainingPlan
    from neurotome.training.fit import TrainerConfig
    from neurotome.training.optim import OptimizerConfig

    return {"data": TrainingPlan, "trainer": TrainerConfig, "optimizer": OptimizerConfig}[section]


def _tell_modalities(method: Any, modalities: tuple[str, ...]) -> None:
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
