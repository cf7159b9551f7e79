"""The whole page: well formed, closed to the network, escaped, repeatable, honest, and there when the run failed."""

import base64
import hashlib
import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from neurotome.errors import OutputError, UsageError
from neurotome.models.sealed import sealed
from neurotome.report.headline import headline, lead, translation_cost_table
from neurotome.report.methods import methods_text
from neurotome.report.page import render, write_report
from neurotome.report.run import Run, read_run
from neurotome.report.tables import cohort_table, duration, factor_table, plain, result_table, shown
from tests.report.report_example import audit, entry, metrics, panels, write_run

VOID = {"meta", "img", "br", "link", "input", "hr"}
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Reader(HTMLParser):
    """Check nesting; collect tags, ids, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, attribute: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(attribute)) is not None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_page_is_well_formed_and_its_menu_leads_somewhere(page: str) -> None:
    reader = Reader(page)
    ids = reader.all("id")
    assert len(ids) == len(set(ids))
    targets = [link[1:] for link in reader.all("href") if link.startswith("#")]
    assert set(targets) <= set(ids)
    sections = {attrs["id"] for tag, attrs in reader.tags if tag == "section"}
    assert sections == {
        "run", "data", "training", "results", "reconstruction", "translation", "codebook", "separation", "cost",
        "protocol", "methods", "limits", "cite",
    }  # fmt: skip
    assert sections <= set(targets)


def test_page_loads_nothing_and_runs_nothing(page: str) -> None:
    reader = Reader(page)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object", "embed", "form", "base"}
    assert all(source.startswith("data:image/png;base64,") for source in reader.all("src"))
    assert not [name for _, attrs in reader.tags for name in attrs if name.startswith("on") or name == "style"]
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert not re.search(r"@import|url\(|http", style[1])
    links = [link for link in reader.all("href") if not link.startswith("#")]
    assert page.count("http://") == 0
    assert links
    # each address stands in its link and in the link's words, nowhere else
    assert page.count("https://") == 2 * len(links)
    policy = next(
        a["content"] for t, a in reader.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def test_page_is_small_quick_and_the_same_twice(run: Path, page: str, tmp_path: Path) -> None:
    started = time.process_time()
    assert write_report(run).read_text(encoding="utf-8") == page
    assert time.process_time() - started < 10
    assert len(page) < 3_000_000
    assert write_report(write_run(tmp_path / "elsewhere")).read_text(encoding="utf-8") == page
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []


def test_headline_gives_interval_n_baseline_and_goal(page: str) -> None:
    text = Reader(page).text.replace("\u00a0", " ")
    for words in (
        "24.2 dB",
        "95 % interval 23.8 to 24.7 · 8 subjects",
        "5.7 dB above trilinear at the same latent grid (18.5 dB; gain 5.5 to 5.9)",
        "goal 5 dB above",
        "2.8 dB above a voxel lookup at equal rate", "perplexity 19 inside the brain", "0.75",
        "no bottleneck", "partly separated", "synthetic phantoms", "not for clinical use", "5 min 12 s", "3000 of 3000",
        "site-0: 8", "48 × 64 × 56", "arxiv.org/abs/2604.05171",
    ):  # fmt: skip
        assert words in text, words


def test_everything_from_the_run_is_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    panels(run / "panels.safetensors", (EVIL,))
    (run / "config.yaml").write_text(f"seed: 0\nnote: {json.dumps(EVIL)}\n")
    row = {"step": 1, f"train/{EVIL}": 1.0, f"val/{EVIL}/{EVIL}": 2.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row | {"step": i}) + "\n" for i in range(5)))
    tree = metrics()
    tree["reconstruction"][EVIL] = entry(20.0, 0.9, 0.5, {EVIL: 10.0})
    tree["translation"][f"{EVIL}->{EVIL}"] = entry(20.0, 0.9, 0.5, {EVIL: 10.0})
    tree["protocol"][EVIL] = EVIL
    tree["factors"] = {EVIL: {EVIL: {"anatomy_r2": 0.5}}}
    (run / "metrics.json").write_text(json.dumps(tree))
    split = {"subjects": EVIL, "modalities": {EVIL: EVIL}, "sites": {EVIL: EVIL}}
    (run / "data.json").write_text(json.dumps({"splits": {EVIL: split}, EVIL: EVIL, "excluded": {EVIL: EVIL}}))
    status = {"state": EVIL, "message": EVIL, "step": 1, "max_steps": 2}
    (run / "status.json").write_text(json.dumps(status))
    (run / "environment.json").write_text(json.dumps({"config_name": EVIL, EVIL: EVIL, "neurotome": EVIL}))
    page = write_report(run).read_text(encoding="utf-8")
    reader = Reader(page)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert "<script" not in page
    assert "onerror" not in {name for _, attrs in reader.tags for name in attrs}
    assert all(source.startswith("data:") for source in reader.all("src"))
    assert page.count("&lt;script&gt;alert(1)") > 20


def test_a_run_that_failed_says_so_first(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    message = "sub-01_T1w.nii.gz: header says 3 voxels. Remedy: run neurotome check."
    (run / "status.json").write_text(json.dumps({"state": "failed", "step": 12, "max_steps": 90, "message": message}))
    (run / "metrics.jsonl").write_text('{"step": 10, "train/loss": 1.0}\n{"step": 12, "train/loss": 0.9}\n{"step": 1')
    reader = Reader(write_report(run).read_text(encoding="utf-8"))
    text = reader.text
    assert text.index("The run failed") < text.rindex("What was run")
    assert text.count(message) == 2
    assert "12 of 90 steps" in text
    assert "1 line(s) that could not be read" in text
    assert "has not been evaluated" in text
    assert "Training loss" in text
    assert "Anatomy and contrast are not separated" not in text


@pytest.mark.parametrize("kept", [(), ("metrics.json",), ("panels.safetensors",), ("metrics.jsonl",), ("status.json",)])
def test_any_piece_alone_makes_a_page(run: Path, tmp_path: Path, kept: tuple[str, ...]) -> None:
    for name in kept:
        (tmp_path / name).write_bytes((run / name).read_bytes())
    text = Reader(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "How well anatomy and contrast are separated" in text
    if "metrics.json" not in kept:
        assert "Not fully measured" in text
        assert "do not show that anatomy and contrast are separated" in text


@pytest.mark.parametrize(
    "name", ["config.yaml", "environment.json", "status.json", "metrics.json", "data.json", "timing.json"]
)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1, 2", b"[1, 2]", b"null", b"[" * 5_000])
def test_a_broken_file_is_a_note(run: Path, tmp_path: Path, name: str, content: bytes) -> None:
    for path in (*run.glob("*.json"), run / "config.yaml"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes(content)
    found = read_run(tmp_path)
    assert name.endswith("yaml") or any(name in note for note in found.notes)
    Reader(render(found))


@pytest.mark.parametrize(
    "wrong", [None, 3, "x", [], [1], {}, {"T1w": None}, {"T1w": {"psnr_db": "x", "baselines": 3}}, True]
)
def test_metrics_of_another_shape_do_no_harm(tmp_path: Path, wrong: Any) -> None:
    shown = {"reconstruction": "0.931", "translation": "0.871"}
    for key in (*shown, "codebook", "audit", "bits", "speed", "memory", "protocol", "factors"):
        (tmp_path / "metrics.json").write_text(json.dumps(metrics() | {key: wrong}))
        text = Reader(render(read_run(tmp_path))).text
        others = {section: number for section, number in shown.items() if section != key}
        assert [section for section, number in others.items() if number not in text] == []
    (tmp_path / "metrics.json").write_text(
        json.dumps(
            {
                "codebook": {"codebooks": {"a": {"brain": {"counts": [1, wrong, -1]}}, "b": wrong}},
                "bits": metrics()["bits"],
            }
        )
    )
    assert "0.75" in Reader(render(read_run(tmp_path))).text


def test_swap_training_is_never_called_a_separation(tmp_path: Path) -> None:
    swapped = audit(code_gap=1.6, agreement=0.002, chance=0.003, token_vector=0.78, token_onehot=0.8, pooled_mean=1.0)
    (tmp_path / "metrics.json").write_text(json.dumps(metrics() | {"audit": swapped}))
    text = Reader(render(read_run(tmp_path))).text
    assert text.count("Anatomy and contrast are not separated") == 2
    assert "partly separated" not in text
    (tmp_path / "metrics.json").write_text(json.dumps({k: v for k, v in metrics().items() if k != "audit"}))
    assert "Not fully measured" in Reader(render(read_run(tmp_path))).text


def test_numbers_on_training_subjects_carry_a_warning(tmp_path: Path) -> None:
    for protocol, warned in (
        ({"trained_on_evaluated": True}, True),
        ({"split": "train"}, True),
        ({"split": "val"}, False),
    ):
        (tmp_path / "metrics.json").write_text(json.dumps(metrics() | {"protocol": protocol}))
        text = Reader(render(read_run(tmp_path))).text
        assert ("was trained on these subjects" in text) is warned
    assert "mean over 8 validation subjects" in text
    assert "Means inside the brain mask over the validation subjects" in text


def test_an_evaluation_of_another_model_is_said_to_be_one_before_every_number(tmp_path: Path) -> None:
    """Whichever way the model has changed since: trained anew, extended, being extended, damaged."""
    data, digest = sealed({"network": {}, "images": {}, "frozen": {}, "capabilities": {}, "sha256": {}})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes(data)

    def text(evaluated: str, **status: int) -> str:
        (tmp_path / "metrics.json").write_text(json.dumps(metrics() | {"protocol": {"model_sha256": evaluated}}))
        (tmp_path / "status.json").write_text(json.dumps(status))
        return Reader(render(read_run(tmp_path))).text

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neurotome.report.run.opened", lambda data, file: SimpleNamespace(digest=digest))
        for same in (text(digest), text(digest, step=9, exported=9)):
            assert "Evaluate again" not in same
        other = text("f" * 64)
        assert f"are of another model (ffffffffffff) than this run's, {digest[:12]}" in other
        assert other.index("of another model") < other.index("dB")
        assert "are of the model of step 4; the run is at step 7" in text(digest, step=7, exported=4)
    (tmp_path / "model" / "config.json").write_bytes(data.replace(b"frozen", b"thawed"))
    assert "whether the evaluation is of this model is unknown" in text(digest)


def test_a_model_below_its_baseline_is_said_to_be_below() -> None:
    tree = metrics()
    tree["translation"] = {"T1w->T2w": entry(18.0, 0.8, 0.5, {"lookup_equal_rate": 19.0, "lookup_full_rate": 22.0})}
    stat = next(s for s in headline(tree) if "→" in s.label)
    assert stat.beside.startswith("1.0\u00a0dB below")
    assert stat.tone == "poor"
    assert "4.0\u00a0dB below a voxel lookup of the whole T1w scan" in lead(tree)[0]
    tree["translation"]["T1w->T2w"]["paired"]["over_lookup_equal_rate_db"]["mean"] = 0.5
    assert next(s for s in headline(tree) if "→" in s.label).tone == "fair"
    assert lead({}) == []


def test_cost_of_translation_states_both_rates() -> None:
    assert translation_cost_table({}) is None
    table = translation_cost_table(metrics() | {"bits": {"own_per_voxel": 1.5, "translated_per_voxel": 0.75}})
    assert table is not None
    texts = [(cell.text.replace("\u00a0", " "), cell.small, cell.tone) for cell in table.rows[0]]
    assert texts[1][:2] == ("23.0 dB", "1.50 bits per voxel")
    assert texts[2][:2] == ("20.8 dB", "0.75 bits per voxel")
    assert (texts[3][0], texts[3][2]) == ("2.2 dB lower", "fair")


def test_result_table_shows_a_dash_for_what_was_not_measured() -> None:
    table = result_table({"T1w": {"psnr_db": {"mean": 24.0}, "baselines": {"own_idea": {"ssim": 0.5}}}}, "Contrast")
    assert table is not None
    assert [cell.text for cell in table.rows[0]] == ["T1w", "neurotome", "24.0", "–"]
    assert [cell.text for cell in table.rows[1]] == ["", "Own idea", "–", "0.500"]
    assert result_table({}, "Contrast") is None


def test_small_words() -> None:
    assert [duration(v) for v in (None, 3.21, 75.0, 7260.0)] == ["", "3.2 s", "1 min 15 s", "2 h 1 min"]
    assert [plain(k) for k in ("peak_rss_mb", "shape", "a.b_c", "x_per_s")] == [
        "Peak memory (MB)",
        "Shape",
        "A · b c",
        "X per second",
    ]
    assert [shown(v) for v in (None, True, 1.0, [1, 2, 3], [1.5, 2.5], "x")] == [
        "–",
        "yes",
        "1",
        "1 × 2 × 3",
        "1.5, 2.5",
        "x",
    ]


def test_cohort_and_factors() -> None:
    table = cohort_table({"splits": {"test": {"subjects": 2}, "train": {"subjects": 3, "modalities": {"T1w": 3}}}})
    assert table is not None
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts == [["train", "3", "–", "3", "–"], ["test", "2", "–", "–", "–"]]
    site = {"T1w": {"anatomy": 0.3, "style": 0.9, "chance": 0.25}}
    known = factor_table({"factors": {"site": site, "age": {"T1w": {"style_r2": -0.1}}}})
    assert known is not None
    assert [cell.text for cell in known.rows[0]] == ["Site", "T1w", "0.30", "0.90", "accuracy, chance 0.25"]
    assert [cell.text for cell in known.rows[1]] == ["Age", "T1w", "–", "-0.10", "R²"]


def test_title_comes_from_the_command(tmp_path: Path) -> None:
    for command, title in (
        (["neurotome", "train", "neuroquant-demo", "store", "--out", "x"], "neuroquant-demo"),
        (["neurotome", "train", "my/own.yaml", "store"], "own"),
        (["neurotome", "demo"], "neurotome demo"),
        (["neurotome", "train"], "Run"),
    ):
        (tmp_path / "environment.json").write_text(json.dumps({"command": command}))
        assert f"<title>{title} · neurotome report</title>" in render(read_run(tmp_path))


def test_no_folder_and_no_place_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "report.html").write_text("older")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("neurotome.files.atomic.os.fdopen", full)
    with pytest.raises(OutputError, match="No space left"):
        write_report(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "older"


def test_the_fingerprint_and_the_findings_of_a_check_are_shown(tmp_path: Path) -> None:
    contrast = {
        "scans": 4, "shapes": [["182x218x182", 3], ["240x240x155", 1]], "spacings_mm": [["1x1x1", 4]],
        "orientations": [["LAS", 4]], "intensity": {"p99.5": {"min": 1.0, "median": 542.1, "max": 900.0}},
    }  # fmt: skip
    (tmp_path / "data.json").write_text(json.dumps({"fingerprint": {"contrasts": {"T1w": contrast}}}))
    findings = [
        {"severity": "error", "file": "<b>.nii.gz", "reason": "the stream is cut off", "remedy": "copy it again"},
        {"severity": "note", "file": "x.nii", "reason": "nothing much", "remedy": ""},
    ]
    (tmp_path / "check.json").write_text(json.dumps({"findings": findings}))
    page = write_report(tmp_path).read_text()
    assert "182x218x182 (3), 240x240x155 (1)" in page
    assert "p99.5: 542.1" in page
    assert "error: &lt;b&gt;.nii.gz" in page
    assert "the stream is cut off. Remedy: copy it again" in page
    assert "nothing much" not in page


def test_translations_stand_beside_curves_that_need_no_network() -> None:
    """The monotone map of training subjects and the best one of each scan, in words and in the table."""
    found = metrics()
    for task, mean in (("T1w->T2w", 20.6), ("T2w->T1w", 20.9)):
        row = found["translation"][task]
        for name, value in (("monotone_map", mean), ("monotone_ceiling", mean + 1)):
            row["baselines"][name] = {"psnr_db": {"mean": value, "ci95": [value - 0.3, value + 0.3], "n": 8}}
            row["paired"][f"over_{name}_db"] = {"mean": row["psnr_db"]["mean"] - value, "ci95": None, "n": 8}
    (text,) = lead(found)
    assert "0.2\u00a0dB above a monotone map of it and 0.8\u00a0dB below the best monotone map of each scan" in text
    assert "0.6\u00a0dB below a monotone map of it" in text
    rows = [[cell.text for cell in row] for row in result_table(found["translation"], "From → to").rows]
    assert [row[2] for row in rows if row[1] == "Monotone map, no network"] == ["20.6", "20.9"]
    assert [row[2] for row in rows if row[1] == "Best monotone map"] == ["21.6", "21.9"]


def test_bits_are_those_of_the_brain_beside_those_of_the_grid() -> None:
    bits = {"own_per_voxel": 0.87, "own_per_brain_voxel": 2.4, "translated_per_voxel": 0.46}
    found = metrics() | {"bits": bits | {"translated_per_brain_voxel": 1.27}}
    assert "from 2.40 bits per brain voxel (0.87 of the grid)" in lead(found)[0]
    (stat,) = [s for s in headline(found) if s.label.startswith("Bits")]
    assert (stat.label, stat.value) == ("Bits per brain voxel", "2.40")
    assert "0.87 per voxel of the grid" in stat.detail
    assert "1.27 bits per brain voxel" in stat.beside


@pytest.mark.parametrize(("gain", "word"), [(4.96, "reached"), (5.0, "reached"), (4.94, "missed"), (-1.0, "missed")])
def test_a_goal_is_reached_or_missed_in_a_word_and_a_tie_is_no_miss(gain: float, word: str) -> None:
    found = metrics()
    found["reconstruction"]["T1w"]["paired"]["over_trilinear_db"] = {"mean": gain, "ci95": None, "n": 8}
    assert headline(found)[0].goal == f"goal 5\u00a0dB above: {word}"


def test_median_and_worst_are_shown_side_by_side(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    path = folder / "panels.safetensors"
    with safe_open(path, framework="numpy") as file:
        entries = json.loads(file.metadata()["entries"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    ranks = {"sub-041": "worst", "sub-045": "median"}
    save_file(tensors, path, metadata={"entries": json.dumps([e | {"rank": ranks[e["subject"]]} for e in entries])})
    text = write_report(folder).read_text(encoding="utf-8")
    heads = re.findall(r'<article class="scan"><header>([^<]*) <span>([^< ]*)', text)
    assert heads[:4] == [
        ("T1w, median subject", "sub-045"), ("T1w, worst subject", "sub-041"),
        ("T2w, median subject", "sub-045"), ("T2w, worst subject", "sub-041"),
    ]  # fmt: skip
    assert len(heads) == 8
    assert "50 mm" in text
    assert "more from other subjects" not in text


def test_the_methods_text_states_what_the_files_say(run: Path) -> None:
    text = methods_text(read_run(run))
    assert "was trained for 3000 optimiser steps" in text
    assert "95 % bias-corrected and accelerated bootstrap intervals over subjects" in text
    empty = Run(run)
    assert methods_text(empty) == ""
    empty.metrics = {"protocol": {"split": "val", "subjects": 1, "ssim_window": "x", "shape": 3}}
    assert "It was evaluated on 1 subject of the validation split." in methods_text(empty)
