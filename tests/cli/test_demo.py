import json
import shutil
from pathlib import Path

import pytest

from neurotome.cli import demo
from neurotome.cli.main import main
from tests.toy import CONFIG, names

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def begun(tmp_path: Path, toy_raw: Path) -> tuple[list[str], Path]:
    """A demo whose cohort is made already, of toys instead of phantoms; its words and its folder."""
    (tmp_path / "toy.yaml").write_text(CONFIG)
    words = [
        "demo",
        str(tmp_path / "demo"),
        "--config",
        str(tmp_path / "toy.yaml"),
        "--subjects",
        "6",
        "--device",
        "cpu",
    ]
    out = tmp_path / "demo"
    shutil.copytree(toy_raw, out / "cohort")
    settings = {"config": str(tmp_path / "toy.yaml"), "max_steps": 2, "subjects": 6, "seed": 0, "cohort_seed": 0}
    (out / "demo.json").write_text(json.dumps(settings))
    (out / "timing.json").write_text(json.dumps({"phantom": 1.5}))
    return [*words, "--max-steps", "2"], out


def test_the_demo_does_all_and_a_second_call_nothing(
    begun: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words, out = begun
    assert main(words) == 0
    text, progress = capsys.readouterr()
    for line in ("prepare …", "prepared 6 of 6 (sub-", "trained 2 of 2 (loss ", "report: "):
        assert line in progress
    assert "prepared" not in text  # the inner verbs' results are not the demo's
    assert text.rstrip().endswith(str(out / "report.html"))
    assert "dB in the brain" in text
    assert {"cohort", "store", "model", "metrics.json", "report.html", "timing.json", "config.yaml"} <= set(names(out))
    timing = json.loads((out / "timing.json").read_text())
    assert list(timing) == list(demo.STAGES)
    assert timing["phantom"] == 1.5
    (example,) = (out / "example").glob("*_desc-synth_T2w.nii.gz")
    assert str(example) in text
    assert "<html" in (out / "report.html").read_text()

    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(out / "report.html")
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_a_demo_that_failed_goes_on_where_it_stopped(
    begun: tuple[list[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, _ = begun
    real = demo._stage
    ran: list[str] = []

    def stage(name: str, *rest: object) -> None:
        ran.append(name)
        if name == "train" and ran.count("train") == 1:
            raise OSError(28, "No space left on device", "x")
        real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(demo, "_stage", stage)
    assert main(words) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert ran == ["prepare", "train", "train", "evaluate", "translate", "report"]


def test_a_demo_with_other_settings_or_another_folder_is_refused(
    begun: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, out = begun
    assert main([*words, "--seed", "7"]) == 2
    assert "holds a demo with seed 0, not 7" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for flags in ([], ["--overwrite"]):
        assert main(["demo", str(tmp_path / "full"), *flags]) == 2
        assert "holds no demo" in capsys.readouterr().err
    assert main(["demo", str(tmp_path / "full" / "x")]) == 2
    assert names(tmp_path / "full") == ["x"]
    assert (out / "timing.json").exists()


def test_evaluate_refuses_training_subjects_and_an_old_result(
    tmp_path: Path, toy_model: Path, toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(toy_model), str(toy_store), "--out", str(tmp_path / "e")]
    assert main([*words, "--split", "train"]) == 3
    assert "--allow-train" in capsys.readouterr().err
    assert main([*words, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert {"reconstruction", "translation", "protocol"} <= set(metrics)
    assert main(words) == 2
    assert "metrics.json: is there already" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--quiet"]) == 0
    assert main(["report", str(tmp_path / "e")]) == 0
    assert (tmp_path / "e" / "report.html").exists()
    assert main(["report", str(tmp_path / "nothing")]) == 2
