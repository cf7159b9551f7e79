"""``neurotome report RUN``: one self-contained page about a run, also about one that failed."""

import argparse
from pathlib import Path
from typing import Any

from neurotome.cli import add_common, answer


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "report",
        help="write RUN/report.html, also for a run that failed",
        description="Write one self-contained HTML page about a run; an older page is replaced.",
    )
    parser.add_argument("run_folder", metavar="RUN", help="run folder, or output folder of an evaluation")
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page."""
    from neurotome.report.page import write_report

    page = write_report(Path(args.run_folder))
    answer(args, {"report": str(page)}, str(page))
    return 0
