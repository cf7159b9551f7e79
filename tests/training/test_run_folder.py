"""What a run folder refuses, keeps and sweeps; nothing is trained here."""

import errno
import json
from pathlib import Path

import pytest

from neurotome.errors import InputError, UsageError
from neurotome.training.run_folder import RunFolder

CONFIG = "method: {class_path: Toy}\ntrainer: {max_steps: 4, keep: 2}\n"
SOURCE = {"model": "a" * 64, "network": "Toy", "training_subjects": {"salt": "s", "sha256": []}, "before": []}


def test_a_file_that_may_not_be_read_is_not_taken_for_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.start({"seed": 1})
    before = (tmp_path / "environment.json").read_bytes()
    for number in (errno.EACCES, errno.EMFILE, errno.ESTALE, errno.EIO):
        with monkeypatch.context() as patch:

            def refuse(self: Path, *args: object, number: int = number, **kwargs: object) -> str:
                raise OSError(number, "refused", str(self))

            patch.setattr(Path, "read_text", refuse)
            with pytest.raises(InputError, match=r"environment\.json: cannot be read"):
                folder.start({"seed": 2})
            with pytest.raises(InputError, match=r"config\.yaml: cannot be read"):
                folder.claim(CONFIG)
    assert (tmp_path / "environment.json").read_bytes() == before


def test_leftovers_of_a_stopped_write_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".neurotome-0123.tmp").write_text("half a config")
    (tmp_path / ".neurotome-4567.tmp").mkdir()
    RunFolder(tmp_path).claim(CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_what_a_run_started_from_must_be_what_it_is_resumed_with(tmp_path: Path) -> None:
    plain, tuned = RunFolder(tmp_path / "plain"), RunFolder(tmp_path / "tuned")
    plain.claim(CONFIG)
    with pytest.raises(UsageError, match="started from freshly drawn weights, not from the model of --init-from"):
        plain.claim(CONFIG, SOURCE)
    tuned.claim(CONFIG, SOURCE)
    tuned.claim(CONFIG, SOURCE)
    assert tuned.read_json("origin.json") == SOURCE
    with pytest.raises(UsageError, match="started from model aaaaaaaaaaaa, not"):
        tuned.claim(CONFIG, {**SOURCE, "model": "b" * 64})
    with pytest.raises(UsageError, match="no checkpoint yet; give the same --init-from again"):
        tuned.claim(CONFIG)
    (tuned.root / "checkpoints" / "step-00000002").mkdir(parents=True)
    tuned.claim(CONFIG)  # the weights are in the checkpoint, the origin in the folder
    assert tuned.read_json("origin.json") == SOURCE


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": 3}', "null", "\udcff"])
def test_a_damaged_origin_is_no_missing_one(tmp_path: Path, content: str) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(CONFIG, SOURCE)
    (tmp_path / "origin.json").write_text(content, errors="surrogateescape")
    (tmp_path / "checkpoints" / "step-00000002").mkdir(parents=True)
    for given in (None, SOURCE):
        with pytest.raises(InputError, match=r"origin\.json: does not say what the run started from.*Remedy: restore"):
            folder.claim(CONFIG, given)
    assert (tmp_path / "origin.json").read_text(errors="surrogateescape") == content


def test_a_run_is_extended_by_steps_and_by_nothing_else(tmp_path: Path) -> None:
    more = CONFIG.replace("4", "9")
    for place in (tmp_path, tmp_path / "mistyped", tmp_path / "mistyped" / "deeper"):
        with pytest.raises(UsageError, match="holds no run to extend"):
            RunFolder(place, extend=True)
    assert not list(tmp_path.iterdir())
    folder = RunFolder(tmp_path)
    folder.claim(CONFIG)
    folder.status("finished", 4, 4, 1.0)
    with pytest.raises(UsageError, match=r"trainer\.max_steps: 4 -> 9"):
        folder.claim(more)
    with pytest.raises(UsageError, match="has 4 steps; --extend-to 3 is not more"):
        folder.claim(CONFIG.replace("4", "3"), extend=True)
    with pytest.raises(UsageError, match=r"method\.class_path"):
        folder.claim(more.replace("Toy", "Other"), extend=True)
    assert (tmp_path / "config.yaml").read_text() == CONFIG
    folder.claim(more, extend=True)
    folder.claim(more, extend=True)  # the same command again resumes
    assert (tmp_path / "config.yaml").read_text() == more
    assert json.loads((tmp_path / "status.json").read_text())["exported"] == 4  # the model folder is of fewer steps
    folder.status("running", 5, 9, 1.0)
    assert json.loads((tmp_path / "status.json").read_text())["exported"] == 4


@pytest.mark.parametrize(
    ("old", "new", "refusal"),
    [
        ("{a: 1}", "{a: 1, tissue_above: null}", None),  # of a later version, not used
        ("{a: 1, gone: null}", "{a: 1}", None),
        ("{a: 1}", "{a: 1, b: {c: null, keep: 3}}", None),
        ("{a: 1}", "{a: 1, b: {c: 0}}", r"other keys \(m\.b\.c: not there -> 0\).*another version.*another --out"),
        ("{a: 1, gone: x}", "{a: 1, fresh: 2}", r"other keys \(m\.fresh: not there -> 2; m\.gone: 'x' -> not there\)"),
        (
            "{a: 1}",
            "{a: 2, b: 0}",
            r"another configuration \(m\.a: 1 -> 2; m\.b: not there -> 0\): give the same values",
        ),
        ("{a: null}", "{a: 1}", r"another configuration \(m\.a: None -> 1\)"),
    ],
)
def test_keys_of_another_version_are_said_to_be_some(tmp_path: Path, old: str, new: str, refusal: str | None) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(f"m: {old}\n")
    if refusal is None:
        folder.claim(f"m: {new}\n")
        assert (tmp_path / "config.yaml").read_text() == f"m: {new}\n"
        return
    with pytest.raises(UsageError, match=refusal):
        folder.claim(f"m: {new}\n")
    assert (tmp_path / "config.yaml").read_text() == f"m: {old}\n"
