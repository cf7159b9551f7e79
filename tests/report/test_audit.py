"""Sentences about the separation of anatomy and contrast: their thresholds, and none where nothing was measured."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurotome.report.audit import Audit, level, read_audit, resolution, statements, verdict

# The published objective with swaps (one trial's figures) and the aligned one.
SWAPPED = Audit(1.60, 0.002, 0.003, 0.72, 0.78, 0.80, 1.0, 1.0, 1.0)
ALIGNED = Audit(0.08, 0.27, 0.07, 0.83, 0.52, 0.54, 0.75, 1.0, 1.0)
SEPARATED = Audit(0.05, 0.50, 0.07, 0.83, 0.51, 0.53, 0.53, 0.60, 1.0)
COLLAPSED = Audit(0.05, 0.898, 0.897, 0.98, 0.52, 0.52, 0.5, 0.5, 1.0)
shares = st.none() | st.floats(0, 1)


def words(audit: Audit) -> str:
    return " ".join(verdict(audit))


def test_swap_training_alone_is_no_separation() -> None:
    assert level(SWAPPED) == "absent"
    text = words(SWAPPED)
    assert "not separated" in text
    assert "1.60" in text
    assert "0.2\u00a0%" in text
    assert "0.78" in text
    assert "may still be plausible" in text


def test_partial_separation_names_what_is_missed() -> None:
    assert level(ALIGNED) == "partial"
    text = words(ALIGNED)
    assert "partly separated" in text
    assert "27\u00a0%" in text
    assert "7.0\u00a0%" in text
    assert "83\u00a0%" in text
    assert "histogram of a whole scan reveals the contrast" in text
    assert "not separated" not in text


def test_a_separation_that_reaches_every_goal_is_granted_with_its_limits() -> None:
    assert level(SEPARATED) == "hidden"
    assert "every measure taken here" in words(SEPARATED)
    assert "stronger probe" in words(SEPARATED)


def test_agreement_of_collapsed_codes_is_not_praised() -> None:
    assert level(COLLAPSED) == "collapsed"
    assert "no separation is claimed" in words(COLLAPSED)
    assert "says little" in next(row for row in statements(COLLAPSED) if row.measure == "Code agreement").sentence


def test_nothing_measured_is_no_claim() -> None:
    assert statements(Audit()) == []
    assert level(Audit()) == "unknown"
    assert "do not show" in words(Audit())


@pytest.mark.parametrize("missing", [f.name for f in fields(Audit)[:8]])
def test_one_missing_measure_withholds_the_claim(missing: str) -> None:
    assert level(replace(SEPARATED, **{missing: None})) == "unknown"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gap": 0.10}, "hidden"),
        ({"gap": 0.104}, "hidden"),  # printed as the goal: a tie is no miss
        ({"gap": 0.106}, "partial"),
        ({"gap": 0.51}, "absent"),
        ({"token_vector": 0.55}, "hidden"),
        ({"token_vector": 0.554}, "hidden"),
        ({"token_vector": 0.556}, "partial"),
        ({"token_vector": 0.66}, "absent"),
        ({"token_onehot": 0.58}, "hidden"),
        ({"token_onehot": 0.586}, "partial"),
        ({"token_onehot": 0.66}, "absent"),
        ({"pooled_histogram": 0.75}, "hidden"),
        ({"pooled_histogram": 0.76}, "partial"),
        ({"pooled_mean": 0.66}, "partial"),
        ({"agreement": 0.415}, "hidden"),
        ({"agreement": 0.41}, "partial"),
        ({"agreement": 0.09}, "absent"),
        ({"agreement": 0.12}, "partial"),
        ({"style": 0.5}, "partial"),
        ({"token_vector": 0.30}, "partial"),
        ({"chance": 0.5}, "collapsed"),
        ({"subjects": 1}, "unknown"),
        ({"subjects": 2}, "hidden"),
        ({"site": (("T1w", 0.81, 0.25),)}, "partial"),
    ],
)
def test_thresholds(changes: dict[str, float], expected: str) -> None:
    assert level(replace(SEPARATED, **changes)) == expected


@given(
    st.builds(
        Audit,
        gap=st.none() | st.floats(0, 4),
        agreement=shares,
        chance=shares,
        self_agreement=shares,
        token_vector=shares,
        token_onehot=shares,
        pooled_mean=shares,
        pooled_histogram=shares,
        style=shares,
        guess=st.sampled_from([1 / 2, 1 / 3, 1 / 4]),
    )
)
def test_a_claim_needs_every_measure_and_a_denial_says_why(audit: Audit) -> None:
    rows, found = statements(audit), level(audit)
    if found == "hidden":
        assert audit.measured
        assert all(row.tone in {"good", "none", "fair"} for row in rows)
        assert all(row.tone == "good" for row in rows if row.goal is not None)
    if found == "absent":
        assert len(verdict(audit)[1].split(" Translation may")[0]) > 30
    if not audit.measured:
        assert found in {"unknown", "absent", "collapsed"}
    assert all(row.scale[0] <= row.value <= row.scale[1] for row in rows)
    assert len(rows) == sum(getattr(audit, f.name) is not None for f in fields(Audit)[:9]) - sum(
        value is not None for value in (audit.chance, audit.self_agreement)
    )


def test_agreement_without_chance_is_not_interpreted() -> None:
    row = next(r for r in statements(replace(SEPARATED, chance=None)) if r.measure == "Code agreement")
    assert row.tone == "none"
    assert "cannot be interpreted" in row.sentence


def test_a_probe_below_chance_is_not_a_success() -> None:
    row = next(r for r in statements(replace(SEPARATED, pooled_histogram=0.2)) if "histogram" in r.measure)
    assert row.tone == "fair"
    assert "does not show that the contrast is hidden" in row.sentence


def test_thresholds_move_with_the_number_of_contrasts() -> None:
    three = replace(
        SEPARATED, guess=1 / 3, token_vector=0.36, token_onehot=0.36, pooled_mean=0.36, pooled_histogram=0.4
    )
    assert level(three) == "hidden"
    assert level(replace(three, token_vector=0.52)) == "absent"


def test_read_audit_takes_the_layout_of_an_evaluation() -> None:
    tree = {
        "code_gap": {"mean": 0.08, "ci95": [0.07, 0.09], "n": 8},
        "agreement": {"agreement": {"mean": 0.27}, "chance": 0.07, "self_agreement": 0.83},
        "self_agreement": {"T1w": 0.8, "T2w": 0.86},
        "probes": {
            "token_vector": 0.52,
            "token_onehot": 0.54,
            "pooled_mean": 0.75,
            "pooled_histogram": 1.0,
            "style": 1.0,
            "chance": 0.5,
            "samples": {"token_vector": {"train": 20000, "test": 20000}, "pooled_mean": {"train": 64, "test": 16}},
        },
    }
    audit = read_audit({"audit": tree})
    assert replace(audit, samples={}, subjects=None) == ALIGNED
    assert audit.subjects == 8
    assert {row.measure: row.samples for row in statements(audit)}["Probe: mean vector of a scan"] == "16 test scans"


@pytest.mark.parametrize(
    "tree", [None, [], "x", {"probes": 3}, {"code_gap": "x", "agreement": [1]}, {"code_gap": float("nan")}]
)
def test_read_audit_of_nonsense_is_empty(tree: object) -> None:
    assert level(read_audit({"audit": tree})) == "unknown"


def test_without_a_style_there_are_no_goals() -> None:
    graded, plain = statements(SWAPPED), statements(SWAPPED, with_goals=False)
    assert {row.tone for row in graded} > {"poor"}
    assert {(row.tone, row.goal, row.goal_text) for row in plain} == {("none", None, "")}
    assert [(row.measure, row.value, row.sentence) for row in plain] == [
        (row.measure, row.value, row.sentence) for row in graded
    ]


def test_what_the_anatomy_vector_reads_of_the_site_is_named() -> None:
    site = {"T1w": {"anatomy": 0.81, "style": 0.3, "chance": 0.25}, "T2w": {"anatomy": 0.88, "chance": 0.25}}
    found = read_audit({"factors": {"site": site, "sex": {"T1w": {"anatomy": 1.0, "chance": 0.5}}}})
    assert found.site == (("T1w", 0.81, 0.25), ("T2w", 0.88, 0.25))
    for audit in (replace(SEPARATED, site=found.site), replace(SEPARATED, gap=0.4, site=found.site)):
        words, paragraph = verdict(audit)
        assert "partly" in words
        assert "accuracy 0.81 (T1w) and 0.88 (T2w), chance 0.25" in paragraph
    assert "0.88 (T2w)" in verdict(replace(SEPARATED, gap=0.9, site=found.site))[1]
    near = {"T1w": {"anatomy": 0.35, "chance": 0.25}, "T2w": {"anatomy": None}, "T1c": 3}
    assert read_audit({"factors": {"site": near}}).site == ()


def test_one_subject_gives_no_verdict() -> None:
    words, paragraph = verdict(replace(SEPARATED, subjects=1))
    assert words == "No verdict: too few subjects"
    assert "at least 2 subjects, measured was 1" in paragraph
    assert read_audit({"protocol": {"subjects": 1}}).subjects == 1


def test_probes_on_few_scans_say_what_they_can_resolve() -> None:
    few = replace(SEPARATED, samples={"pooled_mean": 16, "token_vector": 20_000})
    assert resolution(few) == (
        "Probes of whole scans, tested on 16: one scan more or less changes an accuracy by 0.06, and at chance (0.50) "
        "luck alone gives up to 0.74"
    )
    assert resolution(replace(SEPARATED, samples={"pooled_mean": 400})) == ""
    assert resolution(SEPARATED) == ""
    assert [row.pooled for row in statements(few) if "scan" in row.measure] == [True, True]
    outcomes = {row.measure: row.outcome for row in statements(replace(SEPARATED, gap=0.3))}
    assert (outcomes["Code gap"], outcomes["Code agreement"], outcomes["Probe: style vector"]) == (
        "missed",
        "reached",
        "",
    )
