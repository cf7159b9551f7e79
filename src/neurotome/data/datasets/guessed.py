"""Scans of a plain folder, guessed from the names of files and folders; every guess is noted.

P01/2010-03/T1.nii.gz          subject P01, visit 2010-03 (where P01 has several)
IXI-T1/IXI012-HH-1211-T1.nii.gz  subject IXI012-HH-1211: the folder names a contrast, not a person
P01_T1w.nii.gz                 subject P01
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from neurotome.data.datasets.bids import ScanRow, best_mask, entities
from neurotome.data.imaging.other_formats import other_format_notes
from neurotome.errors import printable
from neurotome.files.endings import is_image, stem
from neurotome.modality import CONTRASTS, candidates, is_no_scan, mentioned

_MAX_NAMED = 3
_WORDS = re.compile(r"[-_.+ ]+")


@dataclass(frozen=True)
class _Place:
    """Whose an image is by its place: subject, session, and the folders below the subject's."""

    subject: str
    session: str
    below: str


def guess_scans(
    root: Path, files: Iterable[Path] | None = None, default_modality: str | None = None
) -> tuple[list[ScanRow], list[str]]:
    """Return the scans of a plain folder, guessed from the names, and what could not be guessed.

    Args:
        root: The folder.
        files: Look at these alone.
        default_modality: Contrast of images whose names tell none.
    """
    notes: list[str] = []
    images = list(_images(root, notes) if files is None else files)
    tops = {path.relative_to(root).parts[0] for path in images if path.parent != root}
    # folders like IXI-T1 and IXI-T2 hold one contrast of everybody; patient1-T1 and patient2-T1 do not
    by_contrast = len({_rest(top) for top in tops if mentioned(top)}) == 1
    scans: list[tuple[Path, str, _Place]] = []
    masks: list[tuple[Path, _Place]] = []
    aside: list[str] = []
    for path in images:
        name, place = stem(path), _place(path, root, by_contrast)
        contrasts = candidates(name) or ((default_modality,) if default_modality is not None else ())
        if name.endswith("_desc-brain_mask"):
            masks.append((path, place))
        elif is_no_scan(name):
            aside.append(printable(path.relative_to(root)))
        elif len(contrasts) == 1:
            scans.append((path, contrasts[0], place))
        else:
            what = "no contrast" if not contrasts else " or ".join(contrasts)
            notes.append(f"left out {printable(path.relative_to(root))}: the name says {what}")
    rows, decided = _rows(scans, masks, root)
    if rows and files is None:
        count = Counter(row.modality for row in rows)
        counts = ", ".join(f"{count[m]} {m}" for m in CONTRASTS if m in count)
        decided.insert(0, f"contrasts and subjects are guessed from the names ({counts}); a table states them")
    if aside:
        decided.append(f"{len(aside)} masks, maps or other images are not taken for scans ({_some(aside)})")
    return rows, decided + notes


def _rows(
    scans: Sequence[tuple[Path, str, _Place]], masks: Sequence[tuple[Path, _Place]], root: Path
) -> tuple[list[ScanRow], list[str]]:
    """Return the scans with their visits, so that no person is in two splits and no visit is lost, and notes.

    Where the scans of a subject lie in several folders, each folder is a visit; several scans of one contrast in one
    folder are visits too.
    """
    folders: dict[str, set[str]] = defaultdict(set)
    for _, _, place in scans:
        folders[place.subject].add(place.below)

    def ids(place: _Place) -> tuple[str, str]:
        below = place.below if len(folders[place.subject]) > 1 else ""
        return place.subject, "-".join(filter(None, (place.session, below)))

    of_visit: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path, place in masks:
        of_visit[ids(place)].append(path)
    rows = [
        ScanRow(*ids(place), modality, path, mask=best_mask(path.name, of_visit[ids(place)]))
        for path, modality, place in scans
    ]
    count = Counter((row.subject, row.session, row.modality) for row in rows)
    many = {(subject, session) for (subject, session, _), number in count.items() if number > 1}
    named = [
        row
        if (row.subject, row.session) not in many or entities(row.path.name) or row.path.parent == root
        else replace(row, session="-".join(filter(None, (row.session, _rest(stem(row.path))))))
        for row in rows
    ]
    split_up = {after.subject for before, after in zip(rows, named, strict=True) if before is not after}
    several = "; if they are several persons, give each a folder, or a table"
    notes = [
        f"{printable(subject)}: folders taken for visits of one subject ({_some(b or '.' for b in below)}){several}"
        for subject, below in sorted(folders.items())
        if len(below) > 1
    ]
    return named, notes + [
        f"{printable(subject)}: holds several scans of one contrast, taken for visits of one subject{several}"
        for subject in sorted(split_up)
    ]


def _some(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return ", ".join(map(printable, [first, *others[: _MAX_NAMED - 1]])) + (", …" if len(others) >= _MAX_NAMED else "")


def _place(path: Path, root: Path, by_contrast: bool) -> _Place:
    """Return whose an image is: BIDS words if there are any, else the first folder, else the name without its contrast.

    Args:
        path: The image.
        root: The folder that names are relative to.
        by_contrast: Whether folders at the top that name a contrast say nothing about the person.
    """
    folders, name = list(path.relative_to(root).parts[:-1]), stem(path)
    words = "_".join([*folders, name])
    session = re.search(r"(?:^|_)ses-([^_]+)", words)
    visit = session.group(1) if session else ""
    if subject := re.search(r"(?:^|_)sub-([^_]+)", words):
        at = next((n for n, folder in enumerate(folders) if folder.startswith("sub-")), len(folders))
        below = [rest for f in folders[at + 1 :] if not f.startswith("ses-") and (rest := _rest(f))]
        return _Place(subject.group(1), visit, "-".join(below))
    top = _rest(folders[0]) if folders and mentioned(folders[0]) else ""
    if by_contrast and folders and mentioned(folders[0]):
        del folders[0]
    people = [rest for folder in folders if (rest := _rest(folder))]
    return _Place(people[0] if people else _rest(name) or top or name, visit, "-".join(people[1:]))


def _rest(name: str) -> str:
    """Return what a name says besides the contrast, with the signs between its words."""
    words, signs = _WORDS.split(name), _WORDS.findall(name)
    kept = [(word, sign) for word, sign in zip(words, [*signs, ""], strict=True) if word and not mentioned(word)]
    return "".join(word + sign for word, sign in kept[:-1]) + (kept[-1][0] if kept else "")


def _images(root: Path, notes: list[str]) -> Iterator[Path]:
    """Yield the images below a folder in the order of names; note what cannot be read."""
    denied: list[OSError] = []
    others: list[str] = []
    found: list[Path] = []
    for folder, folders, names in os.walk(root, onerror=denied.append):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "derivatives")
        notes += [
            f"a link to a folder is not followed: {printable(Path(folder, f))}"
            for f in folders
            if os.path.islink(os.path.join(folder, f))  # noqa: PTH114, PTH118 - for 10^5 folders
        ]
        found += [Path(folder, n) for n in names if is_image(n)]
        others += [n for n in names if not is_image(n)]
    notes += [
        f"left out {printable(error.filename)}: it cannot be listed ({error.strerror}); check its permissions"
        for error in denied
    ]
    notes += other_format_notes(others)
    yield from sorted(found)
