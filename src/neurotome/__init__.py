"""neurotome splits 3-D brain MRI into anatomy and contrast.

The names below are found on first use, so that importing the package costs nothing and changes nothing.

    from neurotome import Tokenizer, read_volume
    tokenizer = Tokenizer.from_pretrained("runs/demo/model")
    code = tokenizer.encode(read_volume("sub-01_T1w.nii.gz"), modality="T1w")
    tokenizer.decode(code, modality="T2w").save("sub-01_desc-synth_T2w.nii.gz")

    neurotome.train("neuroquant-demo", "store", "runs/a", seed=1)
    neurotome.evaluate("runs/a/model", "store", "runs/a")
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurotome.data.imaging.reader import read_volume
    from neurotome.data.imaging.volume import Volume
    from neurotome.experiments.evaluate import evaluate
    from neurotome.experiments.train import train
    from neurotome.scans.tokenizer import ScanTokenizer as Tokenizer

    __version__: str

__all__ = ["Tokenizer", "Volume", "__version__", "evaluate", "read_volume", "train"]

_HOMES = {
    "Tokenizer": ("neurotome.scans.tokenizer", "ScanTokenizer"),
    "Volume": ("neurotome.data.imaging.volume", "Volume"),
    "evaluate": ("neurotome.experiments.evaluate", "evaluate"),
    "train": ("neurotome.experiments.train", "train"),
    "read_volume": ("neurotome.data.imaging.reader", "read_volume"),
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
