"""``neurotome reconstruct · translate · encode · decode``: scans in, scans out, file to file or folder to folder."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotome.cli import add_common, add_reading, answer, counted, existing, load_tokenizer, positive, say
from neurotome.cli.shards import add_flags, run_shards, wants_shards
from neurotome.errors import InputError, UsageError, printable

if TYPE_CHECKING:
    from neurotome.apply.cases import Plan
    from neurotome.apply.names import Job
    from neurotome.apply.work import Outcome, Work
    from neurotome.scans.tokenizer import ScanTokenizer

VERBS = {
    "reconstruct": ("encode and decode scans", "desc-recon"),
    "translate": ("turn scans into another contrast", "desc-synth"),
    "encode": ("turn scans into codes", "desc-latent"),
    "decode": ("turn codes into scans", "desc-recon"),
}
_IMAGES = "Results are on the grid of their source, and are marked as synthetic ({}, header, sidecar)."
_RESULTS = {verb: _IMAGES.format(mark) for verb, (_, mark) in VERBS.items()} | {
    "encode": "A code lies on the model's latent grid, not on that of its source, whose geometry it keeps for decode. "
    "It is a .safetensors file of the bits that the model counts, marked as made by a model (desc-latent, sidecar)."
}
PAST = {"reconstruct": "reconstructed", "translate": "translated", "encode": "encoded", "decode": "decoded"}
_MAX_LINES = 50


def add_parser(subparsers: Any) -> None:
    """Add the four verbs."""
    for verb, (summary, _) in VERBS.items():
        source, many = "IN", "many (a BIDS or nnU-Net dataset, a folder, a .tsv table)"
        if verb == "decode":
            source, many = "LATENT", "a folder of them"
        parser = subparsers.add_parser(
            verb,
            help=summary,
            description=f"{summary.capitalize()}. {source} is one file, or {many}; OUT is then a folder. "
            f"{_RESULTS[verb]} Rerunning verifies existing outputs and creates the missing ones.",
        )
        parser.add_argument("model", metavar="MODEL", help="model folder, or the run folder that holds it")
        parser.add_argument(
            "source", metavar=source, help=f"file or folder{'' if verb == 'decode' else ' or table'} to read"
        )
        parser.add_argument("target", metavar="OUT", help="file or folder to write")
        if verb == "decode":
            parser.add_argument(
                "--modality", metavar="NAME", help="contrast of the result (default: that of the source)"
            )
        else:
            _add_scan(parser)
        if verb == "encode":
            parser.add_argument(
                "--float-latent", action="store_true",
                help="store the latent that the decoder receives beside the codes that stand for it, 32 bits a number; "
                "decode does not need it",
            )  # fmt: skip
            add_flags(parser)
        if verb == "translate":
            parser.add_argument("--to", required=True, metavar="NAME", help="contrast of the result, such as T2w")
            style = parser.add_mutually_exclusive_group()
            style.add_argument("--style-from", metavar="REF", help="scan of that contrast whose style is used")
            style.add_argument(
                "--style-site", metavar="SITE", help="training site whose mean style is used (default: all)"
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


def _add_scan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--modality",
        metavar="NAME",
        help="contrast of IN, if file name and sidecar do not state it; in a folder, read this contrast alone",
    )
    parser.add_argument("--mask", metavar="FILE", help="brain mask of a scan that is not skull-stripped")
    parser.add_argument("--allow-head", action="store_true", help="accept scans that are not skull-stripped")
    add_reading(parser)


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
        _one(args, source, target)  # a wrong call is reported before the model is read
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


def _one(args: argparse.Namespace, source: Path, target: Path) -> "Plan":
    from neurotome.apply.cases import Plan, plan_file
    from neurotome.apply.names import modality_of
    from neurotome.files.endings import IMAGE_ENDINGS, LATENT_ENDING

    endings = (LATENT_ENDING,) if args.verb == "encode" else IMAGE_ENDINGS
    description = VERBS[args.verb][1].removeprefix("desc-")
    job = plan_file(source, target, endings=endings, description=description)
    if args.verb == "decode":
        modality = None if args.modality is None else modality_of(source, args.modality)
    else:
        modality = modality_of(source, args.modality)
    mask = None if getattr(args, "mask", None) is None else Path(args.mask)
    name = "" if mask is None else mask.name
    return Plan([dataclasses.replace(job, modality=modality, mask=mask, mask_origin=name)])


def _many(args: argparse.Namespace, source: Path, target: Path, tokenizer: "ScanTokenizer") -> "Plan":
    from neurotome.apply.cases import plan_folder, plan_latents
    from neurotome.files.endings import LATENT_ENDING

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
        return Encoding(tokenizer, reading, args.float_latent)
    if args.verb == "reconstruct":
        return Reconstruction(tokenizer, reading)
    reference = None if args.style_from is None else Path(args.style_from)
    return Translation(tokenizer, args.to, reading, reference, args.style_site)


def _do(args: argparse.Namespace, plan: "Plan", work: "Work", many: bool) -> int:
    """Do every job; one refused scan does not stop the others."""
    from contextlib import nullcontext

    from neurotome.apply.derivatives import write_description
    from neurotome.apply.resume import writing
    from neurotome.apply.work import process
    from neurotome.files.progress import Progress

    target = Path(args.target)
    written: list[str] = []
    kept: list[str] = []
    refused = [str(error) for error in plan.refused]
    verb = PAST[args.verb]
    with writing(target, work.request) if many else nullcontext(), Progress(verb, args.quiet or not many) as progress:
        if plan.dataset is not None:
            write_description(args.verb, plan.dataset, target)
        for number, outcome in enumerate(process(plan.jobs, work, overwrite=args.overwrite), 1):
            if outcome.state == "refused":
                refused.append(_refusal(outcome, many))
            else:
                (kept if outcome.state == "kept" else written).append(str(outcome.job.target))
                if outcome.reason:
                    say(args, _line(outcome))
            progress(number, len(plan.jobs), _line(outcome))
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
    """Return what became of a scan."""
    words = {"kept": "kept ", "refused": "refused "}
    tail = f", again: {outcome.reason}" if outcome.reason and outcome.state != "refused" else ""
    return f"{words.get(outcome.state, '')}{printable(outcome.job.target.name)}{tail}"


def _with_flags(error: InputError, many: bool) -> InputError:
    """Say the remedy in what this command can do: the model's preparation is given, masks are found or named."""
    if "whole head" in error.reason:
        mask = "put a mask *_desc-brain_mask under derivatives" if many else "give a brain mask with --mask FILE"
        remedy = f"strip the skull first, or {mask}; --allow-head takes the scan as it is"
    elif "z-scored" in error.reason:
        mask = "put a mask *_desc-brain_mask under derivatives" if many else "give a brain mask with --mask FILE"
        remedy = f"give the scan as it was before it was z-scored, or {mask}"
    else:
        return error
    return InputError(error.reason, file=error.file, remedy=remedy)


def _say_plan(args: argparse.Namespace, plan: "Plan", work: "Work") -> int:
    """Say what would be done; read headers alone and write nothing."""
    refused = [str(error) for error in plan.refused]
    planned = [_planned(args, job, work) for job in plan.jobs]
    rows = [row for row in planned if not isinstance(row, str)]
    refused += [reason for reason in planned if isinstance(reason, str)]
    count = counted(len(rows), "scan")
    head = f"{count}, prepared at {work.tokenizer.preparation.describe()}; nothing is written"
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
    """Return what would be done with one scan, or why its header would be refused."""
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
