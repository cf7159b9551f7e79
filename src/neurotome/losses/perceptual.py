r"""Perceptual loss: distance of the features of a frozen network, slice by slice.

    L = mean over axes, drawn slices x_s, y_s and levels l of  mean |u_l(x_s) - u_l(y_s)|^2,     u = phi / |phi|

phi_l are the features of a frozen network of two dimensions at level l, a vector per place (Zhang et al., 2018,
arXiv:1801.03924, without its learned weights). Of a volume a share of the slices along each axis is used ("2.5-D"),
drawn anew every step; of a slice everything is used.

The network is read from a safetensors file on this machine; nothing is downloaded. The one that comes with the package
was trained to segment tissues of synthetic brains in any contrast (``experiments/perceptual_features.py`` trains it
again); its SHA-256 stands below and in the card of every model that used it. Features of an ImageNet network can be
used where torchvision is installed: a file with its weights and the metadata ``architecture: torchvision-vgg16``.
"""

import hashlib
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurotome.errors import InputError, UsageError, printable
from neurotome.files.atomic import write_atomically
from neurotome.files.json_text import parse_json
from neurotome.files.tensors import metadata_of, read_bounded, read_tensors
from neurotome.nn.nd import Conv
from neurotome.ranges import Count, Range, Ranged, Weight
from neurotome.types import Image, Scalar

OWN_FILE = "slice_features.safetensors"
OWN_SHA256 = "7eecddf95f86b50efeffd33a2671dbaa8bf289c21c843906b4feddd8d61521f5"
MAX_BYTES = 2 * 2**30
SLICE_FEATURES, VGG = "slice-features", "torchvision-vgg16"
VGG_LEVELS = (3, 8, 15, 22)  # after the second, fourth, seventh and tenth convolution's rectifier, as LPIPS takes them
EPS = 1e-6


class FeatureExtractor(nn.Module, ABC):
    """Maps slices to feature maps."""

    @abstractmethod
    def forward(self, slices: Image) -> list[Tensor]:
        """Return the levels ``(n, d, x', y', 1)`` of slices ``(n, 1, x, y, 1)`` in [-1, 1]."""


class SliceFeatures(FeatureExtractor):
    """Pairs of convolutions, halved in between.

    Args:
        channels: Width of each level.
    """

    def __init__(self, channels: Sequence[int] = (12, 24, 32, 48)) -> None:
        super().__init__()
        widths = [1, *channels]
        self.levels = nn.ModuleList(nn.ModuleList([Conv(2, a, b), Conv(2, b, b)]) for a, b in pairwise(widths))

    def forward(self, slices: Image) -> list[Tensor]:
        """See :class:`FeatureExtractor`."""
        h, found = slices, []
        for i, pair in enumerate(self.levels):
            if i > 0:
                h = F.avg_pool3d(h, [min(2, s) for s in h.shape[2:]])
            first, second = pair.children()
            h = F.relu(second(F.relu(first(h))))
            found.append(h)
        return found


class TorchvisionFeatures(FeatureExtractor):
    """The rectified convolutions of torchvision's VGG16.

    Args:
        layers: Its ``features``.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = nn.ModuleList(list(layers.children())[: VGG_LEVELS[-1] + 1])
        # of ImageNet's images in [0, 1], as torchvision documents them
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, slices: Image) -> list[Tensor]:
        """See :class:`FeatureExtractor`."""
        grey = (slices[..., 0] + 1) / 2  # (n, 1, x, y)
        h, found = (grey - self.mean) / self.deviation, []
        for i, layer in enumerate(self.layers):
            h = layer(h)
            if i in VGG_LEVELS:
                found.append(h[..., None])
        return found


def write_features(path: Path, network: SliceFeatures, facts: dict[str, str]) -> str:
    """Write a network to a file in half precision and return the file's SHA-256.

    Args:
        path: Where; a file that is there is replaced.
        network: Its weights and sizes are stored.
        facts: Further metadata: how it was trained.
    """
    channels = [int(pair[-1].weight.shape[0]) for pair in network.levels]  # type: ignore[index]  # a list of pairs
    metadata = {
        **facts,
        "architecture": SLICE_FEATURES,
        "channels": json.dumps(channels),
        "in_channels": "1",
    }
    state = {key: value.detach().half().contiguous() for key, value in network.state_dict().items()}
    return write_atomically(path, [safetensors.torch.save(state, metadata)])


def read_features(path: Path, sha256: str | None = None) -> tuple[FeatureExtractor, str]:
    """Return the frozen network of a file, and the file's SHA-256.

    Args:
        path: A safetensors file.
        sha256: What its SHA-256 must be; None for any.

    Raises:
        UsageError: There is no such file, or it needs torchvision, which is not installed.
        InputError: Not such a file, changed, or weights that do not fit.
    """
    if not path.is_file():
        raise UsageError(f"{printable(path)}: there is no such file of perceptual features; give one on this machine")
    content = read_bounded(path, MAX_BYTES)
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256:
        raise InputError(f"its SHA-256 is {digest}, not {sha256}", file=path, remedy="fetch or train it again")
    try:
        metadata = metadata_of(path, content)
        state = {key: value.float() for key, value in read_tensors(content, path).items()}
        with torch.device("cpu"):  # also while a method is built on the meta device
            network = _network(metadata, state)
    except UsageError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        words = " ".join(str(error.reason if isinstance(error, InputError) else error).split())[:200]
        raise InputError(
            f"not a file of perceptual features ({words})", file=path, remedy="fetch or train it again"
        ) from error
    return network.eval().requires_grad_(False), digest


def _network(metadata: dict[str, str], state: dict[str, Tensor]) -> FeatureExtractor:
    """Return the network that the metadata names, with its weights."""
    architecture = metadata.get("architecture")
    if architecture == SLICE_FEATURES:
        if metadata["in_channels"] != "1":
            raise ValueError(f"its slices have {metadata['in_channels']} channels; features of one are known")
        network = SliceFeatures(parse_json(metadata["channels"]))
        network.load_state_dict(state)
        return network
    if architecture != VGG:
        raise ValueError(f"its architecture is {architecture!r}; known are {SLICE_FEATURES} and {VGG}")
    try:
        models = importlib.import_module("torchvision.models")
    except ImportError as error:
        raise UsageError(
            "these perceptual features are torchvision's VGG16, and torchvision is not installed: install it "
            "(`pip install 'neurotome[vgg]'`), or leave `features` out to use those that come with neurotome"
        ) from error
    layers = models.vgg16(weights=None).features
    own = {key.removeprefix("features."): value for key, value in state.items() if not key.startswith("classifier.")}
    layers.load_state_dict(own)
    return TorchvisionFeatures(layers)


@dataclass(frozen=True)
class Perceptual(Ranged):
    """Which features, and how they are used.

    Args:
        weight: Of the term, at least 0 (MedGen: 1e-3 for a VAE, 2e-3 for a VQ-VAE, 0.1 for a DC-AE).
        features: Path of a safetensors file; None for the network that comes with the package.
        sha256: What the file's SHA-256 must be; None to take the file as it is.
        slices: Share of a volume's slices used along each axis and step, in (0, 1].
        axes: Axes along which slices are taken, of 0, 1, 2.
        start: Finished steps before the term counts.

    Raises:
        ValueError: A value is out of range.
    """

    weight: Weight = 1e-3
    features: str | None = None
    sha256: str | None = None
    slices: Annotated[float, Range("(0, 1]")] = 0.25
    axes: tuple[Annotated[int, Range("[0, 2]")], ...] = (0, 1, 2)
    start: Count = 0

    def loss(self) -> "PerceptualLoss":
        """Return the loss with the network read from its file.

        Raises:
            UsageError: There is no such file, or it needs torchvision, which is not installed.
            InputError: Not such a file, changed, or weights that do not fit.
        """
        if self.features is not None:
            return PerceptualLoss(*read_features(Path(self.features), self.sha256), self)
        with resources.as_file(resources.files("neurotome.losses") / OWN_FILE) as path:
            return PerceptualLoss(*read_features(path, self.sha256 or OWN_SHA256), self)


class PerceptualLoss:
    """The distance, with its network.

    The network is no submodule of a training, because it is not trained: checkpoints hold only its hash.

    Args:
        network: Frozen features of slices.
        sha256: Of its file.
        settings: How it is used.
    """

    def __init__(self, network: FeatureExtractor, sha256: str, settings: Perceptual | None = None) -> None:
        self.network, self.sha256, self.settings = network, sha256, settings or Perceptual()

    @property
    def weight(self) -> float:
        """Weight of the term."""
        return self.settings.weight

    def active(self, step: int) -> bool:
        """Return whether the term counts after ``step`` finished steps."""
        return self.settings.weight > 0 and step >= self.settings.start

    def __call__(self, y: Image, x: Image) -> Scalar:
        """Return the mean distance over channels of a reconstruction ``y`` from ``x``, both ``(b, c, x, y, z)``."""
        self.network.to(x.device)
        y, x = (image.flatten(0, 1)[:, None] for image in (y, x))  # the network takes one channel
        flat = [axis for axis in range(3) if x.shape[2 + axis] == 1]
        distances = [self._along(y, x, axis) for axis in flat[:1] or self.settings.axes]
        return torch.stack(distances).mean()

    def _along(self, y: Image, x: Image, axis: int) -> Scalar:
        length = x.shape[2 + axis]
        count = max(1, round(self.settings.slices * length))
        chosen = torch.randperm(length, device=x.device)[:count]
        seen, truth = (_slices(image, axis, chosen) for image in (y, x))
        with torch.no_grad():
            wanted = self.network(truth)
        levels = [(_unit(a) - _unit(b)).square().sum(1).mean() for a, b in zip(self.network(seen), wanted, strict=True)]
        return torch.stack(levels).mean()


def _slices(image: Image, axis: int, chosen: Tensor) -> Tensor:
    """Return slices ``(b * k, c, u, v, 1)``."""
    taken = image.index_select(2 + axis, chosen).movedim(2 + axis, 1)  # (b, k, c, u, v)
    return taken.flatten(0, 1)[..., None]


def _unit(features: Tensor) -> Tensor:
    """Return features of length 1 at every place."""
    features = features.float()
    return features / (features.square().sum(1, keepdim=True) + EPS).sqrt()
