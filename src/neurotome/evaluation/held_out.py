"""Whether the sessions of an evaluation were held out of a training, by the ids of subjects and by their scans."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from neurotome.data.stores.entries import SessionEntry
from neurotome.errors import InputError
from neurotome.scans.tokenizer import ScanTokenizer


class KnowsSubjects(Protocol):
    """A model that knows whom it was trained on."""

    def trained_on(self, subject: str, scans: Iterable[str] = ()) -> bool:
        """Return whether it was trained on a subject, by its id or by the content of its scans."""


def seen_by(model: KnowsSubjects, entries: Iterable[SessionEntry]) -> list[str]:
    """Return the subjects that a model was trained on, under the ids that they have here."""
    return sorted({e.subject for e in entries if model.trained_on(e.subject, e.contents)})


def seen_at_all(model: ScanTokenizer, entries: Iterable[SessionEntry]) -> bool | None:
    """Return whether a model was trained on one of the subjects; None where not all of its subjects are known."""
    return bool(seen_by(model, entries)) or (False if model.training_subjects.complete else None)


def check_held_out(entries: Sequence[SessionEntry], split: str, models: Mapping[str, KnowsSubjects | None]) -> None:
    """Refuse subjects that a model was trained on.

    Args:
        entries: What is evaluated.
        split: Its name.
        models: By what they are called; None where there is none.

    Raises:
        InputError: A model was trained on one of the subjects.
    """
    total = len({e.subject for e in entries})
    for what, model in models.items():
        if model is not None and (seen := seen_by(model, entries)):
            raise InputError(
                f"{len(seen)} of {total} subjects of the {split} split were in the {what}'s training: "
                f"{', '.join(seen[:5])}{' …' if len(seen) > 5 else ''}",
                remedy="evaluate on held-out subjects, or pass --allow-train and say so wherever the numbers are shown",
            )
