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


# the words of label maps (their values name regions), of binary masks, and of what else is derived from a scan
_LABELS = """
    seg segm segmentation segmented dseg label labels labelmap lesion lesions tumor tumour aseg aparc parc parcellation
    wmparc ribbon synthseg tissue tissues pveseg groundtruth wmh
"""
_MASKS = "mask masks brainmask betmask defacemask roi rois binary"
_MAPS = """
    probseg prob probability csf pve mixeltype map maps thickness warp warpfield xfm jacobian deformation displacement
    biasfield atlas template
"""
# BIDS 1.10: suffixes of images that show none of our contrasts
_OTHERS = """
    T1map T2map T2star T2starw T2starmap R1map R2map R2starmap M0map PDmap PDT2 PDT2map MTVmap MTRmap MTsat MTR MTS
    MWFmap T1rho UNIT1 MP2RAGE MPM MEGRE MESE VFA IRT1 Chimap inplaneT1 inplaneT2 angio SWImag SWImagandphase swi bold
    sbref dwi epi cbv asl m0scan perfusion phase1 phase2 phasediff magnitude magnitude1 magnitude2 fieldmap
    TB1map RB1map
"""
LABEL_WORDS, MASK_WORDS = frozenset(_LABELS.split()), frozenset(_MASKS.split())
_DERIVED_WORDS = LABEL_WORDS | MASK_WORDS | frozenset(_MAPS.split())
_OTHER_SUFFIXES = frozenset(_OTHERS.split())
# as the first word these may be the initials of a person
_SHORT_WORDS = frozenset(("gm", "wm", "gt", "bin"))
# what SPM and CAT12 put before a name for tissue maps (c1, mwp1, rc2) and deformations (y_), templates of TemplateFlow
# and FSL
_PREFIXES = re.compile(r"(?:s\d*)?(?:m0?)?w?r?[cp][0-6](?=sub-)|i?y_(?=sub-)|tpl-|mni152", re.IGNORECASE)


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


def mentioned(text: str) -> tuple[str, ...]:
    """Return every contrast that the words of a text could mean, in the order of the table; ``t1_mprage`` is T1w."""
    words = {word for word in re.split(r"[^a-z0-9]+", text.lower()) if word}
    return tuple(c.name for c in CONTRASTS.values() if words & {c.name.lower(), *c.aliases})


def is_bids_name(stem: str) -> bool:
    """Return whether a name without its ending has the grammar of BIDS: ``sub-01[_key-value …]_suffix``."""
    first, *entities, suffix = stem.split("_") if "_" in stem else ("", "")
    return first.startswith("sub-") and all("-" in word for word in entities) and suffix.isalnum()


def candidates(stem: str) -> tuple[str, ...]:
    """Return every contrast that the name of a scan could mean; empty where it names none, or is no name of a scan.

    The suffix of a BIDS name decides alone: ``_ce-gadolinium_T1w`` is T1c, ``_acq-mprage_T1map`` no contrast of ours.
    In other names all words are compared with the aliases, so that ``IXI012-HH-1211_T1`` means T1w and
    ``patient_T1_T2`` means two; the words of masks, tissue maps and templates exclude them.

    Args:
        stem: The file's name without folder and image ending (:func:`neurotome.files.endings.stem`).
    """
    if is_bids_name(stem):
        *entities, suffix = stem.split("_")
        if suffix == "T1w" and any(word.startswith("ce-") for word in entities):
            return ("T1c",)
        return mentioned(suffix)
    return () if is_no_scan(stem) else mentioned(stem)


def is_no_scan(stem: str) -> bool:
    """Return whether a name is that of a mask, label map, tissue or parameter map, field, template or other image.

    Args:
        stem: The file's name without folder and image ending.
    """
    if is_bids_name(stem):
        suffix = stem.rpartition("_")[2]
        return suffix in _OTHER_SUFFIXES or suffix.lower() in _DERIVED_WORDS
    words = [word for word in re.split(r"[^a-z0-9]+", stem.lower()) if word]
    return (
        _PREFIXES.match(stem) is not None
        or not _DERIVED_WORDS.isdisjoint(words)
        or not _SHORT_WORDS.isdisjoint(words[1:])
    )


def bids_suffix(name: str) -> str:
    """Return the tail of a BIDS file name: ``T2w``, or ``ce-gadolinium_T1w`` for T1c."""
    contrast = CONTRASTS[canonical(name)]
    return f"{contrast.entity}_{contrast.suffix}" if contrast.entity else contrast.suffix
