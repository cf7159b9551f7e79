"""The command line: one file per verb family, each with ``add_parser(subparsers)`` and ``run(args) -> int``.

Only this folder prints. Results go to standard output, everything else to standard error. A verb imports what is heavy
inside ``run``, so that ``neurotome --help`` answers at once.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotome.errors import UsageError

if TYPE_CHECKING:
    from neurotome.scans.tokenizer import ScanTokenizer


def add_common(
    parser: argparse.ArgumentParser, *, seed: bool = False, compute: bool = False, overwrite: bool = False
) -> None:
    """Add the flags every verb has, and those of verbs with chance, computation or an output."""
    group = parser.add_argument_group("common flags")
    group.add_argument("--json", action="store_true", help="print the result as one JSON object")
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="print the result alone")
    loudness.add_argument("--verbose", action="store_true", help="print more; keep the traceback of an internal error")
    if overwrite:
        group.add_argument("--overwrite", action="store_true", help="replace existing output (default: refuse)")
    if seed:
        group.add_argument("--seed", type=natural, default=0, metavar="S", help="random seed (default: 0)")
    if compute:
        group.add_argument(
            "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute (default: auto)"
        )
        group.add_argument(
            "--precision", choices=("fp32", "bf16"), default=None, help="arithmetic (default: fp32, or the config's)"
        )
        group.add_argument("--threads", type=positive, default=None, metavar="N", help="CPU threads (default: all)")
        group.add_argument("--workers", type=natural, default=0, metavar="N", help="loader processes (default: 0)")


def add_reading(parser: Any, *, unset: bool | None = False) -> None:
    """Add the flags that say which files are read, and how ambiguous ones are.

    Args:
        parser: Of the verb, or a group of its flags.
        unset: Value of ``--use-qform`` where it is not given; None where a preset may say it.
    """
    parser.add_argument(
        "--root", action="append", default=[], metavar="DIR",
        help="another folder that links and a table's paths may lead to; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--volume", type=natural, metavar="K",
        help="read volume K, from 0, of files that are 4-D series (default: such files are refused)",
    )  # fmt: skip
    parser.add_argument(
        "--use-qform", action="store_true", default=unset,
        help="read the quaternion where a file's quaternion and matrix disagree (default: such files are refused)",
    )  # fmt: skip


def positive(text: str) -> int:
    """Read an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def natural(text: str) -> int:
    """Read an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative; give 0 or more")
    return value


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return ``1 scan``, ``2 scans``: a number with its noun."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def say(args: argparse.Namespace, text: str) -> None:
    """Print progress to standard error, unless ``--quiet``."""
    if not getattr(args, "quiet", False):
        _write(sys.stderr, text)


def answer(args: argparse.Namespace, result: Mapping[str, Any], text: str) -> None:
    """Print the result: ``result`` as JSON with ``--json``, else ``text``."""
    _write(sys.stdout, json.dumps(result, indent=2, default=str) if getattr(args, "json", False) else text)


def _write(stream: Any, text: str) -> None:
    """Print a line; a reader that has gone away (``| head``) must not stop the work."""
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def some(lines: list[str], noun: str, most: int = 20) -> list[str]:
    """Return the first lines of a list, and how many more there are."""
    more = len(lines) - most
    return lines if more <= 0 else [*lines[:most], f"and {counted(more, f'more {noun}')} (--json lists all)"]


def existing(path: str, what: str) -> Path:
    """Return ``path`` if something is there.

    Raises:
        UsageError: Nothing is there.
    """
    found = Path(path)
    if not found.exists():
        from neurotome.errors import printable

        raise UsageError(f"{printable(path)}: there is no such {what}; check the path")
    return found


def load_tokenizer(args: argparse.Namespace, *, masks: bool = False) -> "ScanTokenizer":
    """Read the model onto the device that the flags name; one of masks where these are admitted."""
    from neurotome.scans.tokenizer import ScanTokenizer
    from neurotome.training.device import chosen_device

    set_threads(args)
    return ScanTokenizer.from_pretrained(
        args.model,
        device=chosen_device(args.device),
        precision=args.precision or "fp32",
        slabs=getattr(args, "slabs", "auto"),
        masks=masks,
    )


def set_threads(args: argparse.Namespace) -> None:
    """Give torch the threads of ``--threads``; without the flag its own choice stays."""
    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)
