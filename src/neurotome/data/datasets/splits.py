"""Which subjects train, validate and test a model; a subject is in one split with all its scans.

    rank(subject) = SHA-256(seed, subject);      the first n_train by rank train, the next n_val validate, the rest test

The rank of a subject does not depend on the others, on their order, or on a random number generator's version.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from neurotome.data.datasets.text_files import read_table
from neurotome.errors import InputError, UsageError
from neurotome.files.atomic import write_atomically

SPLITS = ("train", "val", "test")
# 48 subjects become 32, 8 and 8
DEFAULT_FRACTIONS = (2 / 3, 1 / 6, 1 / 6)


def split_subjects(
    subjects: Iterable[str], seed: int = 0, sizes: Sequence[float] = DEFAULT_FRACTIONS
) -> dict[str, str]:
    """Return the split of each subject.

    Args:
        subjects: Ids; an id counts once.
        seed: Of the ranking.
        sizes: Three fractions that sum to 1, or three whole numbers that sum to the number of subjects.

    Raises:
        UsageError: Sizes that are neither.
    """
    ranked = sorted(set(subjects), key=lambda s: hashlib.sha256(f"{seed}:{s}".encode()).digest())
    counts = _counts(len(ranked), sizes)
    names = [name for name, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    return dict(sorted(zip(ranked, names, strict=True)))


def _counts(total: int, sizes: Sequence[float]) -> list[int]:
    if len(sizes) != len(SPLITS) or min(sizes) < 0 or not all(math.isfinite(s) for s in sizes):
        raise UsageError(f"split sizes {tuple(sizes)}: give three numbers for {', '.join(SPLITS)}")
    if all(float(s).is_integer() for s in sizes) and sum(sizes) != 1:
        if sum(sizes) != total:
            raise UsageError(f"split sizes {tuple(sizes)} sum to {sum(sizes):g}, but there are {total} subjects")
        return [int(s) for s in sizes]
    if not math.isclose(sum(sizes), 1.0, abs_tol=1e-6):
        raise UsageError(f"split fractions {tuple(sizes)} sum to {sum(sizes):g}; they must sum to 1")
    exact = [s * total for s in sizes]
    counts = [math.floor(e + 1e-9) for e in exact]
    # what is left goes to the largest remainders, train first where equal
    for index in sorted(range(3), key=lambda i: (-(round(exact[i] - counts[i], 9)), i))[: total - sum(counts)]:
        counts[index] += 1
    for index in range(3):  # a wanted split of at least three subjects is never empty
        if sizes[index] > 0 and counts[index] == 0 and max(counts) > 1 and total >= 3:
            counts[counts.index(max(counts))] -= 1
            counts[index] = 1
    return counts


def write_splits(path: Path, splits: Mapping[str, str]) -> None:
    """Write splits.tsv.

    Raises:
        OutputError: The file cannot be written.
    """
    text = "participant_id\tsplit\n" + "".join(f"{s}\t{splits[s]}\n" for s in sorted(splits))
    write_atomically(path, [text.encode()])


def read_splits(path: Path, subjects: Iterable[str] | None = None) -> dict[str, str]:
    """Return the splits of a table with the columns ``participant_id`` and ``split``.

    Args:
        path: The table.
        subjects: Ids that must all be in it.

    Raises:
        InputError: A missing column, an unknown split, a subject in two splits, or a missing subject.
    """
    header, lines = read_table(path)
    for column in ("participant_id", "split"):
        if column not in header:
            raise InputError(f"line 1: column {column} is missing; the columns are {', '.join(header)}", file=path)
    splits: dict[str, str] = {}
    for number, cells in lines:
        subject, split = cells["participant_id"].removeprefix("sub-"), cells["split"]
        if split not in SPLITS:
            raise InputError(f"line {number}, column split: {split!r}; admissible are {', '.join(SPLITS)}", file=path)
        if splits.setdefault(subject, split) != split:
            raise InputError(
                f"line {number}: subject {subject!r} is in two splits, {splits[subject]} and {split}",
                file=path,
                remedy="a subject belongs to one split; decide for one",
            )
    if missing := sorted(set(subjects or ()) - splits.keys()):
        raise InputError(
            f"{len(missing)} subjects have no split: {', '.join(missing[:10])}", file=path, remedy="add a line for each"
        )
    return splits
