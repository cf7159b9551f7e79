r"""From the images of an evaluation to the tree of ``metrics.json``.

    "reconstruction": {"T1w": {metric: {"mean", "ci95", "n", "values"}, "baselines": {...}, "paired": {...}}}
    "translation": {"T1w->T2w": the same}    "codebook": {...}    "bits": {...}    "speed": {...}
    "regions": {"T1w": {...}}    with tables of volumes alone (:mod:`neurotome.evaluation.regions`)

``values`` holds one number per subject; ``paired`` holds intervals of differences within subjects. What is not finite
becomes null.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from neurotome.errors import OutputError, printable
from neurotome.evaluation.audit import SAMPLED_CELLS, ScanCode, interval_entry, per_subject
from neurotome.evaluation.factors import Truth, truth_digest
from neurotome.files.atomic import write_atomically
from neurotome.metrics import codebook as measures
from neurotome.metrics.fidelity import (
    high_frequency_ratio,
    mean_over,
    ms_ssim,
    num_scales,
    psnr,
    ssim_map,
    window_centres,
)
from neurotome.metrics.statistics import paired_interval
from neurotome.tokenizers.tissue import coded_cells
from neurotome.types import Image, Mask

FORMAT_VERSION = 5  # raised whenever a number of metrics.json is added or made otherwise
DATA_RANGE = 2.0
WINDOW = 7
PSNR_CEILING_DB = 120.0  # what equal images get; single precision on [-1, 1] ends near 140 dB
PANEL_BYTES = 64 << 20

# How every number is made; stands in `metrics.json` beside the numbers.
PROTOCOL = {
    "mask": "psnr_db, ssim, ms_ssim, high_frequency_ratio: brain mask; *_whole: the whole box; outputs are clamped to "
    "[-1, 1]",
    "psnr": f"per image; mean over a subject's sessions, then over subjects; at most {PSNR_CEILING_DB:g} dB",
    "ssim": f"uniform window of {WINDOW} voxels, fully inside the box; mean over the window centres in the mask",
    "ms_ssim": "contrast and structure at ms_ssim_scales scales, SSIM at the coarsest; as many as the window admits, "
    "at most 5; weights of Wang et al. 2003 over the scales used, divided by their sum; same window and mask as ssim",
    "high_frequency_ratio": "energy of x minus its Gaussian blur (sigma 1 voxel) in the brain, output over truth",
    "interval": "95 %, BCa bootstrap over subjects, 2000 resamples",
    "style_source": "mean style of the target contrast over training subjects; everything else from the source scan",
    "bits": "ceil(log2 K) per code that is stored, 16 per float, style included, mean over the images of the split; a "
    "translation leaves private codes out; per_voxel: of the grid, background included; per_brain_voxel: all bits over "
    "the voxels of the brain, where PSNR is measured",
    "codebook": "utilisation: codes seen in the split, background included; perplexity: cells at least half brain",
    "audit": f"cells at least half brain; vectors (of the anatomy, else of the whole latent) at up to {SAMPLED_CELLS} "
    "random cells per session, codes of the first map at all; probes fitted on the training split; gap over twice the "
    "variance of both contrasts together",
    "factors": "linear probes on the mean vector of a scan, fitted on the training split, each contrast alone: "
    "balanced accuracy for classes and for numbers with two values, R2 for other numbers",
    "structure_dice": "overlap of a segmenter's labels in the brain, mean over structures; structure_dice: of the "
    "output with those of the true image; structure_dice_truth: of the output with the store's label map; ceiling: of "
    "the true image with the label map; structure_volume_error: difference of a structure's volumes in the output and "
    "in the true image over the latter, without sign, mean over structures",
    "regions": "volumes of another program's segmentations: relative error without sign; pearson and ICC(3,1) over "
    "subjects, which do not see a bias; bias of the reconstruction",
    "self_agreement": "share of codes that survive noise of noise_sd on [-1, 1] inside the brain",
    "trilinear": "blocks of latent_factor voxels averaged, trilinear up, background from the mask",
    "lookup": "mean target per source intensity, 256 bins, fitted inside the brain on the training split at full rate; "
    "full_rate: no bottleneck; equal_rate: applied after trilinear; refitted: also fitted after trilinear",
    "monotone": "curve of the source's intensity that only rises or only falls, least squares in the brain, the whole "
    "source, no network; monotone_map: fitted on the training split, 256 bins; monotone_ceiling: fitted on the very "
    "scan it is compared with, so that no such curve reaches more",
    "speed": "median over sessions of seconds per volume, all contrasts of a session in one batch",
}


def evaluation_request(split: str, segmenter: str | None, truth: Truth | None) -> dict[str, Any]:
    """Return what the protocol says of how an evaluation was asked for; another answer is another evaluation.

    Args:
        split: Of the subjects.
        segmenter: Digest of the segmenter's model folder, or None.
        truth: Known factors, or None.
    """
    return {
        "format_version": FORMAT_VERSION,
        "split": split,
        "segmenter_sha256": segmenter,
        "truth_sha256": truth_digest(truth),
    }


def image_metrics(output: Image, truth: Image, mask: Mask) -> dict[str, float]:
    """Return the metrics of one image ``(1, c, x, y, z)``: over the brain mask, and over the whole box."""
    size = window_size(truth.shape[2:])
    similarity = ssim_map(output, truth, size=size, data_range=DATA_RANGE)
    values = {
        "psnr_db": psnr(output, truth, DATA_RANGE, mask).clamp_max(PSNR_CEILING_DB),
        "psnr_db_whole": psnr(output, truth, DATA_RANGE).clamp_max(PSNR_CEILING_DB),
        "ssim": mean_over(similarity, window_centres(mask, similarity.shape[2:])),
        "ssim_whole": mean_over(similarity, None),
        "ms_ssim": ms_ssim(output, truth, mask=mask, size=size, data_range=DATA_RANGE),
        "high_frequency_ratio": high_frequency_ratio(output, truth, mask),
    }
    return {name: float(value) for name, value in values.items()}


def window_size(shape: Sequence[int]) -> int:
    """Return the places of the window of structural similarity: fewer than usual in a box that is shorter."""
    return min([WINDOW, *(s for s in shape if s > 1)])


def scales(shape: Sequence[int]) -> int:
    """Return the number of scales of MS-SSIM in a box."""
    return num_scales(shape, window_size(shape))


@dataclass
class Findings:
    """Everything collected while passing through the sessions.

    Args:
        scores: ``{"T1w" or "T1w->T2w": {method: {metric: [(subject, value)]}}}``; the method "" is the model.
        train: Codes of the training scans.
        test: Codes of the scans under test.
        codebooks: Counts per code map, over the box and inside the brain.
        overlaps: ``{"T1w" or "T1w->T2w": {"dice", "truth_dice", "volume_error" or "ceiling": {structure:
            [(subject, value)]}}}``.
        seconds: Seconds per volume, "encode" and "decode".
        bits: Of every image and the voxels of its brain, "own" and "translated".
        panels: Images of a few subjects by tensor name.
        entries: What each panel shows.
    """

    scores: dict[str, dict[str, dict[str, list[tuple[str, float]]]]] = field(default_factory=dict)
    train: list[ScanCode] = field(default_factory=list)
    test: list[ScanCode] = field(default_factory=list)
    codebooks: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    overlaps: dict[str, dict[str, dict[str, list[tuple[str, float]]]]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"encode": [], "decode": []})
    bits: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    panels: dict[str, Tensor] = field(default_factory=dict)
    entries: list[dict[str, str]] = field(default_factory=list)

    def score(self, task: str, method: str, subject: str, values: Mapping[str, float]) -> None:
        """Note the metrics of one image."""
        row = self.scores.setdefault(task, {}).setdefault(method, {})
        for name, value in values.items():
            row.setdefault(name, []).append((subject, value))

    def overlap(self, task: str, measure: str, subject: str, values: Mapping[str, float]) -> None:
        """Note a measure of each structure of one image; a structure that is not there is left out."""
        row = self.overlaps.setdefault(task, {}).setdefault(measure, {})
        for name, value in values.items():
            if math.isfinite(value):
                row.setdefault(name, []).append((subject, value))

    def spend(self, kind: str, bits: Tensor, mask: Mask) -> None:
        """Note the bits ``(b,)`` that each image of one session takes."""
        brain = int(mask.sum())
        self.bits.setdefault(kind, []).extend((taken, brain) for taken in bits.tolist())

    def count(self, codes: Mapping[str, Tensor], sizes: Mapping[str, int | None], mask: Mask) -> None:
        """Count the codes of one session; a codebook of unknown size is as large as the largest code seen.

        Where a map "tissue" says which cells are coded, the others are not counted.
        """
        for name, found in codes.items():
            codebook = self.codebooks.setdefault(name, {k: torch.zeros(0, dtype=torch.long) for k in ("box", "brain")})
            size = sizes[name] or max(len(codebook["box"]), int(found.max()) + 1)
            inside = measures.brain_cells(mask, found.shape[1:]).expand_as(found)
            coded = coded_cells(codes, name)
            for place, where in (("box", coded), ("brain", inside if coded is None else inside & coded)):
                counts = measures.code_counts(found, size, where).cpu()
                counts[: len(codebook[place])] += codebook[place]
                codebook[place] = counts

    def keep(
        self,
        subject: str,
        rank: str,
        views: Mapping[str, Image],
        outputs: Mapping[tuple[str, str], Image],
        mask: Mask,
    ) -> None:
        """Keep the images of one session for the report, within a budget of bytes."""
        kept = {entry["subject"] for entry in self.entries}
        size = (2 * (len(views) + len(outputs)) + 1) * mask.numel()
        used = sum(t.numel() * t.element_size() for t in self.panels.values())
        if kept and used + size > PANEL_BYTES:
            return
        at = f"{len(kept)}"
        self.panels |= {f"{at}/{name}": _half(image) for name, image in views.items()}
        self.panels |= {f"{at}/{a}->{b}": _half(image) for (a, b), image in outputs.items()}
        self.panels[f"{at}/mask"] = mask[0, 0].to(torch.uint8).cpu().contiguous()
        for (a, b), image in outputs.items():
            entry = {
                "subject": subject,
                "rank": rank,
                "from": a,
                "to": b,
                "source": f"{at}/{a}",
                "output": f"{at}/{a}->{b}",
                "mask": f"{at}/mask",
            }
            if b in views:
                entry["note"] = f"{float(psnr(image, views[b], DATA_RANGE, mask)):.1f} dB in the brain"
                entry |= {"truth": f"{at}/{b}"} if a != b else {}
            self.entries.append(entry)


def shown_subjects(scores: Mapping[str, Any], subjects: Sequence[str]) -> dict[str, str]:
    """Return the subjects whose images are kept, and why: the median and the worst of the model's own PSNR.

    The first subject of the split comes first: it is the same for every model, so that models can be compared.

    Args:
        scores: As in :class:`Findings`.
        subjects: Of the split, in its order.
    """
    own = [per_subject(methods[""]["psnr_db"]) for methods in scores.values() if "" in methods]
    known = [subject for subject in dict.fromkeys(subjects) if any(subject in values for values in own)]
    mean = {s: statistics.fmean(values[s] for values in own if s in values) for s in known}
    order = sorted(known, key=lambda s: (mean[s], s))
    if not order:
        return {}
    ranks = {known[0]: "", order[(len(order) - 1) // 2]: "median"}
    return ranks | ({order[0]: "worst"} if len(order) > 1 else {})


def not_applicable(name: str, styled: bool, coded: bool) -> dict[str, str]:
    """Say which sections are empty because the tokenizer has no such part, and not because something failed.

    Args:
        name: Class of the tokenizer.
        styled: Whether it has a style.
        coded: Whether it has codes.
    """
    reasons = {}
    if not styled:
        without = f"{name} has no style apart from the anatomy"
        reasons["translation"] = f"{without}, so it cannot make another contrast"
        reasons["split"] = (
            f"{without}, so there is no separation to measure; the probes show what can be predicted from its code"
        )
    if not coded:
        reasons["codebook"] = f"{name} stores floats and has no codebook"
    return reasons


def _half(image: Image) -> Tensor:
    return image[0, 0].to(torch.float16).cpu().contiguous()


def task_tree(scores: Mapping[str, Mapping[str, Mapping[str, list[tuple[str, float]]]]], seed: int) -> dict[str, Any]:
    """Return ``{"reconstruction": …, "translation": …}`` with intervals over subjects."""
    means = {
        task: {m: {k: per_subject(v) for k, v in row.items()} for m, row in methods.items()}
        for task, methods in scores.items()
    }
    tree: dict[str, Any] = {"reconstruction": {}, "translation": {}}
    for task, methods in means.items():
        rows = {m: {k: interval_entry(v, seed) for k, v in row.items()} for m, row in methods.items()}
        own = methods[""]["psnr_db"]
        paired = {f"over_{m}_db": _paired(own, row["psnr_db"], seed) for m, row in methods.items() if m}
        target = task.split("->")[-1]
        if target != task:
            paired["under_own_reconstruction_db"] = _paired(means[target][""]["psnr_db"], own, seed)
        entry = {**rows.pop(""), "baselines": {m: _without_values(row) for m, row in rows.items()}, "paired": paired}
        tree["translation" if "->" in task else "reconstruction"][task] = entry
    return tree


def structure_tree(
    overlaps: Mapping[str, Mapping[str, Mapping[str, list[tuple[str, float]]]]], seed: int
) -> dict[str, Any]:
    """Return ``{task: {measure: {structure or "mean": interval over subjects}}}``."""
    return {
        task: {
            measure: {name: interval_entry(per_subject(values), seed) for name, values in row.items()}
            for measure, row in measures.items()
        }
        for task, measures in overlaps.items()
    }


def _without_values(row: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {metric: {k: v for k, v in entry.items() if k != "values"} for metric, entry in row.items()}


def _paired(first: Mapping[str, float], second: Mapping[str, float], seed: int) -> dict[str, Any]:
    subjects = [s for s in first if s in second]
    return paired_interval([first[s] for s in subjects], [second[s] for s in subjects], seed=seed).to_json()


def codebook_tree(codebooks: Mapping[str, Mapping[str, Tensor]], sizes: Mapping[str, int | None]) -> dict[str, Any]:
    """Return the use of the anatomy's codebook in front, of every codebook under its name.

    In front: ``utilisation`` over the split, background included; ``perplexity`` and ``entropy_bits`` in the brain.
    """
    trees: dict[str, Any] = {}
    for name, use in codebooks.items():
        trees[name] = {"num_codes": sizes[name]}
        for place, counts in use.items():
            trees[name][place] = {
                "utilisation": None if sizes[name] is None else measures.utilisation(counts),
                "perplexity": measures.perplexity(counts),
                "entropy_bits": measures.entropy_bits(counts),
            }
        trees[name]["brain"]["counts"] = use["brain"].tolist()
    if not trees:
        return {}
    first = next(iter(trees.values()))
    front = {"utilisation": first["box"]["utilisation"], "num_codes": first["num_codes"]}
    return {**front, **{k: first["brain"][k] for k in ("perplexity", "entropy_bits")}, "codebooks": trees}


def bits_tree(bits: Mapping[str, Sequence[tuple[float, int]]], shape: Sequence[int]) -> dict[str, float]:
    """Return bits per voxel of the grid and of the brain, means over images, ``own`` and, if any, ``translated``.

    Args:
        bits: Of every image, and the number of voxels of its brain.
        shape: Of the grid.
    """
    found = {}
    for kind, images in bits.items():
        found[f"{kind}_per_voxel"] = statistics.fmean(taken for taken, _ in images) / math.prod(shape)
        found[f"{kind}_per_brain_voxel"] = statistics.fmean(taken / max(brain, 1) for taken, brain in images)
    return found


def finite(tree: Any) -> Any:
    """Return ``tree`` with NaN and infinities as None: JSON has neither."""
    if isinstance(tree, Mapping):
        return {str(k): finite(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(v) for v in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def write_results(
    folder: Path, metrics: Mapping[str, Any], panels: Mapping[str, Tensor], entries: Sequence[Mapping[str, str]]
) -> None:
    """Write ``metrics.json`` and ``panels.safetensors``, each complete or not at all.

    ``panels.safetensors`` holds volumes ``(x, y, z)`` in [-1, 1], float16, and masks; its metadata ``entries`` is a
    JSON list that names the tensors ``source``, ``output``, ``truth`` and ``mask``, the ``subject``, its ``rank``
    ("median", "worst" or ""), and the contrasts ``from`` and ``to``.

    Raises:
        OutputError: The folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{printable(folder)}: cannot be made ({error.strerror}); name another folder") from error
    if panels:
        metadata = {"entries": json.dumps(list(entries))}
        write_atomically(folder / "panels.safetensors", [safetensors.torch.save(dict(panels), metadata)])
    text = json.dumps(metrics, indent=1, allow_nan=False)
    write_atomically(folder / "metrics.json", [text.encode() + b"\n"])
