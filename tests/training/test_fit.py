import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from neurotome.errors import Interrupted, OutputError, UsageError
from neurotome.training import EMA, Diverged, Method, OptimizerConfig, TrainerConfig, fit
from neurotome.training import checkpoint as checkpoint_module
from neurotome.training.callbacks import validate
from neurotome.training.checkpoint import CheckpointFolder
from neurotome.types import Batch
from tests.training.toy_run import ENVIRONMENT, Toy, ToyData, batch, toy_config

STEPS = 23
CLOCKS = ("seconds", "steps_per_s")


@pytest.fixture(autouse=True)
def _generators() -> Iterator[None]:
    state = checkpoint_module.random_state()
    yield
    checkpoint_module.set_random_state(state)


def train(
    run: Path, steps: int = STEPS, data: ToyData | None = None, method: Method | None = None, **changes: Any
) -> Any:
    return fit(method or Toy(), data or ToyData(steps), run, toy_config(steps, **changes))


def tensors(run: Path) -> dict[str, Tensor]:
    """Return all that the last checkpoint holds: weights, buffers, averages, optimiser, generators, journal."""
    newest = CheckpointFolder(run / "checkpoints").all()[-1]
    return checkpoint_module.load_file(newest / "tensors.safetensors")


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCKS} for line in lines]


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


def assert_same_end(run: Path, reference: Path) -> None:
    mine, theirs = tensors(run), tensors(reference)
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different
    for part in ("state_dict/net", "state_dict/seen", "optimizer_states", "averages", "generators/numpy", "momentum"):
        assert any(part in name for name in mine), part
    assert rows(run) == rows(reference)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was never stopped."""
    run = tmp_path_factory.mktemp("whole")
    data = ToyData(STEPS)
    train(run, data=data)
    assert data.served == list(range(STEPS))
    return run


def test_files_of_a_run(whole: Path) -> None:
    assert status(whole).items() >= {"state": "finished", "step": STEPS, "max_steps": STEPS, "message": ""}.items()
    assert status(whole)["peak_rss_mb"] > 50
    environment = json.loads((whole / "environment.json").read_text())
    assert environment.items() >= {"seed": 0, "threads": 1, "device": "cpu"}.items()
    assert environment["versions"]["torch"] == torch.__version__
    assert str(Path.home()) not in (whole / "environment.json").read_text()
    assert yaml.safe_load((whole / "config.yaml").read_text())["trainer"]["max_steps"] == STEPS
    assert [p.name for p in CheckpointFolder(whole / "checkpoints").all()] == ["step-00000020", "step-00000023"]
    assert len(list((whole / "events").glob("events.out.tfevents.*"))) == 1
    table = rows(whole)
    assert [r["step"] for r in table if "train/loss" in r] == [3, 6, 9, 12, 15, 18, 21, 23]
    assert [r["step"] for r in table if "val/error" in r] == [7, 14, 21, 23]
    assert set(table[0]) == {"step", "train/loss", "train/l1", "train/l2", "train/grad_norm", "lr", "muon_lr"}
    assert all(r["val/training"] == 0 for r in table if "val/error" in r)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_process_resumes_bit_by_bit(number: signal.Signals, tmp_path: Path, whole: Path) -> None:
    command = [sys.executable, "-m", "tests.training.toy_run", str(tmp_path / "run"), str(STEPS), "0.1"]
    process = subprocess.Popen(command, env=ENVIRONMENT)
    deadline, log = time.monotonic() + 120, tmp_path / "run" / "metrics.jsonl"
    while not log.exists() or '"step": 6' not in log.read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(random.Random(os.getpid()).uniform(0, 0.8))
    process.send_signal(number)
    code = process.wait(60)
    if number is signal.SIGTERM:
        assert code == 75
        stopped = status(tmp_path / "run")
        assert stopped["state"] == "interrupted"
        assert "run the same command again" in stopped["message"]
        assert CheckpointFolder(tmp_path / "run/checkpoints").all()[-1].name == f"step-{stopped['step']:08d}"
    data = ToyData(STEPS)
    result = train(tmp_path / "run", data=data)
    assert result.resumed_from == data.served[0] > 0
    assert_same_end(tmp_path / "run", whole)


class Stopper(Toy):
    """Sends itself a signal at a step, in the loss or in validation."""

    def __init__(self, step: int, where: str, number: signal.Signals = signal.SIGTERM) -> None:
        super().__init__()
        self.at, self.where, self.number = step, where, number

    def _stop(self, where: str, step: int) -> None:
        if where == self.where and step == self.at:
            os.kill(os.getpid(), self.number)
            os.kill(os.getpid(), self.number)  # an impatient user

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        self._stop("loss", self.step + 1)
        return super().loss(batch)

    def validate(self, batch: Batch) -> Any:
        self._stop("validate", self.step)
        return super().validate(batch)


@pytest.mark.parametrize(
    ("step", "where", "number"),
    [(1, "loss", signal.SIGTERM), (10, "loss", signal.SIGINT), (14, "validate", signal.SIGINT),
     (15, "loss", signal.SIGTERM), (22, "loss", signal.SIGTERM), (STEPS, "validate", signal.SIGTERM)],
)  # fmt: skip
def test_a_signal_at_any_place(step: int, where: str, number: signal.Signals, tmp_path: Path, whole: Path) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"{number.name} stopped the training after step {step}"):
        train(tmp_path, method=Stopper(step, where, number))
    assert signal.getsignal(number) is before
    assert status(tmp_path)["step"] == step
    result = train(tmp_path)
    assert result.resumed_from == step
    assert status(tmp_path)["state"] == "finished"
    if step < STEPS:
        assert_same_end(tmp_path, whole)
    assert rows(tmp_path) == rows(whole)


def test_a_validation_that_two_starts_do_not_finish_is_made_by_the_third(tmp_path: Path, whole: Path) -> None:
    for _ in range(2):
        with pytest.raises(Interrupted, match="stopped the training after step 14"):
            train(tmp_path, method=Stopper(14, "validate"))
    assert train(tmp_path).resumed_from == 14
    assert_same_end(tmp_path, whole)


def test_a_signal_during_the_last_step_finishes_the_run(tmp_path: Path, whole: Path) -> None:
    result = train(tmp_path, method=Stopper(STEPS, "loss"), val_every_steps=None)
    assert result.step == STEPS
    assert status(tmp_path)["state"] == "finished"


def test_how_often_a_run_is_validated_and_saved_does_not_change_it(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint_module.save_file

    def draws(*args: Any) -> None:  # as a library underneath may
        random.random()
        torch.rand(())
        real(*args)

    monkeypatch.setattr(checkpoint_module, "save_file", draws)
    train(tmp_path, val_every_steps=None, checkpoint_every_steps=4, log_every_steps=23)
    mine, theirs = tensors(tmp_path), tensors(whole)
    assert all(torch.equal(mine[k], theirs[k]) for k in mine if "journal" not in k)
    assert int(mine["state_dict/seen"]) == STEPS


def test_a_finished_run_is_left_alone_and_loaded(tmp_path: Path) -> None:
    first = train(tmp_path)
    log, checkpoints = (tmp_path / "metrics.jsonl").read_bytes(), list((tmp_path / "checkpoints").iterdir())
    method, data = Toy(), ToyData(STEPS)
    torch.nn.init.zeros_(method.net[0].weight)
    again = train(tmp_path, method=method, data=data)
    assert again.already_finished
    assert "already finished at step 23: nothing to train" in again.message
    assert data.served == []
    assert (tmp_path / "metrics.jsonl").read_bytes() == log
    assert list((tmp_path / "checkpoints").iterdir()) == checkpoints
    assert method.step == STEPS
    stored = tensors(tmp_path)
    assert torch.equal(method.net[0].weight, stored["state_dict/net.0.weight"])
    with again.averaged():
        averaged = method.net[0].weight.detach().clone()
    assert not torch.equal(averaged, method.net[0].weight)
    assert again.validation == first.validation != {}


def test_averages_have_the_live_buffers(tmp_path: Path) -> None:
    method = Toy()
    result = train(tmp_path, 6, method=method)
    buffers = {k: v.clone() for k, v in method.named_buffers()}
    assert buffers["net.1.num_batches_tracked"] == 6
    with result.averaged():
        assert all(torch.equal(v, buffers[k]) for k, v in method.named_buffers())


def test_another_configuration_or_other_data_is_refused_with_the_keys(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, method=Stopper(4, "loss"))
    with pytest.raises(UsageError, match=r"trainer\.ema_decay: 0\.9 -> 0\.5; trainer\.max_steps: 23 -> 40") as refused:
        train(tmp_path, 40, ema_decay=0.5, keep=9, log_every_steps=1)
    assert "keep" not in str(refused.value)
    assert status(tmp_path)["state"] == "interrupted"
    other = ToyData(STEPS)
    other.fingerprint = "abc"  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="trained on other data"):
        train(tmp_path, data=other)
    assert train(tmp_path, keep=3).resumed_from == 4


def test_the_caller_s_text_is_the_configuration(tmp_path: Path) -> None:
    text = "method:\n  class: Toy\n  width: 4\n"
    fit(Toy(), ToyData(2), tmp_path, toy_config(2), config_text=text)
    assert (tmp_path / "config.yaml").read_text() == text
    with pytest.raises(UsageError, match=r"method\.width: 4 -> 5"):
        fit(Toy(), ToyData(2), tmp_path, toy_config(2), config_text=text.replace("4", "5"))


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(tmp_path: Path, clip: float | None) -> None:
    method = Toy(OptimizerConfig(clip=clip))
    with pytest.raises(Diverged, match=r"step 7 of 23 .*0060, 0061.*neurotome check"):
        train(tmp_path, method=method, data=ToyData(STEPS, bad_step=6))
    assert status(tmp_path)["state"] == "failed"
    assert "0060" in status(tmp_path)["message"]
    assert all(torch.isfinite(p).all() for p in method.parameters())
    assert CheckpointFolder(tmp_path / "checkpoints").newest_good() is not None


def test_a_gradient_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    class Root(Toy):
        def loss(self, batch: Batch) -> dict[str, Tensor]:
            return {"loss": (self.net[5].bias * 0).abs().sqrt().sum()}

    method = Root()
    with pytest.raises(Diverged, match="the gradient is not finite at step 1"):
        train(tmp_path, method=method)
    assert all(torch.isfinite(p).all() for p in method.parameters())


def test_a_full_disk_during_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    real, saves = checkpoint_module.save_file, count(1)

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        if next(saves) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(OutputError, match=r"step-00000010.*No space left.*earlier checkpoints are intact"):
        train(tmp_path)
    assert status(tmp_path)["state"] == "failed"
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    monkeypatch.undo()
    assert train(tmp_path).resumed_from == 5
    assert_same_end(tmp_path, whole)


def test_a_damaged_newest_checkpoint_costs_only_its_steps(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, method=Stopper(13, "loss"))
    file = tmp_path / "checkpoints/step-00000013/tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with (tmp_path / "metrics.jsonl").open("a") as torn:
        torn.write('{"step": 15, "trai')
    with pytest.warns(UserWarning, match="step-00000013"):
        assert train(tmp_path).resumed_from == 10
    assert_same_end(tmp_path, whole)


def test_no_pickle_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("pickle")

    for module, name in ((torch, "save"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    import pickle

    for name in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(pickle, name, refuse)
    with pytest.raises(Interrupted):
        train(tmp_path, method=Stopper(4, "loss"))
    assert train(tmp_path).step == STEPS


def test_two_processes_never_train_into_one_folder(tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another process is training"):
            train(tmp_path)


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/run: cannot be written"):
        train(tmp_path / "file" / "run")


def test_data_that_ends_early_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended after 4 of 23"):
        train(tmp_path, data=ToyData(4))


@pytest.mark.parametrize(
    "change",
    [{"max_steps": 0}, {"log_every_steps": 0}, {"threads": 0}, {"seed": -1}, {"precision": "16"}, {"device": "tpu"}],
)
def test_a_value_out_of_range_is_named(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(change))} is"):
        TrainerConfig(**{"max_steps": 5, **change})


def test_bf16_keeps_single_precision_weights(tmp_path: Path) -> None:
    class Watch(Toy):
        def loss(self, batch: Batch) -> dict[str, Tensor]:
            self.seen_dtype = self.net[0](batch.flat()[0]).dtype
            return super().loss(batch)

    method = Watch()
    train(tmp_path, 3, method=method, precision="bf16-mixed")
    assert method.seen_dtype == torch.bfloat16
    assert {p.dtype for p in method.parameters()} == {torch.float32}


class Sizes(Method):
    """Two validation batches of 2 and 1 sessions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)
        self.net.eval()
        self.register_buffer("mark", torch.zeros(1))

    def product(self):
        return self.net

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.net.weight.sum()}

    def validate(self, batch: Batch) -> dict[str, float | Tensor]:
        self.mark += 1
        values: dict[str, float | Tensor] = {
            "size": torch.tensor(float(len(batch.subject))),
            "draw": torch.rand(()).item(),
        }
        return values | ({"rare": 5.0} if len(batch.subject) == 1 else {})

    def finish_validation(self) -> dict[str, float | Tensor]:
        return {"batches": self.mark}


def test_validation_weighs_sessions_and_leaves_no_trace() -> None:
    method = Sizes()
    state = torch.get_rng_state()
    batches = [batch(1), batch(2, size=1)]
    means = validate(method, batches, EMA({"net": method.net}, 0.5), seed=3)
    assert means is not None
    assert means["val/size"] == pytest.approx(5 / 3)
    assert means["val/rare"] == 5.0
    assert means["val/batches"] == 2
    assert validate(method, batches, None, seed=3) == means
    assert torch.equal(torch.get_rng_state(), state)
    assert float(method.mark) == 0
    assert method.training
    assert not method.net.training


def test_progress_says_steps_loss_rate_and_is_silent_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("neurotome.files.progress._SECONDS_BETWEEN_LINES", 0.0)
    train(tmp_path / "shown", 3, quiet=False)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" (loss ")[0] for line in lines] == [f"trained {step} of 3" for step in (1, 2, 3)]
    assert re.fullmatch(r"trained 3 of 3 \(loss \d\.\d{4}, lr \d\.\de-\d\d, \d+\.\d steps/s\)", lines[2])
    train(tmp_path / "quiet", 3, quiet=True)
    assert capsys.readouterr().err == ""
