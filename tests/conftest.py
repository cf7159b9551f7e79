"""What every test gets: one thread, no spinning, shapes checked at run time; toys for those who ask."""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
from jaxtyping import install_import_hook

import tests.shape_check  # noqa: F401 - found below by its name

# shape strings are checked in tests only; must come before the first import of the package
install_import_hook("neurotome", "tests.shape_check.check")

# a busy machine is no fault of the code
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toys are public names of the package."""
    from tests import toy

    toy.publish(monkeypatch)


@pytest.fixture(scope="session")
def toy_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BIDS dataset of toy brains; read it only."""
    from tests import toy

    return toy.bids(tmp_path_factory.mktemp("toy") / "raw")


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory, toy_raw: Path) -> Path:
    """The toy brains prepared at 3 mm; read it only."""
    from neurotome.data.preparation.preparation import Preparation
    from neurotome.data.stores.build import prepare

    folder = tmp_path_factory.mktemp("toy") / "store"
    prepare(toy_raw, folder, preparation=Preparation(3.0, (20, 24, 20)), modalities=["T1w", "T2w"], seed=0)
    return folder


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory, toy_store: Path) -> Path:
    """An exported toy; copy it before you change it."""
    from tests import toy

    folder = tmp_path_factory.mktemp("toy") / "model"
    with pytest.MonkeyPatch.context() as patch:
        toy.publish(patch)
        toy.exported(toy.ToyTokenizer(), toy_store, folder)
    return folder


@pytest.fixture(scope="session")
def phantom_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms with lesions and label maps, on a grid that four halvings can take; read it only."""
    from neurotome.data.phantom.cohort import SyntheticCohort
    from neurotome.data.phantom.dataset import write_dataset
    from neurotome.data.preparation.preparation import Preparation
    from neurotome.data.stores.build import prepare

    folder, modalities = tmp_path_factory.mktemp("phantoms"), ("T1w", "T2w")
    cohort = SyntheticCohort(4, spacing_mm=6.0, modalities=modalities, num_sites=2, lesion_fraction=1.0)
    write_dataset(cohort, folder / "raw")
    preparation = Preparation(6.0, (32, 32, 32))
    prepare(folder / "raw", folder / "store", preparation=preparation, modalities=modalities, sizes=(2, 1, 1), seed=0)
    return folder / "store"


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BIDS dataset of twelve small scans; read it only."""
    from tests.data.scans import write_bids

    return write_bids(tmp_path_factory.mktemp("bids"), [f"{n:02d}" for n in range(12)])


@pytest.fixture(scope="session")
def prepared(dataset: Path, tmp_path_factory: pytest.TempPathFactory):
    """A store of them; read it only."""
    from neurotome.data.preparation.preparation import Preparation
    from neurotome.data.stores.build import prepare

    report = prepare(dataset, tmp_path_factory.mktemp("work") / "store", preparation=Preparation(3.0, (20, 24, 16)))
    report.raise_failures()
    return report.store
