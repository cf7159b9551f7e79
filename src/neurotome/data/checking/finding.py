"""What `check` can find, how severe each finding is, and what it means.

    error     prepare refuses it, or a training on it would be wrong             exit code 3
    warning   usable, but somebody should look at it                             exit code 3 with --strict
    note      a fact worth knowing

A finding never repeats what a header or a sidecar says about a person; it names the field only.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]

FINDINGS: dict[str, tuple[Severity, str]] = {
    # the dataset as a whole
    "manifest": ("error", "the dataset cannot be read as a whole"),
    "choice": ("note", "what was decided when the scans were found"),
    "not-checked": ("note", "files of other kinds are not looked at"),
    "not-prepared": ("error", "the image may be whole, but what belongs to it is not"),
    "unpaired": ("warning", "several contrasts, but none of them twice in one session"),
    "unused": ("note", "checked, but its contrast or role is unknown, so prepare leaves it out"),
    "outside": ("warning", "a link leads out of the dataset"),
    # bytes and headers
    "unreadable": ("error", "the reader refuses the file"),
    "header": ("note", "what the reader decided about the header"),
    "single-slice": ("warning", "one slice only"),
    "synthetic": ("warning", "made by a model, no scan of anybody"),
    "thick-slices": ("note", "slices are much thicker than the pixels"),
    # voxels
    "nonfinite": ("error", "voxels are NaN or infinite"),
    "empty": ("error", "every voxel is zero"),
    "constant": ("error", "every voxel has the same value"),
    "nearly-empty": ("warning", "hardly any voxel differs from the background"),
    "extreme-voxels": ("warning", "a few voxels lie far beyond all others"),
    "absurd-voxels": ("error", "voxels that no scanner makes"),
    "background": ("warning", "the background is above zero"),
    "negative-foreground": ("warning", "much of the brain is below zero"),
    "whole-head": ("error", "the head is not stripped, and there is no brain mask; prepare needs --allow-head"),
    "unstripped": ("warning", "the head is not stripped; a face can identify a person"),
    "dim-rim": ("warning", "what surrounds the brain is much darker than it, like a skull, a scalp or noise"),
    "brain-size": ("warning", "too small for a whole brain"),
    "outlier": ("warning", "unlike the other scans of its contrast"),
    # one session
    "grid-order": ("note", "one grid, axes stored in another order or direction"),
    "grid-spacing": ("warning", "one field of view, other voxels"),
    "grids-differ": ("warning", "not co-registered, or another grid"),
    "grids-apart": ("error", "fields of view that hardly overlap"),
    "brains-apart": ("warning", "the brains of one session lie at different places"),
    "missing-contrast": ("warning", "a contrast that most sessions have"),
    "rare-contrast": ("note", "a contrast that few sessions have"),
    # one content, several names
    "duplicate-subjects": ("error", "two subjects have the same scan"),
    "duplicate-contrasts": ("error", "two contrasts of one session are the same scan"),
    "duplicate-sessions": ("warning", "two sessions of one subject have the same scan"),
    "duplicate-names": ("warning", "one scan under two names"),
    "duplicate-labels": ("warning", "two label maps with the same content"),
    # who is trained on
    "two-splits": ("error", "one subject in two splits"),
    "leak": ("error", "the same content in two splits"),
    "splits": ("error", "the table of splits cannot be used"),
    "no-split": ("warning", "a subject without a split"),
    "similar-ids": ("warning", "ids that differ only in spelling"),
    # labels
    "label-values": ("error", "labels that are not whole numbers"),
    "label-unknown": ("error", "labels that were not declared"),
    "label-missing": ("warning", "declared labels that do not occur"),
    "label-range": ("error", "labels that prepare cannot store"),
    "label-odd": ("note", "a set of labels unlike that of the others"),
    "label-empty": ("note", "a label map without any label"),
    "mask-empty": ("error", "a brain mask without a voxel"),
    "label-grid": ("warning", "a label map on another grid than its scan"),
    "label-apart": ("error", "a label map that hardly overlaps its scan"),
    # people
    "private-header": ("warning", "text in the header that may identify a person"),
    "header-text": ("note", "free text in the header"),
    "private-sidecar": ("warning", "a sidecar that may identify a person"),
    "indirect-sidecar": ("note", "a sidecar that can be linked to a visit"),
    "private-column": ("warning", "a column that may identify a person"),
    # BIDS
    "bids-ids": ("error", "file name and folder name two subjects or sessions"),
    "bids-name": ("warning", "a name that BIDS does not allow"),
    "bids-sidecar": ("error", "a sidecar that cannot be read"),
    "bids-participants": ("warning", "participants.tsv and the folders disagree"),
    "bids-description": ("note", "no dataset_description.json"),
    "bids-empty": ("warning", "a subject without an anatomical scan"),
    # a store
    "store-index": ("error", "the index of the store is damaged"),
    "store-entry": ("error", "an entry of the store is damaged"),
    "store-voxels": ("error", "an entry holds what prepare never writes"),
    "store-unfinished": ("warning", "prepare was interrupted"),
    "store-source": ("warning", "a source of the store has changed"),
    "store-stray": ("note", "files in the store that the index does not name"),
    "store-tables": ("warning", "the tables for people and the index disagree"),
}

_ORDER: dict[str, int] = {"error": 0, "warning": 1, "note": 2}
_PLACE = {code: place for place, code in enumerate(FINDINGS)}


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Args:
        code: A key of :data:`FINDINGS`.
        file: Path below the dataset, with forward slashes; empty where the finding concerns the whole.
        reason: What is wrong, with numbers.
        remedy: What the reader can do; empty for most notes.
        subject: Subject id, where one is concerned.
        session: Session id, where one is concerned.

    Raises:
        ValueError: ``code`` is not in the table.
    """

    code: str
    file: str
    reason: str
    remedy: str = ""
    subject: str = ""
    session: str = ""

    def __post_init__(self) -> None:
        if self.code not in FINDINGS:
            raise ValueError(f"{self.code!r} is no finding; admissible are {', '.join(FINDINGS)}")

    @property
    def severity(self) -> Severity:
        """The severity that the table gives."""
        return FINDINGS[self.code][0]

    def to_json(self) -> dict[str, Any]:
        """Return a mapping of JSON values."""
        return {"severity": self.severity, **vars(self)}


def ranked(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings without repetition: the most severe first, then in the table's order, then by file."""
    return tuple(
        sorted(
            set(findings), key=lambda f: (_ORDER[f.severity], _PLACE[f.code], f.file, f.subject, f.session, f.reason)
        )
    )


def counted(findings: Iterable[Finding]) -> dict[str, int]:
    """Return how many findings there are of each severity."""
    counts = Counter(f.severity for f in findings)
    return {"error": counts["error"], "warning": counts["warning"], "note": counts["note"]}
