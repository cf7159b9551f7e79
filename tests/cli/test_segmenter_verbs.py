"""A segmenter from a dataset with label maps to the Dice of a tokenizer and of a bench; what is refused on the way."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from neurotome.cli.main import main
from neurotome.data.imaging.reader import read_volume
from neurotome.data.imaging.volume import Volume
from neurotome.errors import InputError
from neurotome.experiments.evaluate import read_truth

pytestmark = pytest.mark.usefixtures("toys")
TINY = ["--device", "cpu", "--threads", "1", "--quiet", "--trainer.max_steps", "3", "--trainer.precision", "32-true"]
SIZE = ["--method.segmenter.channels", "8", "--method.segmenter.blocks_down", "[1, 1]", "--method.segmenter.blocks_up",
        "[1]", "--data.crop", "8", "--trainer.val_every_steps", "3"]  # fmt: skip
GROUPS = ["--method.segmenter.structures", "[bright, dark]", "--method.segmenter.label_ids", "[[1], [2]]"]


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, toy_raw: Path) -> Path:
    """The toys prepared with true labels in the place where a BIDS dataset of phantoms has them."""
    folder = tmp_path_factory.mktemp("labelled")
    raw = folder / "raw"
    shutil.copytree(toy_raw, raw)
    for scan in sorted(raw.glob("sub-*/anat/*_T1w.nii.gz")):
        volume = read_volume(scan)
        labels = np.where(volume.array > 60, 1, np.where(volume.array > 0, 2, 0)).astype(np.float32)
        target = raw / "derivatives" / "truth" / scan.relative_to(raw).parent
        target.mkdir(parents=True)
        Volume(labels, volume.geometry).save(target / scan.name.replace("_T1w", "_dseg"))
    words = ("--spacing", "3", "--shape", "20", "24", "20", "--modalities", "T1w", "T2w", "--quiet")
    assert run("prepare", raw, folder / "store", *words) == 0
    return folder / "store"


@pytest.fixture(scope="module")
def segmenter(labelled: Path) -> Path:
    out = labelled.parent / "segmenter"
    assert run("train", "segmenter-demo", labelled, "--out", out, *TINY, *SIZE, *GROUPS) == 0
    return out / "model"


def test_a_training_leaves_a_model_folder_and_dice(segmenter: Path) -> None:
    rows = [json.loads(line) for line in (segmenter.parent / "metrics.jsonl").read_text().splitlines()]
    assert 0 <= rows[-1]["val/dice/mean"] <= 1
    config = json.loads((segmenter / "config.json").read_text())
    assert config["network"]["arguments"]["label_ids"] == [[1], [2]]
    assert config["capabilities"]["contrasts"] == ["T1w", "T2w"]
    assert config["capabilities"]["family"] == "segmenter"


def test_an_evaluation_adds_dice(
    segmenter: Path, labelled: Path, toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", toy_model, labelled, "--out", tmp_path / "out", "--allow-train", "--device", "cpu", "--quiet")
    assert run(*words, "--segmenter", segmenter) == 0
    assert "Dice" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics["structures"]["T1w"]) == {"dice", "truth_dice", "volume_error", "ceiling"}
    assert metrics["protocol"]["structures"] == ["bright", "dark"]
    (tmp_path / "out" / "config.yaml").write_text("{}")
    assert run("report", tmp_path / "out") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Scan with label map" in page
    assert "MS-SSIM" in page


def test_what_does_not_fit_is_refused(
    segmenter: Path,
    labelled: Path,
    toy_model: Path,
    toy_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(*words: object) -> tuple[int, str]:
        code = run(*words, "--device", "cpu", "--quiet")
        return code, capsys.readouterr().err

    evaluate = ("evaluate", toy_model, labelled, "--out", tmp_path / "out", "--allow-train", "--segmenter")
    for folder, code, word in (
        (tmp_path / "nothing", 2, "segmenter folder"),
        (toy_model, 3, "is a tokenizer, no segmenter"),
    ):
        assert said(*evaluate, folder)[0] == code
        assert word in said(*evaluate, folder)[1]
    code, text = said("evaluate", segmenter, labelled, "--out", tmp_path / "out")
    assert (code, "is a segmenter, no tokenizer" in text) == (3, True)
    other = tmp_path / "other"
    assert run("prepare", labelled.parent / "raw", other, "--spacing", "4", "--shape", "16", "16", "16", "--quiet") == 0
    capsys.readouterr()
    code, text = said("bench", other, "--out", tmp_path / "bench", "--segmenter", segmenter)
    assert (code, "the segmenter expects scans" in text) == (3, True)
    assert not (tmp_path / "bench").exists()
    code, text = said("train", "segmenter-demo", toy_store, "--out", tmp_path / "run", *SIZE, *GROUPS)
    assert (code, "sessions of the store have none" in text, "dseg" in text) == (2, True, True)
    code, text = said(
        "train", "segmenter-demo", labelled, "--out", tmp_path / "run", "--init-from", toy_model, *SIZE, *GROUPS
    )
    assert (code, "is a ToyTokenizer, the config trains a SegResNet" in text) == (2, True)
    assert not (tmp_path / "out").exists()


BENCH = """
steps: 2
seeds: [0]
runs:
  - name: tiny
    config: vq-vae-demo
    overrides:
      method.init_args.tokenizer.init_args.channels: [4]
      method.init_args.tokenizer.init_args.quantizer.init_args.num_codes: 8
      method.init_args.tokenizer.init_args.quantizer.init_args.reservoir: 64
      method.init_args.tokenizer.init_args.quantizer.init_args.start_after: 1
      data.batch_sessions: 2
      data.crop: 8
      trainer.precision: 32-true
"""


def test_a_bench_evaluates_again_and_trains_nothing_twice(
    segmenter: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bench's processes run here; a cell of the first format is brought up to date, not refused."""
    from neurotome.experiments import bench_cells

    asked: list[str] = []

    def here(words: list[str], log: Path | None = None) -> None:
        asked.append(words[0])
        assert main(words) == 0

    monkeypatch.setattr(bench_cells, "_neurotome", here)
    file, out, table = tmp_path / "bench.yaml", tmp_path / "out", tmp_path / "truth.tsv"
    file.write_text(BENCH)
    subjects = sorted(p.name for p in (labelled.parent / "raw").glob("sub-*"))
    table.write_text("participant_id\tage\n" + "".join(f"{s}\t{20 + i}\n" for i, s in enumerate(subjects)))
    words = ("bench", labelled, "--out", out, "--bench", file, "--threads", "1", "--device", "cpu")
    assert run(*words) == 0
    assert asked == ["train", "evaluate"]
    cell = out / "runs" / "tiny-0" / "metrics.json"
    old = json.loads(cell.read_text())
    for key in ("segmenter_sha256", "truth_sha256"):
        del old["protocol"][key]
    cell.write_text(json.dumps({**old, "protocol": {**old["protocol"], "format_version": 1}}))
    for flags, again in (
        ((), ["evaluate"]),
        ((), []),
        (("--segmenter", segmenter), ["evaluate"]),
        (("--segmenter", segmenter), []),
        (("--segmenter", segmenter, "--truth", table), ["evaluate"]),
        (("--segmenter", segmenter, "--truth", table), []),
    ):
        asked.clear()
        assert run(*words, *flags) == 0
        assert asked == again, flags
    assert "structure Dice T1w" in (out / "bench.md").read_text()
    assert json.loads(cell.read_text())["factors"] is not None
    cell.unlink()  # trained and not evaluated: a bench that was killed between the two
    asked.clear()
    assert run(*words) == 0
    assert asked == ["evaluate"]
    capsys.readouterr()


def test_cells_of_other_flags_are_not_mixed(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from neurotome.experiments import bench_cells

    def here(words: list[str], log: Path | None = None) -> None:
        assert main(words) == 0

    monkeypatch.setattr(bench_cells, "_neurotome", here)
    file, table = tmp_path / "bench.yaml", tmp_path / "truth.tsv"
    file.write_text(BENCH + BENCH[BENCH.index("  - name") :].replace("tiny", "other"))
    table.write_text("participant_id\tage\nsub-00\t20\n")
    words = ("bench", labelled, "--out", tmp_path / "out", "--bench", file, "--threads", "1", "--device", "cpu")
    assert run(*words) == 0
    assert run(*words, "--truth", table, "--only", "tiny") == 0
    assert "1 cell was evaluated with other flags" in capsys.readouterr().err
    text = (tmp_path / "out" / "bench.md").read_text()
    assert "| tiny |" in text
    assert "| other |" not in text


def test_the_table_of_factors_holds_numbers_and_classes(tmp_path: Path) -> None:
    file = tmp_path / "truth.tsv"
    file.write_text("participant_id\tage\tsex\tscore\nsub-01\t71\tF\t0\nsub-02\t67.9\tn/a\tn/a\nsub-03\told\tM\t2\n")
    assert read_truth(file) == {
        "01": {"age": 71.0, "sex": "F", "score": 0.0},
        "02": {"age": 67.9},
        "03": {"sex": "M", "score": 2.0},
    }
    file.write_text("subject\tage\n01\t3\n")
    with pytest.raises(InputError, match="no column participant_id"):
        read_truth(file)
