"""Scans in, batches out: reading, preparing, storing, splitting, drawing; and the synthetic cohort.

Names are found on first use, because a reader of one scan needs neither torch nor Lightning.
"""

import importlib
from typing import Any

_HOMES = {
    "Geometry": "volume",
    "Volume": "volume",
    "read_volume": "nifti",
    "write_volume": "nifti_writer",
    "Preparation": "transforms",
    "Prepared": "transforms",
    "Record": "transforms",
    "Manifest": "manifest",
    "scan": "manifest",
    "split_subjects": "splits",
    "Store": "store",
    "prepare": "prepare",
    "TrainingPlan": "dataset",
    "TrainingBatches": "dataset",
    "batch_of": "dataset",
    "VolumeModule": "datamodule",
}
"""Public name to the module of this folder that defines it."""

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'neurotome.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"neurotome.data.{_HOMES[name]}"), name)
