"""``neurotome train CONFIG STORE --out RUN``: train, resume, export."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotome.cli import add_common, answer, existing, positive, say

if TYPE_CHECKING:
    from neurotome.experiments.train import Training


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "train",
        help="train a method on a store; the same command resumes",
        description="Train a shipped config (`neurotome configs`) or a YAML file of yours on a prepared store. The "
        "same command resumes a run that was stopped; --extend-to gives a run more steps. Any key of the config can be "
        "set: --trainer.max_steps 100, --optimizer.lr 1e-3, --method.tokenizer.quantizer.num_codes 512.",
    )
    parser.add_argument("config", metavar="CONFIG", help="name of a shipped config, or a .yaml file")
    parser.add_argument(
        "store",
        metavar="STORE",
        help="folder that `neurotome prepare` wrote; for a config of latents, of `encode --shards`",
    )
    parser.add_argument("--out", required=True, metavar="RUN", help="run folder; one that holds this run is resumed")
    parser.add_argument(
        "--init-from", metavar="MODEL",
        help="model folder, or run, whose weights the network starts from; the subjects it has seen count as seen",
    )  # fmt: skip
    parser.add_argument(
        "--extend-to", type=positive, metavar="STEPS",
        help="go on with the run in RUN, finished or not, to so many steps in all: each further step is the one that a "
        "run of STEPS would take there (learning rate, kind of batch), from the weights that RUN has; rerun with the "
        "same flag to resume",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="check all, print the resolved config, train nothing")
    add_common(parser, compute=True, overwrite=True)
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="seed (default: the config's)")


def run(args: argparse.Namespace) -> int:
    """Train and export."""
    from neurotome.experiments.config import load_config

    existing(args.store, "store")
    overrides = [*args.overrides, *([("seed", str(args.seed))] if args.seed is not None else [])]
    load_config(args.config, overrides)  # before the heavy imports: a typing error answers fast
    from neurotome.experiments.train import check_out

    out = Path(args.out)
    if not args.dry_run:
        check_out(out)
    return train(args, out)


def train(args: argparse.Namespace, out: Path) -> int:
    """Run an experiment into ``out`` and write its model folder."""
    from neurotome.experiments.outlook import outlook
    from neurotome.experiments.train import Training, extension

    overrides = [*args.overrides, *([("seed", str(args.seed))] if args.seed is not None else [])]
    if args.extend_to is not None:
        overrides.append(extension(args.extend_to, overrides, overwrite=args.overwrite))
    training = Training.prepare(
        args.config, args.store, overrides, args.device, args.precision, args.threads, args.init_from,
        quiet=args.quiet or args.json,
    )  # fmt: skip
    if args.dry_run:
        return _dry_run(args, training)
    for line in outlook(training.method, training.settings):
        say(args, line)
    done = training.run(out, workers=args.workers, overwrite=args.overwrite, extend=args.extend_to is not None)
    say(args, done.message)
    summary = {
        "run": str(done.run),
        "model": str(done.model),
        "step": done.step,
        "seconds": round(done.seconds, 1),
        "already_finished": done.already_finished,
        "unready": done.unready,
        "validation": dict(done.validation),
    }
    answer(args, summary, str(done.model))
    return 0


def _dry_run(args: argparse.Namespace, training: "Training") -> int:
    from neurotome.experiments.outlook import codebooks_start
    from neurotome.files.yaml_text import parse_yaml

    grid = training.reader.preparation.shape
    facts = {
        "parameters": sum(p.numel() for p in training.method.parameters()),
        "codebooks_start_in_step": codebooks_start(training.method),
        **training.method.product().capabilities(grid),
        "training_sessions": len(training.reader.sessions("train", training.method.product().modalities)),
        "grid": list(grid),
    }
    text = training.experiment.resolved()
    lines = [text.rstrip(), "", *(f"# {key}: {value}" for key, value in facts.items())]
    answer(args, {"config": parse_yaml(text, "config"), **facts}, "\n".join(lines))
    return 0
