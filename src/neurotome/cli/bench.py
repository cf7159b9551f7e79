"""``neurotome bench``: tokenizers side by side, each trained on one budget and evaluated on one held-out split.

Every cell is the commands a user would type, in processes of their own: one that fails or is killed costs that cell,
and peak memory is that of one training; only the seconds of a step are measured in this process. The same command
continues: what is trained is not trained again, and what was evaluated with the same flags is not evaluated again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotome.cli import add_common, answer, existing, natural, positive, say
from neurotome.errors import InputError, Interrupted, NeurotomeError, UsageError, printable

if TYPE_CHECKING:
    from neurotome.apply.bench import BenchPlan, BenchRun, Cell
    from neurotome.training.pace import Runner

# how the seconds of a step are measured: steps before the first round, rounds, steps of each run in a round
WARM_STEPS, ROUNDS, ROUND_STEPS = 110, 8, 10
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
        "--seconds", type=float, metavar="T", help="CPU seconds of training per cell (default: the bench's)"
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
    from neurotome.apply.bench import read_cell, table
    from neurotome.report.bench import markdown, page

    store, out = existing(args.store, "store"), Path(args.out)
    plan = _plan(args)
    known = [one.name for one in plan.runs]
    strange = [name for name in args.only or () if name not in known]
    if strange:
        raise UsageError(f"--only {printable(strange[0])}: the runs of this bench are {', '.join(known)}")
    request = _request(args)
    _claim(out, plan, args)
    failed: list[str] = []
    wanted = [one for one in plan.runs if not args.only or one.name in args.only]
    open_runs = [one for one in wanted if any(read_cell(_folder(out, one, s), one, s) is None for s in plan.seeds)]
    steps, problems = _steps(args, plan, open_runs, store, out)
    for seed in plan.seeds:  # a bench that is stopped has every run, of fewer seeds
        for one in wanted:
            problem = problems.get(one.name) or _cell(args, one, seed, store, out, request, steps.get(one.name, 0))
            failed += [f"{one.name}, seed {seed}: {problem}"] if problem else []
    cells: dict[str, list[Cell]] = {}
    others = 0
    for one in plan.runs:
        found = [cell for seed in plan.seeds if (cell := read_cell(_folder(out, one, seed), one, seed)) is not None]
        cells[one.name] = [cell for cell in found if cell.answers(request)]
        others += sum(bool(cell.metrics) and not cell.answers(request) for cell in found)
    if others:
        what = "cell was" if others == 1 else "cells were"
        say(args, f"{others} {what} evaluated with other flags and left out of the table; run without --only")
    rows = table(plan, cells)
    pictures = {one.name: _folder(out, one, cells[one.name][0].seed) for one in plan.runs if cells[one.name]}
    result = {"about": plan.about, "budget": plan.budget, "split": args.split, "rows": rows, "failed": failed}
    _write(out / "bench.json", json.dumps(result, indent=1, default=str))
    _write(out / "bench.md", markdown(rows) + "\n")
    _write(out / "bench.html", page(plan.about, plan.budget, len(plan.seeds), rows, pictures))
    lines = [markdown(rows), *(f"failed: {line}" for line in failed), str(out / "bench.html")]
    answer(args, result, "\n".join(lines))
    return NeurotomeError.exit_code if failed else 0


def _plan(args: argparse.Namespace) -> "BenchPlan":
    import dataclasses

    from neurotome.apply.bench import BenchRun, read_plan

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


def _request(args: argparse.Namespace) -> dict[str, Any]:
    """Return how every cell is to be evaluated; what cannot be is refused before anything is trained."""
    from neurotome.apply.scores import evaluation_request
    from neurotome.cli.evaluate import load_segmenter, read_truth
    from neurotome.data.store import Store

    truth = None if args.truth is None else read_truth(existing(args.truth, "table"))
    if args.segmenter is None:
        return evaluation_request(args.split, None, truth)
    segmenter = load_segmenter(args)
    segmenter.check_store(Store.open(Path(args.store)))
    return evaluation_request(args.split, segmenter.digest, truth)


def _claim(out: Path, plan: "BenchPlan", args: argparse.Namespace) -> None:
    """Refuse a folder that holds something else, or a bench with another budget, store or split.

    Raises:
        UsageError: As said.
    """
    settings = {"budget": plan.budget, "store": str(Path(args.store).resolve()), "split": args.split}
    marker = out / "settings.json"
    if out.exists() and not out.is_dir():
        raise UsageError(f"{printable(out)}: is a file; name a folder")
    if marker.exists():
        before = _read(marker)
        changed = [key for key, value in settings.items() if before.get(key) != value]
        if changed:
            raise UsageError(
                f"{printable(out)}: holds a bench with {changed[0]} {printable(str(before.get(changed[0])))}, not "
                f"{printable(settings[changed[0]])}; choose another OUT"
            )
        return
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{printable(out)}: is not empty and holds no bench; choose another OUT")
    out.mkdir(parents=True, exist_ok=True)
    _write(marker, json.dumps(settings, indent=1))


def _folder(out: Path, one: "BenchRun", seed: int) -> Path:
    return out / "runs" / f"{one.name}-{seed}"


def _cell(
    args: argparse.Namespace,
    one: "BenchRun",
    seed: int,
    store: Path,
    out: Path,
    request: dict[str, Any],
    steps: int,
) -> str:
    """Train one cell and evaluate it, each unless it is done; return why it failed, or nothing."""
    from neurotome.apply.bench import read_cell

    folder = _folder(out, one, seed)
    cell = read_cell(folder, one, seed)
    if cell is not None and cell.answers(request):
        say(args, f"{one.name}, seed {seed}: done before")
        return ""
    try:
        if cell is None:
            say(args, f"{one.name}, seed {seed}: {steps} steps …")
            _train(args, one, seed, store, folder, steps)
            made = {"config": one.config, "overrides": dict(one.overrides), "parameters": _parameters(folder / "model")}
            _write(folder / "bench.json", json.dumps(made, indent=1))
        else:
            again = "trained before, evaluated with other flags or measures" if cell.metrics else "trained before"
            say(args, f"{one.name}, seed {seed}: {again}; evaluating …")
        _evaluate(args, store, folder)
    except NeurotomeError as error:
        if isinstance(error, Interrupted):
            raise
        say(args, f"{one.name}, seed {seed}: failed: {error}")
        return str(error)
    return ""


def _evaluate(args: argparse.Namespace, store: Path, folder: Path) -> None:
    words = ["evaluate", str(folder / "model"), str(store), "--split", args.split, "--out", str(folder), "--overwrite"]
    words += ["--truth", args.truth] if args.truth else []
    words += ["--segmenter", args.segmenter] if args.segmenter else []
    _neurotome([*words, *_compute(args), "--quiet"])


def _train(args: argparse.Namespace, one: "BenchRun", seed: int, store: Path, folder: Path, steps: int) -> None:
    """Train a run into ``folder``."""
    overrides = [word for key, value in one.overrides.items() for word in (f"--{key}", value)]
    words = ["train", one.config, str(store), "--out", str(folder), "--seed", str(seed), "--quiet", *_compute(args)]
    # the last step is validated anyway; validating on the way would be paid by some configs only
    fixed = ["--trainer.max_steps", str(steps), "--trainer.val_every_steps", str(steps)]
    _neurotome([*words, *overrides, *fixed])


def _steps(
    args: argparse.Namespace, plan: "BenchPlan", runs: Sequence["BenchRun"], store: Path, out: Path
) -> tuple[dict[str, int], dict[str, str]]:
    """Return the steps of each run that fit into the budget, and why a run could not be measured.

    Measured once and kept; all that are new in turn (:mod:`neurotome.training.pace`), after codebooks have started.
    """
    from neurotome.training.pace import pace, paces
    from neurotome.training.run import num_threads

    if plan.steps is not None:
        return {one.name: plan.steps for one in runs}, {}
    file = out / "budget.json"
    known = _read(file) if file.exists() else {}
    problems: dict[str, str] = {}
    runners = {}
    for one in runs:
        if any(known.get(one.name, {}).get(key) != value for key, value in _settings(args, one).items()):
            try:
                runners[one.name] = _runner(args, one, store)
            except NeurotomeError as error:
                problems[one.name] = str(error)
    if runners:
        say(args, f"measuring the seconds of a step of {', '.join(runners)} …")
        with num_threads(args.threads):
            found, failed = paces(runners, WARM_STEPS, ROUNDS, ROUND_STEPS)
        problems |= failed
        for one in runs:
            if (seconds := found.get(one.name)) is not None:
                steps = max(1, int((plan.seconds or 0) / pace(seconds)))
                measured = {"seconds_per_step": pace(seconds), "rounds": seconds, "steps": steps}
                known[one.name] = {**_settings(args, one), **measured}
        _write(file, json.dumps(known, indent=1))
    measured_runs = [one for one in runs if one.name in known and one.name not in problems]
    return {one.name: int(known[one.name]["steps"]) for one in measured_runs}, problems


def _settings(args: argparse.Namespace, one: "BenchRun") -> dict[str, str]:
    """Return what a pace depends on, as text."""
    return {"config": one.config, "overrides": json.dumps(dict(one.overrides)), "compute": " ".join(_compute(args))}


def _runner(args: argparse.Namespace, one: "BenchRun", store: Path) -> "Runner":
    """Return the method and the batches of a run."""
    import torch

    from neurotome.cli.apply import chosen_device
    from neurotome.cli.config import load_config
    from neurotome.cli.experiment import check_experiment
    from neurotome.cli.train import batches, precision_name
    from neurotome.data.store import Store
    from neurotome.training.pace import Runner

    opened = Store.open(store)
    precision = [("trainer.precision", precision_name(args.precision))] if args.precision else []
    experiment = check_experiment(
        load_config(one.config, [*one.overrides.items(), *precision]), tuple(opened.modalities)
    )
    method = experiment.build_method()
    settings = experiment.trainer.build()
    steps = WARM_STEPS + ROUNDS * ROUND_STEPS
    return Runner(
        method, batches(experiment, method, opened, steps), settings.precision, torch.device(chosen_device(args.device))
    )


def _neurotome(words: list[str]) -> None:
    """Run a command of ours in a process of its own.

    Raises:
        Interrupted: It was stopped by a signal of the user.
        NeurotomeError: It failed; the message is its own.
    """
    done = subprocess.run([sys.executable, "-m", "neurotome", *words], capture_output=True, text=True, check=False)
    if done.returncode == Interrupted.exit_code:
        raise Interrupted("interrupted; run the same command again to continue")
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("neurotome: ")]
        raise NeurotomeError(said[-1].removeprefix("neurotome: ") if said else f"it ended with code {done.returncode}")


def _compute(args: argparse.Namespace) -> list[str]:
    words = ["--device", args.device]
    words += ["--threads", str(args.threads)] if args.threads else []
    return words + (["--precision", args.precision] if args.precision else [])


def _parameters(model: Path) -> int:
    from neurotome.apply.model_folder import read_model_folder

    return sum(p.numel() for p in read_model_folder(model).network.parameters())


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError("cannot be read", file=file, remedy="remove it and run again") from error
    return dict(value)


def _write(file: Path, text: str) -> None:
    from neurotome.data.stream import write_atomically

    write_atomically(file, [text.encode("utf-8")])
