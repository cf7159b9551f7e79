"""The folder of small-scan builders is importable by the tests beside it; one prepared store serves many of them."""

import pytest
from scans import write_bids

from neurotome.data.prepare import prepare
from neurotome.data.transforms import Preparation


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return write_bids(tmp_path_factory.mktemp("bids"), [f"{n:02d}" for n in range(12)])


@pytest.fixture(scope="session")
def prepared(dataset, tmp_path_factory):
    report = prepare(dataset, tmp_path_factory.mktemp("work") / "store", preparation=Preparation(3.0, (20, 24, 16)))
    report.raise_failures()
    return report.store
