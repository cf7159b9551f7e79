"""J2: encode a folder of ``.nii.gz``, reading included, against nibabel, MONAI transforms and the same network.

Both sides read, orient to RAS+, crop or pad to the model's grid, normalise inside the brain and run the encoder; the
outputs compared are the latents. The peer does so scan by scan, as the usual loop does; ours reads ahead in a thread,
computes in batches, and also verifies the checksum of every file and writes the latent files. The scans have the
model's spacing, so that both sides copy voxels and the grids agree exactly.
"""

# isort: off
from benchmarks import base  # before torch: sets the threads

# isort: on
import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.transforms import Compose, EnsureChannelFirst, Lambda, LoadImage, Orientation
from scipy import ndimage
from torch import Tensor

from neurotome.apply.names import Job
from neurotome.apply.reconstruct import Encoding
from neurotome.apply.work import Loaded, Result, process
from neurotome.data.preparation.preparation import Preparation
from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.scans.latent_scan import LatentScan
from neurotome.scans.tokenizer import ScanTokenizer
from neurotome.tokenizers import NeuroQuant
from neurotome.tokenizers.base import Tokenizer
from neurotome.tokenizers.shared_anatomy.parts import Appearance, Trunk

Shape = tuple[int, int, int]


def network(tiny: bool, device: str) -> Tokenizer:
    """Return the network of the shipped demo, with random weights."""
    torch.manual_seed(0)
    trunk = Trunk(
        channels=[8 if tiny else 32], num_res_blocks=1, decoder_res_blocks=2, attention_levels=[False],
        mid_blocks=False, stem_factor=2, downsample=[False], norm_groups=0, factored=False,
    )  # fmt: skip
    appearance = Appearance(
        channels=16, stages=[64], foreground_above=-0.95, embedding_channels=16, film_hidden=64, film_layers=1,
        film_sites="block",
    )  # fmt: skip
    model = NeuroQuant(
        trunk=trunk, appearance=appearance, quantizer=EMAQuantizer(64, 8), private=EMAQuantizer(32, 4),
        contrast_in_encoder=True, output="clamp", adversary=False,
    )  # fmt: skip
    return model.to(device).eval()


def write_scans(folder: Path, number: int, shape: Shape, spacing: float) -> list[Path]:
    """Write brains stored as LPS, int16, each with its own texture."""
    axes = np.meshgrid(*(np.linspace(-1.25, 1.25, n) for n in shape), indexing="ij")
    inside = sum(a**2 for a in axes) < 1
    paths = []
    for seed in range(number):
        texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.0)
        values = np.where(inside, 600 + 800 * texture, 0).clip(0, 4000).astype(np.int16)
        values[inside] = np.maximum(values[inside], 1)
        image = nibabel.Nifti1Image(values, np.diag([-spacing, -spacing, spacing, 1.0]))
        image.header.set_xyzt_units("mm")
        paths.append(folder / f"sub-{seed:02d}_T1w.nii.gz")
        nibabel.save(image, paths[-1])
    return paths


class KeptEncoding(Encoding):
    """Encoding that remembers its latents, to be compared."""

    def __init__(self, tokenizer: ScanTokenizer) -> None:
        super().__init__(tokenizer)
        self.latents: list[Tensor] = []

    def _result(self, one: Loaded, code: LatentScan) -> Result:
        self.latents.append(code.encoded.latent)
        return super()._result(one, code)


def ours(tokenizer: ScanTokenizer, paths: Sequence[Path], out: Path) -> list[Tensor]:
    """Encode the folder as ``neurotome encode`` does."""
    work = KeptEncoding(tokenizer)
    jobs = [Job(path, out / f"{path.name[:6]}.safetensors", "T1w", origin=path.name) for path in paths]
    done = list(process(jobs, work, overwrite=True))
    if not all(outcome.state == "written" for outcome in done):
        raise ValueError(f"refused: {done}")
    return work.latents


def centred(image: Tensor, shape: Shape) -> Tensor:
    """Crop and pad ``(1, x, y, z)`` so that the brain box is centred: MONAI has no transform that does both at once."""
    brain = image[0] > 0
    out = torch.zeros((1, *shape))
    source, target = [], []
    for axis, size in enumerate(shape):
        other = [a for a in range(3) if a != axis]
        where = torch.nonzero(brain.any(dim=max(other)).any(dim=min(other))).ravel()
        low, high = int(where[0]) - 0.5, int(where[-1]) + 0.5
        start = int(np.floor((low + high) / 2 - (size - 1) / 2 + 0.5))
        first, last = max(start, 0), min(start + size, image.shape[axis + 1])
        source.append(slice(first, last))
        target.append(slice(first - start, last - start))
    out[(0, *target)] = image[(0, *source)]
    return out


def scaled(image: Tensor) -> Tensor:
    """Map two percentiles of the brain to -1 and 1."""
    brain = image > 0
    low, high = (float(v) for v in np.percentile(image[brain].numpy(), (0.5, 99.5)))
    return torch.where(brain, ((image - low) / (high - low)).clamp(0, 1) * 2 - 1, torch.tensor(-1.0))


def peer(model: Tokenizer, paths: Sequence[Path], shape: Shape, device: str) -> list[Tensor]:
    """Encode the folder in the usual loop."""
    transforms = Compose(
        [
            LoadImage(image_only=True, reader="NibabelReader"),
            EnsureChannelFirst(),
            Orientation(axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Lambda(lambda image: scaled(centred(image.as_tensor(), shape))),
        ]
    )
    ids = torch.zeros(1, dtype=torch.long, device=device)
    with torch.inference_mode():
        return [model.encode(transforms(str(path))[None].to(device), ids).latent.cpu() for path in paths]


def cases(tiny: bool, device: str) -> Iterator[base.Case]:
    """Return the demo's grid, and a finer one."""
    sizes: list[tuple[float, Shape, Shape]] = [(3.0, (61, 73, 61), (48, 64, 56)), (2.0, (91, 109, 91), (80, 96, 80))]
    if tiny:
        sizes = [(6.0, (30, 36, 30), (24, 32, 28))]
    model = network(tiny, device)
    theirs = copy.deepcopy(model)  # as it is built: ours is laid out for inference
    for spacing, stored, shape in sizes:
        tokenizer = ScanTokenizer(model, Preparation(spacing, shape), {}, {}, {}, ("salt", frozenset()), "0" * 64)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            paths = write_scans(folder, 3 if tiny else 8, stored, spacing)
            yield base.Case(
                f"{len(paths)} scans, {'x'.join(map(str, stored))} at {spacing:g} mm",
                lambda t=tokenizer, p=paths, o=folder / "out": ours(t, p, o),
                lambda p=paths, s=shape: peer(theirs, p, s, device),
                "nibabel + MONAI",
                None if tiny else 2.0,
                1e-4,
            )


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    return base.main("encode", cases, argv)


if __name__ == "__main__":
    raise SystemExit(main())
