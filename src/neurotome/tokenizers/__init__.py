"""Networks that turn voxels into codes and back; the public names are the registry of configs and model folders."""

from neurotome.tokenizers.base import Encoded, Tokenizer
from neurotome.tokenizers.neuroquant import NeuroQuant
from neurotome.tokenizers.neuroquant_training import NeuroQuantTraining

__all__ = ["Encoded", "NeuroQuant", "NeuroQuantTraining", "Tokenizer"]
