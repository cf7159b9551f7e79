"""``neurotome prepare``: orients, resamples, crops, normalises and stores scans; recorded, invertible, resumable."""

import argparse
from typing import TYPE_CHECKING, Any

from neurotome.cli import add_common, add_reading, answer, counted, existing, natural, positive, say, some
from neurotome.errors import UsageError, printable

if TYPE_CHECKING:
    from neurotome.data.preparation.preparation import Preparation
    from neurotome.data.stores.grid import StoreGrid

# flag, and the argument of a preparation it sets; none has a default, so that what is given overrides a preset
_ARGUMENTS = (
    "spacing_mm", "shape", "crop", "mask_threshold", "intensity", "percentiles", "measured", "clip", "background",
    "bias_field", "register", "use_qform", "volume",
)  # fmt: skip
_DEFAULTS = {"spacing_mm": 1.0, "shape": "auto"}


def add_parser(subparsers: Any) -> None:
    """Add the verb ``prepare``."""
    parser = subparsers.add_parser(
        "prepare",
        help="orient, resample, crop and normalise scans into a store",
        description=(
            "Prepares every session of PATH into STORE. Rerunning completes an interrupted store and rebuilds corrupt "
            "entries. Sessions that cannot be prepared are named at the end (exit code 3); the "
            "others are stored."
        ),
    )
    parser.add_argument("path", metavar="PATH", help="BIDS dataset, .tsv or .csv table, or folder of images")
    parser.add_argument("store", metavar="STORE", help="folder to write, new or empty, or a store to complete")
    parser.add_argument("--modalities", nargs="+", metavar="M", help="contrasts to keep, in this order (default: all)")
    _add_preparation(parser)
    parser.add_argument(
        "--split-sizes", type=float, nargs=3, metavar=("TRAIN", "VAL", "TEST"),
        help="fractions or numbers of subjects (default: what the dataset says, else 2/3 1/6 1/6)",
    )  # fmt: skip
    parser.add_argument("--splits", metavar="FILE", help="a table participant_id, split that decides instead")
    parser.add_argument("--allow-head", action="store_true", help="accept scans that are not skull-stripped")
    parser.add_argument("--workers", type=natural, default=0, metavar="N", help="processes (default: 0, this one)")
    add_common(parser, seed=True, overwrite=True)


def _add_preparation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("preparation", "stored with the store, the model and every latent")
    group.add_argument(
        "--preset", choices=("adni-2mm", "neuroquant"),
        help="adni-2mm: 2 mm, 91 x 109 x 91, brain above 50, z-score; neuroquant: 1 mm, brain box in 144 x 192 x 144; "
        "the flags below override it",
    )  # fmt: skip
    group.add_argument(
        "--spacing", dest="spacing_mm", type=float, nargs="+", metavar="MM",
        help="voxel edge in mm, one number or three (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--shape", nargs="+", metavar="N",
        help="voxels of the grid, X Y Z in RAS order, or auto: every brain is measured first, and the sides of the "
        "smallest grid that holds them all are rounded up to --multiple (default: auto)",
    )  # fmt: skip
    group.add_argument(
        "--multiple", type=positive, metavar="N",
        help="sides of the automatic grid are multiples of N (default: 16, which every shipped 3-D network takes but "
        "dc-ae and vector-ae: they take 32)",
    )  # fmt: skip
    group.add_argument(
        "--crop", choices=("brain", "centre"),
        help="centre the grid on the brain box, or on the field of view of the first contrast (default: brain)",
    )  # fmt: skip
    group.add_argument(
        "--mask-threshold", type=float, metavar="T",
        help="without a mask, voxels above this source intensity are the brain (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--intensity", choices=("percentile", "zscore", "minmax"),
        help="how brain intensities are mapped to [-1, 1]; zscore without --clip has no bounds, and takes scans that "
        "were z-scored before (default: percentile)",
    )  # fmt: skip
    group.add_argument(
        "--percentiles", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="percentiles of brain intensity that are mapped to -1 and 1 (default: 0.5 99.5)",
    )  # fmt: skip
    group.add_argument(
        "--measured", choices=("brain", "positive"),
        help="voxels of the brain whose range is taken: all, or those above 0, where masks left holes of 0 in brains "
        "(default: brain)",
    )  # fmt: skip
    group.add_argument(
        "--clip", type=float, metavar="SD",
        help="clip z-scores at SD standard deviations, and divide them by SD (default: none)",
    )  # fmt: skip
    group.add_argument(
        "--background", type=float, metavar="VALUE",
        help="value outside the brain (default: -1, or 0 for z-scores without bounds)",
    )  # fmt: skip
    group.add_argument(
        "--bias-field", choices=("none", "n4"),
        help="n4 corrects the bias field first; not reverted in outputs; needs SimpleITK (default: none)",
    )  # fmt: skip
    group.add_argument(
        "--register", action="store_true", default=None,
        help="rigidly register each contrast of a session to the first; needs SimpleITK (default: sessions whose "
        "contrasts are not aligned are left out)",
    )  # fmt: skip
    add_reading(group, unset=None)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from neurotome.data.datasets.splits import SPLITS
    from neurotome.data.stores.build import prepare
    from neurotome.files.progress import Progress

    path = existing(args.path, "file or folder")
    if args.splits is not None:
        existing(args.splits, "splits table")
        if args.split_sizes is not None:
            raise UsageError("--splits and --split-sizes both decide the split; give one of them")
    preparation, multiple = _preparation(args)

    def announce(grid: "StoreGrid") -> None:
        measuring.close()
        say(args, str(grid))

    with Progress("measured", args.quiet) as measuring, Progress("prepared", args.quiet) as progress:
        report = prepare(
            path,
            args.store,
            preparation=preparation,
            multiple=multiple,
            modalities=args.modalities,
            seed=args.seed,
            sizes=args.split_sizes,
            splits=args.splits,
            roots=args.root,
            allow_head=args.allow_head,
            workers=args.workers,
            overwrite=args.overwrite,
            progress=progress,
            measuring=measuring,
            notify=announce,
        )
    store = report.store
    subjects = {name: len(store.subjects(name)) for name in SPLITS}
    result = {
        "store": str(store.path),
        "built": report.num_built,
        "kept": report.num_kept,
        "notes": list(report.notes),
        "failed": [vars(failure) for failure in report.failures],
        "modalities": list(store.modalities),
        "sites": list(store.sites),
        "subjects": subjects,
        "preparation": store.preparation.to_json(),
        "field_mm": list(report.grid.field_mm),
        "bytes": report.grid.num_bytes,
        "fingerprint": store.fingerprint,
    }
    text = (
        f"{printable(store.path)}: {counted(len(store.sessions), 'session')} ({report.num_built} made, "
        f"{report.num_kept} kept, {len(report.failures)} left out), {' '.join(store.modalities)}, "
        + ", ".join(f"{number} {name}" for name, number in subjects.items())
        + f"; {report.grid}"
    )
    for line in some([f"note: {printable(note)}" for note in report.notes], "note"):
        say(args, line)
    answer(args, result, text)
    report.raise_failures()
    return 0


def _preparation(args: argparse.Namespace) -> tuple["Preparation", int | None]:
    """Return the preset, if any, with the flags over it, and the multiple of a grid that is still to be fitted.

    Raises:
        UsageError: A value is out of range, or two contradict each other.
    """
    from neurotome.data.preparation.preparation import Preparation
    from neurotome.data.preparation.presets import preset
    from neurotome.data.stores.grid import MULTIPLE

    values: dict[str, Any] = _DEFAULTS if args.preset is None else preset(args.preset)
    given = {name: getattr(args, name) for name in _ARGUMENTS if getattr(args, name) is not None}
    values = values | {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    if values["shape"] in ("auto", ("auto",)):
        multiple = MULTIPLE if args.multiple is None else args.multiple
        return Preparation(**values | {"shape": (multiple,) * 3}), multiple
    if args.multiple is not None:
        raise UsageError("--multiple rounds the sides of the automatic grid, but a shape is given; give one of them")
    try:
        values["shape"] = tuple(int(n) for n in values["shape"])
    except ValueError as error:
        raise UsageError(f"--shape {' '.join(values['shape'])}: give three whole numbers, or auto") from error
    return Preparation(**values), None
