"""A method small enough to be trained in every test, with all that makes a resume hard.

Batch statistics and a hand-kept buffer, augmentation from three generators, Muon with channels-last weights, averages.
Run as a module it is the process that the tests stop:
``python -m tests.training.toy_run RUN MAX_STEPS [SECONDS_PER_STEP]``.
"""

import os
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from neurotome.errors import NeurotomeError
from neurotome.training import Method, OptimizerConfig, TrainerConfig, fit
from neurotome.types import Batch

# of processes: the tests as a package, the code that is tested
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), *sys.path]))}


def batch(seed: int, size: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        image=torch.randn(size, 2, 1, 6, 6, 6, generator=generator),
        modality=torch.tensor([[0, 1]] * size),
        present=torch.ones(size, 2, dtype=torch.bool),
        subject=tuple(f"{seed:03d}{i}" for i in range(size)),
        session=("1",) * size,
        site=torch.zeros(size, dtype=torch.long),
    )


class ToyData(lightning.LightningDataModule):
    """Batches that are a function of the step."""

    def __init__(self, max_steps: int, bad_step: int | None = None) -> None:
        super().__init__()
        self.max_steps = max_steps
        self.bad_step = bad_step
        self.position = 0
        self.served: list[int] = []

    def __getitem__(self, step: int) -> Batch:
        self.served.append(step)
        made = batch(step)
        if step == self.bad_step:
            made.image[0, 0, 0, 0, 0, 0] = float("nan")
        return made

    def train_dataloader(self) -> DataLoader[Batch]:
        steps = range(self.position, self.max_steps)
        return DataLoader(self, batch_size=None, sampler=steps)  # type: ignore[arg-type]

    def val_dataloader(self) -> list[Batch]:
        return [batch(10_001), batch(10_002, size=1)]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.position = state_dict["position"]


class Toy(Method):
    def __init__(self, optimizer: OptimizerConfig | None = None, pause: float = 0.0) -> None:
        super().__init__(optimizer or OptimizerConfig(name="muon", lr=1e-2, weight_decay=0.01))
        torch.manual_seed(7)
        self.pause = pause
        self.net = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.SiLU(), nn.Conv3d(4, 4, 3, padding=1), nn.SiLU(),
            nn.Conv3d(4, 1, 1),
        ).to(memory_format=torch.channels_last_3d)  # fmt: skip
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def product(self):
        return self.net

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        time.sleep(self.pause)
        image, _ = batch.flat()
        shift = float(np.random.rand())  # noqa: NPY002 - the global generator must be resumed too
        noisy = image + random.random() * torch.randn_like(image) + shift
        error = self.net(noisy) - image
        terms = {"l2": error.square().mean(), "l1": error.abs().mean()}
        return {"loss": terms["l2"] + 0.1 * terms["l1"], **terms}

    def validate(self, batch: Batch) -> Mapping[str, float]:
        image, _ = batch.flat()
        self.seen += 100  # must not stay
        return {"error": float((self.net(image + torch.rand_like(image)) - image).abs().mean())}

    def finish_validation(self) -> Mapping[str, float]:
        return {"training": float(self.training)}

    def on_step(self) -> None:
        self.seen += 1

    def edge_parameters(self) -> tuple[str, ...]:
        return ("net.0", "net.5")


def toy_config(max_steps: int, **changes: object) -> TrainerConfig:
    values: dict[str, object] = {
        "device": "cpu", "threads": 1, "log_every_steps": 3, "val_every_steps": 7, "checkpoint_every_steps": 5,
        "ema_decay": 0.9, "quiet": True, **changes,
    }  # fmt: skip
    return TrainerConfig(max_steps=max_steps, **values)  # type: ignore[arg-type]


def main() -> int:
    run_dir, max_steps = Path(sys.argv[1]), int(sys.argv[2])
    pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    try:
        fit(Toy(pause=pause), ToyData(max_steps), run_dir, toy_config(max_steps))
    except NeurotomeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
