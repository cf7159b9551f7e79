"""``neurotome VERB …``: reads the command, runs the verb, turns errors into one paragraph and an exit code.

0 ok · 1 internal, full disk, read-only output · 2 flag, key, type, missing path, OUT not empty
3 an input refused · 75 interrupted by a signal, run again to resume
"""

import argparse
import contextlib
import difflib
import errno
import importlib
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import neurotome
from neurotome.cli.surroundings import settle
from neurotome.errors import Interrupted, NeurotomeError, UsageError, is_out_of_memory, printable

VERB_FILES = (
    "demo", "phantom", "inspect", "check", "prepare", "train", "configs", "evaluate", "report", "apply", "bench",
    "doctor", "convert",
)  # fmt: skip

_OUTPUT_ERRNO = {
    errno.ENOSPC: ("the disk is full", "free some space or choose another output folder, then run the same command"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or choose another output folder"),
    errno.EROFS: ("the file system is read-only", "choose another output folder"),
    errno.EACCES: ("permission denied", "choose a folder you may write to, or change its permissions"),
    errno.EPERM: ("operation not permitted", "choose a folder you may write to, or change its permissions"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations that raises instead of exiting, and suggests the nearest option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError that names the verb."""
        verb = self.prog.removeprefix("neurotome").strip()
        raise UsageError(
            f"{verb}{': ' * bool(verb)}{printable(message)}; `{self.prog} --help` lists what is admissible"
        )

    def options(self) -> list[str]:
        """Return every option of this parser."""
        return [name for action in self._actions for name in action.option_strings]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    settle()
    words = list(sys.argv[1:] if argv is None else argv)
    args = argparse.Namespace(verbose="--verbose" in words)
    try:
        with terminable():
            args = parse(words)
            code = int(args.run(args))
            sys.stdout.flush()
            return code
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except (Exception, KeyboardInterrupt) as error:
        text, code = explain(error, verbose=args.verbose)
        with contextlib.suppress(OSError):
            print(f"neurotome: {text}", file=sys.stderr)
        return code


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the words of a command.

    Raises:
        UsageError: An unknown verb or option, with the nearest admissible one; a value of the wrong kind.
    """
    parser, verbs = _parser()
    verb = next((w for w in words if not w.startswith("-")), None)
    if verb is None:
        if not {"-h", "--help", "--version"} & set(words):
            parser.print_help()
            raise SystemExit(2)
    elif verb not in verbs:
        raise UsageError(
            f"there is no verb '{printable(verb)}'{_nearest(verb, list(verbs))}; `neurotome --help` lists all"
        )
    overrides, rest = split_overrides(words) if verb == "train" else ([], list(words))
    options = verbs[verb].options() if verb is not None else []
    given = [word.split("=")[0] for word in rest[rest.index(verb) + 1 :]] if verb is not None else []
    strange = [name for name in given if name.startswith("--") and name != "--" and name not in options]
    args, extra = (None, []) if strange else parser.parse_known_args(rest)
    if args is None or extra:
        word = [*strange, *extra][0]
        known = [*options, *(_config_options() if verb == "train" else [])]
        hint = _nearest(word, known) if word.startswith("-") else ""
        raise UsageError(f"{verb}: unknown option or extra word '{printable(word)}'{hint}")
    args.overrides = overrides
    return args


def split_overrides(words: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Take the dotted options (``--trainer.max_steps 100``, also with ``=``) out of ``words``.

    Raises:
        UsageError: A dotted option has no value.
    """
    overrides, rest = [], []
    queue = iter(words)
    for word in queue:
        key, equals, value = word[2:].partition("=")
        if not (word.startswith("--") and "." in key):
            rest.append(word)
            continue
        if not equals:
            following = next(queue, None)
            if following is None:
                raise UsageError(f"{printable(word)} needs a value: {printable(word)} VALUE")
            value = following
        overrides.append((key, value))
    return overrides, rest


def explain(error: BaseException, *, verbose: bool = False) -> tuple[str, int]:
    """Return the paragraph and the exit code for an error."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command again to resume", Interrupted.exit_code
    if isinstance(error, NeurotomeError):
        return _paragraph(str(error)), error.exit_code
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(found.group(1))  # safetensors wraps the system's error in one of its own
    where = (
        printable(str(error.filename)) if isinstance(error, OSError) and error.filename is not None else "the output"
    )
    if number in _OUTPUT_ERRNO:
        reason, remedy = _OUTPUT_ERRNO[number]
        return f"{where}: {reason}. Remedy: {remedy}.", 1
    if number == errno.ENAMETOOLONG:
        return f"{where}: the name is too long for the file system; choose a shorter one.", UsageError.exit_code
    if isinstance(error, FileNotFoundError):
        return f"{where}: there is no such file or folder; check the path.", UsageError.exit_code
    if is_out_of_memory(error):
        why = _paragraph(str(error)) or "no details"
        return f"memory ran out ({why}). Remedy: a smaller batch, crop or network, or another --device.", 1
    head = f"internal error, {type(error).__name__}: {_paragraph(str(error))}"
    if not verbose:
        return f"{head}. Run again with --verbose to keep the traceback, and report it.", 1
    handle, name = tempfile.mkstemp(prefix="neurotome-error-", suffix=".txt")
    os.close(handle)
    Path(name).write_text("".join(traceback.format_exception(error)))
    return f"{head}. The traceback is in {name}; please report it.", 1


def _parser() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
        prog="neurotome",
        description="Splits 3-D brain MRI into anatomy and contrast. `neurotome VERB --help` explains a verb.",
        epilog="Start with `neurotome demo`: a synthetic cohort, a training, an evaluation and a report.",
    )
    parser.add_argument("--version", action="version", version=f"neurotome {neurotome.__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for name in VERB_FILES:
        module = importlib.import_module(f"neurotome.cli.{name}")
        before = set(subparsers.choices)
        module.add_parser(subparsers)
        for verb in set(subparsers.choices) - before:
            if subparsers.choices[verb].get_default("run") is None:
                subparsers.choices[verb].set_defaults(run=module.run)
    return parser, dict(subparsers.choices)


def _config_options() -> list[str]:
    from neurotome.experiments.experiment import plain_keys

    return [f"--{key}" for key in plain_keys()]


def _nearest(word: str, known: list[str]) -> str:
    """Return `; did you mean …?` or nothing; ``--max-steps`` is near ``--trainer.max_steps``."""
    plain = {re.sub(r"[-_]+", "-", name): name for name in known}
    tails = {re.sub(r"[-_]+", "-", "--" + name.rpartition(".")[2].lstrip("-")): name for name in known if "." in name}
    choices = {**tails, **plain}
    near = difflib.get_close_matches(re.sub(r"[-_]+", "-", word), choices, n=1, cutoff=0.6)
    return f"; did you mean {choices[near[0]]}?" if near else ""


def _paragraph(text: str) -> str:
    return " ".join(text.split())


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that temporary files go; a training installs its own handler over this one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Interrupted("stopped by SIGTERM; run the same command again to resume")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
