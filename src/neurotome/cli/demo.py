"""``neurotome demo [OUT]``: synthetic cohort, preparation, training, evaluation, one translation, report.

Every stage is the command a user would type; one that is done is skipped.
"""

import argparse
import contextlib
import io
import json
import time
from pathlib import Path
from typing import Any

from neurotome.cli import add_common, answer, natural, positive, say
from neurotome.errors import NeurotomeError, UsageError, printable
from neurotome.files.atomic import remove
from neurotome.files.json_text import parse_json

DEFAULT_CONFIG = "anatome-demo"
# the default cohort: 3 mm phantoms, whose brain box fits this grid (a multiple of 8, which three halvings need)
SPACING_MM = "3"
SHAPE = ("48", "64", "56")
MARKER = "demo.json"
STAGES = ("phantom", "prepare", "train", "evaluate", "translate", "report")


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "demo",
        help="the whole pipeline on a synthetic cohort, a few minutes on a CPU",
        description="Make the default synthetic cohort (48 subjects, T1w and T2w, 3 mm), prepare it, train a "
        "tokenizer, evaluate it on the test subjects and write OUT/report.html. Rerunning continues a demo that was "
        "stopped.",
    )
    parser.add_argument("out", nargs="?", default="runs/demo", metavar="OUT", help="folder (default: runs/demo)")
    parser.add_argument(
        "--config", default=DEFAULT_CONFIG, metavar="NAME", help=f"config to train (default: {DEFAULT_CONFIG})"
    )
    parser.add_argument(
        "--max-steps", type=positive, default=None, metavar="N", help="fewer steps (default: the config's)"
    )
    parser.add_argument(
        "--subjects", type=positive, default=48, metavar="N", help="subjects of the cohort (default: 48)"
    )
    parser.add_argument("--cohort-seed", type=natural, default=0, metavar="S", help="seed of the cohort (default: 0)")
    add_common(parser, seed=True, compute=True, overwrite=True)


def run(args: argparse.Namespace) -> int:
    """Run the stages that are left, while no other process works in the folder."""
    from neurotome.training.run_folder import RunFolder

    out = Path(args.out)
    _check_folder(out)
    with RunFolder(out).alone():
        return _run(args, out)


def _run(args: argparse.Namespace, out: Path) -> int:
    settings = {
        "config": args.config,
        "max_steps": args.max_steps,
        "subjects": args.subjects,
        "seed": args.seed,
        "cohort_seed": args.cohort_seed,
    }
    done = _prepare_folder(out, settings, overwrite=args.overwrite)
    for stage in STAGES:
        if stage in done:
            say(args, f"{stage}: done before, {done[stage]:.0f} s")
            continue
        say(args, f"{stage} …")
        start = time.monotonic()
        _stage(stage, args, out)
        done[stage] = round(time.monotonic() - start, 2)
        # the page shows the times, its own excepted
        _write_json(out / "timing.json", done)
        say(args, f"{stage}: {done[stage]:.0f} s")
    metrics = parse_json((out / "metrics.json").read_text())
    from neurotome.cli.evaluate import headline

    lines = [
        headline(metrics),
        f"total {sum(done.values()):.0f} s",
        *map(str, sorted((out / "example").glob("*.nii.gz"))),
    ]
    text = "\n".join([*lines, str(out / "report.html")])
    answer(args, {"report": str(out / "report.html"), "timing": done, "metrics": metrics}, text)
    return 0


def _check_folder(out: Path) -> None:
    """Refuse a folder that holds something else, before anything is written.

    Raises:
        UsageError: OUT is a file, or is not empty and holds no demo.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{printable(out)}: is a file; name a folder")
    from neurotome.training.run_folder import LOCK

    left = [part for part in out.iterdir() if part.name != LOCK] if out.is_dir() else []
    if left and not (out / MARKER).exists():
        raise UsageError(f"{printable(out)}: is not empty and holds no demo; choose another OUT")


def _prepare_folder(out: Path, settings: dict[str, Any], *, overwrite: bool) -> dict[str, float]:
    """Return the stages that are done, with their seconds.

    Raises:
        UsageError: OUT holds a demo with other settings.
    """
    from neurotome.experiments.train import remove_run

    marker = out / MARKER
    if marker.exists() and not overwrite:
        before = _read_json(marker)
        changed = [key for key, value in settings.items() if before.get(key) != value]
        if changed:
            key = changed[0]
            raise UsageError(
                f"{printable(out)}: holds a demo with {key.replace('_', ' ')} {before.get(key)}, not {settings[key]}; "
                "choose another OUT, or give --overwrite to start again"
            )
        return {k: float(v) for k, v in _read_json(out / "timing.json").items() if k in STAGES}
    for name in ("timing.json", "cohort", "store", "example"):
        remove(out / name)  # the times first: without them no stage counts as done
    remove_run(out)
    _write_json(marker, settings)
    return {}


def _stage(stage: str, args: argparse.Namespace, out: Path) -> None:
    """Run one stage as the command a user would type."""
    cohort, store = out / "cohort", out / "store"
    compute = ["--device", args.device, *(["--threads", str(args.threads)] if args.threads else [])]
    compute += ["--precision", args.precision] if args.precision else []
    always = ["--overwrite", *(["--quiet"] if args.quiet or args.json else [])]
    if stage == "phantom":
        seed = ["--seed", str(args.cohort_seed)]
        _command("phantom", str(cohort), "--subjects", str(args.subjects), "--spacing", SPACING_MM, *seed, *always)
    elif stage == "prepare":
        grid = ["--spacing", SPACING_MM, "--shape", *SHAPE]
        _command("prepare", str(cohort), str(store), "--modalities", "T1w", "T2w", *grid, *always)
    elif stage == "train":
        _train(args, store, out, compute)
    elif stage == "evaluate":
        truth = _truth(cohort)
        found = ["--truth", str(truth)] if truth is not None else []
        _command("evaluate", str(out / "model"), str(store), "--out", str(out), *found, *compute, *always)
    elif stage == "translate":
        source, target = _example(store, cohort, out)
        _command("translate", str(out / "model"), str(source), str(target), "--to", "T2w", *compute, *always)
    else:
        from neurotome.report.page import write_report

        write_report(out)


def _train(args: argparse.Namespace, store: Path, out: Path, compute: list[str]) -> None:
    """Train into OUT itself, which holds cohort and store already."""
    from neurotome.cli.main import parse
    from neurotome.cli.train import train

    steps = [] if args.max_steps is None else ["--trainer.max_steps", str(args.max_steps)]
    # crops of 16 voxels are too small to share: two threads are slower than one
    threads = [] if args.threads else ["--threads", "1"]
    words = ["train", args.config, str(store), "--out", str(out), "--seed", str(args.seed), *steps, *compute, *threads]
    inner = parse([*words, "--workers", str(args.workers), *(["--quiet"] if args.quiet or args.json else [])])
    with contextlib.redirect_stdout(io.StringIO()):
        train(inner, out)


def _example(store: Path, cohort: Path, out: Path) -> tuple[Path, Path]:
    """Return a test subject's T1w scan and where its T2w translation goes."""
    from neurotome.apply.names import target_name
    from neurotome.data.stores.store import Store

    source = cohort / Store.open(store).split("test")[0].sources["T1w"]
    return source, out / "example" / target_name(source, "synth", "T2w")


def _command(*words: str) -> None:
    """Run a verb; its progress is shown, its result is not."""
    from neurotome.cli.main import parse

    inner = parse(words)
    with contextlib.redirect_stdout(io.StringIO()):
        code = inner.run(inner)
    if code:
        raise NeurotomeError(f"`neurotome {' '.join(words)}` ended with exit code {code}; run it alone to see why")


def _truth(cohort: Path) -> Path | None:
    """Return the table of known factors, if the cohort has one."""
    table = cohort / "derivatives" / "truth" / "phenotype" / "factors.tsv"
    return table if table.exists() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    from neurotome.files.atomic import write_atomically

    write_atomically(path, [json.dumps(value, indent=2).encode() + b"\n"])
