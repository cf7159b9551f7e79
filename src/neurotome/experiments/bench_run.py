"""A bench from Python and from the command line: tokenizers side by side, on one budget and one held-out split.

Every cell is the commands a user would type, in processes of their own: one that fails or is killed costs that cell,
and peak memory is that of one training; only the seconds of a step are measured in this process. The same call
continues: what is trained is not trained again, and what was evaluated with the same settings is not evaluated again. A
config, store, device or precision that is another one by now is refused, so that no table mixes two.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from neurotome.data.stores.leaks import check_splits
from neurotome.data.stores.store import Store
from neurotome.errors import UsageError, did_you_mean, printable
from neurotome.evaluation.factors import Truth
from neurotome.evaluation.results import evaluation_request
from neurotome.experiments.bench import BenchCell, read_object, table, unprobed
from neurotome.experiments.bench_cells import Cells, checked_experiments, machine
from neurotome.experiments.bench_pace import steps_within
from neurotome.experiments.bench_plan import BenchPlan, BenchRun, BenchSettings, read_plan
from neurotome.experiments.config import shipped_benches
from neurotome.experiments.evaluate import read_truth
from neurotome.files.atomic import write_atomically
from neurotome.files.lock import alone
from neurotome.report.bench import markdown, page
from neurotome.scans.segmenter import ScanSegmenter
from neurotome.training.run_folder import LOCK, differences


def load_plan(name: str) -> BenchPlan:
    """Read a shipped bench, or a YAML file.

    Raises:
        UsageError: There is none of this name, or it is not admissible.
    """
    shipped = shipped_benches()
    if name in shipped:
        text = (resources.files("neurotome") / "configs" / "bench" / f"{name}.yaml").read_text(encoding="utf-8")
    elif not name.endswith((".yaml", ".yml")):
        raise UsageError(
            f"there is no bench {printable(name)!r}; shipped are {', '.join(shipped)}, or give a .yaml file"
        )
    elif not Path(name).exists():
        raise UsageError(f"{printable(name)}: there is no such bench file; check the path")
    else:
        text = Path(name).read_text(encoding="utf-8")
    return read_plan(text, name)


def run_bench(
    plan: BenchPlan,
    settings: BenchSettings,
    out: Path,
    only: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train and evaluate the cells that are left; write ``bench.json``, ``bench.md``, ``bench.html``; return the first.

    Args:
        plan: What is compared, and on how much training.
        settings: How the cells are computed and evaluated.
        out: Folder of the bench.
        only: Names of the runs to train; the table shows all that are done. None for all.
        say: Called with a line of progress.

    Raises:
        UsageError: A path is missing, a run is unknown or its config is not admissible, or ``out`` holds another bench.
        InputError: A cell is damaged, the store's splits leak, or the segmenter does not fit the store.
        Interrupted: A signal came; the same call continues.
    """
    for what, path in (("store", settings.store), ("table", settings.truth), ("segmenter folder", settings.segmenter)):
        if path is not None and not Path(path).exists():
            raise UsageError(f"{printable(path)}: there is no such {what}; check the path")
    store, wanted = Store.open(settings.store), _wanted(plan, only)
    check_splits(store.sessions, store.path)
    truth = None if settings.truth is None else read_truth(Path(settings.truth))
    experiments = checked_experiments(settings, plan.runs, store)
    cells = Cells(settings, store, out, experiments, _request(settings, store, truth), say)
    shared = machine(settings, store)
    facts = {"budget": plan.budget(shared["device"]), "split": settings.split, **shared}
    _claim(out, facts, settings.store)
    held = f"{printable(out)}: another process runs this bench; wait for it, or choose another OUT"
    with alone(out / LOCK, UsageError(held)):
        return _run_cells(plan, cells, wanted, truth, facts)


def _run_cells(
    plan: BenchPlan, cells: Cells, wanted: Sequence[BenchRun], truth: Truth | None, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Run what is left of a bench and write its tables."""
    out, store, settings = cells.out, cells.store, cells.settings
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
    factors = {name for row in (truth or {}).values() for name in row}
    factors |= {"site"} if any(entry.site for entry in store.sessions) else set()
    result = {
        "about": plan.about,
        **facts,
        "subjects": len({entry.subject for entry in store.split(settings.split)}),
        "seeds": list(plan.seeds),
        "rows": rows,
        "unprobed": unprobed(rows, factors),
        "failed": failed,
    }
    pictures = {name: cells.folder(name, those[0].seed) for name, those in found.items() if those}
    _write(out / "bench.json", json.dumps(result, indent=1, default=str))
    _write(out / "bench.md", markdown(result) + "\n")
    _write(out / "bench.html", page(result, pictures))
    return result


def _wanted(plan: BenchPlan, only: Sequence[str] | None) -> list[BenchRun]:
    known = [one.name for one in plan.runs]
    strange = [name for name in only or () if name not in known]
    if strange:
        hint = did_you_mean(strange[0], known)
        raise UsageError(f"--only {printable(strange[0])}{hint}; the runs of this bench are {', '.join(known)}")
    return [one for one in plan.runs if not only or one.name in only]


def _evaluated(plan: BenchPlan, cells: Cells) -> dict[str, list[BenchCell]]:
    """Return by run the cells that were evaluated as asked; say how many were not."""
    found: dict[str, list[BenchCell]] = {}
    others = 0
    for one in plan.runs:
        trained = [cell for seed in plan.seeds if (cell := cells.read(one.name, seed)) is not None]
        found[one.name] = [cell for cell in trained if cell.answers(cells.request)]
        others += sum(bool(cell.metrics) and not cell.answers(cells.request) for cell in trained)
    if others:
        what = "cell was" if others == 1 else "cells were"
        cells.say(f"{others} {what} evaluated with other flags and left out of the table; run without --only")
    return found


def _request(settings: BenchSettings, store: Store, truth: Truth | None) -> dict[str, Any]:
    """Return how every cell is to be evaluated; what cannot be is refused before anything is trained."""
    if not store.split(settings.split):
        raise UsageError(f"the store has no session in its {settings.split} split; choose another --split")
    digest = None
    if settings.segmenter is not None:
        segmenter = ScanSegmenter.from_pretrained(settings.segmenter)
        segmenter.check_store(store)
        digest = segmenter.digest
    return {**evaluation_request(settings.split, digest, truth), "store_sha256": store.fingerprint}


def _claim(out: Path, settings: Mapping[str, Any], store: str) -> None:
    """Refuse a folder that holds something else, or a bench of another store or budget, or computed otherwise.

    Raises:
        UsageError: OUT is a file, is not empty and holds no bench, or holds one of another store or other settings.
        InputError: What the bench says of itself cannot be read.
    """
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
    write_atomically(file, [text.encode("utf-8")])
