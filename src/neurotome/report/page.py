"""One HTML file about one run: it opens offline, runs no code, and the same run gives the same bytes.

Everything from the run folder is escaped by the template; the only markup that is not is made in
:mod:`neurotome.report.figures`, which escapes its own words. The page forbids itself scripts, fonts, frames and the
network (content security policy), and names its one style sheet by hash.
"""

import base64
import functools
import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from neurotome.files.atomic import write_atomically
from neurotome.report import audit, headline, tables
from neurotome.report.figures import Chart, dot_chart, gauge, line_chart, usage_chart
from neurotome.report.methods import methods_text
from neurotome.report.mosaics import Figure, Spacing, draw
from neurotome.report.panels import Panel, difference_range
from neurotome.report.run import BEGUN, Run, Series, flat, lookup, number, read_run

PAGE_NAME = "report.html"
# parts of data.json that have tables of their own
APART = frozenset({"splits", "excluded", "fingerprint"})
DONE = frozenset({"finished", "done", "complete", "completed"})
# Two scans of 1 mm take about 2 MB; mail and code hosts show files up to a few MB.
IMAGE_BYTES = 3_000_000
RANKS = ("median", "worst")
# what is logged of a validation, in words
MEASURES = {
    "psnr": "PSNR (dB)",
    "psnr_swapped": "PSNR of translations (dB)",
    "ssim": "SSIM",
    "codebook/utilisation": "share of codes in use",
    "codebook/perplexity": "perplexity of the codes",
}
RESULTS_NOTE = (
    "Means inside the brain mask over the {} subjects, with bootstrap 95 % intervals. Fine detail kept is the "
    "energy of high spatial frequencies in the output over that in the truth: below 1 is blur."
)
LIMITS = (
    "This software is for research, not for clinical use: nothing on this page may guide the care of a person.",
    "Reconstructed and translated images are synthetic: a structure in them may be missing, moved or invented.",
    "Intervals are over the subjects of one run; they do not cover another seed, scanner or population.",
)
PHANTOM_LIMIT = (
    "The scans are synthetic phantoms: warps of one template with simulated contrast. In them one contrast is nearly a "
    "function of the other, so numbers on real scans will be lower, translation most of all."
)


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run folder, finished, unfinished or failed, and return its path.

    Args:
        run_dir: A run folder or the output folder of an evaluation; only files in it are read.

    Raises:
        UsageError: ``run_dir`` is not a folder.
        OutputError: The page cannot be written; an older page is left as it was.
    """
    html = render(read_run(run_dir))
    path = run_dir / PAGE_NAME
    write_atomically(path, [html.encode()])
    return path


def render(run: Run) -> str:
    """Return the page as text."""
    content: dict[str, Any] = {}
    for part in (_what_was_run, _training, _evaluation, _pictures, _separation):
        content |= part(run)
    content["sections"] = _sections(content)
    text = template().render(content)
    # A lone surrogate (a broken file name) has no UTF-8 form; it is shown as a question mark.
    return text.encode("utf-8", "replace").decode("utf-8")


@functools.cache
def template(name: str = "page.html.j2") -> Template:
    """Return a template of this folder with the style sheet and its hash filled in."""
    environment = Environment(
        loader=PackageLoader("neurotome.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = resources.files("neurotome.report").joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    constants = {"style": Markup(style), "style_hash": digest}  # noqa: S704 - our own file
    return environment.get_template(name, globals=constants)


def _what_was_run(run: Run) -> dict[str, Any]:
    everything: tuple[Mapping[str, Any], ...] = (run.environment, run.config, run.status)

    def find(*names: str) -> str:
        """Return the first leaf whose last name is one of ``names``."""
        for name in names:
            for tree in everything:
                for key, value in flat(tree):
                    if key.split(".")[-1] == name and value not in (None, "", []):
                        return tables.shown(value)
        return ""

    name = find("config_name") or _from_command(run.environment.get("command"))
    step, of = number(run.status.get("step")), number(run.status.get("max_steps"))
    seconds = number(run.status.get("seconds"))
    peak = number(run.status.get("peak_rss_mb"))
    facts = tables.fact_table(
        [
            ("Configuration", name),
            ("Method", find("class_path")),
            ("Seed", find("seed", "seed_everything")),
            ("Steps", "" if step is None else f"{step:.0f}" + ("" if of is None else f" of {of:.0f}")),
            ("Training time", tables.duration(seconds)),
            ("Peak memory", "" if peak is None else f"{peak:.0f} MB"),
            ("Machine", find("cpu", "cpu_model", "processor", "machine", "platform")),
            ("Device", find("device", "accelerator")),
            ("Threads", find("threads", "num_threads", "torch_threads")),
            ("Precision", find("precision")),
            ("neurotome", find("neurotome", "neurotome_version")),
            ("Python", find("python", "python_version")),
            ("torch", find("torch", "torch_version")),
            ("Revision", find("revision", "git_revision", "commit")),
        ]
    )
    state = str(run.status.get("state", ""))
    declared = run.data.get("synthetic")
    words = f"{run.data} {lookup(run.metrics, 'protocol')} {run.config_text} {run.environment}".lower()
    synthetic = declared if isinstance(declared, bool) else "phantom" in words or name == "neurotome demo"
    return {
        "title": name or find("class_path") or "Run",
        "facts": facts,
        "state": state,
        "state_tone": "poor" if run.failed else "good" if state in DONE else "fair",
        "failed": run.failed,
        "message": str(run.status.get("message") or ""),
        "progress": "" if step is None or of is None or step >= of else f"{step:.0f} of {of:.0f} steps",
        "config_text": run.config_text,
        "environment": tables.tree_table(run.environment),
        "notes": run.notes,
        "cohort": tables.cohort_table(run.data),
        "cohort_facts": tables.tree_table({k: v for k, v in run.data.items() if k not in APART}),
        "fingerprint": tables.fingerprint_table(run.data.get("fingerprint")),
        "checked": tables.finding_table(run.check),
        "excluded": tables.tree_table(run.data.get("excluded")),
        "limits": (PHANTOM_LIMIT, *LIMITS) if synthetic else LIMITS,
        "citations": _citations(run, find("neurotome", "neurotome_version"), synthetic),
    }


def _from_command(command: Any) -> str:
    """Return the config that a recorded command line trains: ``train neuroquant STORE`` is ``neuroquant``."""
    words = [str(word) for word in command] if isinstance(command, list) else []
    if "demo" in words:
        return "neurotome demo"
    after = words[words.index("train") + 1 :] if "train" in words else []
    return Path(after[0]).stem if after and not after[0].startswith("-") else ""


def _training(run: Run) -> dict[str, Any]:
    """Group the series: the loss first, with what began when; validation by measure, a line per contrast; the rest."""
    series = {name: one for name, one in run.series.items() if not name.startswith(BEGUN)}
    marks = {n.removeprefix(BEGUN): float(one.step[0]) for n, one in run.series.items() if n.startswith(BEGUN)}
    charts: list[Chart] = []
    if "train/loss" in series:
        charts.append(line_chart("Training loss", [series.pop("train/loss")], marks=marks))
    groups: dict[str, list[Series]] = {}
    for name in sorted(k for k in series if k.startswith("val/")):
        groups.setdefault("/".join(name.split("/")[1:-1]) or name.split("/")[-1], []).append(series.pop(name))
    charts += [_group(measure, lines) for measure, lines in groups.items()]
    rest = sorted(k for k in series if k != "seconds")
    details = [line_chart(name, [series[name]]) for name in rest if series[name].step.size > 1]
    return {"charts": charts, "detail_charts": details}


def _group(measure: str, lines: list[Series]) -> Chart:
    names = [line.name.split("/")[-1] for line in lines]
    return line_chart(f"Validation: {MEASURES.get(measure, measure)}", lines[:6], names[:6])


def _evaluation(run: Run) -> dict[str, Any]:
    metrics = run.metrics
    reconstruction, translation = tables.tasks(metrics, "reconstruction"), tables.tasks(metrics, "translation")
    dots = [(f"{name} reconstruction", tables.result_dots(entry)) for name, entry in reconstruction.items()]
    for name, entry in translation.items():
        own = reconstruction.get(name.split("->")[-1])
        dots.append((f"{tables.arrow(name)} translation", tables.result_dots(entry, own)))
    counted = [
        (name, found) for name, entry in tables.codebooks(metrics).items() if (found := tables.code_counts(entry))
    ]
    costs = {"Bits": metrics.get("bits"), "Speed": metrics.get("speed"), "Memory": metrics.get("memory")}
    costs["Time by phase"] = {k: tables.duration(number(v)) for k, v in flat(run.timing)}
    return {
        "evaluated": bool(reconstruction or translation),
        "lead": headline.lead(metrics),
        "results_note": RESULTS_NOTE.format(headline.split_name(metrics)),
        "warnings": [*_of_another_model(run), *headline.warnings(metrics)],
        "stats": headline.headline(metrics),
        "reconstruction_table": tables.result_table(reconstruction, "Contrast"),
        "translation_table": tables.result_table(translation, "From → to"),
        "structure_table": tables.structure_table(metrics),
        "dot_charts": [dot_chart(title, rows, "PSNR in the brain, dB") for title, rows in dots if rows],
        "usage": [usage_chart(name, found) for name, found in counted],
        "codebook_table": tables.codebook_table(metrics),
        "methods": methods_text(run),
        "translation_reason": not_applicable(metrics, "translation"),
        "codebook_reason": not_applicable(metrics, "codebook"),
        "cost": [(name, table) for name, tree in costs.items() if (table := tables.tree_table(tree))],
        "protocol": tables.tree_table(lookup(metrics, "protocol")),
    }


def _of_another_model(run: Run) -> list[str]:
    """Return a warning where the evaluation is not of what the run has become."""
    evaluated, step = lookup(run.metrics, "protocol", "model_sha256"), run.status.get("step")
    again = "Evaluate again: neurotome evaluate RUN STORE --out RUN --overwrite."
    if run.model and isinstance(evaluated, str) and evaluated != run.model:
        return [
            f"The evaluation and its pictures are of another model ({evaluated[:12]}) than this run's, "
            f"{run.model[:12]}: they do not say how good this run is. {again}"
        ]
    exported = run.status.get("exported", step)
    if run.metrics and run.model and exported != step:
        return [
            f"The evaluation and its pictures are of the model of step {exported}; the run is at step {step}. Train to "
            f"its end, which replaces the model. {again}"
        ]
    return []


def not_applicable(metrics: Mapping[str, Any], section: str) -> str | None:
    """Return why a section does not apply to this tokenizer, or None."""
    reason = lookup(metrics, "not_applicable", section)
    return f"{reason}." if isinstance(reason, str) and reason else None


def _pictures(run: Run) -> dict[str, Any]:
    limit, spacing = difference_range(run.panels), _spacing(run)
    left, notes = IMAGE_BYTES, 0
    reconstructions: list[tuple[str, Figure]] = []
    translations: list[tuple[str, Figure]] = []
    for panel in _ordered(run.panels):
        figure = draw(panel, limit, spacing)
        left -= sum(len(cell.address) + len(cell.flicker) for cell in figure.cells)
        if left < 0:
            notes += 1
            continue
        (translations if panel.source != panel.target else reconstructions).append((panel.subject, figure))
    return {
        "limit": f"{limit:g}",
        "reconstructions": reconstructions,
        "translations": translations,
        "shows_ranks": any(panel.rank for panel in run.panels),
        "first_subject": run.panels[0].subject if run.panels else "",
        "panels_left_out": notes,
        "worst": [(panel.subject, draw(panel, limit, spacing)) for panel in run.worst] if left > 0 else [],
    }


def _ordered(panels: list[Panel]) -> list[Panel]:
    """Return the panels to show, task by task, the median before the worst; without ranks all of them as they are."""
    ranked = [panel for panel in panels if panel.rank]
    tasks = list(dict.fromkeys((panel.source, panel.target) for panel in ranked))
    return sorted(ranked, key=lambda p: (tasks.index((p.source, p.target)), RANKS.index(p.rank))) or panels


def _spacing(run: Run) -> Spacing | None:
    """Return the voxel edges in mm that the evaluation or the data state, or None."""
    found = lookup(run.metrics, "protocol", "spacing_mm") or run.data.get("spacing_mm")
    edges = [number(v) for v in (found if isinstance(found, list) else [found] * 3)]
    known = [v for v in edges if v is not None and v > 0]
    return (known[0], known[1], known[2]) if len(edges) == len(known) == 3 else None


def _separation(run: Run) -> dict[str, Any]:
    names = {name for pair in tables.tasks(run.metrics, "translation") for name in pair.split("->")}
    measured = audit.read_audit(run.metrics, len(names))
    # files of format 1 call it audit
    reason = not_applicable(run.metrics, "split") or not_applicable(run.metrics, "audit")
    rows = audit.statements(measured, with_goals=reason is None)
    words, paragraph = audit.verdict(measured)
    level = audit.level(measured)
    if reason is not None:
        words, paragraph, level = "Not applicable", reason, "unknown"
    drawn_rows = [(row, gauge(row.value, *row.scale, row.goal, row.reference)) for row in rows]
    few = audit.resolution(measured)
    tone = {"hidden": "good", "partial": "fair", "absent": "poor", "collapsed": "poor", "unknown": "none"}
    return {
        "verdict": words,
        "verdict_text": paragraph,
        "verdict_tone": tone[level],
        "factors": tables.factor_table(run.metrics),
        "factor_scans": tables.factor_scans(run.metrics),
        "translation_cost": headline.translation_cost_table(run.metrics),
        "statements": [drawn for drawn in drawn_rows if not (few and drawn[0].pooled)],
        "coarse": [drawn for drawn in drawn_rows if few and drawn[0].pooled],
        "resolution": few,
    }


def _sections(content: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the sections that the page has, for its menu."""
    present = {
        ("headline", "Headline"): True,
        ("run", "What was run"): True,
        ("data", "Data"): content["cohort"] or content["cohort_facts"] or content["fingerprint"] or content["checked"],
        ("training", "Training"): content["charts"] or content["detail_charts"] or content["worst"],
        ("results", "Results and baselines"): True,
        ("reconstruction", "Reconstruction"): content["reconstructions"],
        ("translation", "Translation"): content["translations"],
        ("codebook", "Codebook"): content["usage"] or content["codebook_table"] or content["codebook_reason"],
        ("separation", "How well anatomy and contrast are separated"): True,
        ("cost", "Speed and memory"): content["cost"],
        ("protocol", "Protocol"): content["protocol"],
        ("methods", "Methods text"): content["methods"],
        ("limits", "Limits"): True,
        ("cite", "How to cite"): True,
        ("errors", "Errors and notes"): content["message"] or content["notes"],
    }
    return [name for name, there in present.items() if there]


def _citations(run: Run, version: str, synthetic: bool) -> list[tuple[str, str]]:
    """Return the works behind this run, with their addresses."""
    name = f"neurotome {version}" if version else "neurotome"
    own = "splits 3-D brain MRI into anatomy and contrast; CITATION.cff in its repository holds the current entry."
    works = [(f"The neurotome contributors. {name}: {own}", "")]
    if "neuroquant" in run.config_text.lower():
        text = (
            "Li, Kim, Zhao, Adeli, Pohl. Modality-Aware and Anatomical Vector-Quantized Autoencoding for Multimodal "
            "Brain MRI, 2026."
        )
        works.append((text, "https://arxiv.org/abs/2604.05171"))
    if synthetic:
        text = (
            "Fonov, Evans, Botteron, Almli, McKinstry, Collins. Unbiased average age-appropriate atlases for pediatric "
            "studies. NeuroImage 54, 2011 (the MNI ICBM152 template behind the phantoms)."
        )
        works.append((text, "https://doi.org/10.1016/j.neuroimage.2010.07.033"))
    return works
