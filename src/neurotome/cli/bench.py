"""``neurotome bench``: tokenizers side by side, each trained on one budget and evaluated on one held-out split."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from neurotome.cli import add_common, answer, natural, positive, say
from neurotome.errors import NeurotomeError
from neurotome.experiments.config import shipped_benches

DEFAULT_BENCH = "tokenizers"


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "bench",
        help="train and evaluate several tokenizers under one budget, and compare them",
        description="Trains every run of a bench file within its budget, evaluates all on the same held-out subjects, "
        "and writes OUT/bench.json, bench.md and bench.html. The same command continues a bench that was stopped; with "
        "another --truth or --segmenter it evaluates what is trained again, and trains nothing twice.",
    )
    parser.add_argument("store", metavar="STORE", help="prepared store")
    parser.add_argument("--out", required=True, metavar="OUT", help="folder of the bench")
    parser.add_argument(
        "--bench", default=DEFAULT_BENCH, metavar="NAME",
        help=f"a shipped bench ({', '.join(shipped_benches())}) or a YAML file (default: {DEFAULT_BENCH})",
    )  # fmt: skip
    parser.add_argument("--configs", nargs="+", metavar="CONFIG", help="these configs instead of a bench's runs")
    parser.add_argument(
        "--only", nargs="+", metavar="RUN", help="train these runs alone; the table shows all that are done"
    )
    parser.add_argument("--seeds", nargs="+", type=natural, metavar="S", help="seeds (default: the bench's)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--seconds",
        type=float,
        metavar="T",
        help="seconds of training per cell, CPU seconds where the CPU trains (default: the bench's)",
    )
    budget.add_argument("--steps", type=positive, metavar="N", help="steps of training per cell")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="held-out subjects (default: test)")
    parser.add_argument("--truth", metavar="FILE", help="table of known factors per subject, as `evaluate` takes it")
    parser.add_argument("--segmenter", metavar="FOLDER", help="model folder of a segmenter, as `evaluate` takes it")
    add_common(parser, compute=True)


def run(args: argparse.Namespace) -> int:
    """Run the cells that are left and write the table."""
    from neurotome.experiments.bench_plan import BenchRun, BenchSettings
    from neurotome.experiments.bench_run import load_plan, run_bench
    from neurotome.report.bench import markdown

    plan = load_plan(args.bench)
    changes: dict[str, Any] = {}
    if args.configs:
        changes["runs"] = tuple(BenchRun(Path(c).stem if c.endswith((".yaml", ".yml")) else c, c) for c in args.configs)
    if args.seeds:
        changes["seeds"] = tuple(args.seeds)
    if args.seconds is not None or args.steps is not None:
        changes |= {"seconds": args.seconds, "steps": args.steps}
    plan = dataclasses.replace(plan, **changes)
    settings = BenchSettings(
        args.store, args.split, args.truth, args.segmenter, args.device, args.threads, args.precision
    )
    result = run_bench(plan, settings, Path(args.out), args.only, lambda line: say(args, line))
    answer(args, result, "\n".join([markdown(result), str(Path(args.out) / "bench.html")]))
    return NeurotomeError.exit_code if result["failed"] else 0
