"""``neurotome configs [NAME]``: the shipped experiments."""

import argparse
import re
import textwrap
from typing import Any

from neurotome.cli import add_common, answer
from neurotome.experiments.config import Config, load_config, shipped

_WIDTH = 118


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "configs",
        help="list the shipped experiments, or print one",
        description="List the shipped experiments by folder, demo sizes first, or print one.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this one; redirect it to a file to change it")
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """List all, or print one."""
    if args.name is not None:
        config = load_config(args.name)
        answer(args, {"name": config.name, **config.tree, "tiny": config.tiny}, config.text.rstrip("\n"))
        return 0
    folders: dict[str, list[str]] = {}
    for name, file in shipped().items():
        folders.setdefault(file.parent.name, []).append(name)
    listed: dict[str, str] = {}
    lines = []
    for folder, names in folders.items():
        lines.append(f"{folder}:")
        for name in sorted(names, key=lambda n: not n.endswith("-demo")):
            listed[name] = _first_sentence(load_config(name))
            lines.append(f"  {name:<24} {textwrap.shorten(listed[name], _WIDTH - 27, placeholder=' …')}")
        lines.append("")
    answer(args, listed, "\n".join([*lines, "`neurotome configs NAME` prints one."]))
    return 0


def _first_sentence(config: Config) -> str:
    """Return the first sentence of a config's head."""
    paragraph = " ".join(config.head.split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z0-9])", paragraph, maxsplit=1)[0]
