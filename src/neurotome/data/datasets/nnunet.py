"""The layout of nnU-Net: ``dataset.json``, ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``, ``imagesTs``.

    {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {...}, "file_ending": ".nii.gz"}    (version 1: "modality")

Channel 0 of case ``la_003`` is ``la_003_0000.nii.gz``. A case is a subject; ``imagesTs`` is the test split.
"""

import os
import re
from pathlib import Path
from typing import Any

from neurotome.data.datasets.bids import ScanRow, is_image, read_json
from neurotome.errors import InputError, printable
from neurotome.modality import canonical

_CASE = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})\.[A-Za-z.]+")
_FOLDERS = (("imagesTr", "labelsTr", None), ("imagesTs", "labelsTs", "test"))


def is_nnunet(root: Path) -> bool:
    """Return whether a folder is an nnU-Net dataset."""
    return (root / "dataset.json").is_file() and any((root / name).is_dir() for name, _, _ in _FOLDERS)


def find_cases(root: Path) -> tuple[list[ScanRow], list[str]]:
    """Return the scans of an nnU-Net dataset, and notes.

    Raises:
        InputError: ``dataset.json`` names no channels, or none that is a contrast.
    """
    channels, notes = _channels(root / "dataset.json")
    rows = []
    for images, labels, split in _FOLDERS:
        maps = {n.split(".")[0]: n for n in _names(root / labels)}
        for name in _names(root / images):
            match = _CASE.fullmatch(name)
            if match is None:
                notes.append(f"left out {images}/{printable(name)}: the name is not CASE_0000 and an ending")
                continue
            modality = channels.get(int(match["channel"]))
            if modality is None:
                continue
            truth = root / labels / maps[match["case"]] if match["case"] in maps else None
            rows.append(ScanRow(match["case"], "", modality, root / images / name, labels=truth, split=split))
    return rows, notes


def _channels(path: Path) -> tuple[dict[int, str], list[str]]:
    content = read_json(path)
    named: Any = content.get("channel_names", content.get("modality"))
    if not isinstance(named, dict) or not named:
        raise InputError("names no channels", file=path, remedy='add "channel_names": {"0": "T1w", "1": "T2w"}')
    channels, notes = {}, []
    for key, name in named.items():
        try:
            channels[int(key)] = canonical(str(name))
        except ValueError:
            notes.append(f"channel {printable(str(key))} ({printable(str(name))}) is no contrast we know: left out")
    if not channels:
        raise InputError(
            f"no channel is a contrast we know ({', '.join(printable(str(n)) for n in named.values())})",
            file=path,
            remedy="write T1w, T2w, FLAIR, PDw or T1c as channel_names",
        )
    if twice := sorted({m for m in channels.values() if list(channels.values()).count(m) > 1}):
        raise InputError(f"two channels are {twice[0]}", file=path, remedy="give each channel a contrast of its own")
    return channels, notes


def _names(folder: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if is_image(e.name)) if folder.is_dir() else []
