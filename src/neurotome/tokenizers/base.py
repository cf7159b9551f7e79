"""The contract of a tokenizer: voxels in, an ``Encoded`` in the middle, voxels out.

A tokenizer knows tensors only. Scans, geometry and files are met in :mod:`neurotome.apply`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from neurotome.nn.recorded import Recorded
from neurotome.types import Image, ModalityIds


@dataclass(frozen=True)
class Encoded:
    """What a tokenizer makes of an image.

    Args:
        latent: What the decoder receives, ``(b, d, x, y, z)``.
        codes: Named code maps ``(b, x, y, z)``, the first one is the anatomy; empty for continuous tokenizers.
        style: Appearance vector ``(b, d)``, or None.
        terms: The bottleneck's own named losses, scalars.
        shape: Spatial shape of the source image.
        aux: Tensors that only training looks at (continuous codes before quantisation, for example).
        gain: Log gain on a coarse grid, ``(b, 1, x, y, z)``: the part of the appearance a vector cannot hold, or None.
    """

    latent: Tensor
    codes: Mapping[str, Tensor]
    style: Tensor | None
    terms: Mapping[str, Tensor]
    shape: tuple[int, int, int]
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    gain: Tensor | None = None


class Tokenizer(Recorded, ABC):
    """Encoder, bottleneck and decoder behind one face.

    Attributes:
        modalities: Names of the contrasts the model knows; their order gives the ids.
        factor: Voxels per latent cell and axis.
        latent_channels: Channels of ``Encoded.latent``.
        training_only: Names of submodules and buffers that training alone needs; an exported model leaves them out.
        window: Range of what the decoder paints; None where it has no bounds.
    """

    modalities: tuple[str, ...]
    factor: tuple[int, int, int]
    latent_channels: int
    training_only: tuple[str, ...] = ()
    window: tuple[float, float] | None = (-1.0, 1.0)

    @abstractmethod
    def encode(self, image: Image, modality: ModalityIds) -> Encoded:
        """Return the code of ``image`` in [-1, 1]; ``modality`` holds one id per image."""

    @abstractmethod
    def decode(self, encoded: Encoded, modality: ModalityIds) -> Image:
        """Return the image of ``encoded`` in the contrast ``modality``, of the source's spatial shape."""

    @abstractmethod
    def bits(self, shape: Sequence[int]) -> float:
        """Return the bits one image of this spatial shape takes: ceil(log2 K) per code, 16 per stored float."""

    def bits_used(self, encoded: Encoded) -> Tensor:
        """Return the bits each image of ``encoded`` takes, ``(b,)``: :meth:`bits`, unless cells are left out."""
        return torch.full((len(encoded.latent),), self.bits(encoded.shape), dtype=torch.float64)

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return the latent's spatial shape.

        Raises:
            ValueError: An axis longer than 1 is not a multiple of the factor; the next admissible shape is named.
        """
        bad = [s for s, f in zip(shape, self.factor, strict=True) if s != 1 and s % f]
        if bad:
            admissible = tuple(s if s == 1 else math.ceil(s / f) * f for s, f in zip(shape, self.factor, strict=True))
            raise ValueError(
                f"shape {tuple(shape)} is not a multiple of {self.factor}: pad to {admissible} "
                "(`neurotome prepare --shape` does it and records it)"
            )
        x, y, z = (1 if s == 1 else s // f for s, f in zip(shape, self.factor, strict=True))
        return x, y, z

    def bits_per_voxel(self, shape: Sequence[int]) -> float:
        """Return :meth:`bits` divided by the number of voxels."""
        return self.bits(shape) / math.prod(shape)

    def check_window(self, window: tuple[float, float] | None) -> None:
        """Refuse images that the decoder cannot paint.

        Args:
            window: The range no voxel of the images leaves; None where they have no bounds.

        Raises:
            ValueError: It reaches beyond the decoder's own.
        """
        if self.window is None or (window is not None and self.window[0] <= window[0] <= window[1] <= self.window[1]):
            return
        given = "images without bounds (z-scores without a clip)" if window is None else f"images in {list(window)}"
        raise ValueError(
            f"{type(self).__name__} paints values in {list(self.window)}, it cannot learn {given}: prepare with "
            "--intensity percentile, or with --intensity zscore --clip 5"
        )

    def modality_id(self, name: str) -> int:
        """Return the id of a contrast.

        Raises:
            ValueError: The model was not trained on it.
        """
        if name not in self.modalities:
            raise ValueError(f"this model knows {', '.join(self.modalities)}, not {name}")
        return self.modalities.index(name)

    def check_input(self, image: Tensor, modality: Tensor) -> None:
        """Refuse what the network was not built for.

        Raises:
            ValueError: Wrong rank, channel count, shape or modality id.
        """
        if image.ndim != 5:
            raise ValueError(f"image has shape {tuple(image.shape)}; give (b, c, x, y, z), a slice has z = 1")
        channels = self.arguments.get("in_channels")
        if channels is not None and image.shape[1] != channels:
            raise ValueError(
                f"image has {image.shape[1]} channels, this {type(self).__name__} takes {channels}; give images like "
                "those it was trained on"
            )
        self.latent_shape(image.shape[2:])
        self._check_modality(modality, len(image))

    def check_code(self, encoded: Encoded, modality: Tensor) -> None:
        """Refuse a code that does not fit its own image shape, or a contrast that the network does not know.

        Raises:
            ValueError: As said.
        """
        shape = self.latent_shape(encoded.shape)
        if tuple(encoded.latent.shape[2:]) != shape:
            raise ValueError(
                f"the latent has shape {tuple(encoded.latent.shape[2:])}, that of an image of {tuple(encoded.shape)} "
                f"has {shape}; give the shape of the image that was encoded"
            )
        self._check_modality(modality, len(encoded.latent))

    def _check_modality(self, modality: Tensor, images: int) -> None:
        if modality.shape != (images,) or modality.is_floating_point():
            raise ValueError(
                f"modality has shape {tuple(modality.shape)} and type {modality.dtype}; give one integer id per image, "
                f"({images},)"
            )
        # reading ids back would stall an accelerator; there the embedding's own check must do, where there is one
        if modality.device.type == "cpu" and bool(((modality < 0) | (modality >= len(self.modalities))).any()):
            raise ValueError(f"modality ids lie in [0, {len(self.modalities) - 1}] for {self.modalities}")

    def shared(self, encoded: Encoded) -> Encoded:
        """Return the code without what is private to the source's contrast; here there is nothing private."""
        return encoded

    def exported_state(self) -> dict[str, Tensor]:
        """Return the state without what only training needs."""
        return {key: value.detach() for key, value in self.state_dict().items() if not self._only_trains(key)}

    def load_exported(self, state: Mapping[str, Tensor]) -> None:
        """Load an exported state; every key but the training-only ones must be there, and nothing else.

        Raises:
            ValueError: A key is missing, unknown, of another shape, or not finite.
        """
        own = self.exported_state()
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unknown:
            raise ValueError(f"weights do not fit {type(self).__name__}: missing {missing[:3]}, unknown {unknown[:3]}")
        for key, value in state.items():
            if value.shape != own[key].shape:
                raise ValueError(f"weight {key} has shape {tuple(value.shape)}, the network {tuple(own[key].shape)}")
            if not is_finite(value):
                raise ValueError(f"weight {key} holds NaN or Inf; train again or fetch the model folder again")
        self.load_state_dict(dict(state), strict=False)

    def adopt(self, state: dict[str, Tensor]) -> None:
        """Make the tensors of a checked exported state this network's own, without a copy.

        For a network built on the meta device; what only training needs starts anew.

        Raises:
            ValueError: Something else than the training-only parts is missing.
        """
        self.load_state_dict(state, strict=False, assign=True)
        for name, module in self.named_modules():
            own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
            bare = [f"{name}.{key}".removeprefix(".") for key, tensor in own.items() if tensor.is_meta]
            if any(not self._only_trains(key) for key in bare):
                raise ValueError(f"{type(self).__name__} holds tensors that its exported state lacks: {bare[:3]}")
            for key, tensor in own.items():
                if tensor.is_meta:
                    fresh = torch.zeros_like(tensor, device="cpu")
                    setattr(module, key, nn.Parameter(fresh) if isinstance(tensor, nn.Parameter) else fresh)
            if bare and callable(reset := getattr(module, "reset_parameters", None)):
                reset()

    def _only_trains(self, key: str) -> bool:
        """Return whether a tensor of the state is needed in training alone."""
        return any(key == name or key.startswith(f"{name}.") for name in self.training_only)


def codebook_sizes(network: Tokenizer, names: Sequence[str]) -> dict[str, int | None]:
    """Return the number of codes behind each code map, None where the network does not say.

    They are ``network.codebook_sizes`` where the network has it, else ``num_codes`` of its submodules, in the order of
    the code maps. Of a book of unknown size no utilisation is told.
    """
    given = getattr(network, "codebook_sizes", None)
    if given is not None:
        return {name: given.get(name) for name in names}
    found = [k for m in network.modules() if isinstance(k := getattr(m, "num_codes", None), int)]
    return dict(zip(names, found, strict=True)) if len(found) == len(names) else dict.fromkeys(names)


def is_finite(value: Tensor) -> bool:
    """Return whether no element is NaN or infinite; one pass, nothing allocated."""
    if not value.is_floating_point() or not value.numel():
        return True
    low, high = torch.aminmax(value)
    return math.isfinite(low) and math.isfinite(high)
