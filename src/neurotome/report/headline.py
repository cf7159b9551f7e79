"""The most important numbers, in words and figures, each beside its baseline.

A sentence states only what its numbers support; a model that is below its baseline is reported as below it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neurotome.report.audit import Tone
from neurotome.report.run import lookup, number
from neurotome.report.tables import NBSP, Table, TableCell, arrow, cells, codebook, count, interval, tasks

# Goals of the project for its default cohort, dB above the baseline named beside them.
OVER_TRILINEAR_DB = 5.0
OVER_LOOKUP_DB = {"T1w->T2w": 1.0, "T2w->T1w": 2.5}
UNDER_OWN_DB = 2.0
UTILISATION_GOAL = 0.90


@dataclass(frozen=True)
class Stat:
    """One figure of the headline.

    Args:
        label: What it is.
        value: The number as printed.
        unit: Its unit.
        detail: Interval and number of subjects.
        beside: What it is compared with, in words.
        goal: The goal for the default cohort, in words, or "".
        tone: How it compares with its goal.
    """

    label: str
    value: str
    unit: str
    detail: str
    beside: str
    goal: str = ""
    tone: Tone = "none"


def _detail(value: Any, decimals: int) -> str:
    n = count(value)
    subjects = "" if n is None else f"{n} subject" + ("s" if n != 1 else "")
    between = interval(value, decimals)
    return " · ".join(part for part in (f"95 % interval {between}" if between else "", subjects) if part)


def headline(metrics: Mapping[str, Any]) -> list[Stat]:
    """Return the most important numbers, each with interval, n and baseline."""
    reconstruction, translation = tasks(metrics, "reconstruction"), tasks(metrics, "translation")
    stats = []
    for name, entry in reconstruction.items():
        words = "trilinear at the same latent grid"
        stats.append(_against(f"{name} reconstruction", entry, "trilinear", words, OVER_TRILINEAR_DB))
    for name, entry in translation.items():
        words = "a voxel lookup at equal rate"
        stats.append(_against(arrow(name), entry, "lookup_equal_rate", words, OVER_LOOKUP_DB.get(name)))
    return [*(s for s in stats if s is not None), *_cost(metrics)]


def _against(label: str, entry: Mapping[str, Any], baseline: str, words: str, goal: float | None) -> Stat | None:
    """Return a PSNR beside a baseline's; the gain is the mean within subjects, where that was measured."""
    value, paired = entry.get("psnr_db"), lookup(entry, "paired", f"over_{baseline}_db")
    mean, other = number(value), number(lookup(entry, "baselines", baseline, "psnr_db"))
    if mean is None:
        return None
    tone: Tone = "none"
    beside = wish = ""
    if other is not None:
        within = number(paired)
        gain = mean - other if within is None else within
        ends = interval(paired, 1)
        beside = f"{_gain(gain)} {words} ({other:.1f}{NBSP}dB{f'; gain {ends}' if ends else ''})"
        if goal is not None:
            reached = round(gain, 1) >= goal  # as it is printed: a tie is no miss
            tone = "good" if reached else "fair" if gain > 0 else "poor"
            wish = f"goal {goal:g}{NBSP}dB above: {said(reached)}"
    return Stat(label, f"{mean:.1f}", "dB", _detail(value, 1), beside, wish, tone)


def said(reached: bool) -> str:
    """Return whether a goal is reached, in a word."""
    return "reached" if reached else "missed"


def _gain(gain: float) -> str:
    return f"{abs(gain):.1f}{NBSP}dB {'above' if gain >= 0 else 'below'}"


def split_name(metrics: Mapping[str, Any]) -> str:
    """Return which subjects the numbers are about, as an adjective."""
    split = lookup(metrics, "protocol", "split")
    return {"val": "validation", "train": "training"}.get(str(split), "test")


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """Return warnings that precede every number."""
    if lookup(metrics, "protocol", "trained_on_evaluated") is True or split_name(metrics) == "training":
        return ["The model was trained on these subjects. The numbers do not show how well it works on new ones."]
    return []


def lead(metrics: Mapping[str, Any]) -> list[str]:
    """Return the results in one or two sentences that state only what the numbers support."""
    sentences = []
    entries = {k: v for k, v in tasks(metrics, "reconstruction").items() if number(v.get("psnr_db")) is not None}
    if entries:
        levels = [f"{number(entry['psnr_db']):.1f}{NBSP}dB ({name})" for name, entry in entries.items()]
        n = max((count(entry["psnr_db"]) or 0) for entry in entries.values())
        rate = rate_words(metrics, "own") or "its codes"
        over = f", mean over {n} {split_name(metrics)} subject{'s' if n != 1 else ''}" if n else ""
        sentences.append(f"A scan is reconstructed from {rate} with a PSNR of {_listed(levels)} in the brain{over}.")
    for name, entry in tasks(metrics, "translation").items():
        source, _, target = name.partition("->")
        mean = number(entry.get("psnr_db"))
        if mean is not None and target:
            sentences.append(f"{target} made from {source} reaches {mean:.1f}{NBSP}dB{_beside_curves(entry, source)}.")
    return [" ".join(sentences)] if sentences else []


def _beside_curves(entry: Mapping[str, Any], source: str) -> str:
    """Return how a translation compares with what needs no network: a curve of the source's intensity."""
    words = {
        "lookup_full_rate": f"a voxel lookup of the whole {source} scan",
        "monotone_map": "a monotone map of it",
        "monotone_ceiling": "the best monotone map of each scan",
    }
    parts = []
    for name, what in words.items():
        paired = number(lookup(entry, "paired", f"over_{name}_db"))
        mean, other = number(entry.get("psnr_db")), number(lookup(entry, "baselines", name, "psnr_db"))
        if mean is not None and other is not None:
            parts.append(f"{_gain(mean - other if paired is None else paired)} {what}")
    return f", {_listed(parts)}" if parts else ""


def rate_words(metrics: Mapping[str, Any], kind: str) -> str:
    """Return the bits of ``own`` or ``translated`` images per brain voxel and per voxel of the grid, or ""."""
    brain, grid = (number(lookup(metrics, "bits", f"{kind}_per_{what}")) for what in ("brain_voxel", "voxel"))
    if grid is None:
        return ""
    return (
        f"{grid:.2f} bits per voxel" if brain is None else f"{brain:.2f} bits per brain voxel ({grid:.2f} of the grid)"
    )


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def translation_cost_table(metrics: Mapping[str, Any]) -> Table | None:
    """Return how much PSNR is lost by decoding another contrast's codes, with the bits per voxel of both."""
    own_bits, far_bits = rate_words(metrics, "own"), rate_words(metrics, "translated")
    reconstruction = tasks(metrics, "reconstruction")
    rows = []
    for name, entry in tasks(metrics, "translation").items():
        target = name.split("->")[-1]
        own, far = number(lookup(reconstruction, target, "psnr_db")), number(entry.get("psnr_db"))
        if own is None or far is None:
            continue
        paired = lookup(entry, "paired", "under_own_reconstruction_db")
        within = number(paired)
        lost = own - far if within is None else within
        reached = round(lost, 1) <= UNDER_OWN_DB
        tone: Tone = "good" if reached else "fair"
        words = f"{abs(lost):.1f}{NBSP}dB {'lower' if lost >= 0 else 'higher'}"
        ends = interval(paired, 1)
        wish = f"goal at most {UNDER_OWN_DB:g}{NBSP}dB lower: {said(reached)}"
        aside = f"95{NBSP}% {ends}; {wish}" if ends else wish
        both = (f"{own:.1f}{NBSP}dB", own_bits), (f"{far:.1f}{NBSP}dB", far_bits)
        levels = [TableCell(text, bits) for text, bits in both]
        rows.append((TableCell(arrow(name)), *levels, TableCell(words, aside, tone)))
    head = cells("From → to", "Target from its own codes", "Target from the other's codes", "Cost")
    return Table(head, tuple(rows)) if rows else None


def _cost(metrics: Mapping[str, Any]) -> list[Stat]:
    stats = []
    own, brain = (number(lookup(metrics, "bits", k)) for k in ("own_per_voxel", "own_per_brain_voxel"))
    if own is not None:
        translated = rate_words(metrics, "translated")
        beside = f"translation: {translated}" if translated else ""
        if brain is None:
            stats.append(Stat("Bits per voxel", f"{own:.2f}", "", "a stored float counts 16 bits", beside))
        else:
            detail = f"{own:.2f} per voxel of the grid · a stored float counts 16 bits"
            stats.append(Stat("Bits per brain voxel", f"{brain:.2f}", "", detail, beside))
    use, perplexity = codebook(metrics)
    if use is not None:
        words = "" if perplexity is None else f"perplexity {perplexity:.0f} inside the brain"
        reached = round(use, 2) >= UTILISATION_GOAL
        tone: Tone = "good" if reached else "fair" if use >= 0.2 else "poor"
        stats.append(
            Stat(
                "Codes in use",
                f"{100 * use:.0f}",
                "%",
                words,
                "",
                f"goal {100 * UTILISATION_GOAL:.0f} %: {said(reached)}",
                tone,
            )
        )
    return stats
