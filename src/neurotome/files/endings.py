"""The endings of the files we read and write: ``sub-01_T1w.nii.gz`` has the stem ``sub-01_T1w``."""

import os
from pathlib import Path

IMAGE_ENDINGS = (".nii.gz", ".nii")
READABLE_ENDINGS = (*IMAGE_ENDINGS, ".mgz", ".mgh")
LATENT_ENDING = ".safetensors"


def stem(path: Path | str) -> str:
    """Return a file's name without its folder and a known ending; all other dots belong to the name."""
    name = os.path.basename(path)  # noqa: PTH119 - Path is slow for the names of 10^6 rows
    return name[: len(name) - len(_known(name))]


def ending(path: Path | str) -> str:
    """Return the known ending of a file name, in lower case, else what follows its last dot."""
    return _known(os.fspath(path)) or Path(path).suffix.lower()


def is_image(name: str) -> bool:
    """Return whether a file name ends like an image that can be read; names that begin with a dot are hidden."""
    return name.lower().endswith(READABLE_ENDINGS) and not name.startswith(".")


def _known(name: str) -> str:
    return next((e for e in (*READABLE_ENDINGS, LATENT_ENDING, ".json") if name.lower().endswith(e)), "")
