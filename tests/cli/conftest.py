"""What the tests of commands that train share."""

from pathlib import Path

import pytest

from tests.toy import CONFIG


@pytest.fixture
def config(tmp_path: Path) -> str:
    """The file of a config that trains a toy in four steps."""
    path = tmp_path / "toy.yaml"
    path.write_text(CONFIG)
    return str(path)
