"""The vocabulary of contrasts: one table maps our names to BIDS spelling and to the names people use.

In logs, configs and files of ours a contrast has the name in the first column; on disk in BIDS ``T1c`` is a T1w image
with ``ce-gadolinium``.
"""

import difflib
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Contrast:
    """One row of the table.

    Args:
        name: Our name.
        suffix: BIDS suffix.
        entity: BIDS entity that tells it from others of the same suffix, or "".
        aliases: Lower-case spellings found in file names and headers of other datasets.
    """

    name: str
    suffix: str
    entity: str = ""
    aliases: tuple[str, ...] = ()


CONTRASTS: dict[str, Contrast] = {
    c.name: c
    for c in (
        Contrast("T1w", "T1w", "", ("t1", "t1w", "t1n", "mprage", "bravo", "t1pre")),
        Contrast("T2w", "T2w", "", ("t2", "t2w")),
        Contrast("FLAIR", "FLAIR", "", ("flair", "t2f", "fla", "t2flair")),
        Contrast("PDw", "PDw", "", ("pd", "pdw")),
        Contrast("T1c", "T1w", "ce-gadolinium", ("t1c", "t1ce", "t1gd", "t1post", "t1km")),
    )
}


def canonical(name: str) -> str:
    """Return our name of a contrast.

    Raises:
        ValueError: The name is unknown; the message names the nearest admissible one.
    """
    if name in CONTRASTS:
        return name
    for contrast in CONTRASTS.values():
        if re.sub(r"[-_ ]", "", name.lower()) in (contrast.name.lower(), *contrast.aliases):
            return contrast.name
    near = difflib.get_close_matches(name, CONTRASTS, n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"unknown modality {name!r}: admissible are {', '.join(CONTRASTS)}{hint}")


def candidates(filename: str) -> tuple[str, ...]:
    """Return every contrast that a file name could mean, most specific spelling first; empty when none.

    BIDS spelling decides alone (``_ce-gadolinium_T1w`` is T1c); otherwise the words of the name are compared with the
    aliases, so that ``IXI012-HH-1211_T1.nii.gz`` means T1w and ``patient_T1_T2.nii.gz`` means two.
    """
    stem = filename.split("/")[-1].split(".")[0]
    words = stem.split("_")
    if len(words) > 1 and words[0].startswith("sub-"):
        for contrast in sorted(CONTRASTS.values(), key=lambda c: not c.entity):
            if words[-1] == contrast.suffix and (not contrast.entity or any(w.startswith("ce-") for w in words)):
                return (contrast.name,)
    parts = [p for p in re.split(r"[^a-z0-9]+", stem.lower()) if p]
    return tuple(c.name for c in CONTRASTS.values() if any(p in (c.name.lower(), *c.aliases) for p in parts))


def bids_suffix(name: str) -> str:
    """Return the tail of a BIDS file name: ``T2w``, or ``ce-gadolinium_T1w`` for T1c."""
    contrast = CONTRASTS[canonical(name)]
    return f"{contrast.entity}_{contrast.suffix}" if contrast.entity else contrast.suffix
