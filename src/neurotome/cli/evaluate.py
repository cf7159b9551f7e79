"""``neurotome evaluate MODEL STORE --out DIR``: metrics with intervals, beside baselines."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotome.cli import add_common, answer, existing, say
from neurotome.errors import UsageError, printable

if TYPE_CHECKING:
    from neurotome.evaluation.regions import RegionVolumes
    from neurotome.scans.segmenter import ScanSegmenter

UNKNOWN = frozenset({"", "n/a", "na", "nan", "none"})


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a model on a split it was not trained on",
        description="Measure reconstruction, translation, structures, codes and what they tell of contrast and "
        "subject, with intervals over subjects and beside baselines. PSNR in dB, SSIM and MS-SSIM inside the brain, "
        "range 2 on [-1, 1].",
    )
    parser.add_argument("model", metavar="MODEL", help="model folder (RUN/model)")
    parser.add_argument("store", metavar="STORE", help="folder that `neurotome prepare` wrote")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="subjects (default: test)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for metrics.json and panels")
    parser.add_argument("--allow-train", action="store_true", help="evaluate subjects the model was trained on")
    parser.add_argument(
        "--truth",
        metavar="TSV",
        help="known factors, one row per subject: participant_id, numbers, classes as text",
    )
    parser.add_argument(
        "--segmenter",
        metavar="FOLDER",
        help="model folder of `neurotome train segmenter-demo`: adds Dice of structures",
    )
    parser.add_argument(
        "--regions",
        nargs=2,
        metavar=("SCANS", "RECONSTRUCTIONS"),
        help="two tables of region volumes (mm3), as SynthSeg writes them: of the scans and of what `neurotome "
        "reconstruct` made of them; rows of subjects outside the split are left out",
    )
    add_common(parser, seed=True, compute=True, overwrite=True)


def run(args: argparse.Namespace) -> int:
    """Measure and write."""
    existing(args.model, "model folder")
    existing(args.store, "store")
    out = Path(args.out)
    if (out / "metrics.json").exists() and not args.overwrite:
        raise UsageError(f"{printable(out / 'metrics.json')}: is there already; give --overwrite or another --out")
    metrics = evaluate(args, out)
    answer(args, metrics, headline(metrics) + f"\n{out / 'metrics.json'}")
    return 0


def evaluate(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Return the metrics of a model on a split, written to ``out``."""
    from neurotome.apply.names import check_writable
    from neurotome.cli.apply import load_tokenizer
    from neurotome.data.stores.store import Store
    from neurotome.evaluation.evaluate import evaluate as measure

    check_writable(out)
    truth = None if args.truth is None else read_truth(Path(args.truth))
    regions = read_regions(args.regions)
    tokenizer = load_tokenizer(args)
    segmenter = None if args.segmenter is None else load_segmenter(args)
    store = Store.open(Path(args.store))
    tenth = 0

    def progress(share: float) -> None:
        nonlocal tenth
        if int(10 * share) > tenth:
            tenth = int(10 * share)
            say(args, f"evaluated {share:.0%}")

    return measure(
        tokenizer,
        store,
        args.split,
        out,
        allow_train=args.allow_train,
        seed=args.seed,
        truth=truth,
        progress=progress,
        segmenter=segmenter,
        regions=regions,
    )


def read_regions(paths: list[str] | None) -> "RegionVolumes | None":
    """Return the tables of ``--regions``; None where it was not given."""
    from neurotome.evaluation.regions import RegionVolumes, VolumeTable

    if paths is None:
        return None
    scans, reconstructions = (VolumeTable.read(existing(path, "table")) for path in paths)
    return RegionVolumes(scans, reconstructions)


def load_segmenter(args: argparse.Namespace) -> "ScanSegmenter":
    """Return the segmenter of ``--segmenter`` on the device the flags ask for."""
    from neurotome.cli.apply import chosen_device
    from neurotome.scans.segmenter import ScanSegmenter

    existing(args.segmenter, "segmenter folder")
    return ScanSegmenter.from_pretrained(args.segmenter, chosen_device(args.device))


def read_truth(path: Path) -> dict[str, dict[str, float | str]]:
    """Return the known factors of a table by subject: numbers, and text of columns that hold no number.

    What is empty or ``n/a`` is unknown, and so is text in a column of numbers.

    Raises:
        InputError: It cannot be read, or has no column participant_id.
    """
    from neurotome.data.datasets.bids import read_table
    from neurotome.errors import InputError

    header, rows = read_table(path)
    if "participant_id" not in header:
        raise InputError(f"no column participant_id; the columns are {', '.join(header)}", file=path)
    numbers = {(line, name): value for line, row in rows for name, cell in row.items() if (value := _number(cell))}
    numeric = {name for _, name in numbers}
    found: dict[str, dict[str, float | str]] = {}
    for line, row in rows:
        known = found.setdefault(row["participant_id"].removeprefix("sub-"), {})
        for name, cell in row.items():
            if name == "participant_id" or cell.strip().lower() in UNKNOWN:
                continue
            if name not in numeric:
                known[name] = cell.strip()
            elif (line, name) in numbers:
                known[name] = numbers[line, name][0]
    return found


def _number(cell: str) -> tuple[float] | None:
    try:
        return (float(cell),)
    except ValueError:
        return None


def headline(metrics: dict[str, Any]) -> str:
    """Return the numbers that matter most, one line each."""
    lines = []
    for section, name in (("reconstruction", "reconstruct"), ("translation", "translate")):
        for key, row in (metrics.get(section) or {}).items():
            value = _mean(row.get("psnr_db"))
            if value is None:
                continue
            others = {
                k: _mean(v.get("psnr_db") if isinstance(v, dict) else v) for k, v in row.get("baselines", {}).items()
            }
            beside = ", ".join(f"{k.replace('_', ' ')} {v:.1f}" for k, v in others.items() if v is not None)
            lines.append(f"{name} {key:<10} {value:5.1f} dB in the brain{f'   ({beside})' if beside else ''}")
    for task, row in (metrics.get("structures") or {}).items():
        if (value := _mean((row.get("dice") or {}).get("mean"))) is not None:
            ceiling = _mean((row.get("ceiling") or {}).get("mean"))
            beside = "" if ceiling is None else f"   (the scan itself agrees with the label map at {ceiling:.2f})"
            lines.append(f"structures {task:<10} Dice {value:.3f} with those of the scan{beside}")
    lines += _region_lines(metrics.get("regions") or {})
    utilisation = _mean((metrics.get("codebook") or {}).get("utilisation"))
    if utilisation is not None:
        lines.append(f"codebook used {utilisation:.0%}")
    return "\n".join([*lines, *_split_lines(metrics.get("audit") or {})]) or "no headline number: see metrics.json"


def _region_lines(regions: dict[str, Any]) -> list[str]:
    """Return how far the volumes of each region are off, the worst region first, and what was left out."""
    lines: list[str] = []
    for contrast, tree in regions.items():
        if (whole := tree["relative_error"]) is not None:
            lines.append(f"regions {contrast}: volumes are off by {whole['mean']:.1%} on average, n = {whole['n']}")
        known = {name: row for name, row in tree["by_region"].items() if row["relative_error"] is not None}
        for name, row in sorted(known.items(), key=lambda item: -item[1]["relative_error"]["mean"]):
            bias, ends = row["bias_mm3"], row["bias_mm3"]["ci95"]
            between = f" ({ends[0]:+.0f} to {ends[1]:+.0f})" if ends else ""
            r, icc = ("–" if row[key] is None else f"{row[key]:.3f}" for key in ("pearson", "icc"))
            error = f"off by {row['relative_error']['mean']:.1%}, bias {bias['mean']:+.0f} mm3{between}"
            lines.append(f"  {name}: {error}, r {r}, ICC {icc}, n = {row['n']}")
    left = next(iter(regions.values()))["left_out"] if regions else {}
    what = {"other_subjects": "of subjects outside the split", "unpaired": "in one table alone"}
    said = [f"{left[key]} scans {words}" for key, words in what.items() if left.get(key)]
    return [*lines, f"  left out: {', '.join(said)}"] if said else lines


def _split_lines(audit: dict[str, Any]) -> list[str]:
    """Return how far anatomy and contrast are apart, in words that claim no more than was measured."""
    agreement, probes = audit.get("agreement") or {}, audit.get("probes") or {}
    same, chance, own = (_mean(agreement.get(key)) for key in ("agreement", "chance", "self_agreement"))
    gap, token, guess = _mean(audit.get("code_gap")), _mean(probes.get("token_vector")), _mean(probes.get("chance"))
    lines = []
    if same is not None and chance is not None and own is not None:
        lines.append(
            f"same code in both contrasts at {same:.0%} of places (chance {chance:.0%}, under noise {own:.0%})"
        )
    if gap is not None:
        lines.append(f"code gap {gap:.2f} (0: the contrasts' codes are one, 1: unrelated)")
    if token is not None and guess is not None:
        lines.append(f"the contrast is read from one code in {token:.0%} of cases (chance {guess:.0%})")
    return lines


def _mean(entry: Any) -> float | None:
    value = entry.get("mean") if isinstance(entry, dict) else entry
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
