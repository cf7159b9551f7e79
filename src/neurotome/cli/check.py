"""``neurotome check``: dataset integrity, all problems found, scan by scan; writes a file only with ``--out``."""

import argparse
import json
import os
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotome.cli import add_common, add_reading, answer, counted, existing, natural, say
from neurotome.errors import InputError, UsageError, printable

if TYPE_CHECKING:
    from neurotome.data.checking.check import CheckReport
    from neurotome.data.checking.finding import Finding

_MAX_LINES = 8
_WIDTH = 118


def add_parser(subparsers: Any) -> None:
    """Add the verb ``check``."""
    parser = subparsers.add_parser(
        "check",
        help="look for damaged files, outliers, duplicates, leaks between splits, identifying text",
        description=(
            "Reads every image of PATH whole and reports problems: damaged files, voxels, grids, missing contrasts, "
            "duplicates, subjects in two splits, labels, text that may identify a person (located, never repeated). "
            "Changes nothing. Exit code 3 if there is an error."
        ),
    )
    parser.add_argument("path", metavar="PATH", help="BIDS dataset, .tsv or .csv table, folder, image or store")
    parser.add_argument("--out", metavar="FILE", help="write all findings to this JSON file (default: none)")
    parser.add_argument("--strict", action="store_true", help="exit code 3 also if there is a warning")
    parser.add_argument("--splits", metavar="FILE", help="a table participant_id, split to look for leaks in")
    parser.add_argument("--labels", nargs="+", type=natural, metavar="L", help="admissible labels besides 0")
    parser.add_argument("--allow-head", action="store_true", help="take whole heads for warnings, as prepare would")
    add_reading(parser)
    parser.add_argument("--workers", type=natural, default=0, metavar="N", help="processes (default: 0, this one)")
    add_common(parser, overwrite=True)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    if not Path(args.path).is_symlink():
        existing(args.path, "file or folder")
    if args.splits is not None:
        existing(args.splits, "splits table")
    out = _output(args)
    from neurotome.data.checking.check import check
    from neurotome.files.atomic import write_atomically
    from neurotome.files.progress import Progress

    labels = None if args.labels is None else sorted({0, *args.labels})
    reading = {"roots": args.root, "volume": args.volume, "use_qform": args.use_qform, "allow_head": args.allow_head}
    with Progress("read", args.quiet) as progress:
        report = check(args.path, splits=args.splits, labels=labels, **reading, workers=args.workers, progress=progress)
    result = report.to_json()
    if out is not None:
        write_atomically(out, [json.dumps(result, indent=1, sort_keys=True).encode() + b"\n"])
    failed = report.fails(strict=args.strict)
    answer(args, {**result, "failed": failed}, "\n".join(_text(report, None if args.verbose else _MAX_LINES)))
    if out is not None:
        say(args, f"all findings: {printable(out)}")
    return InputError.exit_code if failed else 0


def _output(args: argparse.Namespace) -> Path | None:
    """Return the file to write, if any.

    Raises:
        UsageError: It is there already, or its folder is not.
    """
    if args.out is None:
        return None
    out, data = Path(args.out), Path(args.path).resolve()
    if out.is_dir() or (out.exists() and not args.overwrite):
        what = "a folder" if out.is_dir() else "a file"
        raise UsageError(f"{printable(out)}: {what} is there; choose another name with --out, or give --overwrite")
    if out.exists() and out.resolve() == data:
        raise UsageError(f"{printable(out)}: this is what is checked; choose another name with --out")
    if not out.parent.is_dir():
        raise UsageError(f"{printable(out.parent)}: there is no such folder; create it first")
    if not os.access(out.parent, os.W_OK):
        raise PermissionError(13, "Permission denied", str(out.parent))
    return out


def _text(report: "CheckReport", most: int | None) -> Iterator[str]:
    """Yield the lines of the table: the most severe first, grouped by what was found."""
    from neurotome.data.checking.finding import FINDINGS

    for code, group in groupby(report.findings, key=lambda f: f.code):
        members = list(group)
        severity, meaning = FINDINGS[code]
        yield f"{severity:<7}  {code:<20} {len(members):>5}   {meaning}"
        shown = members if most is None else members[:most]
        one_for_all = len({f.remedy for f in shown}) == 1
        for finding in shown:
            yield from _lines(finding)
            if not one_for_all and finding.remedy:
                yield from _wrapped(f"→ {finding.remedy}", 6, 4)
        if len(members) > len(shown):
            yield f"           and {len(members) - len(shown)} more (--verbose or --json lists all)"
        if one_for_all and shown[0].remedy:
            yield from _wrapped(f"→ {shown[0].remedy}", 2)
        yield ""
    yield from _summary(report)


def _lines(finding: "Finding") -> list[str]:
    ids = [f"sub-{finding.subject}"] if finding.subject else []
    ids += [f"ses-{finding.session}"] if finding.session else []
    place = finding.file or " ".join(ids)
    # most file names hold the ids; the others get them here
    tail = f" [{' '.join(ids)}]" if finding.file and ids and finding.subject not in finding.file else ""
    return _wrapped(f"{place}: {finding.reason}{tail}" if place else finding.reason, 4)


def _wrapped(text: str, hanging: int, first: int = 0) -> list[str]:
    """Return a paragraph in the table; paths stay whole, so that they can be copied."""
    indent = " " * 11
    return textwrap.wrap(
        printable(text),
        _WIDTH,
        initial_indent=indent + " " * first,
        subsequent_indent=indent + " " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _summary(report: "CheckReport") -> Iterator[str]:
    prints, counts = report.fingerprint, report.counts
    if prints:
        sites = f", {counted(len(prints['sites']), 'site')}" if prints["sites"] else ""
        yield (
            f"{report.kind}: {counted(prints['subjects'], 'subject')}, {counted(prints['sessions'], 'session')}"
            f"{sites}, {counted(len(report.files), 'file')} read"
        )
    for modality, one in prints.get("contrasts", {}).items():
        shapes, spacings = (
            ", ".join(f"{value} ({n})" for value, n in one[key][:3]) for key in ("shapes", "spacings_mm")
        )
        axes = " ".join(f"{value} ({n})" for value, n in one["orientations"][:3])
        yield f"  {modality:<6} {one['scans']:>5} scans  {shapes}  of {spacings} mm  {axes}"
    yield ", ".join(counted(counts[severity], severity) for severity in ("error", "warning", "note"))
