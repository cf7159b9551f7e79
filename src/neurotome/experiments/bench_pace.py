"""The steps of a bench's runs that fit into its budget of seconds, measured once per recipe and kept."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from neurotome.errors import NeurotomeError
from neurotome.experiments.bench import read_object
from neurotome.experiments.bench_cells import Cells
from neurotome.experiments.bench_plan import BenchPlan, BenchRun
from neurotome.files.atomic import write_atomically
from neurotome.training.device import chosen_device
from neurotome.training.fit import num_threads
from neurotome.training.pace import Runner, pace, paces

# how the seconds of a step are measured: steps before the first round, rounds, steps of each run in a round
WARM_STEPS, ROUNDS, ROUND_STEPS = 110, 8, 10
REMEDY = "remove the file and run again; the seconds of a step are measured again"


def steps_within(plan: BenchPlan, runs: Sequence[BenchRun], cells: Cells) -> tuple[dict[str, int], dict[str, str]]:
    """Return the steps of each run that fit into the budget, and why a run could not be measured.

    All that are new are measured in turn (:mod:`neurotome.training.pace`), after codebooks have started.
    """
    if plan.steps is not None:
        return {one.name: plan.steps for one in runs}, {}
    file = cells.out / "budget.json"
    known = read_object(file, REMEDY) if file.exists() else {}
    problems: dict[str, str] = {}
    runners: dict[str, Runner] = {}
    for one in runs:
        before = known.get(one.name)
        if not (isinstance(before, dict) and before.get("recipe") == cells.recipe(one.name)):
            known.pop(one.name, None)
            try:
                runners[one.name] = _runner(one.name, cells)
            except NeurotomeError as error:
                problems[one.name] = str(error)
    if runners:
        cells.say(f"measuring the seconds of a step of {', '.join(runners)} …")
        with num_threads(cells.settings.threads):
            found, failed = paces(runners, WARM_STEPS, ROUNDS, ROUND_STEPS)
        problems |= failed
        for name, seconds in found.items():
            steps = max(1, int((plan.seconds or 0) / pace(seconds)))
            measured = {"seconds_per_step": pace(seconds), "rounds": seconds, "steps": steps}
            known[name] = {"recipe": cells.recipe(name), **measured}
        write_atomically(file, [json.dumps(known, indent=1).encode()])
    return {one.name: int(known[one.name]["steps"]) for one in runs if one.name in known}, problems


def _runner(name: str, cells: Cells) -> Runner:
    """Return the method and the batches of a run."""
    experiment, steps = cells.experiments[name], WARM_STEPS + ROUNDS * ROUND_STEPS
    reader = experiment.data.build().open(Path(cells.settings.store))
    method = experiment.method_for(reader)
    method.seed = experiment.seed
    batches = reader.batches(steps, experiment.seed, method.product().modalities)
    device = torch.device(chosen_device(cells.settings.device))
    return Runner(method, batches, experiment.trainer.build().precision, device)
