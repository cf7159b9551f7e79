"""``neurotome phantom``: a synthetic cohort whose anatomy and style factors are known."""

import argparse
from pathlib import Path
from typing import Any

from neurotome.cli import answer, counted
from neurotome.errors import UsageError, printable

DESCRIPTION = """\
Writes a synthetic cohort as a BIDS raw dataset; labels, lesions and all factors go to OUT/derivatives/truth.
Subject i depends on the seed and i alone, not on the number of workers or subjects.
"""


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "phantom",
        help="write a synthetic cohort with known anatomy and style",
        description=DESCRIPTION,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must be absent or empty")
    parser.add_argument(
        "--subjects",
        metavar="N",
        type=int,
        default=argparse.SUPPRESS,
        help="number of subjects (default: 48; with --labelmaps the number of maps)",
    )
    parser.add_argument(
        "--modalities",
        metavar="NAME",
        nargs="+",
        default=["T1w", "T2w"],
        help="contrasts: T1w, T2w, FLAIR, PDw, T1c",
    )
    parser.add_argument("--spacing", metavar="MM", type=float, default=3.0, help="size of the voxels in mm, 0.5-12")
    parser.add_argument("--sites", metavar="K", type=int, default=4, help="number of scanner sites, at least 1")
    parser.add_argument("--lesions", metavar="P", type=float, default=0.25, help="probability of lesions, 0-1")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="random seed, at least 0")
    parser.add_argument("--labelmaps", metavar="DIR", help="render these FreeSurfer-style label maps, not the MNI152")
    parser.add_argument(
        "--confound",
        metavar=("A", "B", "R"),
        nargs=3,
        help="correlate two of age, sex, site by R in [-1, 1], e.g. --confound site age 0.8",
    )
    parser.add_argument("--workers", metavar="N", type=int, default=1, help="number of processes, at least 1")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier phantom in OUT")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--verbose", action="store_true", help="keep a traceback of errors")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the cohort and say what was written."""
    from neurotome.data.phantom.cohort import SyntheticCohort
    from neurotome.data.phantom.dataset import write_dataset
    from neurotome.data.phantom.labelmaps import find_labelmaps
    from neurotome.files.progress import Progress

    number = getattr(args, "subjects", None)
    if number is None:
        number = len(find_labelmaps(args.labelmaps)) if args.labelmaps else 48
    try:
        cohort = SyntheticCohort(
            num_subjects=number,
            spacing_mm=args.spacing,
            modalities=tuple(args.modalities),
            num_sites=args.sites,
            lesion_fraction=args.lesions,
            seed=args.seed,
            confound=_confound(args.confound),
            labelmaps=args.labelmaps,
        )
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise UsageError(f"neurotome phantom: {error}") from error
    with Progress("made", args.quiet) as progress:
        out = write_dataset(cohort, args.out, workers=args.workers, overwrite=args.overwrite, progress=progress)
    summary = {
        "out": str(out),
        "subjects": number,
        "modalities": list(cohort.modalities),
        "spacing_mm": cohort.spacing_mm,
        "sites": cohort.num_sites,
        "lesions": cohort.lesion_fraction,
        "seed": cohort.seed,
        "truth": str(out / "derivatives" / "truth"),
    }
    what = f"{counted(number, 'subject')} ({', '.join(cohort.modalities)}, {cohort.spacing_mm:g} mm)"
    answer(args, summary, f"{what} in {printable(out)}; truth in {printable(str(summary['truth']))}")
    return 0


def _confound(words: list[str] | None) -> tuple[str, str, float] | None:
    """Read ``A B R``."""
    if words is None:
        return None
    try:
        return words[0], words[1], float(words[2])
    except ValueError as error:
        raise UsageError(f"--confound: {words[2]!r} is no number; give A B R, e.g. site age 0.8") from error
