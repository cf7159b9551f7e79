"""Networks that turn voxels into codes and back; the public names are the registry of configs and model folders."""

from neurotome.tokenizers.base import Encoded, Tokenizer
from neurotome.tokenizers.dc_ae import DCAE
from neurotome.tokenizers.kl_vae import KLVAE
from neurotome.tokenizers.lossless import HaarWavelet, Identity, MaskCodec, SpaceToDepth
from neurotome.tokenizers.shared_anatomy.anatome import Anatome
from neurotome.tokenizers.shared_anatomy.anatome_training import AnatomeTraining
from neurotome.tokenizers.shared_anatomy.neuroquant import NeuroQuant
from neurotome.tokenizers.shared_anatomy.neuroquant_training import NeuroQuantTraining
from neurotome.tokenizers.tokenizer_training import TokenizerTraining
from neurotome.tokenizers.vector_ae import VectorAE
from neurotome.tokenizers.vq_vae import VQVAE
from neurotome.tokenizers.vq_vae2 import VQVAE2

__all__ = [
    "DCAE",
    "KLVAE",
    "VQVAE",
    "VQVAE2",
    "Anatome",
    "AnatomeTraining",
    "Encoded",
    "HaarWavelet",
    "Identity",
    "MaskCodec",
    "NeuroQuant",
    "NeuroQuantTraining",
    "SpaceToDepth",
    "Tokenizer",
    "TokenizerTraining",
    "VectorAE",
]
