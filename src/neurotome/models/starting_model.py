"""What a training started from (``--init-from``): recorded in its run, in the model that it makes, and on the card.

subjects(fine-tuned) = subjects(source) and its own, hashed with the source's salt

A fine-tuned network has seen the subjects of its source too, and must not be evaluated on them. Where the source's are
not known, it is not known of the fine-tuned network either whether it has seen a subject.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from neurotome.errors import InputError, UsageError, printable
from neurotome.models.folder import check_usable, read_folder
from neurotome.models.subjects import TrainingSubjects
from neurotome.nn.exported import Exportable


@dataclass(frozen=True)
class StartingModel:
    """The model whose weights a training started from.

    Args:
        digest: Of its model folder.
        network: Name of its class.
        subjects: Those it has seen, and their scans.
        before: Digests of the models that it started from itself, the latest first.
    """

    digest: str
    network: str
    subjects: TrainingSubjects
    before: tuple[str, ...] = ()

    @property
    def chain(self) -> tuple[str, ...]:
        """Digests of all models on the way, the latest first."""
        return (self.digest, *self.before)

    def in_words(self) -> str:
        """Return the line of the card."""
        return f"{self.network} {self.digest[:12]}, trained on {self.subjects.in_words()}"

    def to_json(self) -> dict[str, Any]:
        """Return what ``origin.json`` of a run folder holds."""
        subjects = self.subjects.to_json()
        return {"model": self.digest, "network": self.network, "training_subjects": subjects, "before": [*self.before]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], file: Path) -> Self:
        """Undo :meth:`to_json`.

        Raises:
            InputError: Not of this form.
        """
        try:
            subjects = TrainingSubjects.from_json(value["training_subjects"])
            found = cls(value["model"], value["network"], subjects, tuple(value["before"]))
            if not all(isinstance(text, str) for text in (found.digest, found.network, *found.before)):
                raise TypeError("a text is missing")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"does not say what the run started from ({error})",
                file=file,
                remedy="restore the file from a backup, or train into another --out",
            ) from error
        return found


def start_from(product: Exportable, folder: Path) -> StartingModel:
    """Load the weights of a model folder into a network, and return where they come from.

    Raises:
        UsageError: Another network, other contrasts or other sizes; the message names them.
        InputError: The folder is damaged, or its model must not be used yet.
    """
    content = read_folder(folder, Exportable)  # type: ignore[type-abstract]  # the registry holds concrete ones
    source, given = content.network, f"--init-from {printable(folder)}"
    check_usable(content, folder, content.images.space)
    if type(source) is not type(product):
        raise UsageError(f"{given} is a {type(source).__name__}, the config trains a {type(product).__name__}")
    if source.modalities != product.modalities:
        raise UsageError(f"{given} knows {', '.join(source.modalities)}, the run {', '.join(product.modalities)}")
    try:
        product.load_exported(source.exported_state())
    except ValueError as error:
        raise UsageError(f"{given}: {error}; use the config it was trained with") from error
    return StartingModel(content.digest, type(source).__name__, content.training_subjects, content.origin)
