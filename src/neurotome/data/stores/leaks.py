"""Whether a store keeps every person in one split: by the ids of the subjects, and by the content of their scans."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from neurotome.errors import InputError


class Split(Protocol):
    """A session of a store, or its latent."""

    @property
    def subject(self) -> str:
        """Subject id."""

    @property
    def split(self) -> str:
        """Name of the split."""

    @property
    def contents(self) -> Iterable[str]:
        """Content hashes of its scans."""


def check_splits(entries: Iterable[Split], path: Path) -> None:
    """Refuse sessions of which a subject, or a scan under whatever id, lies in two splits.

    Args:
        entries: Of all splits.
        path: Where they lie, for the message.

    Raises:
        InputError: Two splits share a subject or a scan.
    """
    first: dict[str, Split] = {}
    leaks: dict[tuple[str, str], str] = {}
    for entry in entries:
        for what, key in [("", f"sub-{entry.subject}"), *(("scan", content) for content in entry.contents)]:
            other = first.setdefault(key, entry)
            if other.split != entry.split:
                ids = (f"sub-{other.subject} ({other.split})", f"sub-{entry.subject} ({entry.split})")
                leaks.setdefault(ids, "hold the same scan" if what else "are one subject")
    if leaks:
        (one, two), reason = next(iter(leaks.items()))
        more = f", and {len(leaks) - 1} more pairs like them" if len(leaks) > 1 else ""
        raise InputError(
            f"its splits leak: {one} and {two} {reason}{more}",
            file=path,
            remedy="`neurotome check` lists all; prepare again with a --splits table that keeps a person in one split",
        )
