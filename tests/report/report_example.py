"""A synthetic run folder: numbers and pictures of the shape that a demo leaves, drawn with a fixed seed."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from safetensors.numpy import save_file


def interval(mean: float, half: float, n: int = 8) -> dict[str, Any]:
    return {"mean": mean, "ci95": [mean - half, mean + half], "n": n}


def entry(psnr: float, ssim: float, detail: float, baselines: dict[str, float]) -> dict[str, Any]:
    return {
        "psnr_db": interval(psnr, 0.42),
        "ssim": interval(ssim, 0.006),
        "high_frequency_ratio": interval(detail, 0.02),
        "psnr_db_whole": interval(psnr + 4.8, 0.5),
        "baselines": {k: {"psnr_db": interval(v, 0.3), "ssim": interval(v / 30, 0.01)} for k, v in baselines.items()},
        "paired": {f"over_{k}_db": interval(psnr - v, 0.2) for k, v in baselines.items()},
    }


def audit(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "code_gap": interval(0.08, 0.01),
        "agreement": {"agreement": interval(0.27, 0.02), "chance": 0.07, "self_agreement": 0.83},
        "self_agreement": {"T1w": 0.83, "T2w": 0.83},
        "probes": {
            "token_vector": 0.52, "token_onehot": 0.54, "pooled_mean": 0.75, "pooled_histogram": 1.0, "style": 1.0,
            "chance": 0.5, "samples": {"token_vector": {"train": 20000, "test": 20000}, "pooled_mean": {"test": 16}},
        },
    }  # fmt: skip
    for part in (values["agreement"], values["probes"]):
        part |= {k: changes.pop(k) for k in list(changes) if k in part}
    return values | changes


def brain(shape: tuple[int, int, int] = (48, 64, 56), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return an egg with folds and two holes, and its mask."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1.1, 1.1, n) for n in shape), indexing="ij")
    radius = np.sqrt((x / 0.86) ** 2 + (y / 0.98) ** 2 + (z / 0.85) ** 2)
    fold = 0.06 * np.sin(14 * np.arctan2(y, x)) * np.cos(11 * z)
    mask = radius < 1
    image = np.where(radius + fold < 0.82, 0.75, 0.2)
    image = np.where((np.abs(np.abs(x) - 0.12) < 0.07) & (np.abs(y) < 0.4) & (np.abs(z) < 0.2), -0.5, image)
    image = np.where(mask, image + rng.normal(0, 0.04, shape), -1.0)
    return image.astype(np.float32).clip(-1, 1), mask


def panels(path: Path, subjects: tuple[str, ...] = ("sub-041", "sub-045")) -> None:
    """Write ``panels.safetensors`` as an evaluation does."""
    tensors: dict[str, np.ndarray] = {}
    entries: list[dict[str, str]] = []
    for i, subject in enumerate(subjects):
        t1, mask = brain(seed=i)
        t2 = np.where(mask, -0.8 * t1 + 0.2, -1.0).astype(np.float32)
        scans = {"T1w": t1, "T2w": t2}
        tensors[f"{i}/mask"] = mask.astype(np.uint8)
        for source, image in scans.items():
            tensors[f"{i}/{source}"] = image
            for target, truth in scans.items():
                output = np.where(mask, truth * 0.9 + np.roll(truth, 1, 0) * 0.08, -1.0).astype(np.float32)
                tensors[f"{i}/{source}->{target}"] = output
                row = {"subject": subject, "from": source, "to": target, "mask": f"{i}/mask"}
                row |= {"source": f"{i}/{source}", "output": f"{i}/{source}->{target}"}
                entries.append(row | ({"truth": f"{i}/{target}"} if target != source else {}))
    save_file(tensors, path, metadata={"entries": json.dumps(entries)})


def metrics() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    lookups = {"mean_image": 14.4, "lookup_equal_rate": 19.1, "lookup_full_rate": 22.2}
    counts = (9000 * np.exp(-np.arange(64) / 7) * rng.uniform(0.8, 1.2, 64)).astype(int).tolist()
    return {
        "protocol": {
            "split": "test", "data_range": 2.0, "noise_sd": 0.04,
            "mask": "psnr_db, ssim: brain mask; *_whole: the whole box; outputs are clamped to [-1, 1]",
            "ssim": "uniform window of 7 voxels, fully inside the box; mean over the window centres in the mask",
            "interval": "95 %, BCa bootstrap over subjects, 2000 resamples",
        },
        "reconstruction": {
            "T1w": entry(24.24, 0.931, 0.78, {"mean_image": 14.1, "trilinear": 18.5}),
            "T2w": entry(22.96, 0.902, 0.71, {"mean_image": 14.4, "trilinear": 17.1}),
        },
        "translation": {
            "T1w->T2w": entry(20.81, 0.871, 0.60, lookups),
            "T2w->T1w": entry(20.32, 0.866, 0.58, lookups | {"lookup_equal_rate": 17.5, "lookup_full_rate": 19.9}),
        },
        "codebook": {
            "utilisation": 0.94, "perplexity": 19.2, "entropy_bits": 4.3, "num_codes": 64,
            "codebooks": {
                "anatomy": {
                    "num_codes": 64,
                    "box": {"utilisation": 0.94, "perplexity": 8.1, "entropy_bits": 3.0},
                    "brain": {"utilisation": 0.92, "perplexity": 19.2, "entropy_bits": 4.3, "counts": counts},
                },
            },
        },
        "audit": audit(),
        "bits": {"own_per_voxel": 0.75, "translated_per_voxel": 0.75},
        "speed": {"encode_seconds_per_scan": 0.21, "decode_seconds_per_scan": 0.24, "train_steps_per_second": 20.3},
        "memory": {"peak_rss_mb": 1410},
    }  # fmt: skip


def log(path: Path, steps: int = 3000) -> None:
    rng = np.random.default_rng(2)
    with path.open("w") as file:
        for step in range(0, steps + 1, 10):
            fall = np.exp(-step / 600)
            noise = rng.normal(0, 0.02, 4)
            row = {
                "step": step, "seconds": step / 20, "train/loss": 0.42 + 1.4 * fall + noise[0],
                "train/l1": 0.11 + 0.5 * fall + 0.3 * noise[1], "train/ssim": 0.05 + 0.4 * fall + 0.2 * noise[2],
                "train/commitment": 0.03 + 0.01 * noise[3], "lr": 3e-3 * (1 + np.cos(np.pi * step / steps)) / 2,
                "steps_per_s": 20 + noise[0],
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
            if step and step % 300 == 0:
                rise = 1 - fall
                row = {"step": step, "val/psnr/T1w": 14 + 10 * rise, "val/psnr/T2w": 13 + 9.7 * rise}
                file.write(
                    json.dumps(row | {"val/ssim/T1w": 0.5 + 0.43 * rise, "val/ssim/T2w": 0.45 + 0.45 * rise}) + "\n"
                )


def write_run(folder: Path) -> Path:
    """Write a complete, finished run."""
    folder.mkdir(parents=True, exist_ok=True)
    split = {"sites": {"site-0": 8, "site-1": 8, "site-2": 8, "site-3": 8}}
    files: dict[str, Any] = {
        "environment.json": {
            "config_name": "neuroquant-aligned-demo", "python": "3.11.9", "torch": "2.13.0", "neurotome": "0.1.0",
            "platform": "Linux x86_64", "cpu": "2 cores", "threads": 2, "seed": 0,
        },
        "status.json": {
            "state": "finished", "step": 3000, "max_steps": 3000, "seconds": 312.4, "peak_rss_mb": 1410, "message": "",
        },
        "metrics.json": metrics(),
        "timing.json": {"phantom": 31.0, "prepare": 12.5, "train": 312.4, "evaluate": 41.0},
        "data.json": {
            "cohort": "phantom default cohort v1", "shape": [48, 64, 56], "spacing_mm": 3.0,
            "splits": {
                "train": {"subjects": 32, "sessions": 32, "modalities": {"T1w": 32, "T2w": 32}} | split,
                "val": {"subjects": 8, "sessions": 8, "modalities": {"T1w": 8, "T2w": 8}} | split,
                "test": {"subjects": 8, "sessions": 8, "modalities": {"T1w": 8, "T2w": 8}} | split,
            },
        },
    }  # fmt: skip
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    config = {"seed": 0, "method": {"class_path": "NeuroQuantTraining", "pair_weight": 0.3}, "data": "phantom"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    log(folder / "metrics.jsonl")
    panels(folder / "panels.safetensors")
    return folder


def opened(address: str) -> Image.Image:
    head, data = address.split(",", 1)
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))
