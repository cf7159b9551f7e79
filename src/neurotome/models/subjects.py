"""Who a model was trained on, in hashes: subjects by their ids, scans by their content.

    hash = SHA-256(salt : id)       and       SHA-256(salt : content)

An id that was changed does not hide a scan: its voxels and its file keep their hashes. The salt differs from model to
model, so that lists of two models cannot be compared, nor looked up in a table.

Whom converted weights were trained on is not known: their list is empty and not complete, and neither is that of any
model whose training started from them.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class TrainingSubjects:
    """Salted hashes of the subjects and scans of a training.

    Args:
        salt: In front of whatever is hashed.
        subjects: Of the ids.
        scans: Of the content hashes of the scans; empty in folders of before format 3.
        complete: Whether these are all; False where it is not known whom the first weights were trained on.
    """

    salt: str = ""
    subjects: frozenset[str] = frozenset()
    scans: frozenset[str] = frozenset()
    complete: bool = True

    @classmethod
    def hashed(cls, salt: str, subjects: Iterable[str], scans: Iterable[str] = ()) -> Self:
        """Return the hashes of ids and contents; without a subject it is not known who they were."""
        ids, contents = (frozenset(salted_hash(salt, one) for one in some) for some in (subjects, scans))
        return cls(salt, ids, contents, bool(ids))

    def joined(self, subjects: Iterable[str], scans: Iterable[str] = ()) -> Self:
        """Return these and further ids and contents, under the same salt: those of a model that was trained on."""
        more = self.hashed(self.salt, subjects, scans)
        return type(self)(self.salt, self.subjects | more.subjects, self.scans | more.scans, self.complete)

    def include(self, subject: str, scans: Iterable[str] = ()) -> bool:
        """Return whether a subject was among them, by its id or by the content of one of its scans.

        Args:
            subject: Its id.
            scans: Content hashes of its scans (:attr:`neurotome.data.stores.entries.SessionEntry.contents`).
        """
        if salted_hash(self.salt, subject) in self.subjects:
            return True
        return any(salted_hash(self.salt, scan) in self.scans for scan in scans) if self.scans else False

    def in_words(self) -> str:
        """Return how many they are, and whether there may be others."""
        known = f"{len(self.subjects)} subjects"
        if self.complete:
            return known
        return f"{known} and others that are not known" if self.subjects else "subjects that are not known"

    def to_json(self) -> dict[str, Any]:
        """Return what ``config.json`` holds."""
        listed = {"salt": self.salt, "sha256": sorted(self.subjects), "scans": sorted(self.scans)}
        return listed if self.complete else {**listed, "complete": False}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Undo :meth:`to_json`; scans may be missing, and an empty list is never complete.

        Raises:
            ValueError: Not of this form.
        """
        keys = value if isinstance(value, dict) else {}
        salt, subjects, scans = keys.get("salt"), keys.get("sha256"), keys.get("scans", [])
        if not isinstance(salt, str) or not isinstance(subjects, list) or not isinstance(scans, list):
            raise ValueError("training_subjects")
        if not all(isinstance(text, str) for text in (*subjects, *scans)):
            raise ValueError("training_subjects")
        if not isinstance(complete := keys.get("complete", True), bool):
            raise ValueError("training_subjects")
        return cls(salt, frozenset(subjects), frozenset(scans), complete and bool(subjects))


def salted_hash(salt: str, text: str) -> str:
    """Return the hash under which an id or a content is listed."""
    return hashlib.sha256(f"{salt}:{text}".encode()).hexdigest()
