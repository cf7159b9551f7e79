r"""The audit of a code: what can be read from it about the contrast.

Everything is measured inside the brain, on cells that are at least half brain; the one cell of a latent that is a
vector counts as brain. Vectors are those of the anatomy, or of the whole latent where the tokenizer has no anatomy of
its own, sampled at the same random cells in all contrasts of a session. Codes are those of the first code map, the
anatomy or the coarsest, taken everywhere. Probes are fitted on training subjects and tested on others.
:mod:`neurotome.metrics.disentanglement` has the measures, :mod:`neurotome.evaluation.factors` reads the subject.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neurotome import streams
from neurotome.metrics.codebook import brain_cells
from neurotome.metrics.disentanglement import (
    Probe,
    agreement,
    code_gap,
    code_probe,
    linear_probe,
    variance,
)
from neurotome.metrics.statistics import bootstrap_interval
from neurotome.tokenizers.base import Encoded
from neurotome.types import Image, Mask

SAMPLED_CELLS = 2000  # vectors kept per session
PROBE_TOKENS = 20_000  # tokens a probe is fitted and tested on


@dataclass(frozen=True)
class ScanCode:
    """What the audit keeps of one scan.

    Args:
        subject: Subject id.
        session: Session id.
        modality: Contrast.
        site: Scanner site, or "".
        vectors: Anatomy vectors at sampled cells, quantised where there are codes, ``(n, d)``.
        mean: Their mean over all cells of the brain, ``(d,)``.
        style: Style vector ``(d,)``, or None.
        codes: First code map in all its cells of the brain; None for a continuous tokenizer, or where none is brain.
        steady: Share of codes that survive added noise, or None where it was not tried.
    """

    subject: str
    session: str
    modality: str
    site: str
    vectors: Float[Tensor, "n d"]
    mean: Float[Tensor, " d"]
    style: Float[Tensor, " s"] | None
    codes: Int[Tensor, " m"] | None
    steady: float | None = None


def scan_codes(
    encoded: Encoded,
    anatomy: Float[Tensor, "v d i j k"],
    modalities: Sequence[str],
    mask: Mask,
    subject: str,
    session: str,
    site: str,
    rng: np.random.Generator,
    noisy: Encoded | None = None,
) -> list[ScanCode]:
    """Return what to keep of the scans of one session, encoded as one batch in the order of ``modalities``.

    Args:
        encoded: The codes.
        anatomy: The part of their latents that all contrasts share.
        modalities: Contrast of each scan.
        mask: The brain.
        subject: Subject id.
        session: Session id.
        site: Scanner site, or "".
        rng: Draws the cells that are kept.
        noisy: Codes of the same scans under noise; None where it was not tried.

    Raises:
        ValueError: No cell is half brain.
    """
    anatomy = anatomy.float()  # (v, d, x, y, z)
    inside = brain_cells(mask, anatomy.shape[2:])[0]
    if not inside.any():
        raise ValueError(f"no latent cell of {subject} {session} is half brain: an empty mask, or cells too large")
    vectors = anatomy[:, :, inside].transpose(1, 2)  # (v, n, d)
    sample = torch.from_numpy(rng.permutation(vectors.shape[1])[:SAMPLED_CELLS]).to(vectors.device)
    codes = _anatomy_codes(encoded, mask)
    again = None if noisy is None else _anatomy_codes(noisy, mask)
    return [
        ScanCode(
            subject,
            session,
            name,
            site,
            vectors[i, sample].cpu(),
            vectors[i].mean(0).cpu(),
            None if encoded.style is None else encoded.style[i].float().cpu(),
            None if codes is None else codes[i].cpu(),
            None if codes is None or again is None else float((codes[i] == again[i]).double().mean()),
        )
        for i, name in enumerate(modalities)
    ]


def noisy(views: Mapping[str, Image], mask: Mask, sd: float, rng: np.random.Generator) -> dict[str, Image]:
    """Return the views with noise inside the brain; the background of a prepared scan holds none."""
    noise = {name: torch.from_numpy(rng.standard_normal(x.shape, np.float32)).to(x) for name, x in views.items()}
    return {name: (x + sd * noise[name] * mask).clamp(-1, 1) for name, x in views.items()}


def _anatomy_codes(encoded: Encoded, mask: Mask) -> Int[Tensor, "v n"] | None:
    """Return the first code map inside the brain, one row per view; None without codes, or cells that are brain."""
    first = next(iter(encoded.codes.values()), None)
    if first is None:
        return None
    # its cells may be larger than the latent's
    inside: Bool[Tensor, "x y z"] = brain_cells(mask, first.shape[1:])[0]
    return first[:, inside] if inside.any() else None


def audit(
    train: Sequence[ScanCode], test: Sequence[ScanCode], modalities: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Return the audit: gap, agreement beside chance and self-agreement, and the probes.

    Args:
        train: Scans of training subjects; the probes are fitted on them.
        test: Scans of the split under test.
        modalities: Contrasts that are compared.
        seed: Of the subsampling, the probes and the intervals.
    """
    codes = [s.codes for s in (*train, *test) if s.codes is not None]
    # codes that nobody uses change no measure
    num_codes = 1 + max(int(c.max()) for c in codes) if codes else None
    pairs = {f"{a}|{b}": _pair(test, a, b, num_codes, seed) for a, b in itertools.combinations(modalities, 2)}
    pairs = {name: pair for name, pair in pairs.items() if pair}
    steady = {m: [s.steady for s in test if s.modality == m and s.steady is not None] for m in modalities}
    own = {m: sum(v) / len(v) for m, v in steady.items() if v}
    result: dict[str, Any] = {
        "pairs": pairs,
        "self_agreement": own,
        "probes": _probes(train, test, modalities, num_codes, seed),
    }
    if pairs:  # the mean over pairs stands in front: with two contrasts it is the pair
        result["code_gap"] = _mean_entry([pair["code_gap"] for pair in pairs.values()])
    if any("agreement" in pair for pair in pairs.values()):
        result["agreement"] = {
            "agreement": _mean_entry([pair["agreement"] for pair in pairs.values() if "agreement" in pair]),
            "chance": _mean_of([pair["chance"] for pair in pairs.values() if "chance" in pair]),
            "self_agreement": _mean_of(list(own.values())),
        }
    return result


def _pair(test: Sequence[ScanCode], a: str, b: str, num_codes: int | None, seed: int) -> dict[str, Any]:
    """Return gap, agreement and chance of two contrasts, one value per session, averaged per subject."""
    by_session = {(s.subject, s.session, s.modality): s for s in test}
    both = [
        (scan, by_session[scan.subject, scan.session, b])
        for scan in test
        if scan.modality == a and (scan.subject, scan.session, b) in by_session
    ]
    if not both:
        return {}
    spread = variance(torch.cat([s.vectors for pair in both for s in pair]))
    gap = per_subject((x.subject, code_gap(x.vectors, y.vectors, spread)) for x, y in both)
    result: dict[str, Any] = {"code_gap": interval_entry(gap, seed)}
    if num_codes is not None:
        shares = [
            (x.subject, agreement(x.codes, y.codes, num_codes))
            for x, y in both
            if x.codes is not None and y.codes is not None
        ]
        result["agreement"] = interval_entry(per_subject((subject, share[0]) for subject, share in shares), seed)
        result["chance"] = _mean_of([share[1] for _, share in shares])
    return result


def _probes(
    train: Sequence[ScanCode], test: Sequence[ScanCode], modalities: Sequence[str], num_codes: int | None, seed: int
) -> dict[str, Any]:
    """Return the balanced accuracy of every probe for the contrast, their chance, and their sample sizes."""
    modalities = [m for m in modalities if any(s.modality == m for s in train)]
    test = [s for s in test if s.modality in modalities]
    if len(modalities) < 2 or not test:
        return {}
    probes = {
        "token_vector": _token_probe(train, test, modalities, seed),
        "pooled_mean": _scan_probe(train, test, modalities, seed, lambda s: s.mean),
    }
    if all(s.style is not None for s in (*train, *test)):
        probes["style"] = _scan_probe(train, test, modalities, seed, lambda s: s.style)
    if num_codes is not None and all(s.codes is not None for s in (*train, *test)):
        probes["token_onehot"] = _code_probe(train, test, modalities, num_codes)
        probes["pooled_histogram"] = _scan_probe(
            train, test, modalities, seed, partial(_root_histogram, num_codes=num_codes)
        )
    return {
        **{name: probe.balanced_accuracy for name, probe in probes.items()},
        "chance": probes["token_vector"].chance,
        "samples": {name: {"train": probe.n_train, "test": probe.n_test} for name, probe in probes.items()},
    }


def _root_histogram(scan: ScanCode, num_codes: int) -> Tensor | None:
    if scan.codes is None:
        return None
    return (torch.bincount(scan.codes, minlength=num_codes).float() / len(scan.codes)).sqrt()


def _scan_probe(
    train: Sequence[ScanCode],
    test: Sequence[ScanCode],
    modalities: Sequence[str],
    seed: int,
    feature: Callable[[ScanCode], Tensor | None],
) -> Probe:
    x, y = (torch.stack([f for s in scans if (f := feature(s)) is not None]) for scans in (train, test))
    return linear_probe(x, _classes(train, modalities), y, _classes(test, modalities), seed)


def _token_probe(train: Sequence[ScanCode], test: Sequence[ScanCode], modalities: Sequence[str], seed: int) -> Probe:
    rngs = (streams.generator(seed, streams.EVALUATION_TOKENS, i) for i in range(2))
    x, y = (
        _tokens([s.vectors for s in scans], _classes(scans, modalities), rng)
        for scans, rng in zip((train, test), rngs, strict=True)
    )
    return linear_probe(*x, *y, seed)


def _code_probe(
    train: Sequence[ScanCode], test: Sequence[ScanCode], modalities: Sequence[str], num_codes: int
) -> Probe:
    def tokens(scans: Sequence[ScanCode]) -> tuple[Tensor, Tensor]:
        codes = [s.codes for s in scans if s.codes is not None]
        lengths = torch.tensor([len(c) for c in codes])
        return torch.cat(codes).long(), _classes(scans, modalities).repeat_interleave(lengths)

    return code_probe(*tokens(train), *tokens(test), num_codes)


def _tokens(vectors: Sequence[Tensor], classes: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return at most ``PROBE_TOKENS`` tokens of all scans with their classes."""
    x = torch.cat(list(vectors))
    y = classes.repeat_interleave(torch.tensor([len(v) for v in vectors]))
    chosen = torch.from_numpy(rng.permutation(len(x))[:PROBE_TOKENS])
    return x[chosen], y[chosen]


def _classes(scans: Sequence[ScanCode], modalities: Sequence[str]) -> Int[Tensor, " n"]:
    return torch.tensor([list(modalities).index(s.modality) for s in scans])


def per_subject(values: Any) -> dict[str, float]:
    """Return the mean of each subject's values from ``(subject, value)`` pairs."""
    found: dict[str, list[float]] = {}
    for subject, value in values:
        found.setdefault(subject, []).append(value)
    return {subject: sum(v) / len(v) for subject, v in found.items()}


def interval_entry(values: Mapping[str, float], seed: int) -> dict[str, Any]:
    """Return ``{"mean", "ci95", "n", "values"}`` of one value per subject."""
    return {**bootstrap_interval(list(values.values()), seed=seed).to_json(), "values": dict(values)}


def _mean_entry(entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if len(entries) == 1:
        return entries[0]
    return {"mean": _mean_of([e["mean"] for e in entries])} if entries else None


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
