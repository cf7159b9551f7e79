"""``neurotome evaluate MODEL STORE --out DIR``: metrics with intervals, beside baselines."""

import argparse
from pathlib import Path
from typing import Any

from neurotome.cli import add_common, answer, counted, existing, set_threads


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a model on a split it was not trained on",
        description="Measure reconstruction, translation, structures, codes, and how well contrast and subject factors "
        "can be predicted from the codes, with intervals over subjects and beside baselines. PSNR (dB), SSIM and "
        "MS-SSIM are computed inside the brain, on images in [-1, 1] (data range 2).",
    )
    parser.add_argument("model", metavar="MODEL", help="model folder (RUN/model)")
    parser.add_argument("store", metavar="STORE", help="folder that `neurotome prepare` wrote")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="subjects (default: test)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for metrics.json and panels")
    parser.add_argument("--allow-train", action="store_true", help="evaluate subjects the model was trained on")
    parser.add_argument(
        "--truth",
        metavar="TSV",
        help="table of known factors, one row per subject: participant_id, then numbers or classes as text",
    )
    parser.add_argument(
        "--segmenter",
        metavar="FOLDER",
        help="model folder of a segmenter (`neurotome train segmenter-demo`): adds the Dice of structures",
    )
    parser.add_argument(
        "--regions",
        nargs=2,
        metavar=("SCANS", "RECONSTRUCTIONS"),
        help="two tables of region volumes (mm3), as SynthSeg writes them: of the scans, and of their reconstructions "
        "by `neurotome reconstruct`; rows of subjects outside the split are left out",
    )
    add_common(parser, seed=True, compute=True, overwrite=True)


def run(args: argparse.Namespace) -> int:
    """Measure and write."""
    from neurotome.experiments.evaluate import evaluate
    from neurotome.files.progress import Progress

    existing(args.model, "model folder")
    existing(args.store, "store")
    set_threads(args)
    with Progress("evaluated", args.quiet or args.json) as progress:
        metrics = evaluate(
            args.model,
            args.store,
            args.out,
            split=args.split,
            truth=args.truth,
            segmenter=args.segmenter,
            regions=args.regions,
            allow_train=args.allow_train,
            seed=args.seed,
            device=args.device,
            precision=args.precision or "fp32",
            overwrite=args.overwrite,
            progress=progress,
        )
    answer(args, metrics, headline(metrics) + f"\n{Path(args.out) / 'metrics.json'}")
    return 0


def headline(metrics: dict[str, Any]) -> str:
    """Return the numbers that matter most, one line each."""
    from neurotome.report.headline import rate_words, split_name
    from neurotome.report.tables import count

    lines = []
    for section, name in (("reconstruction", "reconstruct"), ("translation", "translate")):
        for key, row in (metrics.get(section) or {}).items():
            value = _mean(row.get("psnr_db"))
            if value is None:
                continue
            n = count(row["psnr_db"])
            over = "" if n is None else f", {counted(n, f'{split_name(metrics)} subject')}"
            lines.append(f"{name:<11} {key:<8} {_level(row['psnr_db'])} dB in the brain{over}")
            lines += _beside(row)
    for task, row in (metrics.get("structures") or {}).items():
        if (value := _mean((row.get("dice") or {}).get("mean"))) is not None:
            ceiling = _mean((row.get("ceiling") or {}).get("mean"))
            beside = "" if ceiling is None else f"   (scan against label map: {ceiling:.2f})"
            lines.append(f"{'structures':<11} {task:<8} Dice {value:.3f} with the labels of the scan{beside}")
    lines += _region_lines(metrics.get("regions") or {})
    if rate := rate_words(metrics, "own"):
        translated = rate_words(metrics, "translated")
        lines.append(rate.replace("\u00a0", " ") + (f"; a translation {translated}" if translated else ""))
    utilisation = _mean((metrics.get("codebook") or {}).get("utilisation"))
    if utilisation is not None:
        lines.append(f"codebook used {utilisation:.0%}")
    lines += _separation_lines(metrics.get("audit") or {}, has_codes=bool(metrics.get("codebook")))
    return "\n".join(lines) or "no headline number: see metrics.json"


def _level(entry: Any) -> str:
    """Return a mean with its interval: ``20.8 (20.4 to 21.2)``."""
    from neurotome.report.tables import interval

    between = interval(entry, 1)
    return f"{_mean(entry):6.1f}{f' ({between})' if between else ''}"


def _beside(row: dict[str, Any]) -> list[str]:
    """Return a line per baseline: its PSNR, and how far the model is above or below it, subject by subject."""
    from neurotome.report.tables import BASELINES

    lines = []
    given = row.get("baselines") or {}
    for key in [*(k for k in BASELINES if k in given), *(k for k in given if k not in BASELINES)]:
        entry = given[key].get("psnr_db") if isinstance(given[key], dict) else given[key]
        if _mean(entry) is None:
            continue
        gain = (row.get("paired") or {}).get(f"over_{key}_db")
        ends = gain.get("ci95") if isinstance(gain, dict) else None
        between = f" ({ends[0]:+.1f} to {ends[1]:+.1f})" if ends else ""
        against = "" if _mean(gain) is None else f"; the model against it {_mean(gain):+.1f}{between}"
        lines.append(f"  {BASELINES.get(key, key.replace('_', ' ')):<31}{_level(entry)} dB{against}")
    return lines


def _region_lines(regions: dict[str, Any]) -> list[str]:
    """Return the volume error of each region, the largest first, and what was left out."""
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


def _separation_lines(audit: dict[str, Any], *, has_codes: bool) -> list[str]:
    """Return how well anatomy and contrast are separated, in words that claim no more than was measured."""
    agreement, probes = audit.get("agreement") or {}, audit.get("probes") or {}
    same, chance, own = (_mean(agreement.get(key)) for key in ("agreement", "chance", "self_agreement"))
    gap, token, guess = _mean(audit.get("code_gap")), _mean(probes.get("token_vector")), _mean(probes.get("chance"))
    lines = []
    if same is not None and chance is not None and own is not None:
        lines.append(
            f"both contrasts have the same code in {same:.0%} of latent cells (chance {chance:.0%}, a scan and the "
            f"same scan under noise {own:.0%})"
        )
    if gap is not None and has_codes:
        lines.append(f"code gap {gap:.2f} (0: the contrasts' codes are identical, 1: unrelated)")
    if token is not None and guess is not None:
        what = "code" if has_codes else "latent vector"
        lines.append(f"the contrast is predicted from one {what} with accuracy {token:.0%} (chance {guess:.0%})")
    return lines


def _mean(entry: Any) -> float | None:
    value = entry.get("mean") if isinstance(entry, dict) else entry
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
