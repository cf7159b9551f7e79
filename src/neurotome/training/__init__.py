"""The training floor: the contract of a method, optimisers, averages, checkpoints, and the run itself."""

from neurotome.training.averages import EMA
from neurotome.training.base import Diverged, Method
from neurotome.training.fit import FitResult, TrainerConfig, fit
from neurotome.training.optim import MuonAdamW, OptimizerConfig, Schedule, build_optimizer, orthogonalise

__all__ = [
    "EMA",
    "Diverged",
    "FitResult",
    "Method",
    "MuonAdamW",
    "OptimizerConfig",
    "Schedule",
    "TrainerConfig",
    "build_optimizer",
    "fit",
    "orthogonalise",
]
