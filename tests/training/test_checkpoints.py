import contextlib
import errno
import json
import math
import os
import random
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neurotome.errors import InputError, OutputError
from neurotome.training import checkpoint as module
from neurotome.training.checkpoint import (
    CheckpointFolder,
    decode,
    encode,
    random_state,
    seed_generators,
    set_random_state,
    verify,
)

STATE: dict[str, Any] = {
    "state_dict": OrderedDict(weight=torch.arange(6.0).reshape(2, 3), half=torch.ones(3, dtype=torch.bfloat16)),
    "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}, 1: {}}, "groups": [{"betas": (0.9, 0.95)}]}],
    "numbers": {"nan": math.nan, "inf": -math.inf, "big": 2**70, "third": 1 / 3, "none": None, "yes": True},
    "strange keys": {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, "~1": 1, "0": torch.zeros(2), 0: torch.ones(2)},
    "tag": {"__tensor__": "not one"},
    "empty": [torch.zeros(0), torch.zeros(0, 3), {}, [], ()],
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def test_everything_comes_back(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save_checkpoint(STATE, folder.path(7))
    assert {p.name for p in folder.path(7).iterdir()} == {"tensors.safetensors", "state.json", "SHA256SUMS"}
    assert same(folder.load_checkpoint(folder.path(7)), STATE)
    json.loads((folder.path(7) / "state.json").read_text(), parse_constant=pytest.fail)  # plain JSON, no NaN


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = st.text() | st.integers() | st.sampled_from(["__tensor__", "__items__", "__tuple__", "~i0", "a/b", "0"])


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        leaves | st.builds(torch.tensor, st.floats(width=32)),
        lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner),
    )
)
def test_any_nested_state_comes_back_through_json(state: Any) -> None:
    tensors: dict[str, Tensor] = {}
    text = json.dumps(encode(state, "", tensors), allow_nan=False)

    def alike(a: Any, b: Any) -> bool:  # NaN equals NaN here
        if isinstance(a, Tensor):
            return torch.equal(torch.nan_to_num(a, 5.0), torch.nan_to_num(b, 5.0))
        if isinstance(a, dict):
            return list(a) == list(b) and all(alike(a[k], b[k]) for k in a)
        if isinstance(a, list | tuple):
            return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
        return same(a, b)

    assert alike(decode(json.loads(text), tensors), state)


@pytest.mark.parametrize(
    ("value", "path"),
    [({"a": [0, {"b": object()}]}, "a/~i1/b is a object"), ({"x": np.float64(1)}, "x is a float64"),
     ({"x": Path()}, "x is a"), ({"x": {1.5: 0}}, "key 1.5 at x"), ({"x": {True: 0}}, "key True at x"),
     ({"x": torch.float32}, "x is a dtype")],
)  # fmt: skip
def test_anything_else_is_refused_by_its_path(value: Any, path: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=path):
        CheckpointFolder(tmp_path).save_checkpoint(value, tmp_path / "step-00000001")
    assert not list(tmp_path.iterdir())


def test_shared_views_and_layouts_are_stored(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    state = {"a": base, "b": base, "c": base[:3], "d": base.reshape(3, 4).T, "e": torch.ones(1).expand(5)}
    folder = CheckpointFolder(tmp_path)
    folder.save_checkpoint(state, folder.path(1))
    assert same(folder.load_checkpoint(folder.path(1)), state)
    assert (folder.path(1) / "tensors.safetensors").stat().st_size < 1000


def test_only_the_newest_stay(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    for step in (5, 10, 100_000_000, 15):
        folder.save_checkpoint({"step": step}, folder.path(step))
    assert [p.name for p in folder.all()] == ["step-00000015", "step-100000000"]


def test_the_old_one_goes_only_after_the_new_one_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save_checkpoint({"step": 1}, folder.path(1))

    def refuse(path: Path) -> None:
        raise InputError("does not agree", file=path)

    monkeypatch.setattr(module, "verify", refuse)
    with pytest.raises(OutputError):
        folder.save_checkpoint({"step": 2}, folder.path(2))
    monkeypatch.undo()
    assert folder.load_checkpoint(folder.path(1)) == {"step": 1}


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it is done, no handler of ours must catch it."""


def count_calls(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> list[int]:
    """Raise ``error`` at the ``at``-th of the system calls that a save makes."""
    calls = [0]

    def guard(real: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                if isinstance(error, Killed):
                    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
                raise error
            return real(*args, **kwargs)

        return wrapped

    for name in ("replace", "rename", "mkdir", "write_text"):
        monkeypatch.setattr(Path, name, guard(getattr(Path, name)))
    monkeypatch.setattr(os, "fsync", guard(os.fsync))
    monkeypatch.setattr(module, "save_file", guard(module.save_file))
    return calls


def calls_of_one_save(tmp_path: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        calls = count_calls(patch, 0, Killed())
        folder = CheckpointFolder(tmp_path / "count", keep=1)
        for step in (1, 2):
            calls[0] = 0
            folder.save_checkpoint(STATE, folder.path(step))
        return calls[0]


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_fault_at_any_call_leaves_a_good_checkpoint(tmp_path: Path, error: BaseException) -> None:
    number = calls_of_one_save(tmp_path)
    assert number >= 9  # mkdir, tensors, two texts, five flushes, renames
    for at in range(1, number + 1):
        folder = CheckpointFolder(tmp_path / f"at{at}", keep=1)
        folder.save_checkpoint({**STATE, "step": 1}, folder.path(1))
        with pytest.MonkeyPatch.context() as patch:
            count_calls(patch, at, error)
            with contextlib.suppress(Killed, OutputError):
                folder.save_checkpoint({**STATE, "step": 2}, folder.path(2))
        again = CheckpointFolder(folder.root, keep=1)
        again.sweep()
        newest = again.newest_good()
        assert newest is not None
        assert again.load_checkpoint(newest)["step"] in (1, 2)
        assert all(p.name.startswith("step-") for p in folder.root.iterdir())
        if isinstance(error, OSError) and newest == folder.path(1):
            again.save_checkpoint({**STATE, "step": 2}, again.path(2))  # and space was found
            assert again.newest_good() == again.path(2)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_newest_is_set_aside_and_named(tmp_path: Path, name: str, damage: str) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (1, 2):
        folder.save_checkpoint({**STATE, "step": step}, folder.path(step))
    file = folder.path(2) / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-3])
    else:
        file.unlink()
    with pytest.raises(InputError):
        verify(folder.path(2))
    with pytest.raises(InputError, match="step-00000002"):
        folder.load_checkpoint(folder.path(2))
    with pytest.warns(UserWarning, match="step-00000002.*set aside"):
        assert folder.newest_good() == folder.path(1)
    folder.save_checkpoint({"step": 2}, folder.path(2))  # the damaged one does not count among those kept
    assert folder.all() == [folder.path(1), folder.path(2)]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ESTALE, errno.EIO])
def test_one_that_may_not_be_read_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2):
        folder.save_checkpoint({**STATE, "step": step}, folder.path(step))
    real = Path.open

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == "tensors.safetensors":
            raise OSError(number, os.strerror(number), str(self))
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(InputError, match=f"step-00000002.*cannot be read .{os.strerror(number)}.*nothing was"):
            folder.newest_good()
        with pytest.raises(InputError, match="cannot be read"):
            folder.load_checkpoint(folder.path(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    assert folder.newest_good() == folder.path(2)


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_files_have_the_rights_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        CheckpointFolder(tmp_path).save_checkpoint(STATE, tmp_path / "step-00000001")
    finally:
        os.umask(before)
    rights = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "step-00000001").iterdir()}
    assert rights == dict.fromkeys(("tensors.safetensors", "state.json", "SHA256SUMS"), 0o666 & ~mask)


def test_no_good_checkpoint_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    assert folder.newest_good() is None
    folder.save_checkpoint({}, folder.path(1))
    (folder.path(1) / "state.json").unlink()
    with pytest.warns(UserWarning, match="set aside"), pytest.raises(InputError, match="every checkpoint"):
        folder.newest_good()
    with pytest.raises(InputError, match="every checkpoint"):  # nor is the second start a fresh one
        folder.newest_good()


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path)
    monkeypatch.setattr(module, "FORMAT_VERSION", module.FORMAT_VERSION + 1)
    folder.save_checkpoint({}, folder.path(1))
    monkeypatch.undo()
    with pytest.raises(
        InputError, match=f"has format {module.FORMAT_VERSION + 1}, this version reads {module.FORMAT_VERSION}"
    ):
        folder.load_checkpoint(folder.path(1))


def test_generators_continue_after_a_round_trip_through_a_file(tmp_path: Path) -> None:
    def draws() -> list[float]:
        numpy = [np.random.randn(), np.random.rand()]  # noqa: NPY002 - the global generator is what is stored
        return [random.gauss(0, 1), random.random(), *numpy, float(torch.rand(()))]

    before = random_state()
    try:
        seed_generators(5)
        draws()  # leaves half a pair of normal deviates behind in python's and numpy's generators
        folder = CheckpointFolder(tmp_path)
        state = random_state()
        expected = draws()
        folder.save_checkpoint(state, folder.path(1))
        seed_generators(6)
        set_random_state(folder.load_checkpoint(folder.path(1)))
        assert draws() == expected
    finally:
        set_random_state(before)
