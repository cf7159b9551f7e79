"""The page that says what a run did and how far its numbers can be believed."""

from neurotome.report.page import render, write_report
from neurotome.report.run import Run, read_run

__all__ = ["Run", "read_run", "render", "write_report"]
