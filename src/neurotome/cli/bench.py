"""``neurotome bench``: tokenizers side by side, each trained on one budget and evaluated on one held-out split.

Every cell is the commands a user would type, in processes of their own: one that fails or is killed costs that cell,
and peak memory is that of one training; only the seconds of a step are measured in this process. The same command
continues: what is trained is not trained again, and what was evaluated with the same flags is not evaluated again. A
config, store, device or precision that is another one by now is refused, so that no table mixes two.
"""

import argparse
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotome.cli import add_common, answer, existing, natural, positive, say
from neurotome.errors import NeurotomeError, UsageError, printable

if TYPE_CHECKING:
    from neurotome.data.stores.store import Store
    from neurotome.evaluation.factors import Truth
    from neurotome.experiments.bench import Cell
    from neurotome.experiments.bench_cells import Cells
    from neurotome.experiments.bench_plan import BenchPlan, BenchRun

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
        help=f"a shipped bench ({', '.join(shipped())}) or a YAML file (default: {DEFAULT_BENCH})",
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


def shipped() -> list[str]:
    """Return the names of the shipped benches."""
    folder = resources.files("neurotome") / "configs" / "bench"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def run(args: argparse.Namespace) -> int:
    """Run the cells that are left and write the table."""
    from neurotome.cli.evaluate import read_truth
    from neurotome.data.stores.store import Store
    from neurotome.experiments.bench import table, unprobed
    from neurotome.experiments.bench_cells import Cells, checked_experiments, machine
    from neurotome.experiments.bench_pace import steps_within
    from neurotome.report.bench import markdown, page

    store, out = Store.open(existing(args.store, "store")), Path(args.out)
    plan = _plan(args)
    wanted = _wanted(plan, args.only)
    truth = None if args.truth is None else read_truth(existing(args.truth, "table"))
    cells = Cells(args, store, out, checked_experiments(args, plan.runs, store), _request(args, store, truth))
    settings = {"budget": plan.budget(machine(args, store)["device"]), "split": args.split, **machine(args, store)}
    _claim(out, settings, args.store)
    failed: list[str] = []
    open_runs = [one for one in wanted if any(cells.read(one.name, seed) is None for seed in plan.seeds)]
    steps, problems = steps_within(plan, open_runs, cells)
    for seed in plan.seeds:  # a bench that is stopped has every run, of fewer seeds
        for one in wanted:
            unpaced = problems.get(one.name) if cells.read(one.name, seed) is None else None
            problem = unpaced or cells.make(one, seed, steps.get(one.name, 0))
            failed += [f"{one.name}, seed {seed}: {problem}"] if problem else []
    found = _evaluated(plan, cells)
    rows = table(plan, found)
    told = {name for row in (truth or {}).values() for name in row}
    told |= {"site"} if any(entry.site for entry in store.sessions) else set()
    result = {
        "about": plan.about,
        **settings,
        "subjects": len({entry.subject for entry in store.split(args.split)}),
        "seeds": list(plan.seeds),
        "rows": rows,
        "unprobed": unprobed(rows, told),
        "failed": failed,
    }
    pictures = {name: cells.folder(name, those[0].seed) for name, those in found.items() if those}
    _write(out / "bench.json", json.dumps(result, indent=1, default=str))
    _write(out / "bench.md", markdown(result) + "\n")
    _write(out / "bench.html", page(result, pictures))
    answer(args, result, "\n".join([markdown(result), str(out / "bench.html")]))
    return NeurotomeError.exit_code if failed else 0


def _wanted(plan: "BenchPlan", only: list[str] | None) -> list["BenchRun"]:
    from neurotome.experiments.schema import nearest

    known = [one.name for one in plan.runs]
    strange = [name for name in only or () if name not in known]
    if strange:
        raise UsageError(
            f"--only {printable(strange[0])}{nearest(strange[0], known)}; the runs of this bench are {', '.join(known)}"
        )
    return [one for one in plan.runs if not only or one.name in only]


def _evaluated(plan: "BenchPlan", cells: "Cells") -> "dict[str, list[Cell]]":
    """Return by run the cells that were evaluated as asked; say how many were not."""
    found: dict[str, list[Cell]] = {}
    others = 0
    for one in plan.runs:
        trained = [cell for seed in plan.seeds if (cell := cells.read(one.name, seed)) is not None]
        found[one.name] = [cell for cell in trained if cell.answers(cells.request)]
        others += sum(bool(cell.metrics) and not cell.answers(cells.request) for cell in trained)
    if others:
        what = "cell was" if others == 1 else "cells were"
        say(cells.args, f"{others} {what} evaluated with other flags and left out of the table; run without --only")
    return found


def _plan(args: argparse.Namespace) -> "BenchPlan":
    import dataclasses

    from neurotome.experiments.bench_plan import BenchRun, read_plan

    if args.bench in shipped():
        text = (resources.files("neurotome") / "configs" / "bench" / f"{args.bench}.yaml").read_text(encoding="utf-8")
    elif args.bench.endswith((".yaml", ".yml")):
        text = existing(args.bench, "bench file").read_text(encoding="utf-8")
    else:
        raise UsageError(
            f"there is no bench {printable(args.bench)!r}; shipped are {', '.join(shipped())}, or give a .yaml file"
        )
    plan = read_plan(text, args.bench)
    changes: dict[str, Any] = {}
    if args.configs:
        changes["runs"] = tuple(BenchRun(Path(c).stem if c.endswith((".yaml", ".yml")) else c, c) for c in args.configs)
    if args.seeds:
        changes["seeds"] = tuple(args.seeds)
    if args.seconds is not None or args.steps is not None:
        changes |= {"seconds": args.seconds, "steps": args.steps}
    return dataclasses.replace(plan, **changes)


def _request(args: argparse.Namespace, store: "Store", truth: "Truth | None") -> dict[str, Any]:
    """Return how every cell is to be evaluated; what cannot be is refused before anything is trained."""
    from neurotome.cli.evaluate import load_segmenter
    from neurotome.evaluation.results import evaluation_request

    if not store.split(args.split):
        raise UsageError(f"the store has no session in its {args.split} split; choose another --split")
    segmenter = None if args.segmenter is None else load_segmenter(args)
    if segmenter is not None:
        segmenter.check_store(store)
    digest = None if segmenter is None else segmenter.digest
    return {**evaluation_request(args.split, digest, truth), "store_sha256": store.fingerprint}


def _claim(out: Path, settings: Mapping[str, Any], store: str) -> None:
    """Refuse a folder that holds something else, or a bench of another store or budget, or computed otherwise.

    Raises:
        UsageError: As said.
        InputError: What the bench says of itself cannot be read.
    """
    from neurotome.experiments.bench import read_object
    from neurotome.training.run_folder import differences

    marker = out / "settings.json"
    if out.exists() and not out.is_dir():
        raise UsageError(f"{printable(out)}: is a file; name a folder")
    if marker.exists():
        before = read_object(marker, "choose another OUT, or remove this one to start anew")
        changed = differences({key: before.get(key, "not recorded") for key in settings}, settings)
        if changed:
            raise UsageError(
                f"{printable(out)}: holds a bench with other settings ({printable('; '.join(changed))}); give the same "
                "store and flags to continue it, or choose another OUT"
            )
        return
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{printable(out)}: is not empty and holds no bench; choose another OUT")
    out.mkdir(parents=True, exist_ok=True)
    _write(marker, json.dumps({**settings, "store": str(Path(store).resolve())}, indent=1))


def _write(file: Path, text: str) -> None:
    from neurotome.files.stream import write_atomically

    write_atomically(file, [text.encode("utf-8")])
