"""Gathers the demos of several seeds into one table: docs/reference/demo.md, and JSON under benchmarks/results/.

    python -m benchmarks.demo_table runs/seeds

A folder is named CONFIG-SEED. A cell is the mean over seeds, and over the test subjects within a seed, with the
smallest and largest seed; nothing is left out and nothing is chosen. With both configs there, the goals that compare
them are compared on the means.
"""

import argparse
import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.base import environment

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "reference" / "demo.md"
MARKS = ("<!-- demo-seeds -->", "<!-- /demo-seeds -->")
PUBLISHED, ALIGNED = "neuroquant-demo", "anatome-demo"
Tree = Mapping[str, Any]


def at(tree: Tree, *path: str) -> float | None:
    """Return the number at a path; the mean where an interval stands there."""
    value: Any = tree
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value["mean"] if isinstance(value, Mapping) else value


def over_lookup(task: str) -> Callable[[Tree], float | None]:
    return translation(task, "paired", "over_lookup_equal_rate_db")


def reconstruction(name: str, *path: str) -> Callable[[Tree], float | None]:
    return lambda m: at(m, "reconstruction", name, *path)


def translation(name: str, *path: str) -> Callable[[Tree], float | None]:
    return lambda m: at(m, "translation", name, *path)


def audit(*path: str) -> Callable[[Tree], float | None]:
    return lambda m: at(m, "audit", *path)


def ratio(m: Tree) -> float | None:
    """Return agreement over self-agreement."""
    own, other = at(m, "audit", "agreement", "self_agreement"), at(m, "audit", "agreement", "agreement")
    return None if not own or other is None else other / own


#: method of a translation and its words; the best of the model and these is bold, but for what is given the answer
RIVALS = {
    "lookup_full_rate": "voxel lookup, no bottleneck",
    "lookup_equal_rate": "voxel lookup, equal rate",
    "monotone_map": "monotone map fitted on training subjects, no network",
    "monotone_ceiling": "best monotone map of the very scan (given the answer)",
}


def rivals(task: str) -> tuple[tuple[str, Callable[[Tree], float | None], int, str, str], ...]:
    """Return the rows of what a translation stands beside."""
    arrow = task.replace("->", "→")
    return tuple(
        (f"… {arrow}, {words}", translation(task, "baselines", key, "psnr_db"), 2, "", "")
        for key, words in RIVALS.items()
    )


# name, value, digits, goal of the published objective, goal of the aligned one
ROWS: tuple[tuple[str, Callable[[Tree], float | None], int, str, str], ...] = (
    ("bits per voxel of the grid, own reconstruction", lambda m: at(m, "bits", "own_per_voxel"), 2, "≤ 1.0", "≤ 1.5"),
    ("bits per brain voxel, own reconstruction", lambda m: at(m, "bits", "own_per_brain_voxel"), 2, "", ""),
    ("bits per voxel of the grid, translation", lambda m: at(m, "bits", "translated_per_voxel"), 2, "", ""),
    ("bits per brain voxel, translation", lambda m: at(m, "bits", "translated_per_brain_voxel"), 2, "", ""),
    ("T1w, PSNR in the brain (dB)", reconstruction("T1w", "psnr_db"), 2, "", ""),
    ("T1w over trilinear (dB)", reconstruction("T1w", "paired", "over_trilinear_db"), 2, "≥ 5", ""),
    ("T1w, shared codes alone (dB)", reconstruction("T1w", "baselines", "shared_codes_alone", "psnr_db"), 2, "", ""),
    ("T1w, SSIM in the brain", reconstruction("T1w", "ssim"), 3, "", ""),
    ("T1w, high-frequency ratio", reconstruction("T1w", "high_frequency_ratio"), 2, "≥ 0.70", ""),
    ("T2w, PSNR in the brain (dB)", reconstruction("T2w", "psnr_db"), 2, "", ""),
    ("T2w over trilinear (dB)", reconstruction("T2w", "paired", "over_trilinear_db"), 2, "≥ 5", ""),
    ("T2w, shared codes alone (dB)", reconstruction("T2w", "baselines", "shared_codes_alone", "psnr_db"), 2, "", ""),
    ("T2w, SSIM in the brain", reconstruction("T2w", "ssim"), 3, "", ""),
    ("T1w→T2w, PSNR in the brain (dB): the model", translation("T1w->T2w", "psnr_db"), 2, "", ""),
    *rivals("T1w->T2w"),
    ("T1w→T2w over equal-rate lookup (dB)", over_lookup("T1w->T2w"), 2, "≥ 1", "≥ 1"),
    ("T1w→T2w over the refitted lookup (dB)", translation("T1w->T2w", "paired", "over_lookup_refitted_db"), 2, "", ""),
    ("T1w→T2w under T2w's own (dB)", translation("T1w->T2w", "paired", "under_own_reconstruction_db"), 2, "≤ 2", "≤ 2"),
    ("T2w→T1w, PSNR in the brain (dB): the model", translation("T2w->T1w", "psnr_db"), 2, "", ""),
    *rivals("T2w->T1w"),
    ("T2w→T1w over equal-rate lookup (dB)", over_lookup("T2w->T1w"), 2, "≥ 2.5", "≥ 2.5"),
    ("T2w→T1w over the refitted lookup (dB)", translation("T2w->T1w", "paired", "over_lookup_refitted_db"), 2, "", ""),
    ("T2w→T1w under T1w's own (dB)", translation("T2w->T1w", "paired", "under_own_reconstruction_db"), 2, "≤ 2", "≤ 2"),
    ("codes used", lambda m: at(m, "codebook", "utilisation"), 2, "≥ 0.90", "≥ 0.90"),
    ("perplexity in the brain", lambda m: at(m, "codebook", "perplexity"), 0, "", ""),
    ("code gap", audit("code_gap"), 3, "", "≤ 0.10"),
    ("agreement", audit("agreement", "agreement"), 3, "", ""),
    ("… chance", audit("agreement", "chance"), 3, "", ""),
    ("… self-agreement under noise", audit("agreement", "self_agreement"), 3, "", ""),
    ("… over self-agreement", ratio, 2, "", "≥ 0.5"),
    ("token probe, vector (chance 0.5)", audit("probes", "token_vector"), 3, "", "≤ 0.55"),
    ("token probe, one-hot", audit("probes", "token_onehot"), 3, "", "≤ 0.58"),
    ("pooled probe, mean vector", audit("probes", "pooled_mean"), 3, "", ""),
    ("pooled probe, code histogram", audit("probes", "pooled_histogram"), 3, "", "≤ 0.75"),
    ("training (s)", lambda m: at(m, "_training", "seconds"), 0, "≤ 360", "≤ 360"),
    ("peak memory of training (MB)", lambda m: at(m, "_training", "peak_rss_mb"), 0, "≤ 4096", "≤ 4096"),
)  # fmt: skip


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the metrics of every finished run by config, in the order of the seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(folder.iterdir()):
        match = re.fullmatch(r"(.+)-(\d+)", run.name)
        if match and (run / "metrics.json").exists():
            metrics = json.loads((run / "metrics.json").read_text())
            status = json.loads((run / "status.json").read_text())
            found.setdefault(match[1], []).append({**metrics, "_training": status, "_seed": int(match[2])})
    return found


def cell(values: Sequence[float | None], digits: int) -> str:
    """Return mean (smallest to largest), or a dash."""
    numbers = [v for v in values if v is not None]
    if not numbers:
        return "–"
    text = f"{statistics.mean(numbers):.{digits}f}"
    return text if len(numbers) == 1 else f"{text} ({min(numbers):.{digits}f} to {max(numbers):.{digits}f})"


def with_goal(values: Sequence[float | None], goal: str, digits: int) -> str:
    """Return the goal and whether the mean reaches it."""
    numbers = [v for v in values if v is not None]
    if not goal or not numbers:
        return ""
    sign, bound = goal.split()
    mean = statistics.mean(numbers)
    shown = round(mean, digits)  # as it is printed: a tie is no miss
    good = shown >= float(bound) if sign == "≥" else shown <= float(bound)
    return f"{goal} {'yes' if good else '**no**'}"


def table(found: Mapping[str, Sequence[Tree]]) -> str:
    """Return the table in Markdown."""
    configs = [c for c in (PUBLISHED, ALIGNED) if c in found] + [c for c in found if c not in (PUBLISHED, ALIGNED)]
    head = "| | " + " | ".join(f"`{c}` | goal" for c in configs) + " |"
    lines = [head, "|---" * (1 + 2 * len(configs)) + "|"]
    best = {config: best_rows(found[config]) for config in configs}
    for number, (name, value, digits, published, aligned) in enumerate(ROWS):
        cells = []
        for config in configs:
            values = [value(m) for m in found[config]]
            text, goal = cell(values, digits), published if config == PUBLISHED else aligned
            cells += [f"**{text}**" if number in best[config] else text, with_goal(values, goal, digits)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    seeds = "; ".join(f"`{c}`: seeds {', '.join(str(m['_seed']) for m in found[c])}" for c in configs)
    note = (
        f"{seeds}. Default cohort, test split (8 subjects), mean over seeds (range of seeds). Bold: the best of a "
        "translation's methods, the last of which is no rival."
    )
    return "\n".join([*lines, "", note, *compared(found)])


def best_rows(runs: Sequence[Tree]) -> set[int]:
    """Return the numbers of the rows that are best of a translation: the model or a rival; all of a tie."""
    best: set[int] = set()
    width = 1 + len(RIVALS)
    for first in (i for i, row in enumerate(ROWS) if row[0].endswith(": the model")):
        group = [i for i in range(first, first + width) if "given the answer" not in ROWS[i][0]]
        means = {i: round(statistics.mean(v), 2) for i in group if (v := known(ROWS[i][1](m) for m in runs))}
        best |= {i for i, mean in means.items() if mean == max(means.values())}
    return best


def known(values: Iterable[float | None]) -> list[float]:
    return [v for v in values if v is not None]


def compared(found: Mapping[str, Sequence[Tree]]) -> list[str]:
    """Return what aligned codes cost, in dB under the published objective, beside the goals."""
    if not {PUBLISHED, ALIGNED} <= found.keys():
        return []
    lines = [
        "",
        "| cost of aligned codes (dB under `neuroquant-demo`; a gain is negative) | T1w | T2w | goal |",
        "|---|---|---|---|",
    ]
    both = (("T1w", "T2w->T1w"), ("T2w", "T1w->T2w"))
    own = [reconstruction(name, "psnr_db") for name, _ in both]
    alone = [reconstruction(name, "baselines", "shared_codes_alone", "psnr_db") for name, _ in both]
    translated = [translation(task, "psnr_db") for _, task in both]
    for title, values, bound in (
        ("own reconstruction, private codes too", own, 1.0),
        ("own reconstruction, shared codes alone", alone, 2.0),
        ("translation into this contrast", translated, 0.5),
    ):
        costs = []
        for value, reference in zip(values, translated if values is translated else own, strict=True):
            ours = [v for m in found[ALIGNED] if (v := value(m)) is not None]
            theirs = [v for m in found[PUBLISHED] if (v := reference(m)) is not None]
            costs.append(statistics.mean(theirs) - statistics.mean(ours) if ours and theirs else float("nan"))
        good = "yes" if round(max(costs), 2) <= bound else "**no**"
        lines.append(f"| {title} | {costs[0]:.2f} | {costs[1]:.2f} | ≤ {bound} {good} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, store it, and put it into its page."""
    parser = argparse.ArgumentParser(prog="benchmarks.demo_table", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    found = read(args.folder)
    if not found:
        parser.error(f"{args.folder} holds no finished demo named CONFIG-SEED")
    text = table(found)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    numbers = {
        config: [{"seed": m["_seed"], **{name: value(m) for name, value, *_ in ROWS}} for m in runs]
        for config, runs in found.items()
    }
    content = {"command": "make demo-seeds", "environment": environment("cpu"), "runs": numbers}
    (args.out / "demo_seeds.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if args.page.exists() and MARKS[0] in (page := args.page.read_text()):
        before, rest = page.split(MARKS[0], 1)
        after = rest.split(MARKS[1], 1)[1]
        args.page.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
