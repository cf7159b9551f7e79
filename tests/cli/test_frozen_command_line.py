"""The verbs and flags of the command line are those of ``verbs_and_flags.txt``: scripts of users depend on them.

After a wanted change, and a line in CHANGELOG.md: ``make freeze-commands`` writes the file anew.
"""

import argparse
from pathlib import Path

import pytest

from neurotome.cli.main import Parser, _parser

FROZEN = Path(__file__).with_name("verbs_and_flags.txt")


def values(action: argparse.Action) -> str:
    """Return what an argument takes: its admissible words, or its placeholder, and whether there may be several."""
    if action.nargs == 0:
        return ""
    names = action.metavar if isinstance(action.metavar, tuple) else (action.metavar or action.dest.upper(),)
    word = "|".join(map(str, action.choices)) if action.choices else " ".join(map(str, names))
    return f" {word}" + {"+": " ...", "*": " [...]", "?": " (optional)"}.get(str(action.nargs), "")


def lines(parsers: dict[str, Parser]) -> list[str]:
    """Return one line per verb, argument and flag; flags are sorted, the order of arguments counts."""
    found = []
    for verb, parser in sorted(parsers.items()):
        found.append(verb)
        flags = [action for action in parser._actions if action.option_strings]
        found += [f"{verb}{values(action)}" for action in parser._actions if not action.option_strings]
        found += sorted(
            f"{verb} {'|'.join(action.option_strings)}{values(action)}{' (required)' * action.required}"
            for action in flags
        )
    return found


def frozen_lines() -> list[str]:
    return FROZEN.read_text(encoding="utf-8").splitlines()


def test_the_command_line_is_the_frozen_one() -> None:
    now, before = lines(_parser()[1]), frozen_lines()
    gone, new = [line for line in before if line not in now], [line for line in now if line not in before]
    assert now == before, (
        f"gone: {gone}; new: {new}. If that is wanted, write it into CHANGELOG.md and run `make freeze-commands`"
    )


@pytest.mark.parametrize("change", ["flag", "choices", "required", "argument", "verb"])
def test_a_change_is_seen(change: str) -> None:
    parsers = _parser()[1]
    if change == "flag":
        parsers["train"].add_argument("--new-flag", action="store_true")
    elif change == "choices":
        next(a for a in parsers["evaluate"]._actions if a.dest == "split").choices = ("train", "val")
    elif change == "required":
        next(a for a in parsers["train"]._actions if a.dest == "out").required = False
    elif change == "argument":
        parsers["report"].add_argument("more", nargs="*")
    else:
        parsers["vanished"] = parsers.pop("doctor")
    assert lines(parsers) != frozen_lines()


if __name__ == "__main__":
    FROZEN.write_text("\n".join(lines(_parser()[1])) + "\n", encoding="utf-8")
