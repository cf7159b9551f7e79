"""The endings of the files we read and write: ``sub-01_T1w.nii.gz`` has the stem ``sub-01_T1w``."""

from pathlib import Path

IMAGE_ENDINGS = (".nii.gz", ".nii")
READABLE_ENDINGS = (*IMAGE_ENDINGS, ".mgz", ".mgh")
LATENT_ENDING = ".safetensors"


def stem(path: Path) -> str:
    """Return a file's name without its image or latent ending."""
    found = _known(path)
    return path.name[: -len(found)] if found else path.stem


def ending(path: Path) -> str:
    """Return the image or latent ending of a file name, in lower case."""
    return _known(path) or path.suffix.lower()


def _known(path: Path) -> str:
    return next((e for e in (*READABLE_ENDINGS, LATENT_ENDING) if path.name.lower().endswith(e)), "")
