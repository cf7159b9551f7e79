"""Tables of structures and factors: each number beside what it must be compared with."""

from neurotome.report.tables import factor_table, structure_table


def entry(mean: float) -> dict[str, object]:
    return {"mean": mean, "ci95": [mean - 0.1, mean + 0.1], "n": 8}


def test_a_structure_stands_beside_its_ceiling() -> None:
    tree = {
        "T1w": {"dice": {"mean": entry(0.9), "csf": entry(0.8)}, "truth_dice": {"mean": entry(0.7)},
                "ceiling": {"mean": entry(0.75), "csf": entry(0.6)}},
        "T2w->T1w": {"dice": {"mean": entry(0.5)}},
    }  # fmt: skip
    table = structure_table({"structures": tree})
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["T1w", "Mean", "0.900", "0.700", "0.750"],
        ["", "Csf", "0.800", "–", "0.600"],
        ["T2w → T1w", "Mean", "0.500", "–", "0.750"],  # the ceiling of the target
    ]
    assert table.rows[0][2].small == "0.800 to 1.000"
    for nothing in ({}, {"structures": {}}, {"structures": {"T1w": {"ceiling": {}}}}, {"structures": [1]}):
        assert structure_table(nothing) is None


def test_factors_of_a_tokenizer_without_style_come_from_its_code() -> None:
    metrics = {"factors": {"sex": {"T1w": {"anatomy": 0.6, "chance": 0.5, "n": 8}}}}
    assert factor_table(metrics).head[2].text == "From anatomy"
    metrics["not_applicable"] = {"split": "no style"}
    table = factor_table(metrics)
    assert table.head[2].text == "From code"
    assert [cell.text for cell in table.rows[0]] == ["Sex", "T1w", "0.60", "–", "accuracy, chance 0.50"]
