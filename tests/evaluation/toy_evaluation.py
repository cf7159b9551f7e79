"""A cohort and a tokenizer small enough that every number of an evaluation can be said beforehand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.record import Prepared
from neurotome.data.stores.entries import SessionEntry, entry_file, write_entry
from neurotome.data.stores.store import Store
from neurotome.models.subjects import TrainingSubjects
from neurotome.scans.codec import Codec
from neurotome.tokenizers.base import Encoded, Tokenizer

SHAPE = (16, 20, 16)
MODALITIES = ("T1w", "T2w")


def brain(shape=SHAPE) -> np.ndarray:
    """Return an ellipsoid that leaves a margin."""
    axes = np.meshgrid(*[(np.arange(s) - (s - 1) / 2) / (0.42 * s) for s in shape], indexing="ij")
    return sum(a**2 for a in axes) < 1


def session_images(seed: int, shape=SHAPE, noise: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Return T1w and T2w ``(2, x, y, z)`` of one subject and its mask: T2w is T1w upside down, with its own noise."""
    rng = np.random.default_rng(seed)
    mask = brain(shape)
    field = gaussian_filter(rng.normal(size=shape), 1.2)
    anatomy = np.tanh(field / field[mask].std())
    views = np.stack([0.85 * anatomy, -0.85 * anatomy]) + noise * rng.normal(size=(2, *shape))
    return np.where(mask, views, -1).astype(np.float32), mask


def toy_store(
    path: Path,
    counts=(6, 0, 4),
    shape=SHAPE,
    missing: tuple[str, ...] = (),
    visits: int = 1,
    noise: float = 0.02,
    labelled: bool = False,
) -> Store:
    """Write a store with ``counts`` train, validation and test subjects; those in ``missing`` have no T2w.

    Label maps, where asked for, hold 1 where T1w is bright and 2 where it is dark.
    """
    preparation = Preparation(spacing_mm=3.0, shape=shape)
    sessions = []
    (path / "entries").mkdir(parents=True)
    splits = [name for name, n in zip(("train", "val", "test"), counts, strict=True) for _ in range(n)]
    for i, split in enumerate(splits):
        for visit in range(visits):
            image, mask = session_images(100 * i + visit, shape, noise)
            subject, session = f"{i:02d}", "" if visits == 1 else f"{visit + 1}"
            modalities = MODALITIES[:1] if subject in missing else MODALITIES
            digest = f"{i:032d}{visit:032d}"
            prepared = Prepared(image[: len(modalities)], modalities, mask, {})
            labels = np.where(mask, np.where(image[0] > 0, 1, 2), 0).astype(np.uint8) if labelled else None
            sha = write_entry(path / entry_file(digest), prepared, MODALITIES, labels)
            ids = (subject, session, "AB"[i % 2], split, modalities, digest, entry_file(digest), sha)
            sessions.append(SessionEntry(*ids, {"labels": "labels.nii"} if labelled else {}))
    return Store.create(path, preparation, MODALITIES, sessions)


class BlockTokenizer(Tokenizer):
    """Codes the mean of every block of 2 voxels per axis in equal steps; no weight is learned.

    Args:
        num_codes: Steps on [-1, 1].
        aligned: Whether T2w is turned upside down first, so that both contrasts of one brain have the same codes.
        private: Whether the sign of each block's slope along x is a private code.
        modalities: Contrasts.
    """

    def __init__(self, num_codes: int = 16, aligned: bool = True, private: bool = False, modalities=MODALITIES) -> None:
        super().__init__()
        self.modalities, self.factor, self.latent_channels = tuple(modalities), (2, 2, 2), 1 + private
        self.num_codes, self.aligned, self.private = num_codes, aligned, private
        self.codebook_sizes = {"anatomy": num_codes, "private": 2}
        self.weight = nn.Parameter(torch.zeros(1))

    def encode(self, image, modality) -> Encoded:
        """Return block means in steps, and the image's mean as style."""
        self.check_input(image, modality)
        x = self._turned(image, modality)
        means = torch.nn.functional.avg_pool3d(x, 2)[:, 0]
        codes = ((means + 1) / 2 * self.num_codes).long().clamp(0, self.num_codes - 1)
        named, latent = {"anatomy": codes}, self._level(codes)[:, None]
        if self.private:
            slope = torch.nn.functional.avg_pool3d(x[:, 0, 1::2] - x[:, 0, ::2], (1, 2, 2))
            named["private"] = (slope > 0).long()
            latent = torch.cat([latent, (named["private"][:, None] * 2 - 1) * 0.1], 1)
        style = image.mean((2, 3, 4)) + self.weight
        return Encoded(latent, named, style, {}, tuple(image.shape[2:]))

    def decode(self, encoded: Encoded, modality):
        """Return each block filled with its level, with the private slope on it, moved by nothing of the style."""
        assert encoded.style.shape == (len(modality), 1)
        x = encoded.latent[:, :1].repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
        if self.private:
            slope = encoded.latent[:, 1:].repeat_interleave(2, 3).repeat_interleave(2, 4)
            x = x + torch.stack([-slope, slope], 3).flatten(2, 3)
        return self._turned(x, modality)

    def shared(self, encoded: Encoded) -> Encoded:
        """Drop the private code."""
        if not self.private:
            return encoded
        latent = encoded.latent * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1)
        return replace(encoded, latent=latent, codes={"anatomy": encoded.codes["anatomy"]})

    def anatomy(self, encoded: Encoded):
        """Return the part of the latent that the private code is not in."""
        return encoded.latent[:, :1]

    def bits(self, shape) -> float:
        """See the base class; the style is one float."""
        per_cell = math.ceil(math.log2(self.num_codes)) + self.private
        return math.prod(self.latent_shape(shape)) * per_cell + 16

    def bits_used(self, encoded: Encoded) -> torch.Tensor:
        """See the base class; a code without its private part takes a bit less per cell."""
        per_cell = math.ceil(math.log2(self.num_codes)) + ("private" in encoded.codes)
        bits = math.prod(self.latent_shape(encoded.shape)) * per_cell + 16.0
        return torch.full((len(encoded.latent),), bits, dtype=torch.float64)

    def _turned(self, x, modality):
        background = x <= -0.9
        sign = torch.where((modality == 1) & torch.tensor(self.aligned), -1.0, 1.0).view(-1, 1, 1, 1, 1)
        return torch.where(background, x, sign * x)

    def _level(self, codes):
        return (codes.float() + 0.5) / self.num_codes * 2 - 1


class ToyScans:
    """A network with styles, the subjects it was trained on, and the shape it expects."""

    digest = "toy"
    training_subjects = TrainingSubjects()

    def __init__(
        self, network: Tokenizer, trained: tuple[str, ...] = (), styled: bool = True, shape: tuple[int, ...] = SHAPE
    ) -> None:
        self.network, self.codec = network, Codec(network, shape)
        self.preparation = Preparation(spacing_mm=3.0, shape=shape)
        self.styles = {(m, "all"): torch.zeros(1) for m in network.modalities} if styled else {}
        self.trained = set(trained)

    def trained_on(self, subject: str, scans=()) -> bool:
        """Return whether the subject is among those given."""
        return subject in self.trained
