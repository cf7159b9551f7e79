r"""What can be read from the code of a scan about its subject: site, and what a table says, such as sex and age.

    classes   balanced accuracy of a linear probe, beside 1 / number of classes      text, or two different numbers
    numbers   R² of a ridge regression                                                 more than two different numbers

A feature is the mean vector of a scan (of its anatomy, where the tokenizer separates style), or its style. Probes
are fitted on training subjects and tested on others; each contrast alone, so that contrast cannot stand in for a
factor.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from neurotome.evaluation.audit import ScanCode
from neurotome.metrics.disentanglement import factor_probe, linear_probe

Value = float | str
Truth = Mapping[str, Mapping[str, Value]]
SITE = "site"
STREAMS = ("anatomy", "style")
MIN_TRAINING_SCANS = 3  # a ridge regression of fewer says nothing


def truth_digest(truth: Truth | None) -> str | None:
    """Return the SHA-256 of a table of known factors; None without one."""
    if not truth:
        return None
    text = json.dumps({s: dict(row) for s, row in truth.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def factors(
    train: Sequence[ScanCode], test: Sequence[ScanCode], modalities: Sequence[str], truth: Truth, seed: int = 0
) -> dict[str, Any]:
    """Return what the mean vector and the style of a scan tell about the site and about known factors.

    Args:
        train: Scans of training subjects.
        test: Scans of the split under test.
        modalities: Contrasts.
        truth: Known factors by subject, such as ``{"01": {"age": 43.0, "sex": "F"}}``; its column ``site`` counts where
            the scans tell none.
        seed: Of the probes.

    Returns:
        ``{"site": {contrast: {"anatomy", "style", "chance", "n"}}, "age": {contrast: {"anatomy_r2", "style_r2",
        "n"}}}``; what could not be probed is left out, such as text that is another for nearly every subject.
    """
    known_sites = any(s.site for s in (*train, *test))
    names = {name for row in truth.values() for name in row}

    def value(scan: ScanCode, name: str) -> Value | None:
        found = scan.site if name == SITE and known_sites else truth.get(scan.subject, {}).get(name)
        if isinstance(found, float | int):
            return float(found) if math.isfinite(found) else None
        return found or None

    result: dict[str, Any] = {}
    for name in (SITE, *sorted(names - {SITE})):
        # one kind for all contrasts
        kinds = {v for s in train if (v := value(s, name)) is not None}
        classed = name == SITE or len(kinds) == 2 or any(isinstance(v, str) for v in kinds)
        for modality in modalities:
            fit, held = (_known(scans, modality, name, value) for scans in (train, test))
            values = _class_probes(fit, held, seed) if classed else _number_probes(fit, held)
            if values:
                result.setdefault(name, {})[modality] = values
    return result


def _known(
    scans: Sequence[ScanCode], modality: str, name: str, value: Callable[[ScanCode, str], Value | None]
) -> list[tuple[ScanCode, Value]]:
    return [(s, v) for s in scans if s.modality == modality and (v := value(s, name)) is not None]


def _class_probes(
    train: Sequence[tuple[ScanCode, Value]], test: Sequence[tuple[ScanCode, Value]], seed: int
) -> dict[str, float]:
    classes = sorted({str(v) for _, v in train})
    held = [(s, str(v)) for s, v in test if str(v) in classes]
    if len(classes) < 2 or 2 * len(classes) > len(train) or len({v for _, v in held}) < 2:
        return {}
    fit_y, held_y = (torch.tensor([classes.index(str(v)) for _, v in pairs]) for pairs in (train, held))
    values = {"chance": 1 / len({v for _, v in held}), "n": len(held)}
    for stream in STREAMS:
        x, y = (_stream([s for s, _ in pairs], stream) for pairs in (train, held))
        if x is not None and y is not None:
            values[stream] = linear_probe(x, fit_y, y, held_y, seed).balanced_accuracy
    return values


def _number_probes(train: Sequence[tuple[ScanCode, Value]], test: Sequence[tuple[ScanCode, Value]]) -> dict[str, float]:
    if len(train) < MIN_TRAINING_SCANS or len({v for _, v in test}) < 2:
        return {}
    fit_y, held_y = (torch.tensor([float(v) for _, v in pairs]) for pairs in (train, test))
    values: dict[str, float] = {"n": len(test)}
    for stream in STREAMS:
        x, y = (_stream([s for s, _ in pairs], stream) for pairs in (train, test))
        if x is not None and y is not None:
            values[f"{stream}_r2"] = factor_probe(x, fit_y, y, held_y)
    return values


def _stream(scans: Sequence[ScanCode], stream: str) -> Tensor | None:
    features = [s.mean if stream == "anatomy" else s.style for s in scans]
    known = [f for f in features if f is not None]
    return torch.stack(known) if len(known) == len(features) else None
