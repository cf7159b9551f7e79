"""Images of other kinds than we read: how they end, and what turns them into one that is read."""

from collections import Counter
from collections.abc import Iterable

_CONVERT = {
    (".hdr", ".img", ".hdr.gz", ".img.gz"): "convert each pair of header and image to one .nii.gz file",
    (".nrrd", ".nhdr", ".mha", ".mhd"): "convert to .nii.gz, for example with SimpleITK",
    (".mnc",): "convert to .nii.gz, for example with mnc2nii",
    (".dcm", ".ima"): "convert each series to .nii.gz with dcm2niix",
    (".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip"): "decompress it; gzip is the only compression that is read",
}
_ENDINGS = {ending: remedy for endings, remedy in _CONVERT.items() for ending in endings}


def other_format(name: str) -> tuple[str, str] | None:
    """Return the ending of an image that is not read and how to convert it; None for a name without such an ending."""
    found = [ending for ending in _ENDINGS if name.lower().endswith(ending)]
    return (found[0], _ENDINGS[found[0]]) if found else None


def other_format_notes(names: Iterable[str]) -> list[str]:
    """Return one sentence for each kind of image that is not read: ``left out 2 .mha files, which are not read: …``."""
    kinds = Counter(kind for name in names if not name.startswith(".") and (kind := other_format(name)) is not None)
    return sorted(
        f"left out {n} {ending} file{'s, which are' if n > 1 else ', which is'} not read: {how}"
        for (ending, how), n in kinds.items()
    )
