"""``neurotome prepare``: orients, resamples, crops, normalises and stores scans; recorded, invertible, resumable."""

import argparse
from typing import Any

from neurotome.cli import add_common, answer, existing, natural, positive, say
from neurotome.errors import printable


def add_parser(subparsers: Any) -> None:
    """Add the verb ``prepare``."""
    parser = subparsers.add_parser(
        "prepare",
        help="orient, resample, crop and normalise scans into a store",
        description=(
            "Prepares every session of PATH into STORE. The same command again completes a store that was interrupted, "
            "and rebuilds what is corrupt. Sessions that cannot be prepared are named at the end (exit code 3); the "
            "others are stored."
        ),
    )
    parser.add_argument("path", metavar="PATH", help="BIDS dataset, .tsv or .csv table, or folder of images")
    parser.add_argument("store", metavar="STORE", help="folder to write, new or empty, or a store to complete")
    parser.add_argument("--modalities", nargs="+", metavar="M", help="contrasts to keep, in this order (default: all)")
    parser.add_argument("--spacing", type=float, default=1.0, metavar="MM", help="voxel edge in mm (default: 1)")
    parser.add_argument(
        "--shape", type=positive, nargs=3, default=[144, 192, 144], metavar=("X", "Y", "Z"),
        help="voxels of the grid, in RAS order (default: 144 192 144)",
    )  # fmt: skip
    parser.add_argument(
        "--percentiles", type=float, nargs=2, default=[0.5, 99.5], metavar=("LOW", "HIGH"),
        help="brain intensities that become -1 and 1 (default: 0.5 99.5)",
    )  # fmt: skip
    parser.add_argument(
        "--mask-threshold", type=float, default=0.0, metavar="T",
        help="without a mask the brain is what lies above this intensity (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--split-sizes", type=float, nargs=3, metavar=("TRAIN", "VAL", "TEST"),
        help="fractions or numbers of subjects (default: 2/3 1/6 1/6)",
    )  # fmt: skip
    parser.add_argument("--splits", metavar="FILE", help="a table participant_id, split that decides instead")
    parser.add_argument("--workers", type=natural, default=0, metavar="N", help="processes (default: 0, this one)")
    add_common(parser, seed=True, overwrite=True)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from neurotome.data.prepare import prepare
    from neurotome.data.splits import DEFAULT_FRACTIONS, SPLITS
    from neurotome.data.transforms import Preparation

    path = existing(args.path, "file or folder")
    if args.splits is not None:
        existing(args.splits, "splits table")
    x, y, z = args.shape
    low, high = args.percentiles
    report = prepare(
        path,
        args.store,
        preparation=Preparation(args.spacing, (x, y, z), (low, high), args.mask_threshold),
        modalities=args.modalities,
        seed=args.seed,
        sizes=args.split_sizes or DEFAULT_FRACTIONS,
        splits=args.splits,
        workers=args.workers,
        overwrite=args.overwrite,
        progress=_progress(args),
    )
    store = report.store
    subjects = {name: len(store.subjects(name)) for name in SPLITS}
    result = {
        "store": str(store.path),
        "built": report.num_built,
        "kept": report.num_kept,
        "failed": [vars(failure) for failure in report.failures],
        "modalities": list(store.modalities),
        "sites": list(store.sites),
        "subjects": subjects,
        "preparation": store.preparation.to_json(),
        "fingerprint": store.fingerprint,
    }
    text = (
        f"{printable(store.path)}: {len(store.sessions)} sessions ({report.num_built} made, {report.num_kept} kept, "
        f"{len(report.failures)} left out), {' '.join(store.modalities)}, "
        + ", ".join(f"{number} {name}" for name, number in subjects.items())
    )
    answer(args, result, text)
    report.raise_failures()
    return 0


def _progress(args: argparse.Namespace) -> Any:
    """Return a reporter that says every tenth of the work."""

    def report(done: int, total: int, name: str) -> None:
        if done == total or done % max(total // 10, 1) == 0:
            say(args, f"prepared {done} of {total} (last: {printable(name)})")

    return report
