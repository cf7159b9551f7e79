"""Runs that get more steps, weights that are not finite, loader processes that are killed or stopped."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from neurotome.data.stores.loaders import CarriedErrors
from neurotome.errors import InputError, UsageError
from neurotome.files.pool import WorkerKilled
from neurotome.training import Diverged, Method, OptimizerConfig, fit
from neurotome.training.checkpoint import CheckpointFolder, load_file
from neurotome.types import Batch
from tests.training.toy_run import Toy, ToyData, toy_config

STEADY = OptimizerConfig(name="muon", lr=1e-2, weight_decay=0.01, schedule="constant", warmup_fraction=0.0)


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = CheckpointFolder(run / "checkpoints").newest_good()
    assert newest is not None
    return load_file(newest / "tensors.safetensors")


def test_an_extended_run_is_the_longer_run(tmp_path: Path) -> None:
    """With rates that do not depend on the number of steps, to the last bit."""
    fit(Toy(STEADY), ToyData(13), tmp_path / "long", toy_config(13))
    fit(Toy(STEADY), ToyData(6), tmp_path / "run", toy_config(6))
    with pytest.raises(UsageError, match=r"trainer\.max_steps: 6 -> 13"):
        fit(Toy(STEADY), ToyData(13), tmp_path / "run", toy_config(13))
    result = fit(Toy(STEADY), ToyData(13), tmp_path / "run", toy_config(13), extend=True)
    assert (result.step, result.resumed_from, result.already_finished) == (13, 6, False)
    long, extended = weights(tmp_path / "long"), weights(tmp_path / "run")
    logged = ("journal", "validation")  # the row of step 6 starts a new mean
    assert not [k for k in long if not any(w in k for w in logged) and not torch.equal(long[k], extended[k])]
    assert fit(Toy(STEADY), ToyData(13), tmp_path / "run", toy_config(13), extend=True).already_finished


@pytest.mark.parametrize("steps", [6, 9])
def test_a_start_that_is_refused_leaves_the_run_as_it_was(tmp_path: Path, steps: int) -> None:
    """Other data, other weights, an extension with either: not even the status changes."""
    fit(Toy(), ToyData(6), tmp_path, toy_config(6))
    (tmp_path / ".neurotome-left.tmp").write_text("of a stopped write")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    other = ToyData(steps)
    other.fingerprint = "abc"  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="trained on other data"):
        fit(Toy(), other, tmp_path, toy_config(steps), extend=True)
    with pytest.raises(UsageError, match=r"trainer\.ema_decay"):
        fit(Toy(), ToyData(steps), tmp_path, toy_config(steps, ema_decay=0.5), extend=True)
    with pytest.raises(UsageError, match="freshly drawn weights"):
        fit(Toy(), ToyData(steps), tmp_path, toy_config(steps), origin={"model": "a" * 64}, extend=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    result = fit(Toy(), ToyData(steps), tmp_path, toy_config(steps), extend=True)
    assert (result.step, result.already_finished) == (steps, steps == 6)


@pytest.mark.parametrize("steps", [6, 9])
def test_what_a_run_started_from_is_not_forgotten(tmp_path: Path, steps: int) -> None:
    """The subjects that the weights have seen stand in origin.json alone; every checkpoint knows its digest."""
    source = {"model": "a" * 64, "training_subjects": {"sha256": ["b"]}}
    fit(Toy(), ToyData(6), tmp_path / "plain", toy_config(6))
    fit(Toy(), ToyData(6), tmp_path, toy_config(6), origin=source)
    file, status = tmp_path / "origin.json", (tmp_path / "status.json").read_bytes()
    text, fewer = file.read_text(), json.dumps({**source, "training_subjects": {"sha256": []}})
    for content, reason in ((None, "is missing"), (fewer, "is not the file"), ("{", "does not say")):
        file.unlink()
        if content is not None:
            file.write_text(content)
        with pytest.raises(InputError, match=rf"origin\.json: {reason}"):
            fit(Toy(), ToyData(steps), tmp_path, toy_config(steps), extend=True)
        assert (tmp_path / "status.json").read_bytes() == status
        file.write_text(text)
    assert fit(Toy(), ToyData(steps), tmp_path, toy_config(steps), extend=True).step == steps
    (tmp_path / "plain" / "origin.json").write_text(text)
    with pytest.raises(InputError, match="is not the file that the run began with"):
        fit(Toy(), ToyData(6), tmp_path / "plain", toy_config(6))


def test_a_start_that_fails_before_its_first_step_leaves_the_status(tmp_path: Path) -> None:
    class Broken(ToyData):
        def setup(self, stage: str | None = None) -> None:
            raise InputError("the store is gone")

    with pytest.raises(InputError, match="gone"):
        fit(Toy(), Broken(6), tmp_path / "new", toy_config(6))
    assert json.loads((tmp_path / "new" / "status.json").read_text())["state"] == "failed"
    fit(Toy(), ToyData(6), tmp_path, toy_config(6))
    before = (tmp_path / "status.json").read_bytes()
    with pytest.raises(InputError, match="gone"):
        fit(Toy(), Broken(9), tmp_path, toy_config(9), extend=True)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status == {**json.loads(before), "exported": 6}


def poison(at: int, place: Callable[[Method], torch.Tensor]) -> Method:
    class Poisoned(Toy):
        def on_step(self) -> None:
            super().on_step()
            if self.step == at:
                with torch.no_grad():
                    place(self).view(-1)[0] = float("nan")

        def _must_check(self, value: torch.Tensor) -> bool:
            return False  # as between two rows of the log on an accelerator

        def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {"loss": torch.nan_to_num(super().loss(batch)["loss"])}

    return Poisoned()


@pytest.mark.parametrize(
    ("place", "name"),
    [(lambda m: m.net[0].weight, "net.0.weight"), (lambda m: m.net[1].running_mean, "net.1.running_mean"),
     (lambda m: next(s["exp_avg"] for s in m.optimizers().optimizer.state.values() if "exp_avg" in s), "exp_avg")],
)  # fmt: skip
def test_no_checkpoint_is_made_of_what_is_not_finite(tmp_path: Path, place: Any, name: str) -> None:
    with pytest.raises(Diverged, match=f"{name}.* is not finite at step 10 of 23.*lower the learning rate"):
        fit(poison(10, place), ToyData(23), tmp_path, toy_config(23, val_every_steps=None))
    assert all(torch.isfinite(v).all() for v in weights(tmp_path).values() if v.is_floating_point())
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"
    assert fit(Toy(), ToyData(23), tmp_path, toy_config(23, val_every_steps=None)).resumed_from == 5


class Loaded(ToyData):
    """Batches by a process of their own, which something befalls at step 3."""

    def __init__(self, what: Callable[[], None]) -> None:
        super().__init__(8)
        self.what = what

    def __getitem__(self, step: int) -> Batch:
        if step == 3:
            self.what()
        return super().__getitem__(step)

    def subjects(self, step: int) -> tuple[str, ...]:
        return (f"{step:03d}0",)

    def train_dataloader(self) -> DataLoader[Batch]:
        steps: Any = range(self.position, self.max_steps)
        return DataLoader(CarriedErrors(self), None, sampler=steps, num_workers=1, prefetch_factor=1, timeout=2)


def refuse() -> None:
    raise InputError("its bytes have changed", file="store/entry", remedy="prepare it again")


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [(lambda: os.kill(os.getpid(), signal.SIGKILL), WorkerKilled, r"was killed.*subjects 00[0-3]0.*fewer --workers"),
     (lambda: os.kill(os.getpid(), signal.SIGSTOP), WorkerKilled, r"made no batch in time.*step 4 .subjects 0030"),
     (refuse, InputError, r"^store/entry: its bytes have changed\. Remedy: prepare it again\.$")],
)  # fmt: skip
def test_what_befalls_a_loader_is_said_with_its_subject(tmp_path: Path, what: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        fit(Toy(), Loaded(what), tmp_path, toy_config(8, checkpoint_every_steps=1, keep=9))
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"
    assert fit(Toy(), ToyData(8), tmp_path, toy_config(8)).step == 8


def test_time_and_memory_are_said_once_after_the_first_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(Toy(), ToyData(12), tmp_path / "shown", toy_config(12, quiet=False))
    said = [line for line in capsys.readouterr().err.splitlines() if " s a step: about " in line]
    assert len(said) == 1
    assert "for the 6 steps that are left" in said[0]
    assert "memory so far" in said[0]
