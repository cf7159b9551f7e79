"""What it takes to give a network of ours the tensors of another: their names, and which of them is which of ours.

Widths, depths and attention are read from the names and shapes of the tensors. What leaves no trace in them (groups of
normalisations, attention heads, activations) is what those networks have by default, or is given.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from neurotome.errors import UsageError
from neurotome.tokenizers.base import Tokenizer

RESIDUAL, ATTENTION, NORM, CONV = "R", "A", "N", "C"  # kinds of MONAI's blocks
SHOWN = 3


@dataclass(frozen=True)
class Untraced:
    """What the weights do not tell.

    Args:
        modalities: Contrasts; their order gives the ids.
        norm_groups: Groups of every group normalisation.
        num_heads: Heads of NeuroQuant's attention; MONAI's autoencoders have one.
        intensities: What -1 and 1 of a prepared image become for the network (MONAI's autoencoders).
    """

    modalities: tuple[str, ...] = ("T1w", "T2w")
    norm_groups: int = 32
    num_heads: int = 8
    intensities: tuple[float, float] = (0.0, 1.0)


@dataclass
class Correspondence:
    """A network of ours, and where its tensors come from.

    Args:
        network: On the meta device.
        sources: By our name: their names; several are laid one behind the other along the first axis.
        constants: By our name: tensors that they do not have.
        unused: Beginnings of names that our network does not need.
    """

    network: Tokenizer
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    def layer(self, ours: str, *theirs: str, bias: bool = True) -> None:
        """Note a layer with weight and bias."""
        for part in ("weight", "bias") if bias else ("weight",):
            self.sources[f"{ours}.{part}"] = tuple(f"{name}.{part}" for name in theirs)

    def state(self, theirs: "Tensors") -> dict[str, Tensor]:
        """Return the exported state of our network.

        Raises:
            UsageError: Tensors are missing, of another shape, or left over.
        """
        named = {name for names in self.sources.values() for name in names}
        faults = {
            "missing": sorted(theirs.original(name) for name in named - theirs.tensors.keys()),
            "surplus": sorted(
                theirs.original(n) for n in theirs.tensors.keys() - named if not n.startswith(self.unused or ("\0",))
            ),
        }
        own, state, wrong = self.network.exported_state(), dict(self.constants), []
        for name, names in self.sources.items():
            first, *others = own[name].shape
            parts = [_lifted(theirs.tensors[n], own[name]) for n in names if n in theirs.tensors]
            for part, source in zip(parts, [n for n in names if n in theirs.tensors], strict=True):
                expected = (first // len(names), *others)
                if part.shape != expected or part.is_floating_point() != own[name].is_floating_point():
                    wrong.append(f"{theirs.original(source)} ({tuple(part.shape)} {part.dtype} for {expected})")
            if not wrong and len(parts) == len(names):
                state[name] = torch.cat(parts)
        faults["of another shape or type"] = sorted(wrong)
        found = [f"{what}: {_shown(names)}" for what, names in faults.items() if names]
        if found:
            raise UsageError(f"the tensors do not fit {type(self.network).__name__}; {'; '.join(found)}")
        return {name: state[name].to(own[name].dtype) for name in own}


class Tensors:
    """Tensors of a file under plain names: wrappers that hold one convolution leave no trace in them.

    Args:
        tensors: By the names in the file.

    Raises:
        UsageError: Two of them have the same plain name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._originals: dict[str, str] = {}
        for name, value in tensors.items():
            plain = re.sub(r"(\.(conv|postconv))+(?=\.(weight|bias)$)", "", name.removeprefix("module."))
            if plain in self.tensors:
                raise UsageError(f"the tensors {self._originals[plain]} and {name} would be one; leave one of them out")
            self.tensors[plain], self._originals[plain] = value, name

    def original(self, plain: str) -> str:
        """Return the name in the file; the plain one of what is not there."""
        return self._originals.get(plain, plain)

    def shape(self, name: str, *axes: int) -> tuple[int, ...]:
        """Return a shape of one of some numbers of axes.

        Raises:
            UsageError: There is no such tensor, it has another number of axes, or one of length 0.
        """
        if name not in self.tensors:
            raise UsageError(f"the tensor {name} is missing")
        shape = tuple(self.tensors[name].shape)
        if len(shape) not in axes or 0 in shape:
            words = " or ".join(map(str, axes))
            raise UsageError(f"the tensor {self.original(name)} has shape {shape}; it should have {words} axes")
        return shape

    def kernel(self, name: str) -> tuple[int, ...]:
        """Return the shape of a convolution's weight."""
        return self.shape(name, 4, 5)

    def has(self, beginning: str) -> bool:
        """Return whether a name begins so."""
        return any(name.startswith(beginning) for name in self.tensors)

    def count(self, beginning: str) -> int:
        """Return how many numbered parts there are behind a beginning.

        Raises:
            UsageError: None, or one is left out.
        """
        found = {int(m[1]) for name in self.tensors if (m := re.match(re.escape(beginning) + r"(\d+)\.", name))}
        gap = next((i for i in range(max(found, default=0) + 1) if i not in found), None)
        if gap is not None:
            raise UsageError(f"there are no tensors {beginning}{gap}.*")
        return len(found)

    def kinds(self, part: str) -> str:
        """Return the kinds of the blocks of MONAI's encoder or decoder, one letter each.

        Raises:
            UsageError: A block is of none of them.
        """
        return "".join(self._kind(f"{part}.blocks.{i}.") for i in range(self.count(f"{part}.blocks.")))

    def _kind(self, block: str) -> str:
        inner = {name.removeprefix(block) for name in self.tensors if name.startswith(block)}
        if any(name.startswith(("conv1.", "conv2.", "norm1.", "norm2.")) for name in inner):
            return RESIDUAL
        if any(name.startswith(("attn.", "norm.")) for name in inner):
            return ATTENTION
        if inner <= {"weight", "bias"}:
            flat = "weight" in inner and self.tensors[f"{block}weight"].ndim == 1
            return NORM if flat else CONV
        raise UsageError(f"the tensor {self.original(block + min(inner))} belongs to a block that is not known here")


def codebook(found: Correspondence, vectors: str, beginning: str) -> None:
    """Note a codebook that has started."""
    found.sources |= {
        "quantizer.codebook": (vectors,),
        "quantizer.counts": (f"{beginning}ema_cluster_size",),
        "quantizer.sums": (f"{beginning}ema_w",),
    }
    found.constants["quantizer.reservoir.state"] = torch.tensor([0, 0, 1])


def one(numbers: Sequence[int], part: str) -> int:
    """Return the number of residual blocks that all levels have.

    Raises:
        UsageError: They differ.
    """
    if len(set(numbers)) > 1:
        raise UsageError(f"the {part}'s levels have {list(numbers)} residual blocks; ours have one number for all")
    return numbers[0]


def _lifted(theirs: Tensor, ours: Tensor) -> Tensor:
    """Return a kernel of slices as one of volumes with a last axis of 1; what is none as it is."""
    return theirs.unsqueeze(-1) if theirs.ndim == ours.ndim - 1 > 3 else theirs


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
