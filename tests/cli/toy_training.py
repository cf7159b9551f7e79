"""The command that trains a toy."""

from pathlib import Path

from neurotome.cli.main import main


def train(config: str, store: Path, out: Path, *flags: str) -> int:
    return main(["train", config, str(store), "--out", str(out), "--device", "cpu", *flags])
