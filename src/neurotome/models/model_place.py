"""Where the model of a path lies: a run folder stands for the model folder in it."""

from pathlib import Path

from neurotome.errors import UsageError, printable

CONFIG = "config.json"  # what every model folder has
RUN_CONFIG, MODEL = "config.yaml", "model"  # of a run folder: what every one has, and the name of its model folder


def model_of(path: Path) -> Path:
    """Return the model folder that a path names: itself, or that in a run folder.

    Raises:
        UsageError: There is no such folder, or a run folder without a model yet.
    """
    if not path.is_dir():
        raise UsageError(f"{printable(path)}: there is no such model folder; `neurotome train` writes one as RUN/model")
    if (path / CONFIG).exists() or not (path / RUN_CONFIG).exists():
        return path
    if not (path / MODEL / CONFIG).exists():
        raise UsageError(
            f"{printable(path)}: is a run folder without a model; the command that trains it writes one when it has "
            "finished"
        )
    return path / MODEL
