"""The bench: plans are checked, rows are means over seeds within a subject, steps are paired."""

import json
import math
import re
from importlib import resources

import pytest

from neurotome.errors import InputError, UsageError
from neurotome.evaluation.results import evaluation_request
from neurotome.experiments.bench import BenchCell, alarms, at, is_real, read_cell, table, unprobed
from neurotome.experiments.bench_plan import BenchPlan, BenchRun, read_plan
from neurotome.experiments.config import load_config
from neurotome.experiments.experiment import check_experiment
from neurotome.metrics.statistics import Interval
from neurotome.report.bench import columns, markdown, page, rate_charts, step_lines, step_text

PLAN = """
about: two rungs
steps: 10
seeds: [0, 1]
runs:
  - {name: base, config: neuroquant-demo, overrides: {method.init_args.swap_prob: 0.0, data.flip: true}}
  - {name: more, config: neuroquant-demo, against: base}
"""


def bench(rows: list[dict], **changes: object) -> dict:
    """Return a bench as its JSON tells it."""
    told = {"about": "", "budget": "10 steps", "split": "val", "subjects": 2, "seeds": [0], "device": "cpu"}
    return {**told, "threads": 1, "rows": rows, "unprobed": [], "failed": [], **changes}


def cell(seed: int, values: dict[str, float], bits: float = 1.0) -> BenchCell:
    entry = {"mean": sum(values.values()) / len(values), "ci95": None, "n": len(values), "values": values}
    metrics = {"reconstruction": {"T1w": {"psnr_db": entry}}, "bits": {"own_per_voxel": bits}}
    return BenchCell(seed, metrics, {"step": 10, "seconds": 2.0, "cpu_seconds": 1.5, "peak_rss_mb": 100.0 + seed}, 1234)


def test_a_plan_is_read():
    plan = read_plan(PLAN, "plan.yaml")
    assert [run.name for run in plan.runs] == ["base", "more"]
    assert plan.runs[0].overrides == {"method.init_args.swap_prob": "0.0", "data.flip": "true"}
    assert (plan.steps, plan.seconds, plan.seeds, plan.budget("cuda")) == (10, None, (0, 1), "10 steps")


@pytest.mark.parametrize(("device", "words"), [("cpu", "60 CPU seconds"), ("cuda", "60 seconds on cuda")])
def test_a_second_is_called_what_it_is(device, words):
    assert BenchPlan((BenchRun("a", "x"),), (0,), seconds=60.0).budget(device) == words


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("steps: 10", "steps: 10\nseconds: 5"), "one budget"),
        (("steps: 10\n", ""), "one budget"),
        (("steps: 10", "steps: 0"), "steps is 0"),
        (("steps: 10", "stepz: 10"), "stepz"),
        (("steps: 10", "steps: many"), "many"),
        (("against: base", "against: bass"), "bass"),
        (("name: more", "name: base"), "unique"),
        (("name: more", "name: ../more"), "unique"),
        (("seeds: [0, 1]", "seeds: [-1]"), "seeds is"),
        (("seeds: [0, 1]", "seeds: all"), "whole numbers"),
        (("seeds: [0, 1]", "seeds: [1, 0, 1]"), "seed 1 is given twice"),
        (("runs:", "runs: {}\nold:"), "list `runs`"),
        (("about: two rungs", "about: [1"), "line 3: expected"),
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
    assert (row["training_seconds"], row["training_cpu_seconds"], row["peak_device_mb"]) == ([2, 2], [1.5, 1.5], None)


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


def test_a_tiny_step_is_not_claimed_however_sure():
    plan = BenchPlan((BenchRun("a", "x"), BenchRun("b", "x", against="a")), (0,), steps=1)
    subjects = {f"s{i}": 20.0 + 3 * i for i in range(8)}
    tiny = cell(0, {s: v + 0.004 + 0.0001 * i for i, (s, v) in enumerate(subjects.items())})
    base = cell(0, subjects)
    for one in (tiny, base):
        one.metrics["reconstruction"]["T1w"]["ssim"] = one.metrics["reconstruction"]["T1w"]["psnr_db"]
    rows = table(plan, {"a": [base], "b": [tiny]})
    assert rows[1]["ssim"]["T1w"]["step"]["real"]  # the floor is one of decibels
    assert not rows[1]["psnr_db"]["T1w"]["step"]["real"]
    (line,) = step_lines(rows)
    assert line.startswith("b against a: T1w +0.004 dB (+0.004 to +0.00")
    assert line.endswith("; under 0.05 dB, too small to matter)")


@pytest.mark.parametrize(
    ("mean", "ends", "text"),
    [
        (0.3, [0.002, 0.61], "+0.300 dB (+0.002 to +0.610)"),
        (-0.3, [-0.61, -0.0004], "-0.3000 dB (-0.6100 to -0.0004)"),
        (0.0, [0.0, 0.0], "+0.00 dB (+0.00 to +0.00; its interval holds 0)"),
        (0.2, [-0.001, 0.4], "+0.200 dB (-0.001 to +0.400; its interval holds 0)"),
    ],
)
def test_no_number_that_is_not_zero_is_printed_as_zero(mean, ends, text):
    real = ends[0] > 0 or ends[1] < 0
    assert step_text({"mean": mean, "ci95": ends, "real": real, "floor": 0.05}) == text


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
    assert "training (CPU s)" in headings
    assert "peak device memory (MB)" not in headings
    rows[0]["name"] = "<script>"
    rows[0]["warnings"] = ["seed 0: <u>"]
    text = page(bench(rows, about="about <b>", failed=["<s>"]), {"<i>": tmp_path})
    assert not {"<u>", "<s>"} & set(re.findall("<.>", text))
    assert "<script>" not in text
    assert "about &lt;b&gt;" in text
    assert "<svg" in text


def test_only_seeds_that_both_have_are_paired():
    plan = BenchPlan((BenchRun("a", "x"), BenchRun("b", "x", against="a")), (0, 1), steps=1)
    ours, theirs = {"s": 21.0, "t": 22.5}, {"s": 20.0, "t": 21.0}
    rows = table(plan, {"a": [cell(0, theirs)], "b": [cell(0, ours), cell(1, {"s": 90.0, "t": 90.0})]})
    assert rows[1]["psnr_db"]["T1w"]["step"]["mean"] == pytest.approx(1.25)


def test_what_a_table_rests_on_is_said():
    plan = BenchPlan((BenchRun("a", "x"),), (0,), steps=1)
    rows = table(plan, {"a": [cell(0, {"s": 20.0, "t": 24.0})]})
    rows[0]["warnings"] = [f"seed 0: step {i}: alarm" for i in range(6)]
    for text in (markdown(bench(rows, failed=["b, seed 0: no"])), page(bench(rows, failed=["b, seed 0: no"]), {})):
        assert "10 steps; device cpu, 1 CPU thread; 1 seed; evaluated on n = 2 subjects of the val split" in text
        assert "a, seed 0: step 3: alarm" in text
        assert "a, seed 0: step 4: alarm" not in text
        assert "a: 2 more warnings in its train.log" in text
        assert "b, seed 0: no" in text
        assert "Wall seconds pass while other jobs run" in text


def test_alarms_of_a_log_are_found_once(tmp_path):
    log = tmp_path / "train.log"
    assert alarms(log) == ()
    alarm = "step 40: the codebook anatomy uses 3 % of its 64 codes; it is collapsing"
    log.write_text(
        f"{alarm}\n/x/checkpoint.py:194: UserWarning: set aside\n  warnings.warn(x)\n{alarm}\nneurotome: no\n"
    )
    assert alarms(log) == (alarm, "/x/checkpoint.py:194: UserWarning: set aside")


def test_a_damaged_or_foreign_cell_is_named(tmp_path):
    recipe = {"experiment": {"optimizer": {"lr": 0.1}, "data": {"crop": 8}}, "store_sha256": "abc", "threads": 1}
    assert read_cell(tmp_path, recipe, 0) is None
    (tmp_path / "status.json").write_text("{")
    (tmp_path / "bench.json").write_text(json.dumps({"config": "x", "recipe": recipe, "parameters": 7}))
    with pytest.raises(InputError, match=r"status\.json.*what is trained stays"):
        read_cell(tmp_path, recipe, 0)
    (tmp_path / "status.json").write_text("{}")
    assert read_cell(tmp_path, recipe, 0) == BenchCell(0, {}, {}, 7)  # trained, not evaluated
    for damaged in ("[1]", "{", ""):
        (tmp_path / "metrics.json").write_text(damaged)
        with pytest.raises(InputError, match=r"metrics\.json.*evaluated again, not trained"):
            read_cell(tmp_path, recipe, 0)
    (tmp_path / "metrics.json").write_text("{}")
    assert read_cell(tmp_path, recipe, 0).parameters == 7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"experiment": {"optimizer": {"lr": 0.2}, "data": {"crop": 8}}}, r"experiment.optimizer.lr: 0.1 -> 0.2"),
        ({"store_sha256": "abd"}, r"store_sha256: 'abc' -> 'abd'"),
        ({"threads": 2}, "threads: 1 -> 2"),
    ],
)
def test_a_cell_of_another_recipe_is_refused(tmp_path, change, said):
    recipe = {"experiment": {"optimizer": {"lr": 0.1}, "data": {"crop": 8}}, "store_sha256": "abc", "threads": 1}
    (tmp_path / "bench.json").write_text(json.dumps({"recipe": recipe}))
    (tmp_path / "status.json").write_text("{}")
    with pytest.raises(InputError, match=rf"{said}.*remove the folder"):
        read_cell(tmp_path, recipe | change, 0)
    (tmp_path / "bench.json").write_text(json.dumps({"config": "x", "overrides": {}}))  # says nothing of its recipe
    with pytest.raises(InputError, match="another recipe"):
        read_cell(tmp_path, recipe, 0)


def test_a_cell_answers_what_it_was_evaluated_with():
    truth = {"01": {"age": 40.0}}
    asked = evaluation_request("test", "abc", truth)
    told = BenchCell(0, {"protocol": {**asked, "seed": 0}}, {}, 1)
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
    assert not BenchCell(0, {"protocol": {"format_version": 1, "split": "test"}}, {}, 1).answers(others[0])
    assert not BenchCell(0, {}, {}, 1).answers(asked)
    assert evaluation_request("test", None, {})["truth_sha256"] is None


def test_a_star_is_the_mean_over_what_stands_there():
    tree = {"sex": {"T1w": {"anatomy": 0.5, "n": 8}, "T2w": {"anatomy": 0.75}, "PDw": {"anatomy": None}}}
    assert at(tree, "sex", "*", "anatomy") == 0.625
    assert at(tree, "sex", "*", "n") == 8
    assert at(tree, "sex", "*", "style") is None
    assert at(tree, "age", "*", "anatomy") is None
    assert at({"sex": 3}, "sex", "*", "anatomy") is None


def test_structures_and_probes_are_columns_with_their_limits():
    def with_more(one: BenchCell) -> BenchCell:
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
        return BenchCell(one.seed, {**one.metrics, **more}, one.status, one.parameters)

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
    text = markdown(bench(rows))
    assert "on 4 scans of all contrasts" in text
    assert "states the same for the scan itself" in text
    assert unprobed(rows, {"sex", "site", "age", "height"}) == ["site"]
    assert unprobed(rows, {"sex"}) == []
    assert "Not probed" not in text
    assert "Not probed for want of subjects: site. A class" in markdown(bench(rows, unprobed=["site"]))
    assert "Structure Dice: overlap" in page(bench(rows), {})


@pytest.mark.parametrize(
    ("low", "mean", "high", "real"),
    [(-0.1, 0.5, 1.1, False), (-1.1, -0.5, 0.1, False), (0.1, 0.5, 0.9, True), (-0.9, -0.5, -0.1, True),
     (0.0, 0.5, 1.0, False), (0.001, 0.04, 0.08, False), (math.nan, 0.5, math.nan, False)],
)  # fmt: skip
def test_a_step_is_real_where_its_interval_excludes_zero_and_it_matters(low, mean, high, real):
    assert is_real(Interval(mean, low, high, 8), 0.05) is real


def test_bits_of_the_brain_and_monotone_curves_stand_in_the_table():
    """Tokenizers are compared at equal bits per brain voxel; a translation beside what needs no network."""
    one = cell(0, {"s": 20.0, "t": 24.0})
    one.metrics["bits"]["own_per_brain_voxel"] = 2.4
    one.metrics["translation"] = {
        "T1w->T2w": {
            "psnr_db": {"mean": 19.0, "ci95": None, "n": 2, "values": {"s": 18.0, "t": 20.0}},
            "baselines": {
                "monotone_map": {"psnr_db": {"mean": 18.75, "ci95": [18.0, 19.0], "n": 2}},
                "monotone_ceiling": {"psnr_db": {"mean": 19.5, "ci95": [19.0, 20.0], "n": 2}},
            },
        }
    }
    rows = table(BenchPlan((BenchRun("a", "x"),), (0,), steps=1), {"a": [one]})
    assert rows[0]["bits_per_brain_voxel"]["mean"] == 2.4
    headings = [heading for heading, *_ in columns(rows)]
    assert "bits per voxel of the grid" in headings
    assert "bits per brain voxel" in headings
    assert "T1w → T2w (dB) (monotone map 18.75, best of the very scan 19.50)" in headings
    assert [chart.svg.count("bits per brain voxel") for chart in rate_charts(rows, 2)] == [2]
    before = table(BenchPlan((BenchRun("a", "x"),), (0,), steps=1), {"a": [cell(0, {"s": 20.0})]})
    assert "bits per brain voxel" not in rate_charts(before, 1)[0].svg
    assert "equal bits per brain voxel" in markdown(bench(rows))


def test_every_run_of_the_rates_is_a_config_that_leaves_background_out_where_it_says_so():
    text = (resources.files("neurotome") / "configs" / "bench" / "rates.yaml").read_text(encoding="utf-8")
    for one in read_plan(text, "rates.yaml").runs:
        experiment = check_experiment(load_config(one.config, one.overrides.items()), ("T1w", "T2w"))
        assert (experiment.resolved().count("tissue_above: -0.95") == 1) is one.name.endswith("-tissue")
