"""Numbers as rows: results beside their baselines and goals, the cohort, the machine.

A number is printed with its 95 % interval and the number of subjects wherever the evaluation gave them; what was not
measured is a dash.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neurotome.report.audit import Tone
from neurotome.report.figures import Dot
from neurotome.report.run import flat, lookup, number

BASELINES = {
    "shared_codes_alone": "This model, shared codes alone",
    "trilinear": "Trilinear, same latent grid",
    "lookup_equal_rate": "Voxel lookup, equal rate",
    "lookup_refitted": "Voxel lookup, refitted",
    "lookup_full_rate": "Voxel lookup, no bottleneck",
    "monotone_map": "Monotone map, no network",
    "monotone_ceiling": "Best monotone map",
    "mean_image": "Mean training image",
}
# keys whose words would say little to a reader
NAMES = {
    "own_per_voxel": "Reconstruction, per voxel of the grid",
    "own_per_brain_voxel": "Reconstruction, per brain voxel",
    "translated_per_voxel": "Translation, per voxel of the grid",
    "translated_per_brain_voxel": "Translation, per brain voxel",
    "peak_rss_mb": "Peak memory (MB)",
    "peak_device_mb": "Peak memory of the device (MB)",
    "encode_volumes_per_s": "Scans encoded per second",
    "decode_volumes_per_s": "Scans decoded per second",
    "noise_sd": "Noise of self-agreement (standard deviation)",
    "trained_on_evaluated": "Trained on evaluated subjects",
    "ms_ssim": "MS-SSIM",
    "ms_ssim_scales": "MS-SSIM scales",
    "ssim": "SSIM",
    "ssim_window": "SSIM window (voxels)",
    "psnr": "PSNR",
    "high_frequency_ratio": "Fine detail kept",
}
UNITS = {
    "_per_s": " per second",
    "_mm": " (mm)",
    "_mb": " (MB)",
    "_gb": " (GB)",
    "_db": " (dB)",
    "_seconds": " (s)",
    "_s": " (s)",
    "_ms": " (ms)",
}
NBSP = "\u00a0"
# key, heading, decimals, unit of the heading
MEASURES = {
    "psnr_db": ("PSNR, brain", 1, "dB"),
    "ssim": ("SSIM, brain", 3, ""),
    "ms_ssim": ("MS-SSIM, brain", 3, ""),
    "structure_dice": ("Structure Dice", 3, "with the scan's labels"),
    "structure_dice_truth": ("Structure Dice", 3, "with the label map"),
    "structure_volume_error": ("Volume error", 3, "absolute, share of the scan's"),
    "high_frequency_ratio": ("Fine detail kept", 2, "ratio"),
    "psnr_db_whole": ("PSNR, whole box", 1, "dB"),
    "ssim_whole": ("SSIM, whole box", 3, ""),
}


@dataclass(frozen=True)
class TableCell:
    """One table cell: its text, a smaller second line, and how it compares with its goal."""

    text: str
    small: str = ""
    tone: Tone = "none"


@dataclass(frozen=True)
class Table:
    """A table; the first column names the row.

    Args:
        head: Column headings with their units as small text.
        rows: Cells, as many per row as there are headings.
        strong: Indices of the rows that show the model itself.
    """

    head: tuple[TableCell, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    strong: frozenset[int] = frozenset()


def cells(*given: str | tuple[str, str]) -> tuple[TableCell, ...]:
    """Return a cell for each text, or for each pair of a text and its smaller second line."""
    return tuple(TableCell(entry) if isinstance(entry, str) else TableCell(*entry) for entry in given)


def arrow(pair: str) -> str:
    """Return ``T1w->T2w`` as ``T1w → T2w``."""
    return pair.replace("->", " → ")


def interval(value: Any, decimals: int) -> str:
    """Return the 95 % interval as ``23.9 to 24.7``, or ""."""
    low, high = _ends(value)
    return "" if low is None or high is None else f"{low:.{decimals}f} to {high:.{decimals}f}"


def count(value: Any) -> int | None:
    """Return the number of subjects behind a value, or None."""
    n = number(value.get("n")) if isinstance(value, Mapping) else None
    return None if n is None else int(n)


def _ends(value: Any) -> tuple[float | None, float | None]:
    ends = value.get("ci95") if isinstance(value, Mapping) else None
    if not isinstance(ends, Sequence) or isinstance(ends, str) or len(ends) != 2:
        return None, None
    return number(ends[0]), number(ends[1])


def tasks(metrics: Mapping[str, Any], kind: str) -> dict[str, Mapping[str, Any]]:
    """Return ``reconstruction`` or ``translation`` entries that are mappings, in the order of the file."""
    tree = lookup(metrics, kind)
    return {str(k): v for k, v in tree.items() if isinstance(v, Mapping)} if isinstance(tree, Mapping) else {}


def result_table(entries: Mapping[str, Mapping[str, Any]], what: str) -> Table | None:
    """Return model and baselines per task, one column per measure that anything was given for."""
    if not entries:
        return None
    groups = [(name, [("neurotome", entry), *_baselines(entry)]) for name, entry in entries.items()]
    found = {key for _, rows in groups for _, row in rows for key in row if number(row[key]) is not None}
    keys = [k for k in MEASURES if k in found] + sorted(k for k in found if k not in MEASURES and k != "n")
    head = cells(what, "Method", *((MEASURES[k][0], MEASURES[k][2]) if k in MEASURES else plain(k) for k in keys))
    body: list[tuple[TableCell, ...]] = []
    strong: set[int] = set()
    for name, rows in groups:
        for i, (method, row) in enumerate(rows):
            if i == 0:
                strong.add(len(body))
            values = [_value(row.get(k), MEASURES[k][1] if k in MEASURES else 3) for k in keys]
            body.append((*cells(arrow(name) if i == 0 else "", method), *values))
    return Table(head, tuple(body), frozenset(strong))


def _baselines(entry: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    given = entry.get("baselines")
    if not isinstance(given, Mapping):
        return []
    order = [k for k in BASELINES if k in given] + sorted(str(k) for k in given if k not in BASELINES)
    return [(BASELINES.get(k, plain(k)), given[k]) for k in order if isinstance(given[k], Mapping)]


def _value(value: Any, decimals: int) -> TableCell:
    mean = number(value)
    return TableCell("–") if mean is None else TableCell(f"{mean:.{decimals}f}", interval(value, decimals))


def result_dots(entry: Mapping[str, Any], own_of_target: Mapping[str, Any] | None = None) -> list[Dot]:
    """Return model and baselines by brain PSNR, best first; a translation has the target's own reconstruction too."""
    rows = [("neurotome", entry.get("psnr_db"), True)]
    rows += [(name, row.get("psnr_db"), False) for name, row in _baselines(entry)]
    if own_of_target is not None:
        rows.append(("Target's own codes", own_of_target.get("psnr_db"), False))
    dots = [Dot(name, mean, *_ends(v), own) for name, v, own in rows if (mean := number(v)) is not None]
    return sorted(dots, key=lambda dot: -dot.value)


def codebook(metrics: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return utilisation in [0, 1] and perplexity inside the brain, of the anatomy codebook."""
    tree = lookup(metrics, "codebook")
    return number(lookup(tree, "utilisation")), number(lookup(tree, "perplexity"))


def codebooks(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the codebooks of an evaluation by name; without names the top-level numbers are those of the only one."""
    tree = lookup(metrics, "codebook")
    named = lookup(tree, "codebooks")
    named = lookup(tree, "books") if named is None else named  # files of formats before 5
    if isinstance(named, Mapping):
        return {str(name): entry for name, entry in named.items() if isinstance(entry, Mapping)}
    return {"codes": {"box": tree, "brain": tree, **tree}} if isinstance(tree, Mapping) and tree else {}


def code_counts(entry: Mapping[str, Any]) -> list[float] | None:
    """Return how often each code occurs inside the brain, or None where the evaluation did not say."""
    given = lookup(entry, "brain", "counts")
    if not isinstance(given, list) or len(given) < 2:
        return None
    counts = [number(value) for value in given]
    return [c for c in counts if c is not None] if all(c is not None and c >= 0 for c in counts) else None


def codebook_table(metrics: Mapping[str, Any]) -> Table | None:
    """Return the use of every codebook."""
    rows = []
    for name, entry in codebooks(metrics).items():
        values = [number(lookup(entry, "num_codes")), number(lookup(entry, "box", "utilisation"))]
        values += [number(lookup(entry, "brain", key)) for key in ("utilisation", "perplexity", "entropy_bits")]
        kinds = ("{:.0f}", "{:.0%}", "{:.0%}", "{:.0f}", "{:.1f}")
        texts = ["–" if v is None else kind.format(v) for kind, v in zip(kinds, values, strict=True)]
        if any(v is not None for v in values):
            rows.append(cells(name, *(text.replace("%", f"{NBSP}%") for text in texts)))
    used = ("In use", "whole split"), ("In use", "brain")
    return (
        Table(cells("Codebook", "Codes", *used, ("Perplexity", "brain"), ("Entropy", "bits, brain")), tuple(rows))
        if rows
        else None
    )


def structure_table(metrics: Mapping[str, Any]) -> Table | None:
    """Return the Dice of every structure, with the scan's and with the label map, and what the scan reaches there."""
    tree = lookup(metrics, "structures")
    ceilings = {str(k): lookup(v, "ceiling") for k, v in tree.items()} if isinstance(tree, Mapping) else {}
    rows = []
    for task in ceilings:
        columns = [lookup(tree, task, "dice"), lookup(tree, task, "truth_dice"), ceilings.get(task.split("->")[-1])]
        names = columns[0] if isinstance(columns[0], Mapping) else {}
        for i, name in enumerate(names):
            values = [_value(lookup(column, str(name)), 3) for column in columns]
            rows.append((*cells(arrow(task) if i == 0 else "", plain(str(name))), *values))
    heads = ("Output with scan", "Output with label map", "Scan with label map")
    return Table(cells("Image", "Structure", *((head, "Dice") for head in heads)), tuple(rows)) if rows else None


def factor_table(metrics: Mapping[str, Any]) -> Table | None:
    """Return how well linear probes of a scan's mean vector and of its style predict site and subject factors."""
    tree = lookup(metrics, "factors")
    rows = []
    for factor, name, values in _factor_rows(tree):
        accuracy = [number(values.get(stream)) for stream in ("anatomy", "style")]
        explained = [number(values.get(f"{stream}_r2")) for stream in ("anatomy", "style")]
        classed = any(value is not None for value in accuracy)
        chance = number(values.get("chance"))
        measure = ("accuracy" if chance is None else f"accuracy, chance {chance:.2f}") if classed else "R²"
        texts = ["–" if v is None else f"{v:.2f}" for v in (accuracy if classed else explained)]
        rows.append(cells(plain(factor), name, *texts, measure))
    anatomy = "From code" if lookup(metrics, "not_applicable", "split") else "From anatomy"
    head = cells("Factor", "Contrast", (anatomy, "mean vector"), "From style", "Measure")
    return Table(head, tuple(rows)) if rows else None


def factor_scans(metrics: Mapping[str, Any]) -> int | None:
    """Return the fewest scans that a probe of a factor was tested on, or None."""
    counts = [n for *_, values in _factor_rows(lookup(metrics, "factors")) if (n := number(values.get("n")))]
    return int(min(counts)) if counts else None


def _factor_rows(tree: Any) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    for factor, contrasts in tree.items() if isinstance(tree, Mapping) else ():
        for name, values in contrasts.items() if isinstance(contrasts, Mapping) else ():
            if isinstance(values, Mapping):
                yield str(factor), str(name), values


def fact_table(facts: Iterable[tuple[str, str]]) -> Table | None:
    """Return a table of two columns, or None where every value is empty."""
    rows = tuple(cells(name, value) for name, value in facts if value)
    return Table((), rows) if rows else None


def tree_table(tree: Any) -> Table | None:
    """Return the leaves of nested mappings as facts."""
    if not isinstance(tree, Mapping):
        return None
    return fact_table((plain(name), shown(value)) for name, value in flat(tree))


def cohort_table(data: Mapping[str, Any]) -> Table | None:
    """Return subjects, sessions, contrasts and sites per split, from ``data.json``."""
    splits = lookup(data, "splits")
    if not isinstance(splits, Mapping):
        return None
    order = [s for s in ("train", "val", "test") if s in splits] + [
        s for s in splits if s not in {"train", "val", "test"}
    ]
    known = [(str(s), splits[s]) for s in order if isinstance(splits[s], Mapping)]
    contrasts = list(dict.fromkeys(str(c) for _, row in known for c in _names(row.get("modalities"))))
    head = cells("Split", "Subjects", "Sessions", *((c, "scans") for c in contrasts), "Sites")
    rows = []
    for name, row in known:
        scans = [shown(lookup(row, "modalities", c)) for c in contrasts]
        rows.append(cells(name, shown(row.get("subjects")), shown(row.get("sessions")), *scans, _sites(row)))
    return Table(head, tuple(rows)) if rows else None


def fingerprint_table(fingerprint: Any) -> Table | None:
    """Return one row per contrast of a dataset's fingerprint: what the scans were before they were prepared."""
    contrasts = lookup(fingerprint, "contrasts")
    if not isinstance(contrasts, Mapping) or not contrasts:
        return None
    head = cells(
        "Contrast", "Scans", ("Voxels", "scans"), ("Voxel edges", "mm"), "Orientation",
        ("Intensities of the brain", "median of the scans"),
    )  # fmt: skip
    rows = []
    for name, entry in contrasts.items():
        levels = lookup(entry, "intensity")
        known = levels.items() if isinstance(levels, Mapping) else ()
        middle = ", ".join(f"{key}: {shown(lookup(value, 'median'))}" for key, value in known)
        kinds = [_counted(lookup(entry, key)) for key in ("shapes", "spacings_mm", "orientations")]
        rows.append(cells(str(name), shown(lookup(entry, "scans")), *kinds, middle or "–"))
    return Table(head, tuple(rows))


def _counted(pairs: Any, most: int = 3) -> str:
    """Return ``value (count)`` for the first few of a list of pairs."""
    known = [p for p in pairs if isinstance(p, list) and len(p) == 2] if isinstance(pairs, list) else []
    words = [f"{shown(value)} ({shown(count)})" for value, count in known[:most]]
    return ", ".join([*words, *([f"{len(known) - most} more"] if len(known) > most else [])]) or "–"


def finding_table(check: Mapping[str, Any], most: int = 40) -> Table | None:
    """Return the errors and warnings of a ``check.json``, the first ``most`` of them."""
    findings = lookup(check, "findings")
    grave = [f for f in findings if lookup(f, "severity") in ("error", "warning")] if isinstance(findings, list) else []
    if not grave:
        return None
    rows = []
    for finding in grave[:most]:
        severity, file, reason, remedy = (
            shown(lookup(finding, key)) for key in ("severity", "file", "reason", "remedy")
        )
        rows.append(cells(f"{severity}: {file}", f"{reason}. Remedy: {remedy}" if remedy != "–" else reason))
    if len(grave) > most:
        rows.append(cells(f"and {len(grave) - most} more", "all are in check.json"))
    return Table(cells("File", "Finding"), tuple(rows))


def _names(value: Any) -> Iterable[Any]:
    return value if isinstance(value, Mapping | list) else ()


def _sites(row: Mapping[str, Any]) -> str:
    sites = row.get("sites")
    if isinstance(sites, Mapping):
        return ", ".join(f"{site}: {shown(n)}" for site, n in sites.items())
    return shown(sites)


def shown(value: Any) -> str:
    """Return a leaf of a file as text; nothing is a dash."""
    if value is None or value == "" or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and len(value) == 3 and all(isinstance(v, int) for v in value):
        return " × ".join(str(v) for v in value)
    if isinstance(value, list):
        return ", ".join(shown(v) for v in value[:24]) + (" …" if len(value) > 24 else "")
    return str(value)


def plain(key: str) -> str:
    """Return a key as words, those of ``NAMES`` first: ``shape`` is ``Shape``, ``window_mm`` is ``Window (mm)``."""
    if key in NAMES:
        return NAMES[key]
    unit = next((u for u in UNITS if key.endswith(u)), "")
    words = key.removesuffix(unit).replace("_", " ").replace(".", " · ")
    return f"{words[:1].upper()}{words[1:]}{UNITS.get(unit, '')}"


def duration(seconds: float | None) -> str:
    """Return seconds as ``5 min 12 s``, or ""."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
