"""The table of a bench: one row per tokenizer, as text for the docs and as a page with the pictures side by side."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import neurotome
from neurotome.report.figures import Chart, RateDot, rate_chart
from neurotome.report.page import template
from neurotome.report.panels import Figure, draw, read_panels
from neurotome.report.tables import arrow

Row = Mapping[str, Any]
Key = str | tuple[str, str]
#: heading per contrast or pair, measure, digits
MEASURES = (
    ("PSNR {} (dB)", "psnr_db", 2), ("SSIM {}", "ssim", 3), ("MS-SSIM {}", "ms_ssim", 3),
    ("detail kept {}", "high_frequency_ratio", 2), ("structure Dice {}", "structure_dice", 3),
    ("Dice with label map {}", "structure_dice_truth", 3), ("volume error {}", "structure_volume_error", 3),
    ("{} (dB)", "translation_psnr_db", 2),
)  # fmt: skip
FRONT: tuple[tuple[str, Key, int], ...] = (
    ("tokenizer", "name", 0), ("parameters", "parameters", 0), ("bits per voxel", "bits_per_voxel", 3),
    ("seeds", "num_seeds", 0), ("steps", "steps", 0), ("training (s)", "training_seconds", 0),
)  # fmt: skip
BACK: tuple[tuple[str, Key, int], ...] = (
    ("codes used", "codebook_use", 2), ("perplexity", "perplexity", 0),
    ("contrast read from a token", "token_probe", 2), ("contrast read from the mean vector", "pooled_probe", 2),
    ("sex read from the mean vector", "sex_probe", 2), ("site read from the mean vector", "site_probe", 2),
    ("age read from the mean vector (R²)", "age_r2", 2),
    ("encode (volumes/s)", "encode_volumes_per_s", 1), ("decode (volumes/s)", "decode_volumes_per_s", 1),
    ("peak memory (MB)", "peak_rss_mb", 0),
)  # fmt: skip


#: measure: the scalar that is its chance
CHANCES = {"token_probe": "probe_chance", "pooled_probe": "probe_chance", "sex_probe": "sex_chance",
           "site_probe": "site_chance"}  # fmt: skip


def columns(rows: Sequence[Row]) -> list[tuple[str, Key, int]]:
    """Return heading, key and digits of every column that holds a value in some row."""
    middle: list[tuple[str, Key, int]] = []
    for heading, measure, digits in MEASURES:
        tasks = dict.fromkeys(task for row in rows for task in row.get(measure) or {})
        middle += [
            (heading.format(arrow(task)) + _limit(rows, measure, task), (measure, task), digits) for task in tasks
        ]
    back = [(heading + _chance(rows, key), key, digits) for heading, key, digits in BACK]
    return [c for c in (*FRONT, *middle, *back) if any(cell_text(row, c[1], c[2]) != "–" for row in rows)]


def _chance(rows: Sequence[Row], key: Key) -> str:
    """Return the chance of a probe as words of its heading, from the first row that has it."""
    entries = [row.get(CHANCES[key]) for row in rows] if isinstance(key, str) and key in CHANCES else []
    known = [entry["mean"] for entry in entries if isinstance(entry, Mapping) and entry.get("mean") is not None]
    return f" (chance {known[0]:.2f})" if known else ""


def _limit(rows: Sequence[Row], measure: str, task: str) -> str:
    """Return what the scans themselves reach beside their label maps, as words of the heading."""
    known = [row["structure_ceiling"][task] for row in rows if task in (row.get("structure_ceiling") or {})]
    return f" (scan itself {known[0]:.3f})" if known and measure == "structure_dice_truth" else ""


def notes(rows: Sequence[Row]) -> list[str]:
    """Return what a reader must know of the columns that are there."""
    kept = {key if isinstance(key, str) else key[0] for _, key, _ in columns(rows)}
    said = []
    if kept & {"token_probe", "pooled_probe", "sex_probe", "site_probe", "age_r2"}:
        scans = [n["mean"] for row in rows if (n := row.get("probed_scans"))]
        few = f", on {scans[0]:.0f} test scans of all contrasts per seed" if scans else ""
        said.append(
            "Read from: by a linear probe, fitted on training subjects and tested on others, of single latent vectors "
            f"or of a scan's mean vector{few}; balanced accuracy beside its chance, R² for age (0: no better than the "
            "mean). Sex, site and age are probed within each contrast and averaged over contrasts. Over few subjects "
            "these numbers are coarse; they have no interval."
        )
    if "structure_dice" in kept:
        said.append(
            "Structure Dice: overlap of a segmenter's labels on the reconstruction and on the scan, mean over "
            "structures; with label map: of its labels on the reconstruction and the true ones, where the scan itself "
            "reaches what the heading says."
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


def markdown(rows: Sequence[Row]) -> str:
    """Return the table, under it the steps, and what a reader must know of its columns."""
    kept = columns(rows)
    lines = ["| " + " | ".join(heading for heading, _, _ in kept) + " |", "|" + "---|" * len(kept)]
    lines += ["| " + " | ".join(cell_text(row, key, digits) for _, key, digits in kept) + " |" for row in rows]
    steps = "\n".join(f"- {line}" for line in step_lines(rows))
    return "\n\n".join(part for part in ("\n".join(lines), steps, *notes(rows)) if part)


def step_lines(rows: Sequence[Row]) -> list[str]:
    """Return what each paired step is; one whose interval holds zero is not claimed."""
    lines = []
    for row in rows:
        said = []
        for task, entry in {**(row.get("psnr_db") or {}), **(row.get("translation_psnr_db") or {})}.items():
            step = entry.get("step")
            if step and step["mean"] is not None and step["ci95"]:
                low, high = step["ci95"]
                verdict = "" if step["real"] else "; its interval holds 0"
                said.append(f"{task.replace('->', ' → ')} {step['mean']:+.2f} dB ({low:+.2f} to {high:+.2f}{verdict})")
        if said:
            lines.append(f"{row['name']} against {row['against']}: {', '.join(said)}")
    return lines


def page(about: str, budget: str, seeds: int, rows: Sequence[Row], folders: Mapping[str, Path]) -> str:
    """Return one self-contained page.

    Args:
        about: A sentence on what is compared.
        budget: Of each training, in words.
        seeds: How many.
        rows: The table, as :func:`neurotome.apply.bench.table` makes it.
        folders: Of each run, an evaluated cell whose pictures are shown.
    """
    kept = columns(rows)
    content = {
        "about": about,
        "budget": budget,
        "seeds": seeds,
        "head": [heading for heading, _, _ in kept],
        "rows": [[cell_text(row, key, digits) for _, key, digits in kept] for row in rows],
        "steps": step_lines(rows),
        "notes": notes(rows),
        "charts": rate_charts(rows),
        "pictures": [(name, _figures(folder)) for name, folder in folders.items()],
        "version": neurotome.__version__,
    }
    return template("bench.html.j2").render(content).encode("utf-8", "replace").decode("utf-8")


def rate_charts(rows: Sequence[Row]) -> list[Chart]:
    """Return quality over bits per voxel, one chart per contrast."""
    charts = []
    for task in dict.fromkeys(task for row in rows for task in row.get("psnr_db") or {}):
        dots = [
            RateDot(row["name"], bits["mean"], entry["mean"], *(entry["ci95"] or (None, None)))
            for row in rows
            if (bits := row.get("bits_per_voxel")) and (entry := (row.get("psnr_db") or {}).get(task)) and entry["mean"]
        ]
        if dots:
            charts.append(rate_chart(f"PSNR of {task} in the brain", dots))
    return charts


def _figures(folder: Path) -> list[Figure]:
    """Return the first subject's reconstructions of an evaluated cell."""
    file = folder / "panels.safetensors"
    panels = [p for p in read_panels(file)[0] if p.source == p.target] if file.exists() else []
    return [draw(panel, 0.5) for panel in panels if panel.subject == panels[0].subject]
