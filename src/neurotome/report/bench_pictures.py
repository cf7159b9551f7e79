"""One subject through every tokenizer: for each contrast the scan, then each reconstruction with its difference."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from neurotome.report.mosaics import Figure, draw
from neurotome.report.panels import Panel, difference_range, read_panels


@dataclass(frozen=True)
class PictureRow:
    """One contrast of the subject.

    Args:
        contrast: Its name.
        subject: Whose scan it is.
        figures: By tokenizer, in the order of the table: the pictures of scan, reconstruction and difference.
        limit: End of the scale of differences; the same in all rows.
    """

    contrast: str
    subject: str
    figures: tuple[tuple[str, Figure], ...]
    limit: float


def rows_of_pictures(folders: Mapping[str, Path]) -> list[PictureRow]:
    """Return a row per contrast of the first subject that the first tokenizer shows.

    Args:
        folders: By name, evaluated cells; one without pictures of that subject is left out.
    """
    found: dict[str, list[Panel]] = {
        name: [p for p in read_panels(folder / "panels.safetensors")[0] if p.source == p.target]
        for name, folder in folders.items()
    }
    subject = next((panels[0].subject for panels in found.values() if panels), None)
    chosen = [(name, panel) for name, panels in found.items() for panel in panels if panel.subject == subject]
    limit = difference_range([panel for _, panel in chosen])
    return [
        PictureRow(
            contrast,
            subject or "",
            tuple((name, draw(panel, limit)) for name, panel in chosen if panel.target == contrast),
            limit,
        )
        for contrast in dict.fromkeys(panel.target for _, panel in chosen)
    ]
