"""Finding the scans of a BIDS dataset, each with its site, its mask and its labels.

A site is the ``Site`` of a scan's sidecars, else the ``site`` column of participants.tsv. What stands in the way of one
scan costs that scan alone.
"""

from pathlib import Path

from neurotome.data.datasets.bids import (
    NO_MAGNITUDE,
    ScanRow,
    anat_folders,
    best_mask,
    derived,
    entities,
    listed,
)
from neurotome.data.datasets.sidecars import ParticipantSites, Sidecars
from neurotome.data.imaging.other_formats import other_format_notes
from neurotome.errors import InputError, printable
from neurotome.files.endings import is_image, stem
from neurotome.modality import candidates, is_bids_name, mentioned


class BidsScans:
    """Collects the scans of a BIDS dataset.

    Args:
        root: The dataset.

    Raises:
        InputError: participants.tsv cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sites, self._sidecars = ParticipantSites(root), Sidecars(root)
        self._masks, self._labels = derived(root, "*", "_desc-brain_mask"), derived(root, "truth", "_dseg")
        self._notes: list[str] = []
        self._unread: list[str] = []
        self._others = self._parts = 0

    def find(self) -> tuple[list[ScanRow], list[str]]:
        """Return every anatomical scan in the order of names, and notes."""
        rows: list[ScanRow] = []
        for subject, session, folder in anat_folders(self._root, self._notes):
            names = listed(folder, self._notes)
            self._unread += [name for name in names if not is_image(name)]
            found = ((folder / name, self._contrast(folder / name)) for name in names if is_image(name))
            rows += [self._row(subject, session, contrast, path) for path, contrast in found if contrast]
        notes = [f"{self._others} images of other kinds are left out"] if self._others else []
        notes += [f"{self._parts} phase, real or imaginary images are left out"] if self._parts else []
        return rows, [*notes, *other_format_notes(self._unread), *self._notes]

    def _contrast(self, path: Path) -> str | None:
        """Return the contrast of a scan; None, and a note, for an image that is none of ours."""
        name = stem(path)
        found = candidates(name) if is_bids_name(name) else ()
        if len(found) == 1 and entities(path.name).get("part") not in NO_MAGNITUDE:
            return found[0]
        if found:
            self._parts += 1
        elif is_bids_name(name) or not mentioned(name):
            self._others += 1
        else:
            where = printable(path.relative_to(self._root))
            self._notes.append(f"left out {where}: not a name of BIDS, like sub-01_acq-x_T1w.nii.gz")
        return None

    def _row(self, subject: str, session: str, contrast: str, path: Path) -> ScanRow:
        key, site, damage = (subject, session), None, None
        try:
            site = self._sidecars.site(path.parent, path.name)
        except InputError as error:
            damage = error
        if site is None:
            site, is_open = self._sites.of(subject, session)
            note = f"participants.tsv names several sites for sub-{printable(subject)}, none of them for this visit"
            if is_open and note not in self._notes:
                self._notes.append(note)
        masks = self._masks.get(key, ())
        mask = best_mask(path.name, masks)
        if masks and mask is None:
            self._notes.append(
                f"{printable(path.name)}: its session has brain masks, but of another scan or in another space"
            )
        truth = min(self._labels.get(key, ()), key=lambda p: (len(p.name), p.name), default=None)
        return ScanRow(subject, session, contrast, path, site, mask, truth, damage=damage)
