"""A tokenizer and a method small enough for tests, and a store and scans for them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurotome.data.imaging.geometry import Geometry
from neurotome.data.imaging.volume import Volume
from neurotome.data.stores.store import Store
from neurotome.data.stores.volumes import Masks, Volumes
from neurotome.models.folder import ModelFolder, read_folder
from neurotome.models.sealed import sealed
from neurotome.nn.exported import Exportable
from neurotome.nn.nd import Conv, depth_to_space, space_to_depth
from neurotome.scans.export import export
from neurotome.tokenizers.base import Encoded, Tokenizer
from neurotome.training.base import Method
from neurotome.types import Batch

SHAPE = (16, 20, 12)
MODALITIES = ("T1w", "T2w")


class ToyTokenizer(Tokenizer):
    """Averages blocks of two voxels; style is the mean intensity; the decoder adds the style to the blocks."""

    def __init__(
        self,
        modalities: Sequence[str] = MODALITIES,
        width: int = 3,
        gains: Sequence[float] = (1.0,),
        kind: str = "toy",
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width is {width}; give a whole number > 0")
        self.modalities = tuple(modalities)
        self.factor, self.latent_channels = (2, 2, 2), width
        self.codebook_sizes = {"anatomy": 2}
        self.weight = nn.Parameter(torch.ones(width))
        self.gain = nn.Parameter(torch.tensor(list(gains)).mean())
        self.register_buffer("seen", torch.zeros(1, dtype=torch.long))

    def encode(self, image: Tensor, modality: Tensor) -> Encoded:
        self.check_input(image, modality)
        blocks = F.avg_pool3d(image, 2)
        style = torch.stack([image.mean(dim=(1, 2, 3, 4)), modality.float()], dim=1)
        latent = blocks * self.weight.view(1, -1, 1, 1, 1)
        x, y, z = image.shape[2:]
        return Encoded(latent, {"anatomy": (blocks[:, 0] > 0).long()}, style, {}, (x, y, z))

    def decode(self, encoded: Encoded, modality: Tensor) -> Tensor:
        up = F.interpolate(encoded.latent.mean(dim=1, keepdim=True), size=encoded.shape)
        return up * self.gain + 0.1 * encoded.style[:, 1].view(-1, 1, 1, 1, 1)

    def bits(self, shape: Sequence[int]) -> float:
        return float(np.prod(self.latent_shape(shape))) + 32.0


class PlainVAE(Tokenizer):
    """A linear variational autoencoder on blocks of two voxels: no codes, no style, blind to the contrast.

    Args:
        modalities: Contrasts.
        latent_channels: Channels of the latent.
        pooled: Whether one vector, the mean over all cells, stands for a scan.
    """

    def __init__(self, modalities: Sequence[str] = MODALITIES, latent_channels: int = 2, pooled: bool = False) -> None:
        super().__init__()
        self.modalities, self.latent_channels, self.pooled = tuple(modalities), latent_channels, pooled
        self.factor = (2, 2, 2)
        self.encoder = Conv(3, 8, 2 * latent_channels, 1)
        self.decoder = Conv(3, latent_channels, 8, 1)

    def encode(self, image: Tensor, modality: Tensor) -> Encoded:
        self.check_input(image, modality)
        mean, log_variance = self.encoder(space_to_depth(image, self.factor)).chunk(2, dim=1)
        if self.pooled:
            mean, log_variance = (v.mean((2, 3, 4), keepdim=True) for v in (mean, log_variance))
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1).mean()
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        x, y, z = image.shape[2:]
        return Encoded(latent, {}, None, {"kl": kl}, (x, y, z), {"mean": mean, "log_variance": log_variance})

    def decode(self, encoded: Encoded, modality: Tensor) -> Tensor:
        shape = [1 if s == 1 else s // 2 for s in encoded.shape]
        latent = encoded.latent.expand(-1, -1, *shape)
        return depth_to_space(self.decoder(latent), self.factor, encoded.shape)

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        x, y, z = super().latent_shape(shape)
        return (1, 1, 1) if self.pooled else (x, y, z)

    def bits(self, shape: Sequence[int]) -> float:
        return 16.0 * self.latent_channels * float(np.prod(self.latent_shape(shape)))


class ToyTraining(Method):
    """Least squares."""

    def __init__(
        self, tokenizer: Tokenizer, optimizer=None, weight: float = 1.0, levels: tuple[int, ...] = (1, 2)
    ) -> None:
        super().__init__(optimizer)
        self.tokenizer, self.weight = tokenizer, weight

    def product(self) -> Tokenizer:
        return self.tokenizer

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        image, modality = batch.flat()
        error = (self.tokenizer.decode(self.tokenizer.encode(image, modality), modality) - image).square().mean()
        return {"loss": self.weight * error}

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        return {"mse": self.loss(batch)["loss"]}


def read(folder: Path) -> ModelFolder[Any]:
    """A model folder of any kind."""
    return read_folder(folder, Exportable)


def exported(network: Exportable, store: Path | Store, folder: Path, *, masks: str = "") -> str:
    """Write a model folder as a training on a store would, or on its masks."""
    path = store.path if isinstance(store, Store) else store
    data = Masks(source=masks, channels=network.in_channels) if masks else Volumes()
    return export(network, data.open(path), folder, facts={"Config": "toy"})


def reseal(folder: Path, **changes: Any) -> None:
    """Change keys of a model folder's config and seal it again, as a forger would."""
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    config.pop("digest", None)
    (folder / "config.json").write_bytes(sealed(config)[0])


def names(folder: Path) -> list[str]:
    """The names in a folder, sorted; hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def publish(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the toys public names of ``neurotome.tokenizers``."""
    import neurotome.tokenizers as folder

    for cls in (ToyTokenizer, PlainVAE, ToyTraining):
        monkeypatch.setattr(folder, cls.__name__, cls, raising=False)
    monkeypatch.setattr(folder, "__all__", [*folder.__all__, "ToyTokenizer", "PlainVAE", "ToyTraining"])


def oblique(shape: tuple[int, int, int] = SHAPE, spacing: float = 3.0) -> Geometry:
    """A grid turned by 20 degrees about two axes, flipped along x, off the origin."""
    a, b = np.deg2rad(20), np.deg2rad(-11)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tilt @ np.diag([-spacing, spacing, spacing])
    affine[:3, 3] = [31.5, -17.25, 4.0]
    return Geometry(shape, affine)


def brain(
    seed: int = 0, gain: float = 1.0, shape: tuple[int, int, int] = SHAPE, geometry: Geometry | None = None
) -> Volume:
    """A smooth blob on zero background."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in shape), indexing="ij")
    inside = sum(a**2 for a in axes) < 1
    texture = 60 + 20 * np.sin(3 * axes[0] + seed) + 10 * axes[1] + rng.normal(0, 2, shape)
    return Volume((np.where(inside, texture, 0) * gain).astype(np.float32), geometry or oblique(shape))


def head(seed: int = 0) -> Volume:
    """Noise all over the box."""
    volume = brain(seed)
    noise = np.abs(np.random.default_rng(seed).normal(0, 2, volume.array.shape)) + 1
    return Volume((volume.array + noise).astype(np.float32), volume.geometry)


def bids(root: Path, subjects: int = 6, sites: int = 2) -> Path:
    """A BIDS dataset of toy brains in two contrasts."""
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "toy", "BIDSVersion": "1.10.0"}))
    rows = ["participant_id\tsite"]
    for i in range(subjects):
        anat = root / f"sub-{i:02d}" / "anat"
        anat.mkdir(parents=True)
        rows.append(f"sub-{i:02d}\tsite{i % sites}")
        brain(i).save(anat / f"sub-{i:02d}_T1w.nii.gz")
        brain(i, gain=3.0).save(anat / f"sub-{i:02d}_T2w.nii.gz")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root


CONFIG = """# A toy: least squares on blocks.
method:
  class_path: ToyTraining
  init_args:
    tokenizer:
      class_path: ToyTokenizer
      init_args: {width: 3}
data: {batch_sessions: 2, crop: 8, whole_fraction: 0.0}
trainer: {max_steps: 4, val_every_steps: 2, checkpoint_every_steps: 2, ema_decay: 0.5}
optimizer: {lr: 1e-2}
seed: 3
tiny:
  trainer: {max_steps: 1}
"""


def exported_with(subjects: Sequence[str], store: Path, folder: Path) -> str:
    """Write the model folder of a toy that was trained on other subjects than those of the store."""
    from neurotome.models.folder import write_model_folder

    preparation = Store.open(store).preparation
    return write_model_folder(
        folder, ToyTokenizer(), preparation=preparation, subjects=subjects, card="", stats={}, styles={}
    )
