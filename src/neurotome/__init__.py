"""neurotome splits 3-D brain MRI into anatomy and contrast.

The names below are found on first use, so that importing the package costs nothing and changes nothing.

    from neurotome import Tokenizer
    tokenizer = Tokenizer.from_pretrained("runs/demo/model")
    code = tokenizer.encode("sub-01_T1w.nii.gz")
    tokenizer.decode(code, modality="T2w").save("sub-01_desc-synth_T2w.nii.gz")

    neurotome.prepare("dataset", "store", preparation=neurotome.Preparation(3.0, (64, 80, 64)))
    neurotome.train("neuroquant-demo", "store", "runs/a", seed=1)
    neurotome.evaluate("runs/a/model", "store", "runs/a")
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurotome.data.checking.check import check
    from neurotome.data.datasets.manifest import scan as inspect
    from neurotome.data.imaging.reader import read_volume
    from neurotome.data.imaging.volume import Volume
    from neurotome.data.phantom.cohort import SyntheticCohort
    from neurotome.data.phantom.dataset import write_dataset as phantom
    from neurotome.data.preparation.preparation import Preparation
    from neurotome.data.stores.build import prepare
    from neurotome.experiments.evaluate import evaluate
    from neurotome.experiments.train import train
    from neurotome.report.page import write_report
    from neurotome.scans.latent_scan import LatentScan
    from neurotome.scans.tokenizer import ScanTokenizer as Tokenizer

    __version__: str

__all__ = [
    "LatentScan", "Preparation", "SyntheticCohort", "Tokenizer", "Volume", "__version__", "check", "evaluate",
    "inspect", "phantom", "prepare", "read_volume", "train", "write_report",
]  # fmt: skip

_HOMES = {
    "LatentScan": ("neurotome.scans.latent_scan", "LatentScan"),
    "Preparation": ("neurotome.data.preparation.preparation", "Preparation"),
    "SyntheticCohort": ("neurotome.data.phantom.cohort", "SyntheticCohort"),
    "Tokenizer": ("neurotome.scans.tokenizer", "ScanTokenizer"),
    "Volume": ("neurotome.data.imaging.volume", "Volume"),
    "check": ("neurotome.data.checking.check", "check"),
    "evaluate": ("neurotome.experiments.evaluate", "evaluate"),
    "inspect": ("neurotome.data.datasets.manifest", "scan"),
    "phantom": ("neurotome.data.phantom.dataset", "write_dataset"),
    "prepare": ("neurotome.data.stores.build", "prepare"),
    "read_volume": ("neurotome.data.imaging.reader", "read_volume"),
    "train": ("neurotome.experiments.train", "train"),
    "write_report": ("neurotome.report.page", "write_report"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return importlib.metadata.version("neurotome")
        except importlib.metadata.PackageNotFoundError:
            return "0+unknown"
    if name not in _HOMES:
        raise AttributeError(f"module 'neurotome' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
