"""The steps of a bench's runs that fit into its budget of seconds, measured once per recipe and kept."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from neurotome.cli import say
from neurotome.errors import NeurotomeError

if TYPE_CHECKING:
    from neurotome.data.stores.store import Store
    from neurotome.experiments.bench_cells import Cells
    from neurotome.experiments.bench_plan import BenchPlan, BenchRun
    from neurotome.experiments.experiment import Experiment
    from neurotome.training.pace import Runner

# how the seconds of a step are measured: steps before the first round, rounds, steps of each run in a round
WARM_STEPS, ROUNDS, ROUND_STEPS = 110, 8, 10
REMEDY = "remove the file and run again; the seconds of a step are measured again"


def steps_within(
    plan: "BenchPlan", runs: Sequence["BenchRun"], cells: "Cells"
) -> tuple[dict[str, int], dict[str, str]]:
    """Return the steps of each run that fit into the budget, and why a run could not be measured.

    All that are new are measured in turn (:mod:`neurotome.training.pace`), after codebooks have started.
    """
    from neurotome.experiments.bench import read_object
    from neurotome.files.stream import write_atomically
    from neurotome.training.fit import num_threads
    from neurotome.training.pace import pace, paces

    if plan.steps is not None:
        return {one.name: plan.steps for one in runs}, {}
    args, file = cells.args, cells.out / "budget.json"
    known = read_object(file, REMEDY) if file.exists() else {}
    problems: dict[str, str] = {}
    runners: dict[str, Runner] = {}
    for one in runs:
        before = known.get(one.name)
        if not (isinstance(before, dict) and before.get("recipe") == cells.recipe(one.name)):
            known.pop(one.name, None)
            try:
                runners[one.name] = _runner(args, cells.experiments[one.name], cells.store)
            except NeurotomeError as error:
                problems[one.name] = str(error)
    if runners:
        say(args, f"measuring the seconds of a step of {', '.join(runners)} …")
        with num_threads(args.threads):
            found, failed = paces(runners, WARM_STEPS, ROUNDS, ROUND_STEPS)
        problems |= failed
        for name, seconds in found.items():
            steps = max(1, int((plan.seconds or 0) / pace(seconds)))
            measured = {"seconds_per_step": pace(seconds), "rounds": seconds, "steps": steps}
            known[name] = {"recipe": cells.recipe(name), **measured}
        write_atomically(file, [json.dumps(known, indent=1).encode()])
    return {one.name: int(known[one.name]["steps"]) for one in runs if one.name in known}, problems


def _runner(args: argparse.Namespace, experiment: "Experiment", store: "Store") -> "Runner":
    """Return the method and the batches of a run."""
    import torch

    from neurotome.cli.apply import chosen_device
    from neurotome.cli.train import batches
    from neurotome.training.pace import Runner

    method = experiment.build_method()
    steps = WARM_STEPS + ROUNDS * ROUND_STEPS
    data = batches(experiment, method, store, steps)
    return Runner(method, data, experiment.trainer.build().precision, torch.device(chosen_device(args.device)))
