"""The bench: plans are checked, rows are means over seeds within a subject, steps are paired."""

import json

import pytest

from neurotome.apply.bench import BenchPlan, BenchRun, Cell, at, read_cell, read_plan, table
from neurotome.apply.scores import evaluation_request
from neurotome.errors import InputError, UsageError
from neurotome.report.bench import columns, markdown, page, step_lines

PLAN = """
about: two rungs
steps: 10
seeds: [0, 1]
runs:
  - {name: base, config: neuroquant-demo, overrides: {method.init_args.swap_prob: 0.0, data.flip: true}}
  - {name: more, config: neuroquant-demo, against: base}
"""


def cell(seed: int, values: dict[str, float], bits: float = 1.0) -> Cell:
    entry = {"mean": sum(values.values()) / len(values), "ci95": None, "n": len(values), "values": values}
    metrics = {"reconstruction": {"T1w": {"psnr_db": entry}}, "bits": {"own_per_voxel": bits}}
    return Cell(seed, metrics, {"step": 10, "seconds": 2.0, "peak_rss_mb": 100.0 + seed}, 1234)


def test_a_plan_is_read():
    plan = read_plan(PLAN, "plan.yaml")
    assert [run.name for run in plan.runs] == ["base", "more"]
    assert plan.runs[0].overrides == {"method.init_args.swap_prob": "0.0", "data.flip": "true"}
    assert (plan.steps, plan.seconds, plan.seeds, plan.budget) == (10, None, (0, 1), "10 steps")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("steps: 10", "steps: 10\nseconds: 5"), "one budget"),
        (("steps: 10\n", ""), "one budget"),
        (("steps: 10", "steps: 0"), "above 0"),
        (("steps: 10", "stepz: 10"), "stepz"),
        (("steps: 10", "steps: many"), "many"),
        (("against: base", "against: bass"), "bass"),
        (("name: more", "name: base"), "unique"),
        (("name: more", "name: ../more"), "unique"),
        (("seeds: [0, 1]", "seeds: [-1]"), "at least 0"),
        (("seeds: [0, 1]", "seeds: all"), "whole numbers"),
        (("runs:", "runs: {}\nold:"), "list `runs`"),
        (("about: two rungs", "about: [1"), "not YAML"),
    ],
)
def test_a_wrong_plan_is_named(change, match):
    with pytest.raises(UsageError, match=match):
        read_plan(PLAN.replace(*change), "plan.yaml")


def test_rows_are_means_over_seeds_within_a_subject():
    plan = BenchPlan((BenchRun("a", "x"),), (0, 1), steps=10)
    (row,) = table(plan, {"a": [cell(0, {"s": 20.0, "t": 24.0}), cell(1, {"s": 22.0, "t": 26.0}, bits=3.0)]})
    assert row["psnr_db"]["T1w"]["mean"] == 23.0
    assert row["psnr_db"]["T1w"]["n"] == 2
    assert row["bits_per_voxel"] == {"mean": 2.0, "seeds": [1.0, 3.0]}
    assert (row["parameters"], row["peak_rss_mb"], row["steps"]) == (1234, 101.0, [10, 10])


def test_a_step_is_paired_and_claimed_only_where_its_interval_excludes_zero():
    plan = BenchPlan(
        (BenchRun("a", "x"), BenchRun("b", "x", against="a"), BenchRun("c", "x", against="b")), (0,), steps=1
    )
    subjects = {f"s{i}": 20.0 + 3 * i for i in range(8)}
    better = {s: v + 0.5 + 0.01 * i for i, (s, v) in enumerate(subjects.items())}
    noisy = {s: v + (1 if i % 2 else -1) for i, (s, v) in enumerate(better.items())}
    rows = table(plan, {"a": [cell(0, subjects)], "b": [cell(0, better)], "c": [cell(0, noisy)]})
    first, second = (row["psnr_db"]["T1w"]["step"] for row in rows[1:])
    assert first["mean"] == pytest.approx(0.535)
    assert first["real"]
    assert not second["real"]
    lines = step_lines(rows)
    assert lines[0].startswith("b against a: T1w +0.5")
    assert "holds 0" in lines[1]
    assert "holds 0" not in lines[0]
    rows[1]["translation_psnr_db"] = {"T2w->T1w": {"step": {"mean": -0.4, "ci95": [-0.5, -0.3], "real": True}}}
    assert step_lines(rows)[0].endswith(", T2w → T1w -0.40 dB (-0.50 to -0.30)")


def test_other_subjects_are_not_paired():
    plan = BenchPlan((BenchRun("a", "x"), BenchRun("b", "x", against="a")), (0,), steps=1)
    rows = table(plan, {"a": [cell(0, {"s": 1.0, "t": 2.0})], "b": [cell(0, {"s": 1.0, "u": 2.0})]})
    assert "step" not in rows[1]["psnr_db"]["T1w"]


def test_the_table_leaves_out_what_nobody_measured(tmp_path):
    plan = BenchPlan((BenchRun("a", "x"),), (0,), steps=1)
    rows = table(plan, {"a": [cell(0, {"s": 20.0, "t": 24.0})]})
    headings = [heading for heading, _, _ in columns(rows)]
    assert "PSNR T1w (dB)" in headings
    assert "codes used" not in headings
    assert markdown(rows).count("\n") == 2
    rows[0]["name"] = "<script>"
    text = page("about <b>", "1 steps", 1, rows, {"<i>": tmp_path})
    assert "<script>" not in text
    assert "about &lt;b&gt;" in text
    assert "<svg" in text


def test_only_seeds_that_both_have_are_paired():
    plan = BenchPlan((BenchRun("a", "x"), BenchRun("b", "x", against="a")), (0, 1), steps=1)
    ours, theirs = {"s": 21.0, "t": 22.5}, {"s": 20.0, "t": 21.0}
    rows = table(plan, {"a": [cell(0, theirs)], "b": [cell(0, ours), cell(1, {"s": 90.0, "t": 90.0})]})
    assert rows[1]["psnr_db"]["T1w"]["step"]["mean"] == pytest.approx(1.25)


def test_a_damaged_or_foreign_cell_is_named(tmp_path):
    run = BenchRun("a", "x", {"data.crop": "8"})
    assert read_cell(tmp_path, run, 0) is None
    (tmp_path / "status.json").write_text("{")
    made = {"config": "x", "overrides": {"data.crop": "8"}, "parameters": 7}
    (tmp_path / "bench.json").write_text(json.dumps(made))
    with pytest.raises(InputError, match=r"status\.json"):
        read_cell(tmp_path, run, 0)
    (tmp_path / "status.json").write_text("{}")
    assert read_cell(tmp_path, run, 0) == Cell(0, {}, {}, 7)  # trained, not evaluated
    (tmp_path / "metrics.json").write_text("[1]")
    with pytest.raises(InputError, match=r"metrics\.json"):
        read_cell(tmp_path, run, 0)
    (tmp_path / "metrics.json").write_text("{}")
    assert read_cell(tmp_path, run, 0).parameters == 7
    with pytest.raises(InputError, match="other settings than a's"):
        read_cell(tmp_path, BenchRun("a", "x", {"data.crop": "16"}), 0)


def test_a_cell_answers_what_it_was_evaluated_with():
    truth = {"01": {"age": 40.0}}
    asked = evaluation_request("test", "abc", truth)
    told = Cell(0, {"protocol": {**asked, "seed": 0}}, {}, 1)
    assert told.answers(asked)
    others = [
        evaluation_request("test", None, truth),
        evaluation_request("test", "abd", truth),
        evaluation_request("test", "abc", None),
        evaluation_request("test", "abc", {"01": {"age": 41.0}}),
        evaluation_request("val", "abc", truth),
        {**asked, "format_version": asked["format_version"] + 1},
    ]
    assert not any(told.answers(other) for other in others)
    # an evaluation of the first version says nothing of segmenter and table
    assert not Cell(0, {"protocol": {"format_version": 1, "split": "test"}}, {}, 1).answers(others[0])
    assert not Cell(0, {}, {}, 1).answers(asked)
    assert evaluation_request("test", None, {})["truth_sha256"] is None


def test_a_star_is_the_mean_over_what_stands_there():
    tree = {"sex": {"T1w": {"anatomy": 0.5, "n": 8}, "T2w": {"anatomy": 0.75}, "PDw": {"anatomy": None}}}
    assert at(tree, "sex", "*", "anatomy") == 0.625
    assert at(tree, "sex", "*", "n") == 8
    assert at(tree, "sex", "*", "style") is None
    assert at(tree, "age", "*", "anatomy") is None
    assert at({"sex": 3}, "sex", "*", "anatomy") is None


def test_structures_and_probes_are_columns_with_their_limits():
    def with_more(one: Cell) -> Cell:
        entry = {"mean": 0.8, "ci95": [0.7, 0.9], "n": 2, "values": {"s": 0.7, "t": 0.9}}
        one.metrics["reconstruction"]["T1w"] |= {
            "structure_dice": entry,
            "structure_dice_truth": entry,
            "ms_ssim": entry,
        }
        more = {
            "structures": {"T1w": {"ceiling": {"mean": {"mean": 0.76, "ci95": None, "n": 2}}}},
            "audit": {"probes": {"token_vector": 0.6, "pooled_mean": 0.9, "chance": 0.5,
                                 "samples": {"pooled_mean": {"test": 4}}}},
            "factors": {"sex": {"T1w": {"anatomy": 0.5, "chance": 0.5}, "T2w": {"anatomy": 1.0, "chance": 0.5}},
                        "age": {"T1w": {"anatomy_r2": -0.25}}},
        }  # fmt: skip
        return Cell(one.seed, {**one.metrics, **more}, one.status, one.parameters)

    plan = BenchPlan((BenchRun("a", "x"),), (0,), steps=1)
    (row,) = rows = table(plan, {"a": [with_more(cell(0, {"s": 20.0, "t": 24.0}))]})
    assert row["structure_dice"]["T1w"]["mean"] == pytest.approx(0.8)
    assert row["ms_ssim"]["T1w"]["n"] == 2
    assert (row["sex_probe"]["mean"], row["age_r2"]["mean"]) == (0.75, -0.25)
    headings = {heading for heading, _, _ in columns(rows)}
    assert {
        "MS-SSIM T1w",
        "structure Dice T1w",
        "Dice with label map T1w (scan itself 0.760)",
        "contrast read from a token (chance 0.50)",
        "contrast read from the mean vector (chance 0.50)",
        "sex read from the mean vector (chance 0.50)",
        "age read from the mean vector (R²)",
    } <= headings
    text = markdown(rows)
    assert "on 4 test scans of all contrasts" in text
    assert "the scan itself reaches what the heading says" in text
    assert "Structure Dice: overlap" in page("", "1 steps", 1, rows, {})
