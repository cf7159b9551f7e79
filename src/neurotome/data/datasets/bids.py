"""BIDS names and folders: what a scan, its mask and its labels are called.

    sub-01[/ses-1]/anat/sub-01[_ses-1][_acq-x][_run-1]_T1w.nii.gz          a scan
    derivatives/*/sub-01[/ses-1]/anat/*_desc-brain_mask.nii.gz             its brain mask
    derivatives/truth/sub-01[/ses-1]/anat/*_dseg.nii.gz                    its true labels

The suffix alone says what an image is. A mask applies to a scan only if it lies in the same space and none of its
entities says otherwise.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from neurotome.data.datasets.text_files import one_line
from neurotome.errors import InputError, printable
from neurotome.files.endings import is_image, stem

# spaces that are a scan's own: a mask in one of them serves a scan whose name states no space
_OWN_SPACES = ("", "T1w", "T2w", "orig", "native", "individual", "scanner")
# parts of a complex image other than its magnitude
NO_MAGNITUDE = ("phase", "real", "imag")
# entities that name the visit or the contrast: they do not restrict which of several scans this is
_NAMING = ("sub", "ses", "ce")
# entities that a mask and its scan must have in common
_MATCHING = ("acq", "ce", "rec", "run", "echo")


@dataclass(frozen=True)
class ScanRow:
    """One scan as found: a row of a manifest.

    Args:
        subject: Id without ``sub-``.
        session: Id without ``ses-``; empty where there is one visit only.
        modality: Our name of the contrast.
        path: The file.
        site: Name of the scanner site, if known.
        mask: Brain mask of the scan, if there is one.
        labels: Label map of the session, if this row names one.
        split: Part of the data the subject was assigned to, if it was.
        damage: Why the scan cannot be prepared although its name is in order, such as a sidecar that cannot be read.
    """

    subject: str
    session: str
    modality: str
    path: Path
    site: str | None = None
    mask: Path | None = None
    labels: Path | None = None
    split: str | None = None
    damage: InputError | None = None

    def __post_init__(self) -> None:
        """Keep ids and site on one line, wherever they come from."""
        for name in ("subject", "session", "site"):
            if (value := getattr(self, name)) is not None and (text := one_line(value)) != value:
                object.__setattr__(self, name, text)


def entities(name: str) -> dict[str, str]:
    """Return the entities of a BIDS file name: ``sub-1_run-2_T1w.nii`` has ``{"sub": "1", "run": "2"}``."""
    words = (word.partition("-") for word in stem(name).split("_")[:-1])
    return {key: value for key, dash, value in words if dash}


def preference(name: str) -> tuple[int, int, int, str]:
    """Return the order in which several scans of one contrast are preferred.

    Fewest entities besides subject, session and contrast agent; then the lowest run, the lowest echo, the name.
    """
    found = entities(name)
    restricting = sum(key not in _NAMING for key in found)
    run, echo = (int(v) if v.isdecimal() and v.isascii() else 0 for v in (found.get("run", ""), found.get("echo", "")))
    return restricting, run, echo, name


def is_bids(root: Path) -> bool:
    """Return whether a folder is laid out as BIDS: subject folders that hold ``anat`` folders."""
    return any(True for _ in anat_folders(root))


def best_mask(name: str, masks: Sequence[Path]) -> Path | None:
    """Return the mask that fits a scan best, if any: most entities in common, then the shortest name."""
    scan = entities(name)
    own = scan.get("space", "")

    def fits(mask: Path) -> bool:
        theirs = entities(mask.name)
        space = theirs.pop("space", "")
        near = space == own or (not own and space in _OWN_SPACES)
        return near and all(scan.get(key) == theirs[key] for key in _MATCHING if key in theirs)

    def rank(mask: Path) -> tuple[int, int, str]:
        common = sum(scan.get(key) == value for key, value in entities(mask.name).items())
        return -common, len(mask.name), mask.name

    return min(filter(fits, masks), key=rank, default=None)


def anat_folders(root: Path, lost: list[str] | None = None) -> Iterator[tuple[str, str, Path]]:
    """Yield subject, session and folder of every ``anat`` folder; what cannot be entered is added to ``lost``."""
    for subject in folders(root, "sub-", lost):
        for folder in folders(subject, ("ses-", "anat"), lost):
            if folder.name == "anat":
                yield subject.name.removeprefix("sub-"), "", folder
            elif folder.name.startswith("ses-"):
                for anat in folders(folder, "anat", lost):
                    if anat.name == "anat":
                        yield subject.name.removeprefix("sub-"), folder.name.removeprefix("ses-"), anat


def listed(folder: Path, lost: list[str] | None = None) -> list[str]:
    """Return the names in a folder, sorted; of one that cannot be listed none, and why is added to ``lost``."""
    return [entry.name for entry in _entries(folder, lost)]


def folders(root: Path, prefix: str | tuple[str, ...], lost: list[str] | None = None) -> list[Path]:
    """Return the folders below one whose names begin so; links that lead nowhere are added to ``lost``."""
    found = []
    for entry in _entries(root, lost):
        if not entry.name.startswith(prefix):
            continue
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link that loops
            is_folder = False
        if is_folder:
            found.append(Path(entry.path))
        elif lost is not None and entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110 - links loop
            where = printable(entry.path)
            lost.append(f"left out {where}: a link that leads nowhere; in a DataLad dataset `datalad get` fetches it")
    return found


def _entries(folder: Path, lost: list[str] | None) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:  # says what is a folder without asking the file system again
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if lost is not None:
            lost.append(f"left out {printable(folder)}: it cannot be listed ({error.strerror}); check its permissions")
        return []


def derived(root: Path, pipeline: str, ending: str) -> dict[tuple[str, str], list[Path]]:
    """Return the derived files of one kind per subject and session."""
    found: dict[tuple[str, str], list[Path]] = {}
    for folder in sorted((root / "derivatives").glob(pipeline)) if (root / "derivatives").is_dir() else []:
        if not folder.is_dir():
            continue
        for subject, session, anat in anat_folders(folder):
            names = [n for n in listed(anat) if is_image(n) and stem(n).endswith(ending)]
            if names:
                found.setdefault((subject, session), []).extend(anat / n for n in names)
    return found
