import pytest

from neurotome.data.datasets.splits import read_splits, split_subjects, write_splits
from neurotome.errors import InputError, UsageError

COHORT = [f"{n:03d}" for n in range(1, 49)]


def sizes(splits):
    return [list(splits.values()).count(name) for name in ("train", "val", "test")]


def test_default_cohort_is_32_8_8():
    splits = split_subjects(COHORT)
    assert sizes(splits) == [32, 8, 8]
    assert sizes(split_subjects(COHORT, sizes=(40, 4, 4))) == [40, 4, 4]
    assert sizes(split_subjects(COHORT, sizes=(1.0, 0.0, 0.0))) == [48, 0, 0]


def test_the_order_of_subjects_does_not_matter_but_the_seed_does():
    assert split_subjects(reversed(COHORT)) == split_subjects(COHORT + COHORT)
    assert split_subjects(COHORT, seed=1) != split_subjects(COHORT)
    assert list(split_subjects(COHORT)) == COHORT


@pytest.mark.parametrize("total", range(1, 20))
def test_every_subject_has_one_split(total):
    splits = split_subjects(COHORT[:total])
    counts = sizes(splits)
    assert sum(counts) == total
    assert counts[0] >= max(counts[1:])
    assert total < 3 or min(counts) >= 1


@pytest.mark.parametrize("bad", [(0.5, 0.5, 0.5), (40, 4, 5), (1, 2), (-0.5, 1.0, 0.5), (float("nan"), 0.5, 0.5)])
def test_sizes_that_do_not_add_up(bad):
    with pytest.raises(UsageError, match="split"):
        split_subjects(COHORT, sizes=bad)


def test_a_table_of_splits_is_respected(tmp_path):
    path = tmp_path / "splits.tsv"
    splits = {"a": "test", "b": "train"}
    write_splits(path, splits)
    assert read_splits(path, ["a"]) == splits
    with pytest.raises(InputError, match="1 subjects have no split: c"):
        read_splits(path, ["a", "c"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("participant_id\nx\n", "line 1: column split is missing"),
        ("participant_id\tsplit\nx\tdev\n", "line 2, column split: 'dev'"),
        ("participant_id\tsplit\nsub-x\ttrain\nx\ttest\n", "line 3: subject 'x' is in two splits, train and test"),
    ],
)
def test_bad_tables_of_splits(tmp_path, text, says):
    path = tmp_path / "splits.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_splits(path)
