"""The table of a bench: one row per tokenizer, as text for the docs and as a page with the pictures side by side."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import neurotome
from neurotome.report.bench_pictures import rows_of_pictures
from neurotome.report.figures import Chart
from neurotome.report.page import template
from neurotome.report.rates import RateDot, rate_chart
from neurotome.report.tables import arrow

Row = Mapping[str, Any]
Key = str | tuple[str, str]
#: heading per contrast or pair, measure, digits
MEASURES = (
    ("PSNR {} (dB)", "psnr_db", 2), ("SSIM {}", "ssim", 3), ("MS-SSIM {}", "ms_ssim", 3),
    ("detail kept {}", "high_frequency_ratio", 2), ("structure Dice {}", "structure_dice", 3),
    ("Dice with label map {}", "structure_dice_truth", 3), ("volume error {}", "structure_volume_error", 3),
    ("region volume error {}", "region_volume_error", 3),
    ("{} (dB)", "translation_psnr_db", 2),
)  # fmt: skip
FRONT: tuple[tuple[str, Key, int], ...] = (
    ("tokenizer", "name", 0), ("parameters", "parameters", 0), ("bits per voxel of the grid", "bits_per_voxel", 3),
    ("bits per brain voxel", "bits_per_brain_voxel", 3),
    ("seeds", "num_seeds", 0), ("steps", "steps", 0), ("training (wall s)", "training_seconds", 0),
    ("training (CPU s)", "training_cpu_seconds", 0),
)  # fmt: skip
BACK: tuple[tuple[str, Key, int], ...] = (
    ("codes used", "codebook_use", 2), ("perplexity", "perplexity", 0),
    ("contrast read from a token", "token_probe", 2), ("contrast read from the mean vector", "pooled_probe", 2),
    ("sex read from the mean vector", "sex_probe", 2), ("site read from the mean vector", "site_probe", 2),
    ("age read from the mean vector (R²)", "age_r2", 2),
    ("encode (volumes/s)", "encode_volumes_per_s", 1), ("decode (volumes/s)", "decode_volumes_per_s", 1),
    ("peak memory (MB)", "peak_rss_mb", 0), ("peak device memory (MB)", "peak_device_mb", 0),
)  # fmt: skip


#: title, measure, unit of a chart of quality over rate
CHARTED = (("PSNR of {} in the brain", "psnr_db", "dB"), ("SSIM of {} in the brain", "ssim", ""),
           ("Structure Dice of {}", "structure_dice", ""))  # fmt: skip
#: measure: the scalar that is its chance
CHANCES = {"token_probe": "probe_chance", "pooled_probe": "probe_chance", "sex_probe": "sex_chance",
           "site_probe": "site_chance"}  # fmt: skip


def columns(rows: Sequence[Row]) -> list[tuple[str, Key, int]]:
    """Return heading, key and digits of every column that holds a value in some row."""
    middle: list[tuple[str, Key, int]] = []
    for heading, measure, digits in MEASURES:
        tasks = dict.fromkeys(task for row in rows for task in row.get(measure) or {})
        middle += [
            (
                heading.format(arrow(task)) + _limit(rows, measure, task) + _monotone(rows, measure, task),
                (measure, task),
                digits,
            )
            for task in tasks
        ]
    back = [(heading + _chance(rows, key), key, digits) for heading, key, digits in BACK]
    return [c for c in (*FRONT, *middle, *back) if any(cell_text(row, c[1], c[2]) != "–" for row in rows)]


def _chance(rows: Sequence[Row], key: Key) -> str:
    """Return the chance of a probe as words of its heading, from the first row that has it."""
    entries = [row.get(CHANCES[key]) for row in rows] if isinstance(key, str) and key in CHANCES else []
    known = [entry["mean"] for entry in entries if isinstance(entry, Mapping) and entry.get("mean") is not None]
    return f" (chance {known[0]:.2f})" if known else ""


def _limit(rows: Sequence[Row], measure: str, task: str) -> str:
    """Return the Dice of the scans themselves with their label maps, as words of the heading."""
    known = [row["structure_ceiling"][task] for row in rows if task in (row.get("structure_ceiling") or {})]
    return f" (scan itself {known[0]:.3f})" if known and measure == "structure_dice_truth" else ""


def _monotone(rows: Sequence[Row], measure: str, task: str) -> str:
    """Return what a curve of the source's intensity reaches without a network, as words of a translation's heading."""
    found: Row = next((known[task] for row in rows if task in (known := row.get("monotone_psnr_db") or {})), {})
    if measure != "translation_psnr_db" or not {"monotone_map", "monotone_ceiling"} <= found.keys():
        return ""
    return f" (monotone map {found['monotone_map']:.2f}, best of the very scan {found['monotone_ceiling']:.2f})"


def notes(bench: Mapping[str, Any]) -> list[str]:
    """Return explanations of the columns that are there, and why a factor has none."""
    rows: Sequence[Row] = bench["rows"]
    kept = {key if isinstance(key, str) else key[0] for _, key, _ in columns(rows)}
    said = []
    if kept & {"token_probe", "pooled_probe", "sex_probe", "site_probe", "age_r2"}:
        scans = [n["mean"] for row in rows if (n := row.get("probed_scans"))]
        few = f", on {scans[0]:.0f} scans of all contrasts per seed" if scans else ""
        said.append(
            "Read from: by a linear probe, fitted on training subjects and tested on others, of single latent vectors "
            f"or of a scan's mean vector{few}; balanced accuracy beside its chance, R² for age (0: no better than the "
            "mean). Sex, site and age are probed within each contrast and averaged over contrasts. Over few subjects "
            "these numbers are coarse; they have no interval."
        )
    if rows and bench["unprobed"]:
        said.append(
            f"Not probed for want of subjects: {', '.join(bench['unprobed'])}. A class probe needs two classes in "
            f"training, with two scans of a contrast for each, and two in the {bench['split']} split; a number needs "
            "three training scans and two values in the split."
        )
    if "bits_per_brain_voxel" in kept:
        said.append(
            "Bits per brain voxel: all bits of an image over the voxels of its brain mask, where PSNR is measured. A "
            "tokenizer that codes background pays for it, one that leaves it out spends its bits in the brain; compare "
            "quality at equal bits per brain voxel."
        )
    if any("monotone map" in heading for heading, _, _ in columns(rows)):
        said.append(
            "Monotone map: the rising or falling curve from source to target intensity, without a network, learned on "
            "training subjects; best of the very scan: the most that any such curve could reach."
        )
    if kept & {"training_seconds", "training_cpu_seconds"}:
        said.append(
            "Training: mean over seeds of the seconds of the training command. Wall seconds pass while other jobs run; "
            "CPU seconds are what its threads used, validation and checkpoints included, which no budget counts."
        )
    if "structure_dice" in kept:
        said.append(
            "Structure Dice: overlap of a segmenter's labels on the reconstruction and on the scan, mean over "
            "structures; with label map: of its labels on the reconstruction and the true ones, the heading "
            "states the same for the scan itself."
        )
    if "region_volume_error" in kept:
        said.append(
            "Region volume error: difference of the volumes that another program measured on scan and reconstruction, "
            "without sign, over that on the scan; mean over regions."
        )
    return said


def cell_text(row: Row, key: Key, digits: int) -> str:
    """Return one number with its interval or its range over seeds, or a dash."""
    value: Any = row.get(key) if isinstance(key, str) else (row.get(key[0]) or {}).get(key[1])
    if isinstance(value, list):
        numbers = [v for v in value if v is not None]
        value = statistics.fmean(numbers) if numbers else None
    if isinstance(value, Mapping):
        mean, ends = value.get("mean"), value.get("ci95")
        text = "–" if mean is None else f"{mean:.{digits}f}"
        return text if not ends else f"{text} ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})"
    if isinstance(value, str):
        return value
    return "–" if value is None else f"{value:,.{digits}f}".replace(",", " ")


def markdown(bench: Mapping[str, Any]) -> str:
    """Return the setting, the table, the paired steps, explanations and warnings as Markdown.

    Args:
        bench: As in ``bench.json``: about, budget, split, subjects, seeds, device, threads, rows, unprobed,
            failed.
    """
    rows: Sequence[Row] = bench["rows"]
    kept = columns(rows)
    lines = ["| " + " | ".join(heading for heading, _, _ in kept) + " |", "|" + "---|" * len(kept)] if rows else []
    lines += ["| " + " | ".join(cell_text(row, key, digits) for _, key, digits in kept) + " |" for row in rows]
    steps, warned, failed = (
        "\n".join(f"- {line}" for line in said)
        for said in (step_lines(rows), warning_lines(rows), [f"failed: {line}" for line in bench["failed"]])
    )
    return "\n\n".join(
        part for part in (setting(bench), "\n".join(lines), steps, *notes(bench), warned, failed) if part
    )


def setting(bench: Mapping[str, Any]) -> str:
    """Return the budget, device, seeds and subjects of the table in one sentence."""
    seeds, threads = (f"{n} {one}{'' if n == 1 else 's'}" for n, one in
                      ((len(bench["seeds"]), "seed"), (bench["threads"], "CPU thread")))  # fmt: skip
    return (
        f"Budget per training: {bench['budget']}; device {bench['device']}, {threads}; {seeds}; evaluated on "
        f"n = {bench['subjects']} subjects of the {bench['split']} split."
    )


def warning_lines(rows: Sequence[Row], most: int = 4) -> list[str]:
    """Return what the trainings warned of, at most ``most`` lines of each run; its ``train.log`` holds all."""
    lines = []
    for row in rows:
        said = row.get("warnings") or []
        lines += [f"{row['name']}, {line}" for line in said[:most]]
        lines += [f"{row['name']}: {len(said) - most} more warnings in its train.log"] if len(said) > most else []
    return lines


def step_lines(rows: Sequence[Row]) -> list[str]:
    """Return each paired step; one that is not significant is marked with the reason."""
    lines = []
    for row in rows:
        said = [
            f"{arrow(task)} {step_text(step)}"
            for task, entry in {**(row.get("psnr_db") or {}), **(row.get("translation_psnr_db") or {})}.items()
            if (step := entry.get("step")) and step["mean"] is not None and step["ci95"]
        ]
        if said:
            lines.append(f"{row['name']} against {row['against']}: {', '.join(said)}")
    return lines


def step_text(step: Mapping[str, Any]) -> str:
    """Return a step in dB with its interval; with more than two digits where two would round a number to zero."""
    low, high = step["ci95"]
    digits = next(
        (d for d in range(2, 6) if all(round(v, d) or not v for v in (step["mean"], low, high))),
        6,
    )
    verdict = ""
    if not step["real"]:
        small = not low <= 0 <= high
        verdict = f"; under {step['floor']:g} dB, too small to matter" if small else "; its interval holds 0"
    return f"{step['mean']:+.{digits}f} dB ({low:+.{digits}f} to {high:+.{digits}f}{verdict})"


def page(bench: Mapping[str, Any], folders: Mapping[str, Path]) -> str:
    """Return one self-contained page.

    Args:
        bench: As in ``bench.json``; see :func:`markdown`.
        folders: Of each run, an evaluated cell whose pictures are shown.
    """
    rows: Sequence[Row] = bench["rows"]
    kept = columns(rows)
    content = {
        "about": bench["about"],
        "setting": setting(bench),
        "split": bench["split"],
        "subjects": bench["subjects"],
        "head": [heading for heading, _, _ in kept],
        "rows": [[cell_text(row, key, digits) for _, key, digits in kept] for row in rows],
        "steps": step_lines(rows),
        "notes": notes(bench),
        "warnings": warning_lines(rows),
        "failed": bench["failed"],
        "charts": rate_charts(rows, bench["subjects"]),
        "pictures": rows_of_pictures(folders),
        "version": neurotome.__version__,
    }
    return template("bench.html.j2").render(content).encode("utf-8", "replace").decode("utf-8")


def rate_charts(rows: Sequence[Row], n: int) -> list[Chart]:
    """Return quality over bits, one chart per measure and contrast; titles state the ``n`` subjects.

    Bits are those per brain voxel, or per voxel of the grid where an earlier evaluation did not say.
    """
    charts, kind = [], "bits_per_brain_voxel"
    if not all(row.get(kind) for row in rows):
        kind = "bits_per_voxel"
    axis = "bits per brain voxel" if kind == "bits_per_brain_voxel" else "bits per voxel of the grid"
    for heading, measure, unit in CHARTED:
        for task in dict.fromkeys(task for row in rows for task in row.get(measure) or {}):
            dots = [
                RateDot(row["name"], bits["mean"], entry["mean"], *(entry["ci95"] or (None, None)))
                for row in rows
                if (bits := row.get(kind))
                and (entry := (row.get(measure) or {}).get(task))
                and entry["mean"] is not None
                and bits["mean"] > 0
            ]
            if dots:
                charts.append(rate_chart(f"{heading.format(task)}, n = {n}", dots, unit, axis=axis))
    return charts
