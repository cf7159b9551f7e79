"""``neurotome configs [NAME]``: the shipped experiments."""

import argparse
from typing import Any

from neurotome.cli import add_common, answer
from neurotome.experiments.config import load_config, shipped


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "configs", help="list the shipped experiments, or print one", description="List the shipped experiments."
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this one; redirect it to a file to change it")
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """List all, or print one."""
    if args.name is not None:
        config = load_config(args.name)
        answer(args, {"name": config.name, **config.tree, "tiny": config.tiny}, config.text.rstrip("\n"))
        return 0
    heads = {name: load_config(name).head.splitlines()[:1] for name in shipped()}
    lines = [f"{name:<28} {head[0] if head else ''}" for name, head in heads.items()]
    listed = {name: head[0] if head else "" for name, head in heads.items()}
    answer(args, listed, "\n".join([*lines, "", "`neurotome configs NAME` prints one."]))
    return 0
