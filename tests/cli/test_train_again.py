"""Runs that are begun again, extended, started from a model, overwritten, or stopped in between."""

import json
import shutil
from pathlib import Path

import pytest

from neurotome.cli.main import main
from neurotome.errors import UsageError
from neurotome.experiments import train as train_module
from neurotome.files import atomic
from neurotome.training.run_folder import RunFolder
from tests import toy
from tests.cli.toy_training import train
from tests.toy import names

pytestmark = pytest.mark.usefixtures("toys")
VQ = """method:
  class_path: TokenizerTraining
  init_args:
    tokenizer:
      class_path: VQVAE
      init_args:
        channels: [4]
        num_res_blocks: 1
        quantizer: {class_path: EMAQuantizer, init_args: {num_codes: 8, dim: 4, start_after: 2, reservoir: 64}}
data: {batch_sessions: 2, crop: 8, whole_fraction: 0.0}
trainer: {max_steps: 5, val_every_steps: null, checkpoint_every_steps: 5, log_every_steps: 1}
"""


def test_a_finished_run_goes_on_to_more_steps(
    tmp_path: Path, config: str, toy_store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, more = tmp_path / "run", ["--extend-to", "9"]
    assert train(config, toy_store, run, *more) == 2
    assert "holds no run to extend" in capsys.readouterr().err
    assert not run.exists()
    assert train(config, toy_store, run, "--quiet") == 0
    assert train(config, toy_store, run, *more, "--overwrite") == 2
    assert train(config, toy_store, run, "--extend-to", "3") == 2
    assert "has 4 steps; --extend-to 3 is not more" in capsys.readouterr().err
    before = (run / "model" / "model.safetensors").read_bytes()

    def killed(*args: object, **kwargs: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # trained to the end, stopped before the model folder is written
        patch.setattr(train_module, "export", killed)
        assert train(config, toy_store, run, *more, "--quiet") == 75
    assert (run / "model" / "model.safetensors").read_bytes() == before
    assert train(config, toy_store, run, *more, "--quiet") == 0
    assert (run / "model" / "model.safetensors").read_bytes() != before
    assert "- Steps: 9" in toy.read(run / "model").card
    status = json.loads((run / "status.json").read_text())
    assert (status["step"], status["max_steps"], status["exported"]) == (9, 9, 9)
    capsys.readouterr()
    assert train(config, toy_store, run) == 2  # the config's 4 steps are no longer those of the run
    assert "trainer.max_steps: 9 -> 4" in capsys.readouterr().err


def test_a_model_s_subjects_travel_with_its_weights(
    tmp_path: Path, config: str, toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = toy.exported_with(["someone", "else"], toy_store, tmp_path / "source")
    assert train(config, toy_store, tmp_path / "run", "--init-from", str(tmp_path / "source"), "--quiet") == 0
    model = toy.read(tmp_path / "run" / "model")
    seen = model.training_subjects
    assert seen.include("someone")
    assert seen.include("else")
    assert len(seen.subjects) == 2 + 4
    assert model.origin == (source,)
    assert f"- Started from: ToyTokenizer {source[:12]}, trained on 2 subjects" in model.card
    # a model of that one knows both, and a run's folder names its model
    assert train(config, toy_store, tmp_path / "next", "--init-from", str(tmp_path / "run"), "--quiet") == 0
    again = toy.read(tmp_path / "next")
    assert again.training_subjects == seen
    assert again.origin == (model.digest, source)


def test_other_first_weights_are_another_run(
    tmp_path: Path, config: str, toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        assert train(config, toy_store, tmp_path / name, "--quiet", "--seed", str(ord(name))) == 0
    shutil.rmtree(tmp_path / "b" / "model")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-00000004")
    flags = ["--seed", str(ord("b")), "--init-from", str(tmp_path / "a")]
    assert train(config, toy_store, tmp_path / "b", *flags) == 2
    assert "started from freshly drawn weights, not from the model of --init-from" in capsys.readouterr().err
    assert not (tmp_path / "b" / "model").exists()
    assert train(config, toy_store, tmp_path / "b", *flags, "--overwrite", "--quiet") == 0
    assert toy.read(tmp_path / "b").origin == (toy.read(tmp_path / "a").digest,)
    assert train(config, toy_store, tmp_path / "b", *flags[:2], "--quiet") == 0  # finished; need not be named again
    assert train(config, toy_store, tmp_path / "b", *flags[:2], "--overwrite", "--quiet") == 0
    assert toy.read(tmp_path / "b").origin == ()


def test_leftovers_of_a_start_that_the_disk_stopped_do_not_block(
    tmp_path: Path, config: str, toy_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = tmp_path / "run", atomic.os.fsync

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # and killed before it tidied up
        assert train(config, toy_store, run, "--quiet") == 1
    assert any(name.startswith(".neurotome-") for name in names(run))
    assert real is atomic.os.fsync
    assert train(config, toy_store, run, "--quiet") == 0
    assert not any(name.startswith(".neurotome-") for name in names(run))


@pytest.mark.parametrize("at", range(1, 8))
def test_a_removal_that_is_stopped_leaves_a_run(
    tmp_path: Path, config: str, toy_store: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    run, calls = tmp_path / "run", [0]
    for name in ("checkpoints", "model"):
        (run / name).mkdir(parents=True)
    for name in ("config.yaml", "data.json", "status.json", "metrics.jsonl", "environment.json"):
        (run / name).write_text("{}")
    real = Path.unlink

    def stop(self: Path, missing_ok: bool = False) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise KeyboardInterrupt
        real(self, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stop)
        with pytest.raises(KeyboardInterrupt):
            train_module.remove_run(run)
    train_module.check_out(run)
    assert train(config, toy_store, run, "--overwrite", "--quiet") == 0


def test_a_run_that_goes_on_is_not_touched(
    tmp_path: Path, config: str, toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lock is held by another thread, as by another process: it is no part of this one's."""
    import threading

    run = tmp_path / "run"
    assert train(config, toy_store, run, "--quiet") == 0
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        from filelock import FileLock

        with FileLock(run / ".lock", is_singleton=False):
            held.set()
            done.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(10)
    try:
        for flags in (["--overwrite"], ["--extend-to", "20"], []):
            assert train(config, toy_store, run, *flags) == 2
            assert "another process is training into" in capsys.readouterr().err
        (run / "demo.json").write_text("{}")
        assert main(["demo", str(run), "--overwrite"]) == 2
        assert "another process is training into" in capsys.readouterr().err
        (run / "demo.json").unlink()
    finally:
        done.set()
        other.join()
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_the_start_of_the_codebook_is_marked_in_log_journal_and_report(
    tmp_path: Path, toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = tmp_path / "vq.yaml", tmp_path / "run"
    path.write_text(VQ)
    assert train(str(path), toy_store, run, "--trainer.max_steps", "2") == 2
    assert "the codebook starts in step 3 at the earliest" in capsys.readouterr().err
    assert not run.exists()
    assert train(str(path), toy_store, run) == 0
    err = capsys.readouterr().err
    assert "for 5 steps on cpu" in err
    assert "the codebook starts in step 3 at the earliest" in err
    assert "step 3: the codebook has started" in err
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "begun/codebook" in row] == [3]
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert page.count('class="mark"') == 1
    assert ">codebook<" in page
    # from a model whose codebook has started nothing starts
    assert train(str(path), toy_store, tmp_path / "next", "--init-from", str(run), "--quiet") == 0
    assert "begun/" not in (tmp_path / "next" / "metrics.jsonl").read_text()


def test_a_model_whose_codebook_has_not_started_is_no_start(
    tmp_path: Path, toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "vq.yaml"
    path.write_text(VQ)
    late = ["--method.tokenizer.quantizer.reservoir", "4000", "--trainer.max_steps", "13"]
    assert train(str(path), toy_store, tmp_path / "run", *late, "--quiet") == 0  # 256 tokens a step are too few
    capsys.readouterr()
    assert train(str(path), toy_store, tmp_path / "next", "--init-from", str(tmp_path / "run")) == 3
    assert "it is not ready: the codebook has not started" in capsys.readouterr().err
    assert names(tmp_path) == ["run", "vq.yaml"]
    assert train(str(path), toy_store, tmp_path / "run", *late, "--extend-to", "20", "--quiet") == 0
    assert not toy.read(tmp_path / "run").unready


def test_a_run_stands_for_its_model_where_it_has_one(
    tmp_path: Path, config: str, toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(config, toy_store, run, "--quiet") == 0
    assert main(["doctor", str(run)]) == 0
    assert main(["evaluate", str(run), str(toy_store), "--out", str(tmp_path / "e"), "--quiet", "--device", "cpu"]) == 0
    assert main(["encode", str(run), str(toy_store), str(tmp_path / "s"), "--shards", "--device", "cpu"]) == 0
    shutil.rmtree(run / "model")
    capsys.readouterr()
    assert main(["doctor", str(run)]) == 2
    assert "is a run folder without a model" in capsys.readouterr().err
    assert RunFolder(run).read_json("status.json")["exported"] == 4


def test_a_run_is_not_removed_while_the_new_one_is_made_from_it(
    tmp_path: Path, config: str, toy_store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert train(config, toy_store, run, "--quiet") == 0
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    (tmp_path / "link").symlink_to(run / "model")
    monkeypatch.chdir(run)
    for source in (run / "model", run, Path("model"), Path(), tmp_path / "link", run / "model" / ".." / "model"):
        capsys.readouterr()
        assert train(config, toy_store, run, "--init-from", str(source), "--overwrite") == 2
        assert "lies in the run that --overwrite would remove" in capsys.readouterr().err
    for inside in (run / "checkpoints" / "step-00000004", run / "model" / "model.safetensors"):
        with pytest.raises(UsageError, match="would remove"):
            train_module.check_apart(run, [inside])
    train_module.check_apart(run, [toy_store, run / "store", tmp_path, tmp_path / "run2" / "model"])
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    (run / "model").rename(tmp_path / "source")
    (run / "model").symlink_to(tmp_path / "source")  # only the link is removed
    assert train(config, toy_store, run, "--init-from", str(run / "model"), "--overwrite", "--quiet") == 0
    assert toy.read(run / "model").origin == (toy.read(tmp_path / "source").digest,)


def test_an_evaluation_does_not_outlive_what_it_is_of(tmp_path: Path, config: str, toy_store: Path) -> None:
    run = tmp_path / "run"

    def page() -> str:
        assert main(["report", str(run)]) == 0
        return (run / "report.html").read_text()

    assert train(config, toy_store, run, "--quiet") == 0
    assert main(["evaluate", str(run), str(toy_store), "--out", str(run), "--quiet", "--device", "cpu"]) == 0
    assert "Evaluate again" not in page()
    (run / "notes.txt").write_text("mine")
    assert train(config, toy_store, run, "--extend-to", "5", "--quiet") == 0
    assert "are of another model" in page()
    assert train(config, toy_store, run, "--overwrite", "--quiet") == 0
    assert not {"metrics.json", "panels.safetensors", "report.html"} & set(names(run))
    assert "notes.txt" in names(run)
    assert "Evaluate again" not in page()
