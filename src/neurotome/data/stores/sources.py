"""The classes that a config's ``data`` block may name."""

from neurotome.data.stores.base import TrainingData
from neurotome.data.stores.latent_batches import LatentVolumes
from neurotome.data.stores.volumes import Masks, Pairs, Volumes

__all__ = ["LatentVolumes", "Masks", "Pairs", "TrainingData", "Volumes"]
