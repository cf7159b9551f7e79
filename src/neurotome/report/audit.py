r"""How far anatomy and contrast are separated: sentences made from numbers by fixed thresholds.

    gap         mean |q_1 - q_2|^2 / (2 var q)        0 identical, 1 unrelated, above 1 opposed
    agreement   share of latent cells in which both contrasts of one brain have the same code
    chance      the agreement that the two code histograms give by themselves
    self        agreement of a scan with the same scan under small noise: what noise alone leaves
    lifted      (agreement - chance) / (self - chance)
    probe       balanced accuracy of a newly trained linear classifier of the contrast, chance 1/2

A number that was not measured gives no sentence and no verdict. Plausible translations do not prove a separation: the
decoder may have learned to read each contrast's own codes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from neurotome.report.run import lookup, number

Tone = Literal["good", "fair", "poor", "none"]
Level = Literal["hidden", "partial", "absent", "collapsed", "unknown"]

# The goals of the project for its default cohort.
GAP_GOAL, TOKEN_GOAL, ONEHOT_GOAL, HISTOGRAM_GOAL, SELF_SHARE_GOAL = 0.10, 0.55, 0.58, 0.75, 0.5
# Above these the contrast is predicted from a single code or vector so often that no separation is claimed.
GAP_LIMIT, TOKEN_LIMIT = 0.5, 0.65
# Where two code histograms give an agreement of half by chance, a few codes cover most of the brain.
COLLAPSE_CHANCE = 0.5
# A difference from chance smaller than this (or than half of chance) is not larger than that between two seeds.
CHANCE_MARGIN = 0.02
# The site is a property of the scanner, not of the anatomy: read better than this above chance, it is named.
SITE_MARGIN = 0.15
# Fewer subjects than this show nothing about a population.
FEWEST_SUBJECTS = 2
# A probe on fewer scans than this changes in steps that are as large as what it is to show.
FEW_SCANS = 100


POOLED = ("pooled_mean", "pooled_histogram", "style")
PROBES = ("token_vector", "token_onehot", "pooled_mean", "pooled_histogram", "style")


@dataclass(frozen=True)
class Audit:
    """The measures of one split; None where not measured.

    Args:
        gap: Code gap, 0 or more.
        agreement: In [0, 1], with ``chance`` and ``self_agreement`` beside it.
        chance: Agreement of the two code histograms.
        self_agreement: Agreement of a scan with the same scan under noise.
        token_vector: Probe on single quantised vectors, balanced accuracy in [0, 1].
        token_onehot: Probe on single codes.
        pooled_mean: Probe on a scan's mean vector.
        pooled_histogram: Probe on a scan's code histogram.
        style: Probe on the style vector; here a high value is wanted.
        guess: The probes' chance level, one over the number of contrasts.
        samples: Number of test samples behind a probe, by its name.
        subjects: Number of subjects behind the measures.
        site: What is read of the site from a scan's mean anatomy vector: contrast, balanced accuracy, chance.
    """

    gap: float | None = None
    agreement: float | None = None
    chance: float | None = None
    self_agreement: float | None = None
    token_vector: float | None = None
    token_onehot: float | None = None
    pooled_mean: float | None = None
    pooled_histogram: float | None = None
    style: float | None = None
    guess: float = 0.5
    samples: Mapping[str, int] = field(default_factory=dict)
    subjects: int | None = None
    site: tuple[tuple[str, float, float], ...] = ()

    @property
    def measured(self) -> bool:
        """Whether the measures that a verdict needs are all there."""
        near = (self.gap, self.agreement, self.chance, self.self_agreement)
        probes = (self.token_vector, self.token_onehot, self.pooled_mean, self.pooled_histogram)
        return all(value is not None for value in near + probes)


@dataclass(frozen=True)
class AuditStatement:
    """One row of the audit.

    Args:
        measure: What was measured, in words.
        value: The number.
        text: The number as printed.
        sentence: What it means.
        tone: How it compares with its goal.
        goal: The goal, or None.
        goal_text: The goal in words, or "".
        reference: Chance level or the like to draw beside the value, or None.
        scale: Ends of the axis it is drawn on.
        samples: How many test samples were used, in words, or "".
        pooled: Whether it is a probe of whole scans.
    """

    measure: str
    value: float
    text: str
    sentence: str
    tone: Tone
    goal: float | None
    goal_text: str
    reference: float | None
    scale: tuple[float, float]
    samples: str = ""
    pooled: bool = False

    @property
    def outcome(self) -> str:
        """Whether the goal is reached, in a word; "" without a goal."""
        return "" if self.goal is None else "reached" if self.tone == "good" else "missed"


def read_audit(metrics: Mapping[str, Any], modalities: int = 2) -> Audit:
    """Return the audit in ``metrics.json``; what is missing is None."""
    tree = lookup(metrics, "audit")

    def first(*paths: tuple[str, ...]) -> float | None:
        return next((v for path in paths if (v := number(lookup(tree, *path))) is not None), None)

    found = {k: lookup(tree, "probes", k) for k in PROBES}
    values = {k: number(v) for k, v in found.items()}
    chance = first(
        ("probes", "chance"),
    )
    return Audit(
        gap=first(("code_gap",), ("gap",)),
        agreement=first(("agreement", "agreement"), ("agreement",)),
        chance=first(("chance",), ("agreement", "chance")),
        self_agreement=first(("self_agreement",), ("agreement", "self_agreement")),
        guess=1.0 / max(modalities, 2) if chance is None else chance,
        subjects=_subjects(metrics),
        site=_site(metrics),
        samples={k: int(n) for k in PROBES if (n := number(lookup(tree, "probes", "samples", k, "test"))) is not None},
        **values,
    )


def _subjects(metrics: Mapping[str, Any]) -> int | None:
    counted = number(lookup(metrics, "audit", "code_gap", "n"))
    counted = number(lookup(metrics, "protocol", "subjects")) if counted is None else counted
    return None if counted is None else int(counted)


def _site(metrics: Mapping[str, Any]) -> tuple[tuple[str, float, float], ...]:
    """Return what is read of the site, where it is more than chance by the margin that counts."""
    tree = lookup(metrics, "factors", "site")
    found = []
    for contrast, values in tree.items() if isinstance(tree, Mapping) else ():
        read, chance = number(lookup(values, "anatomy")), number(lookup(values, "chance"))
        if read is not None and chance is not None and read - chance > SITE_MARGIN:
            found.append((str(contrast), read, chance))
    return tuple(found)


def statements(audit: Audit, *, with_goals: bool = True) -> list[AuditStatement]:
    """Return one row per measure that was taken.

    Args:
        audit: The measures.
        with_goals: False for a tokenizer without a style: its codes need not hide the contrast, so its numbers have no
            goals.
    """
    rows = [_gap(audit), _agreement(audit)]
    hidden = (
        ("token_vector", "Probe: one code vector", TOKEN_GOAL, "A single code vector"),
        ("token_onehot", "Probe: one code index", ONEHOT_GOAL, "A single code index"),
        ("pooled_mean", "Probe: mean vector of a scan", None, "The mean code vector of a whole scan"),
        ("pooled_histogram", "Probe: code histogram of a scan", HISTOGRAM_GOAL, "The code histogram of a whole scan"),
    )
    for key, name, goal, subject in hidden:
        row = _probe(name, getattr(audit, key), goal, subject, audit.guess)
        rows.append(row and replace(row, samples=_samples(audit, key), pooled=key in POOLED))
    style = _style(audit)
    rows.append(style and replace(style, samples=_samples(audit, "style"), pooled=True))
    found = [row for row in rows if row is not None]
    return found if with_goals else [replace(row, tone="none", goal=None, goal_text="") for row in found]


def _samples(audit: Audit, key: str) -> str:
    n = audit.samples.get(key)
    return "" if n is None else f"{n} test {'codes' if key.startswith('token') else 'scans'}"


def level(audit: Audit) -> Level:
    """Return how well anatomy and contrast are separated.

    It is ``unknown`` unless every measure that a verdict needs was taken. One bad value suffices for ``absent``;
    ``hidden`` needs every measure.
    """
    if audit.subjects is not None and audit.subjects < FEWEST_SUBJECTS:
        return "unknown"
    if audit.chance is not None and audit.chance >= COLLAPSE_CHANCE:
        return "collapsed"
    above_guess = 0.5 - audit.guess
    if audit.gap is not None and audit.gap > GAP_LIMIT:
        return "absent"
    if any(v is not None and v + above_guess > TOKEN_LIMIT for v in (audit.token_vector, audit.token_onehot)):
        return "absent"
    if audit.agreement is not None and audit.chance is not None and _near_chance(audit.agreement, audit.chance):
        return "absent"
    if not audit.measured:
        return "unknown"
    return "partial" if _missed(audit) or audit.site else "hidden"


def verdict(audit: Audit) -> tuple[str, str]:
    """Return a headline of a few words and one paragraph."""
    found = level(audit)
    if audit.subjects is not None and audit.subjects < FEWEST_SUBJECTS:
        return "No verdict: too few subjects", (
            f"A verdict needs at least {FEWEST_SUBJECTS} subjects, measured was {audit.subjects}: what holds for one "
            "brain need not hold for the next."
        )
    if found == "unknown":
        return "Not fully measured", (
            "The measures that a verdict needs were not all taken in this run, so none is given. Training with swapped "
            "codes and plausible translations do not show that anatomy and contrast are separated."
        )
    if found == "collapsed":
        return "No verdict: few codes in use", (
            f"The two contrasts would have the same code in {_percent(audit.chance)} of latent cells by chance alone, "
            "because a few codes cover most of the brain. Agreement and probes say little about such codes, and no "
            "separation is claimed."
        )
    if found == "absent":
        return "Anatomy and contrast are not separated", (
            f"{_reasons(audit)} Translations may still be plausible, because the decoder can learn to read "
            "each contrast's own codes; that is not a separation of anatomy from contrast. "
            f"{_site_words(audit)}".strip()
        )
    if found == "partial":
        missed = _shortfall(audit)
        but = f", but not every measure reaches its goal. {missed}" if missed else "."
        return "Anatomy and contrast are partly separated", (
            f"Single codes hide most of the contrast{but} {_site_words(audit)}".strip()
        )
    return "Anatomy and contrast are separated by every measure taken here", (
        "Every measure with a goal reaches it: the anatomy codes of the two contrasts are close, and these probes "
        "barely distinguish them. A stronger probe, or scans from elsewhere, may still find a difference."
    )


def _site_words(audit: Audit) -> str:
    """Return what the anatomy vector still reads of the scanner."""
    if not audit.site:
        return ""
    values = " and ".join(f"{read:.2f} ({contrast})" for contrast, read, _ in audit.site)
    return (
        f"The mean anatomy vector of a scan still reveals its site: a linear probe reads it with accuracy {values}, "
        f"chance {audit.site[0][2]:.2f}."
    )


def resolution(audit: Audit) -> str:
    """Return what probes of whole scans can resolve, where they are tested on few; else ""."""
    known = [n for key, n in audit.samples.items() if key in POOLED]
    if not known or min(known) >= FEW_SCANS:
        return ""
    n, chance = min(known), audit.guess
    by_luck = min(chance + 1.96 * math.sqrt(chance * (1 - chance) / n), 1.0)
    return (
        f"Probes of whole scans, tested on {n}: one scan more or less changes an accuracy by {1 / n:.2f}, and at "
        f"chance ({chance:.2f}) luck alone gives up to {by_luck:.2f}"
    )


def _near_chance(agreement: float, chance: float) -> bool:
    return agreement - chance <= max(CHANCE_MARGIN, 0.5 * chance)


def _reasons(audit: Audit) -> str:
    reasons = []
    if audit.gap is not None and audit.gap > GAP_LIMIT:
        reasons.append(f"the code gap is {audit.gap:.2f} (0 is identical, 1 is unrelated)")
    if audit.agreement is not None and audit.chance is not None and _near_chance(audit.agreement, audit.chance):
        shared, chance = _percent(audit.agreement), _percent(audit.chance)
        reasons.append(
            f"two contrasts of one brain have the same code in {shared} of latent cells, where chance gives {chance}"
        )
    for name, value in (("code vector", audit.token_vector), ("code index", audit.token_onehot)):
        if value is not None and value + 0.5 - audit.guess > TOKEN_LIMIT:
            rate = f"{value:.2f} (chance {audit.guess:.2f})"
            reasons.append(f"a linear probe predicts the contrast from one {name} with accuracy {rate}")
    text = "; ".join(reasons)
    return f"{text[:1].upper()}{text[1:]}."


def _shortfall(audit: Audit) -> str:
    return " ".join(row.sentence for row in _missed(audit))


def _missed(audit: Audit) -> list[AuditStatement]:
    """Return the rows that forbid a claim: a goal not reached, or no goal and a poor value all the same."""
    return [row for row in statements(audit) if row.tone == "poor" or (row.goal is not None and row.tone != "good")]


def _gap(audit: Audit) -> AuditStatement | None:
    gap = audit.gap
    tone: Tone
    if gap is None:
        return None
    if round(gap, 2) <= GAP_GOAL:  # as it is printed: a tie is no miss
        sentence, tone = "The two contrasts of one brain get nearly the same code vectors.", "good"
    elif gap <= GAP_LIMIT:
        sentence, tone = "The two contrasts' code vectors are related, but not the same.", "fair"
    elif gap <= 1.1:
        sentence, tone = "The two contrasts' code vectors are about as far apart as unrelated ones.", "poor"
    else:
        sentence, tone = "The two contrasts' code vectors are opposed: further apart than unrelated ones.", "poor"
    if GAP_LIMIT < gap < 0.9:
        sentence = "The two contrasts' code vectors are more different than alike."
    goal = f"at most {GAP_GOAL:.2f}"
    return AuditStatement("Code gap", gap, f"{gap:.2f}", sentence, tone, GAP_GOAL, goal, 1.0, (0.0, max(2.0, gap)))


def _agreement(audit: Audit) -> AuditStatement | None:
    """Compare agreement with chance and self-agreement: collapsed codes agree everywhere, so it means little alone."""
    agreement, chance, own = audit.agreement, audit.chance, audit.self_agreement
    if agreement is None:
        return None
    text = _percent(agreement)
    shared = f"The two contrasts of one brain have the same code in {text} of latent cells"
    if chance is None or own is None:
        beside = "chance" if chance is None else "self-agreement"
        sentence = f"{shared}. Without {beside} beside it this number cannot be interpreted."
        return AuditStatement("Code agreement", agreement, text, sentence, "none", None, "", chance, (0.0, 1.0))
    measured = (
        f"{shared}; chance gives {_percent(chance)}, a scan and the same scan under noise agree in {_percent(own)}."
    )
    goal = SELF_SHARE_GOAL * own
    tone: Tone
    if chance >= COLLAPSE_CHANCE:
        sentence, tone = f"{measured} Chance is so high that agreement says little.", "poor"
    elif _near_chance(agreement, chance):
        sentence, tone = f"{measured} That is no better than chance: the codes are not shared.", "poor"
    elif round(100 * agreement) < round(100 * goal):
        sentence, tone = f"{measured} That is more than chance and less than half of self-agreement.", "fair"
    else:
        sentence, tone = f"{measured} That is at least half of self-agreement.", "good"
    target = f"at least {_percent(goal)}, half of self-agreement"
    return AuditStatement("Code agreement", agreement, text, sentence, tone, goal, target, chance, (0.0, 1.0))


def _probe(name: str, value: float | None, goal: float | None, subject: str, guess: float) -> AuditStatement | None:
    if value is None:
        return None
    shift = guess - 0.5  # the thresholds are stated for two contrasts
    reach = (goal if goal is not None else TOKEN_GOAL) + shift
    tone: Tone
    if value < guess - 0.1:
        sentence = f"{subject} gives an accuracy below chance, which does not show that the contrast is hidden."
        tone = "fair"
    elif round(value, 2) <= round(reach, 2):
        words = "barely reveals" if value > guess + 0.02 else "does not reveal"
        sentence, tone = f"{subject} {words} the contrast.", "good"
    elif value <= TOKEN_LIMIT + shift:
        sentence, tone = f"{subject} reveals the contrast in part.", "fair"
    elif value <= 0.9:
        sentence, tone = f"{subject} often reveals the contrast.", "poor"
    else:
        sentence, tone = f"{subject} reveals the contrast.", "poor"
    if 0.60 + shift < value and round(value, 2) <= round(reach, 2):
        sentence = f"{subject} reveals the contrast in part, within the goal."
    goal_text = "" if goal is None else f"at most {reach:.2f}"
    return AuditStatement(
        name, value, f"{value:.2f}", sentence, tone, None if goal is None else reach, goal_text, guess, (0.0, 1.0)
    )


def _style(audit: Audit) -> AuditStatement | None:
    value = audit.style
    if value is None:
        return None
    if value >= 0.9:
        sentence = "The style vector determines the contrast, as it should."
    elif value >= 0.65:
        sentence = "The style vector often reveals the contrast; it should always do so."
    else:
        sentence = "The style vector hardly reveals the contrast, which it is meant to hold."
    tone: Tone = "good" if value >= 0.9 else "fair" if value >= 0.65 else "poor"
    return AuditStatement(
        "Probe: style vector", value, f"{value:.2f}", sentence, tone, None, "", audit.guess, (0.0, 1.0)
    )


def _percent(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}\u00a0%" if value < 0.0995 else f"{100 * value:.0f}\u00a0%"
