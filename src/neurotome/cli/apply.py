"""``neurotome reconstruct · translate · encode · decode``: scans in, scans out, file to file or folder to folder."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotome.cli import add_common, answer, existing, say
from neurotome.errors import InputError, UsageError, printable

if TYPE_CHECKING:
    from neurotome.apply.files import Job
    from neurotome.apply.tokenizer import ScanTokenizer

VERBS = {
    "reconstruct": ("encode and decode scans: what the model keeps of them", "desc-recon"),
    "translate": ("turn scans into another contrast", "desc-synth"),
    "encode": ("turn scans into codes", "desc-latent"),
    "decode": ("turn codes into scans", "desc-recon"),
}


def add_parser(subparsers: Any) -> None:
    """Add the four verbs."""
    for verb, (summary, mark) in VERBS.items():
        parser = subparsers.add_parser(
            verb,
            help=summary,
            description=f"{summary.capitalize()}. IN is a file, or a folder (BIDS, or names that tell the contrast); "
            "OUT is then a folder too. Results lie on the grid of their source and are marked as synthetic "
            f"({mark}, header, sidecar).",
        )
        parser.add_argument("model", metavar="MODEL", help="model folder (RUN/model)")
        parser.add_argument("source", metavar="LATENT" if verb == "decode" else "IN", help="file or folder to read")
        parser.add_argument("target", metavar="OUT", help="file or folder to write")
        what = "contrast to paint (default: that of the source)" if verb == "decode" else "contrast of IN, where its "
        parser.add_argument(
            "--modality", metavar="NAME", help=what if verb == "decode" else what + "name and sidecar do not say it"
        )
        if verb == "translate":
            parser.add_argument("--to", required=True, metavar="NAME", help="contrast of the result, such as T2w")
            parser.add_argument("--style-from", metavar="REF", help="scan of that contrast whose look is taken")
        if verb != "decode":
            parser.add_argument("--mask", metavar="FILE", help="brain mask, for heads that are not skull-stripped")
            parser.add_argument("--allow-head", action="store_true", help="accept what looks like a whole head")
        add_common(parser, compute=True, overwrite=True)
        parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run one of the four verbs; refused scans of a folder are listed, the others written, and the exit code is 3."""
    source, target = existing(args.source, "file or folder"), Path(args.target)
    for name in ("mask", "style_from"):
        if getattr(args, name, None) is not None:
            existing(getattr(args, name), "file")
    existing(args.model, "model folder")
    if not source.is_dir():
        _plan_one(args, source, target)  # a wrong call is said before the model is read
    tokenizer = load_tokenizer(args)
    jobs, notes = _plan(args, source, target, tokenizer)
    for note in notes:
        say(args, f"note: {note}")
    written, refused = _work(args, jobs, _action(args, tokenizer))
    if source.is_dir() and written:
        from neurotome.apply.files import write_description

        write_description(target, f"neurotome {args.verb}")
    lines = [*written, *(f"refused: {reason}" for reason in refused)]
    answer(args, {"written": written, "refused": refused, "notes": notes}, "\n".join(printable(line) for line in lines))
    return InputError.exit_code if refused else 0


def load_tokenizer(args: argparse.Namespace) -> "ScanTokenizer":
    """Read the model onto the device that the flags name."""
    import torch

    from neurotome.apply.tokenizer import ScanTokenizer

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    return ScanTokenizer.from_pretrained(
        args.model, device=chosen_device(args.device), precision=args.precision or "fp32"
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


def _plan_one(args: argparse.Namespace, source: Path, target: Path) -> "Job":
    from neurotome.apply.files import IMAGE_ENDINGS, LATENT_ENDING, modality_of, plan_file

    endings = (LATENT_ENDING,) if args.verb == "encode" else IMAGE_ENDINGS
    job = plan_file(source, target, overwrite=args.overwrite, endings=endings)
    if args.verb == "decode":
        modality = None if args.modality is None else modality_of(source, args.modality)
    else:
        modality = modality_of(source, args.modality)
    mask = getattr(args, "mask", None)
    return dataclasses.replace(job, modality=modality, mask=None if mask is None else Path(mask))


def _plan(
    args: argparse.Namespace, source: Path, target: Path, tokenizer: "ScanTokenizer"
) -> "tuple[list[Job], list[str]]":
    from neurotome.apply.files import LATENT_ENDING, plan_folder, plan_latents

    if not source.is_dir():
        return [_plan_one(args, source, target)], []
    if getattr(args, "mask", None) is not None:
        raise UsageError("--mask is for one scan; in a folder masks are found under derivatives as *_desc-brain_mask")
    if args.verb == "decode":
        modality = None if args.modality is None else tokenizer.known(args.modality)
        return plan_latents(source, target, modality, overwrite=args.overwrite), []
    to = tokenizer.known(args.to) if args.verb == "translate" else None
    known = [m for m in tokenizer.modalities if m != to]
    marks = {"reconstruct": "recon", "encode": "latent"}

    def describe(modality: str) -> tuple[str, str]:
        return (f"synthFrom{modality}", to) if to is not None else (marks[args.verb], modality)

    ending = LATENT_ENDING if args.verb == "encode" else ".nii.gz"
    return plan_folder(
        source, target, known, describe, modality=args.modality, new_ending=ending, overwrite=args.overwrite
    )


def _action(args: argparse.Namespace, tokenizer: "ScanTokenizer") -> "Callable[[Job], dict[str, Any]]":
    from neurotome.apply.reconstruct import decode_file, encode_file, reconstruct_file
    from neurotome.apply.translate import translate_file

    if args.verb == "decode":
        return lambda job: decode_file(tokenizer, job)
    if args.verb == "encode":
        return lambda job: encode_file(tokenizer, job, allow_head=args.allow_head)
    if args.verb == "reconstruct":
        return lambda job: reconstruct_file(tokenizer, job, allow_head=args.allow_head)
    to, lent = tokenizer.known(args.to), None if args.style_from is None else Path(args.style_from)
    return lambda job: translate_file(tokenizer, job, to, style_from=lent, allow_head=args.allow_head)


def _with_flags(error: InputError) -> InputError:
    """Say the remedy for a whole head in this command's own flags."""
    if "whole head" not in error.reason:
        return error
    remedy = "strip the skull first, or give a brain mask with --mask FILE; --allow-head takes the scan as it is"
    return InputError(error.reason, file=error.file, remedy=remedy)


def _work(
    args: argparse.Namespace, jobs: "list[Job]", act: "Callable[[Job], dict[str, Any]]"
) -> tuple[list[str], list[str]]:
    """Do every job; one refused scan does not stop the others."""
    written, refused = [], []
    for number, job in enumerate(jobs, 1):
        try:
            act(job)
        except InputError as refusal:
            error = _with_flags(refusal)
            if len(jobs) == 1:
                raise error from refusal
            reason = str(error) if error.file is not None else f"{printable(job.source)}: {error}"
            refused.append(reason)
            say(args, f"[{number}/{len(jobs)}] refused: {reason}")
            continue
        written.append(str(job.target))
        if len(jobs) > 1:
            say(args, f"[{number}/{len(jobs)}] {printable(job.target)}")
    return written, refused
