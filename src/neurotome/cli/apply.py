"""``neurotome reconstruct · translate · encode · decode``: scans in, scans out, file to file or folder to folder."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotome.cli import add_common, answer, existing, natural, positive, say
from neurotome.cli.shards import add_flags, run_shards, wants_shards
from neurotome.errors import InputError, UsageError, printable

if TYPE_CHECKING:
    from neurotome.apply.cases import Plan
    from neurotome.apply.names import Job
    from neurotome.apply.work import Outcome, Work
    from neurotome.scans.tokenizer import ScanTokenizer

VERBS = {
    "reconstruct": ("encode and decode scans: what the model keeps of them", "desc-recon"),
    "translate": ("turn scans into another contrast", "desc-synth"),
    "encode": ("turn scans into codes", "desc-latent"),
    "decode": ("turn codes into scans", "desc-recon"),
}
_MAX_LINES = 50


def add_parser(subparsers: Any) -> None:
    """Add the four verbs."""
    for verb, (summary, mark) in VERBS.items():
        many = "a folder of them" if verb == "decode" else "many (BIDS, nnU-Net, a folder of names, a .tsv table)"
        parser = subparsers.add_parser(
            verb,
            help=summary,
            description=f"{summary.capitalize()}. IN is one file, or {many}; OUT is then a folder. Results lie on the "
            f"grid of their source and are marked as synthetic ({mark}, header, sidecar). The same command "
            "again verifies what stands and makes what is missing.",
        )
        parser.add_argument("model", metavar="MODEL", help="model folder (RUN/model)")
        parser.add_argument(
            "source", metavar="LATENT" if verb == "decode" else "IN", help="file, folder or table to read"
        )
        parser.add_argument("target", metavar="OUT", help="file or folder to write")
        if verb == "decode":
            parser.add_argument("--modality", metavar="NAME", help="contrast to paint (default: that of the source)")
        else:
            _add_reading(parser)
        if verb == "encode":
            add_flags(parser)
        if verb == "translate":
            parser.add_argument("--to", required=True, metavar="NAME", help="contrast of the result, such as T2w")
            look = parser.add_mutually_exclusive_group()
            look.add_argument("--style-from", metavar="REF", help="scan of that contrast whose look is taken")
            look.add_argument(
                "--style-site", metavar="SITE", help="training site whose mean look is taken (default: all)"
            )
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
        parser.add_argument(
            "--slabs", type=_slabs, default="auto", metavar="auto|off|N",
            help="compute large volumes N planes at a time, in less memory and with the same result to "
            "rounding; auto chooses N for volumes of more than 2^20 voxels (default: auto)",
        )  # fmt: skip
        add_common(parser, compute=True, overwrite=True)
        parser.set_defaults(run=run)


def _slabs(text: str) -> str | int:
    """Read ``auto``, ``off`` or a number of planes."""
    try:
        return text if text in ("auto", "off") else positive(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is neither auto, off nor a number of planes") from None


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--modality",
        metavar="NAME",
        help="contrast of IN, where name and sidecar do not say it; of a folder, take it alone",
    )
    parser.add_argument("--mask", metavar="FILE", help="brain mask, for a head that is not skull-stripped")
    parser.add_argument("--allow-head", action="store_true", help="accept what looks like a whole head")
    parser.add_argument("--volume", type=natural, metavar="K", help="volume of a 4-D series, from 0")
    parser.add_argument("--use-qform", action="store_true", help="take the qform where it and the sform disagree")
    parser.add_argument(
        "--root", action="append", default=[], metavar="DIR",
        help="another folder that links and a table's paths may lead to; may be given several times",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run one of the four verbs; refused scans of a folder are listed, the others written, and the exit code is 3."""
    from neurotome.apply.cases import is_many

    if wants_shards(args):
        return run_shards(args)
    source, target = existing(args.source, "file, folder or table"), Path(args.target)
    for name in ("mask", "style_from"):
        if getattr(args, name, None) is not None:
            existing(getattr(args, name), "file")
    existing(args.model, "model folder")
    many = is_many(source)
    if not many:
        _one(args, source, target)  # a wrong call is said before the model is read
    tokenizer = load_tokenizer(args)
    work = _work(args, tokenizer)
    plan = _many(args, source, target, tokenizer) if many else _one(args, source, target)
    if not many and plan.jobs[0].modality is not None:
        tokenizer.known(plan.jobs[0].modality)
    if many:
        from neurotome.apply.resume import check_request

        check_request(target, work.request, overwrite=args.overwrite)
    for note in plan.notes:
        say(args, f"note: {printable(note)}")
    if args.dry_run:
        return _say_plan(args, plan, work)
    return _do(args, plan, work, many)


def load_tokenizer(args: argparse.Namespace, *, masks: bool = False) -> "ScanTokenizer":
    """Read the model onto the device that the flags name; one of masks where these are admitted."""
    import torch

    from neurotome.scans.tokenizer import ScanTokenizer

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    return ScanTokenizer.from_pretrained(
        args.model,
        device=chosen_device(args.device),
        precision=args.precision or "fp32",
        slabs=getattr(args, "slabs", "auto"),
        masks=masks,
    )


def chosen_device(name: str) -> str:
    """Return the device for ``--device``: ``auto`` takes an accelerator where there is one.

    Raises:
        UsageError: The named device is not there.
    """
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if there[device])
    if not there[name]:
        raise UsageError(f"--device {name}: this machine has none; give --device cpu, or auto")
    return name


def _one(args: argparse.Namespace, source: Path, target: Path) -> "Plan":
    from neurotome.apply.cases import Plan, plan_file
    from neurotome.apply.names import IMAGE_ENDINGS, LATENT_ENDING, modality_of

    endings = (LATENT_ENDING,) if args.verb == "encode" else IMAGE_ENDINGS
    job = plan_file(source, target, endings=endings)
    if args.verb == "decode":
        modality = None if args.modality is None else modality_of(source, args.modality)
    else:
        modality = modality_of(source, args.modality)
    mask = None if getattr(args, "mask", None) is None else Path(args.mask)
    name = "" if mask is None else mask.name
    return Plan([dataclasses.replace(job, modality=modality, mask=mask, mask_origin=name)])


def _many(args: argparse.Namespace, source: Path, target: Path, tokenizer: "ScanTokenizer") -> "Plan":
    from neurotome.apply.cases import plan_folder, plan_latents
    from neurotome.apply.names import LATENT_ENDING

    if getattr(args, "mask", None) is not None:
        raise UsageError("--mask is for one scan; in a folder masks are found under derivatives as *_desc-brain_mask")
    if args.verb == "decode":
        return plan_latents(source, target, None if args.modality is None else tokenizer.known(args.modality))
    to = tokenizer.known(args.to) if args.verb == "translate" else None
    known = [m for m in tokenizer.modalities if m != to]
    marks = {"reconstruct": "recon", "encode": "latent"}

    def describe(modality: str) -> tuple[str, str]:
        return (f"synthFrom{modality}", to) if to is not None else (marks[args.verb], modality)

    ending = LATENT_ENDING if args.verb == "encode" else ".nii.gz"
    return plan_folder(
        source, target, known, describe, modality=args.modality, new_ending=ending, roots=[Path(r) for r in args.root]
    )


def _work(args: argparse.Namespace, tokenizer: "ScanTokenizer") -> "Work":
    from neurotome.apply.reconstruct import Decoding, Encoding, Reconstruction
    from neurotome.apply.translate import Translation
    from neurotome.apply.work import Reading

    if args.verb == "decode":
        return Decoding(tokenizer, args.modality)
    reading = Reading(args.allow_head, args.use_qform, args.volume)
    if args.verb == "encode":
        return Encoding(tokenizer, reading)
    if args.verb == "reconstruct":
        return Reconstruction(tokenizer, reading)
    lent = None if args.style_from is None else Path(args.style_from)
    return Translation(tokenizer, args.to, reading, lent, args.style_site)


def _do(args: argparse.Namespace, plan: "Plan", work: "Work", many: bool) -> int:
    """Do every job; one refused scan does not stop the others."""
    from contextlib import nullcontext

    from neurotome.apply.derivatives import write_description
    from neurotome.apply.resume import writing
    from neurotome.apply.work import process

    target = Path(args.target)
    written: list[str] = []
    kept: list[str] = []
    refused = [str(error) for error in plan.refused]
    for reason in refused:
        say(args, f"refused: {reason}")
    with writing(target, work.request) if many else nullcontext():
        if plan.dataset is not None:
            write_description(args.verb, plan.dataset, target)
        for number, outcome in enumerate(process(plan.jobs, work, overwrite=args.overwrite), 1):
            if outcome.state == "refused":
                refused.append(_refusal(outcome, many))
                line = f"refused: {refused[-1]}"
            else:
                line = _line(outcome)
                (kept if outcome.state == "kept" else written).append(str(outcome.job.target))
            if many:
                say(args, f"[{number}/{len(plan.jobs)}] {line}")
    result = {"written": written, "kept": kept, "refused": refused, "notes": plan.notes}
    lines = [*written, *(f"kept: {path}" for path in kept), *(f"refused: {reason}" for reason in refused)]
    answer(args, result, "\n".join(printable(line) for line in lines))
    return InputError.exit_code if refused else 0


def _refusal(outcome: "Outcome", many: bool) -> str:
    """Return why a scan of many was refused.

    Raises:
        InputError: It was the only one.
        UsageError: It was the only one, and what stands at its output is not ours.
    """
    from neurotome.errors import NeurotomeError

    error: NeurotomeError = outcome.error or InputError(outcome.reason)
    if isinstance(error, InputError):
        error = _with_flags(error, many)
        if not many and error.file == outcome.job.target:
            raise UsageError(str(error))
    if not many:
        raise error
    return str(error)


def _line(outcome: "Outcome") -> str:
    tail = f" (again: {outcome.reason})" if outcome.reason else ""
    return f"{'kept: ' if outcome.state == 'kept' else ''}{printable(outcome.job.target)}{tail}"


def _with_flags(error: InputError, many: bool) -> InputError:
    """Say the remedy in what this command can do: the model's preparation is given, masks are found or named."""
    if "whole head" in error.reason:
        mask = "put a mask *_desc-brain_mask under derivatives" if many else "give a brain mask with --mask FILE"
        remedy = f"strip the skull first, or {mask}; --allow-head takes the scan as it is"
    elif "brain box" in error.reason:
        remedy = "the model sees no more: strip the skull, give a brain mask, or use a model of a larger grid"
    else:
        return error
    return InputError(error.reason, file=error.file, remedy=remedy)


def _say_plan(args: argparse.Namespace, plan: "Plan", work: "Work") -> int:
    """Say what would be done; read headers alone and write nothing."""
    refused = [str(error) for error in plan.refused]
    planned = [_planned(args, job, work) for job in plan.jobs]
    rows = [row for row in planned if not isinstance(row, str)]
    refused += [reason for reason in planned if isinstance(reason, str)]
    head = f"{len(rows)} scans, prepared at {work.tokenizer.preparation.describe()}; nothing is written"
    shown = [
        f"{row['state']:<8} {row['source']} ({row['modality']}, {row['shape']}{', mask' if row['mask'] else ''}) "
        f"-> {row['target']}"
        for row in rows[:_MAX_LINES]
    ]
    more = [f"and {len(rows) - _MAX_LINES} more (--json lists all)"] if len(rows) > _MAX_LINES else []
    lines = [head, *shown, *more, *(f"refused: {reason}" for reason in refused)]
    result = {"would_write": rows, "refused": refused, "notes": plan.notes, "request": work.request}
    answer(args, result, "\n".join(printable(line) for line in lines))
    return InputError.exit_code if refused else 0


def _planned(args: argparse.Namespace, job: "Job", work: "Work") -> "dict[str, Any] | str":
    """Return what would be done with one scan, or why it would be refused as far as its header tells."""
    from neurotome.apply.resume import standing
    from neurotome.data.imaging.headers import read_header
    from neurotome.scans.latent_scan import LatentScan

    try:
        state, reason = ("missing", "") if args.overwrite else standing(job, work.request)
        if state == "foreign":
            raise InputError(reason, file=job.target, remedy="give --overwrite, or another output")
        if args.verb == "decode":
            shape = LatentScan.load(job.source).record.geometry.shape
        else:
            shape = read_header(job.source, volume=args.volume, use_qform=args.use_qform).geometry.shape
    except InputError as error:
        return str(error)
    words = {"missing": "make", "again": "again", "kept": "keep"}
    return {
        "source": str(job.source),
        "modality": job.modality or "its own",
        "shape": "x".join(map(str, shape)),
        "mask": None if job.mask is None else str(job.mask),
        "target": str(job.target),
        "state": words[state],
        "reason": reason,
    }
