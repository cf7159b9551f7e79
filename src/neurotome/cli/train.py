"""``neurotome train CONFIG STORE --out RUN``: train, resume, export."""

import argparse
import json
import logging
import math
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotome.cli import add_common, answer, existing, say
from neurotome.errors import UsageError, printable

if TYPE_CHECKING:
    from neurotome.data.stores.batches import TrainingBatches, TrainingPlan
    from neurotome.data.stores.loaders import VolumeModule
    from neurotome.data.stores.store import Store
    from neurotome.experiments.experiment import Experiment
    from neurotome.tokenizers.base import Tokenizer
    from neurotome.training.fit import FitResult

log = logging.getLogger("neurotome")
OWN_FILES = (
    "checkpoints",
    "model",
    "events",
    "data.json",
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "status.json",
    "report.html",
    "worst_batch.safetensors",
)


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "train",
        help="train a method on a store; the same command resumes",
        description="Train a shipped config (`neurotome configs`) or a YAML file of yours on a prepared store. The "
        "same command resumes a run that was stopped. Any key of the config can be set: --trainer.max_steps 100, "
        "--optimizer.lr 1e-3, --method.tokenizer.num_codes 512.",
    )
    parser.add_argument("config", metavar="CONFIG", help="name of a shipped config, or a .yaml file")
    parser.add_argument("store", metavar="STORE", help="folder that `neurotome prepare` wrote")
    parser.add_argument("--out", required=True, metavar="RUN", help="run folder; one that holds this run is resumed")
    parser.add_argument("--init-from", metavar="MODEL", help="model folder whose weights the tokenizer starts from")
    parser.add_argument("--dry-run", action="store_true", help="check all, print the resolved config, train nothing")
    add_common(parser, compute=True, overwrite=True)
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="seed (default: the config's)")


def run(args: argparse.Namespace) -> int:
    """Train and export."""
    out = Path(args.out)
    existing(args.store, "store")
    if not args.dry_run:
        check_out(out)
    return train(args, out)


def check_out(out: Path) -> None:
    """Refuse a folder with other things in it.

    Raises:
        UsageError: OUT is a file, or a folder that holds something but no run.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{printable(out)}: is a file; --out names a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "config.yaml").exists():
        raise UsageError(f"{printable(out)}: is not empty and holds no run; choose another --out")


def remove_run(out: Path) -> None:
    """Remove the run in a folder, and nothing else."""
    for name in OWN_FILES:
        part = out / name
        shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink(missing_ok=True)


def train(args: argparse.Namespace, out: Path) -> int:
    """Run an experiment into ``out`` and write its model folder."""
    from neurotome.data.stores.store import Store
    from neurotome.experiments.config import load_config

    overrides = [*args.overrides, *([("seed", str(args.seed))] if args.seed is not None else [])]
    overrides += [("trainer.precision", precision_name(args.precision))] if args.precision is not None else []
    config = load_config(args.config, overrides)
    from neurotome.experiments.experiment import (
        check_experiment,  # after the config has been read: a typing error answers fast
    )

    check_experiment(config)
    store = Store.open(Path(args.store))
    experiment = check_experiment(config, tuple(store.modalities))
    settings = experiment.trainer.build(
        seed=experiment.seed, device=_device(args.device), threads=args.threads, quiet=args.quiet or args.json
    )
    method = experiment.build_method()
    if args.init_from is not None:
        start_from(method, Path(args.init_from))
    if args.dry_run:
        _data(experiment, method, store, settings.max_steps, 0)
        return _dry_run(args, experiment, method, store)
    return _fit(args, out, experiment, method, store, settings)


def start_from(method: Any, folder: Path) -> None:
    """Load the weights of a model folder into a method's tokenizer.

    Raises:
        UsageError: Other sizes or contrasts; the message names them.
    """
    from neurotome.models.folder import read_model_folder

    source, own = read_model_folder(folder).network, getattr(method, "tokenizer", None)
    if own is None:
        raise UsageError(f"--init-from gives a tokenizer its weights; {type(method).__name__} trains none")
    if type(source) is not type(own):
        raise UsageError(
            f"--init-from {printable(folder)} is a {type(source).__name__}, the config a {type(own).__name__}"
        )
    if source.modalities != own.modalities:
        raise UsageError(
            f"--init-from {printable(folder)} knows {', '.join(source.modalities)}, the run {', '.join(own.modalities)}"
        )
    try:
        own.load_exported(source.exported_state())
    except ValueError as error:
        raise UsageError(f"--init-from {printable(folder)}: {error}; use the config it was trained with") from error


def describe_store(store: "Store") -> dict[str, Any]:
    """Return what the report says about the cohort: counts per split, and what the scans were before preparation."""
    from neurotome.data.datasets.fingerprint import fingerprint_of_store

    splits = {}
    for split in ("train", "val", "test"):
        entries = store.split(split)
        splits[split] = {
            "subjects": len({e.subject for e in entries}),
            "sessions": len(entries),
            "modalities": dict(Counter(m for e in entries for m in e.modalities)),
            "sites": dict(Counter(e.site or "unknown" for e in entries)),
        }
    preparation = store.preparation
    return {
        "spacing_mm": preparation.spacing_mm,
        "shape": list(preparation.shape),
        "splits": splits,
        "fingerprint": fingerprint_of_store(store),
    }


def _fit(
    args: argparse.Namespace, out: Path, experiment: "Experiment", method: Any, store: "Store", settings: Any
) -> int:
    from neurotome.tokenizers.health import books_started
    from neurotome.training.fit import fit

    module = _data(experiment, method, store, settings.max_steps, args.workers)
    bare = not any(True for _ in _network(method).parameters())
    text = experiment.resolved()
    if args.overwrite:  # only now: a call that cannot work costs no run
        remove_run(out)
    result = _nothing_to_fit(out, text, experiment.seed, store) if bare else fit(method, module, out, settings, text)
    model = out / "model"
    if not (result.already_finished and (model / "config.json").exists()):
        _export(args, out, experiment, method, store, result)
    say(args, f"{type(_network(method)).__name__} has no parameters: nothing to train" if bare else result.message)
    started = books_started(_network(method))
    if not started:
        _warn_of_noise(out, method, result)
    summary = {
        "run": str(out),
        "model": str(model),
        "step": result.step,
        "seconds": round(result.seconds, 1),
        "already_finished": result.already_finished,
        "codebook_started": started,
        "validation": dict(result.validation),
    }
    answer(args, summary, str(model))
    return 0


def _nothing_to_fit(out: Path, text: str, seed: int, store: "Store") -> "FitResult":
    """Return the result of a method without parameters, and make its run folder.

    Raises:
        UsageError: The folder holds the model of another store.
    """
    import torch

    from neurotome.training.fit import FitResult
    from neurotome.training.run_folder import RunFolder, environment

    folder = RunFolder(out)
    folder.claim(text)
    folder.start(environment(seed, torch.get_num_threads(), "cpu"))
    folder.status("finished", 0, 0, 0.0)
    done = (out / "model" / "config.json").exists()
    if done and folder.read_json("data.json") != json.loads(json.dumps(describe_store(store))):
        raise UsageError(
            f"{printable(out)} was made from other data: give the same store, another --out, or --overwrite"
        )
    return FitResult(out, 0, 0.0, None, already_finished=done)


def _warn_of_noise(out: Path, method: Any, result: "FitResult") -> None:
    """Say that the codebook has not started, where a user and where a program looks."""
    from neurotome.models.pretrained import longer
    from neurotome.training.run_folder import RunFolder

    remedy = longer(_network(method))
    text = f"the codebook has not started after {result.step} steps, so that its codes are noise: {remedy}"
    log.warning("%s. No command will use the model.", text)
    RunFolder(out).status("finished", result.step, method.max_steps, result.seconds, text)


def _data(experiment: "Experiment", method: Any, store: "Store", max_steps: int, workers: int) -> "VolumeModule":
    """Return the data of a training, after a look at whether store, plan and network fit each other."""
    from neurotome.data.stores.loaders import VolumeModule

    modalities = batches(experiment, method, store, max_steps).modalities
    return VolumeModule(store, experiment.data.build(), max_steps, experiment.seed, workers, modalities=modalities)


def batches(experiment: "Experiment", method: Any, store: "Store", max_steps: int) -> "TrainingBatches":
    """Return the batches of a training by step.

    Raises:
        UsageError: An empty training split, a crop larger than the grid; a crop, a grid, a range or a number of
            channels the network cannot take; a term of its bottleneck without a weight.
    """
    from neurotome.data.stores.batches import TrainingBatches

    bare = [e.name for e in (*store.split("train"), *store.split("val")) if "labels" not in e.sources]
    if bare and getattr(method, "needs_labels", False):
        raise UsageError(
            f"the config trains on label maps, and {len(bare)} sessions of the store have none ({bare[0]}); prepare a "
            "dataset that has them: derivatives/truth/sub-*/anat/*_dseg.nii.gz, or the column label of a manifest"
        )
    modalities = getattr(_network(method), "modalities", None)
    try:
        plan = experiment.data.build()
        found = TrainingBatches(store, plan, max_steps, experiment.seed, modalities=modalities)
        if hasattr(method, "tokenizer"):
            method.tokenizer.latent_shape(store.preparation.shape)
            method.tokenizer.check_window(store.preparation.window)
    except ValueError as error:
        raise UsageError(f"the store does not fit the config: {error}") from error
    if hasattr(method, "tokenizer"):
        if plan.crop is not None:
            _check_crop(method.tokenizer, plan.crop_shape)
        _check_images(method)
        _check_mixing(method, plan)
    return found


def _check_crop(tokenizer: "Tokenizer", crop: tuple[int, int, int]) -> None:
    """Refuse a crop that the tokenizer cannot take.

    Raises:
        UsageError: As said, with the next one that it can.
    """
    try:
        tokenizer.latent_shape(crop)
    except ValueError as error:
        nearest = [c if c == 1 else math.ceil(c / f) * f for c, f in zip(crop, tokenizer.factor, strict=True)]
        raise UsageError(
            f"the crop {list(crop)} is not a multiple of {list(tokenizer.factor)}, the voxels of a latent cell; the "
            f'next admissible is --data.crop "{nearest}"'
        ) from error


def _check_mixing(method: Any, plan: "TrainingPlan") -> None:
    """Refuse mixed images where a step has none to mix with.

    Raises:
        UsageError: As said.
    """
    augmentation = getattr(method, "augmentation", None)
    if augmentation is None or augmentation.mixup_prob + augmentation.cutmix_prob == 0:
        return
    sessions = {"whole": plan.whole_sessions} if plan.whole_fraction > 0 or plan.crop is None else {}
    sessions |= {"slice": plan.slice_sessions} if plan.slice_prob + plan.slice_fraction > 0 else {}
    if plan.crop is not None and plan.whole_fraction + plan.slice_fraction < 1:
        sessions["batch"] = plan.batch_sessions
    if max(sessions.values()) < 2:
        raise UsageError(
            "mixup and cutmix take another image of the same contrast, and every step has one session: give "
            f"--data.{next(reversed(sessions))}_sessions 2 or more, or leave them out"
        )


def _check_images(method: Any) -> None:
    """Refuse a tokenizer of images with other channels than the method makes, or of terms that have no weight.

    Raises:
        UsageError: As said.
    """
    import torch

    from neurotome.models.session_views import in_channels
    from neurotome.tokenizers.tokenizer_training import TERM_WEIGHTS

    tokenizer = method.tokenizer
    if (channels := in_channels(tokenizer)) != 1 and not getattr(method, "needs_labels", False):
        raise UsageError(
            f"the tokenizer's in_channels is {channels}, but the images of a store have 1 channel; leave in_channels "
            "out, or train on label maps, one channel per label: --method.segmentation.source label"
        )
    if not hasattr(method, "check_terms"):
        return
    learns = tokenizer.training
    tokenizer.eval()  # changes no codebook; the terms are those of training
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        image = torch.zeros(2, channels, *tokenizer.factor)  # norms want more than one value
        encoded = tokenizer.encode(image, torch.zeros(2, dtype=torch.long))
    tokenizer.train(learns)
    try:
        method.check_terms(encoded)
    except ValueError as error:
        unknown = sorted(encoded.terms.keys() - method.term_weights.keys())
        flags = " ".join(f"--method.term_weights.{name} {TERM_WEIGHTS.get(name, 1.0)}" for name in unknown)
        raise UsageError(f"{error}: {flags}") from error


def _export(
    args: argparse.Namespace, out: Path, experiment: "Experiment", method: Any, store: "Store", result: "FitResult"
) -> None:
    from neurotome.data.stores.batches import batch_of
    from neurotome.files.stream import write_atomically
    from neurotome.scans.export import export_model
    from neurotome.scans.segmenter import export_segmenter

    start = time.monotonic()
    facts = {
        "Config": experiment.name if "/" not in experiment.name else Path(experiment.name).name,
        "Steps": result.step,
        "Training seconds": round(result.seconds),
        "Seed": experiment.seed,
        **{f"Last {key}": f"{value:.4g}" for key, value in result.validation.items()},
        **method.facts(),
    }
    write_atomically(out / "data.json", [json.dumps(describe_store(store), indent=2).encode() + b"\n"])
    with result.averaged():
        modalities = getattr(_network(method), "modalities", None)
        method.finish(batch_of(store, [entry], modalities=modalities) for entry in store.split("train"))
        if hasattr(method, "tokenizer"):
            masks = getattr(method, "segmentation", None)
            export_model(method.tokenizer, store, out / "model", facts=facts, segmentation=masks, overwrite=True)
        else:
            export_segmenter(_network(method), store, out / "model", facts=facts, overwrite=True)
    say(args, f"wrote {out / 'model'} ({time.monotonic() - start:.0f} s for statistics over the training subjects)")


def _network(method: Any) -> Any:
    """Return what a method trains, the tokenizer or the segmenter; None where it is neither."""
    return getattr(method, "tokenizer", None) or getattr(method, "segmenter", None)


def _dry_run(args: argparse.Namespace, experiment: "Experiment", method: Any, store: "Store") -> int:
    import yaml

    shape, size = store.preparation.shape, sum(p.numel() for p in method.parameters())
    facts = {
        "parameters": size,
        "bits_per_voxel": method.tokenizer.bits_per_voxel(shape) if hasattr(method, "tokenizer") else None,
        "training_sessions": len(store.split("train")),
        "grid": list(shape),
    }
    text = experiment.resolved()
    lines = [text.rstrip(), "", *(f"# {key}: {value}" for key, value in facts.items())]
    answer(args, {"config": yaml.safe_load(text), **facts}, "\n".join(lines))
    return 0


def precision_name(flag: str) -> str:
    """Return the trainer's name of a precision."""
    return {"fp32": "32-true", "bf16": "bf16-mixed"}[flag]


def _device(flag: str) -> str:
    from neurotome.cli.apply import chosen_device

    return chosen_device(flag)
