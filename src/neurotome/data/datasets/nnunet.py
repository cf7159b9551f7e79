"""The layout of nnU-Net: ``dataset.json``, ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``, ``imagesTs``.

    {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {...}, "file_ending": ".nii.gz"}    (version 1: "modality")

Channel 0 of case ``la_003`` is ``la_003_0000.nii.gz``. A case is a subject; ``imagesTs`` is the test split.
"""

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from neurotome.data.datasets.bids import ScanRow, listed
from neurotome.data.datasets.text_files import one_line, read_json
from neurotome.data.imaging.other_formats import other_format_notes
from neurotome.errors import InputError, printable
from neurotome.files.endings import is_image, stem
from neurotome.modality import canonical

_CASE = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_FOLDERS = (("imagesTr", "labelsTr", None), ("imagesTs", "labelsTs", "test"))


def is_nnunet(root: Path) -> bool:
    """Return whether a folder is an nnU-Net dataset."""
    return os.path.lexists(root / "dataset.json") and any((root / name).is_dir() for name, _, _ in _FOLDERS)


def find_cases(root: Path) -> tuple[list[ScanRow], list[str]]:
    """Return the scans of an nnU-Net dataset, and notes.

    A case that is in imagesTr and in imagesTs, or has two label maps, is damaged: whose they are is not guessed.

    Raises:
        InputError: ``dataset.json`` names no channels, or none that is a contrast; no file name has a channel.
    """
    content = read_json(root / "dataset.json")
    channels, notes = _channels(content, root / "dataset.json")
    ending = str(content.get("file_ending", "")).lower()
    rows: list[ScanRow] = []
    where: dict[str, set[str]] = defaultdict(set)
    no_case: list[str] = []
    for images, labels, split in _FOLDERS:
        maps: dict[str, list[Path]] = defaultdict(list)
        for name in _images(root / labels, ending, notes):
            maps[stem(name)].append(root / labels / name)
        for name in _images(root / images, ending, notes):
            match = _CASE.fullmatch(stem(name))
            if match is None:
                no_case.append(f"{images}/{name}")
                continue
            where[case := match["case"]].add(images)
            modality = channels.get(int(match["channel"]))
            if modality is None:
                continue
            found = maps[case]
            damage = _two_maps(found[0], found[1]) if len(found) > 1 else None
            truth = found[0] if found else None
            rows.append(ScanRow(case, "", modality, root / images / name, None, None, truth, split, damage))
    if no_case and not where:
        raise InputError(
            f"no name of its images has a channel, like CASE_0000.nii.gz; one is {printable(no_case[0])}",
            file=root,
            remedy="if they are 4-D files of the Medical Segmentation Decathlon, split them with "
            "`nnUNetv2_convert_MSD_dataset`; else add _0000 to the names",
        )
    notes += [f"left out {printable(name)}: the name is not CASE_0000 and an ending" for name in no_case]
    twice = {one_line(case) for case, folders in where.items() if len(folders) > 1}
    return [_of_two(row) if row.subject in twice else row for row in rows], notes


def _two_maps(first: Path, other: Path) -> InputError:
    return InputError(f"a second label map of this case is {printable(other.name)}", file=first, remedy="remove one")


def _of_two(row: ScanRow) -> ScanRow:
    error = InputError(
        f"case {row.subject} is in imagesTr and in imagesTs, and an id is one person",
        file=row.path,
        remedy="rename the case in one of the two folders, or remove it there",
    )
    # a split would be that of either
    return replace(row, split=None, damage=error)


def _channels(content: Mapping[str, Any], path: Path) -> tuple[dict[int, str], list[str]]:
    named: Any = content.get("channel_names", content.get("modality"))
    if not isinstance(named, dict) or not named:
        raise InputError("names no channels", file=path, remedy='add "channel_names": {"0": "T1w", "1": "T2w"}')
    channels: dict[int, str] = {}
    notes = []
    for key, name in named.items():
        shown = f"channel {printable(str(key))} ({printable(str(name))})"
        if not (str(key).isdecimal() and str(key).isascii()):
            notes.append(f"{shown} has no number: left out")
            continue
        try:
            modality = canonical(str(name))
        except ValueError:
            notes.append(f"{shown} is no contrast we know: left out")
            continue
        if channels.setdefault(int(key), modality) != modality:
            raise InputError(f"channel {int(key)} is named twice", file=path, remedy="name each channel once")
    if not channels:
        raise InputError(
            f"no channel is a contrast we know ({', '.join(printable(str(n)) for n in named.values())})",
            file=path,
            remedy="write T1w, T2w, FLAIR, PDw or T1c as channel_names",
        )
    if twice := sorted({m for m in channels.values() if list(channels.values()).count(m) > 1}):
        raise InputError(f"two channels are {twice[0]}", file=path, remedy="give each channel a contrast of its own")
    return channels, notes


def _images(folder: Path, ending: str, notes: list[str]) -> list[str]:
    """Return the images of a folder: those with the declared ending, where it is one that is read."""
    names = listed(folder, notes) if folder.is_dir() else []
    images = [name for name in names if is_image(name)]
    declared = [name for name in images if name.lower().endswith(ending)] if is_image(f"x{ending}") else images
    if others := [name for name in images if name not in set(declared)]:
        notes.append(f"{len(others)} files of {folder.name} do not end in {ending}, which dataset.json says: left out")
    notes += other_format_notes(names)
    return declared
