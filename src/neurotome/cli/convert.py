"""``neurotome convert``: published weights become a model folder."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotome.cli import add_common, answer, positive

if TYPE_CHECKING:
    from neurotome.data.preparation.preparation import Preparation

# what the authors' scripts do to a scan, as far as they say; a flag overrides it
_PREPARATIONS: dict[str, dict[str, Any]] = {
    "monai": {"spacing_mm": 1.0, "shape": (192, 224, 192)},
    "maisi": {"spacing_mm": 1.0, "shape": (192, 224, 192), "percentiles": (0.0, 99.5)},
}


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "convert",
        help="make a model folder of published weights",
        description="Write the model folder of a network that others trained: FILE is a safetensors file on this "
        "machine. Its sizes are read from the tensors. What the weights do not tell, such as the preparation, is taken "
        "from the flags and recorded. Nothing is downloaded, nothing is trained, no pickle is read.",
    )
    parser.add_argument("file", metavar="FILE", help="safetensors file with the state of the network")
    parser.add_argument(
        "--from", dest="origin", choices=("monai", "maisi", "neuroquant"), required=True,
        help="monai: AutoencoderKL or VQVAE; maisi: AutoencoderKlMaisi; neuroquant: its released code",
    )  # fmt: skip
    parser.add_argument("--out", metavar="MODEL", required=True, help="model folder to write")
    parser.add_argument(
        "--modalities", nargs="+", default=["T1w", "T2w"], metavar="M",
        help="contrasts it is used for; for NeuroQuant in the order of its ids (default: T1w T2w)",
    )  # fmt: skip
    parser.add_argument(
        "--norm-groups", type=positive, default=32, metavar="N", help="groups of the normalisations (default: 32)"
    )
    parser.add_argument(
        "--num-heads", type=positive, default=8, metavar="N", help="NeuroQuant's attention heads (default: 8)"
    )
    parser.add_argument(
        "--intensities", type=float, nargs=2, default=[0.0, 1.0], metavar=("LOW", "HIGH"),
        help="range of the images that MONAI's weights were trained on (default: 0 1; NeuroQuant has -1 1)",
    )  # fmt: skip
    group = parser.add_argument_group(
        "preparation", "recorded with the model: what a scan must be before it is encoded"
    )
    group.add_argument(
        "--spacing", dest="spacing_mm", type=float, nargs="+", metavar="MM",
        help="voxel edge in mm, one number or three (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--shape", type=positive, nargs=3, metavar=("X", "Y", "Z"),
        help="voxels of the grid (default: 192 224 192; NeuroQuant 144 192 144)",
    )  # fmt: skip
    group.add_argument(
        "--percentiles", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="percentiles of brain intensity that become the ends of the range (default: 0.5 99.5; MAISI 0 99.5)",
    )  # fmt: skip
    add_common(parser, overwrite=True)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from neurotome.models.conversion import convert
    from neurotome.models.registry import plain_part

    made = convert(
        Path(args.file),
        Path(args.out),
        args.origin,
        _preparation(args),
        modalities=args.modalities,
        norm_groups=args.norm_groups,
        num_heads=args.num_heads,
        intensities=tuple(args.intensities),
        overwrite=args.overwrite,
    )
    latent = [made.network.latent_channels, *made.network.latent_shape(made.preparation.shape)]
    result = {
        "model": str(made.folder),
        "digest": made.digest,
        "class": type(made.network).__name__,
        "arguments": plain_part(made.network)["arguments"],
        "latent": latent,
        "preparation": made.preparation.to_json(),
    }
    text = (
        f"{made.folder}: {type(made.network).__name__}, latent {' x '.join(map(str, latent))}; scans are prepared at "
        f"{made.preparation.describe()}\nthe subjects it was trained on are not known, so evaluate it on none of them"
    )
    answer(args, result, text)
    return 0


def _preparation(args: argparse.Namespace) -> "Preparation":
    """Return the preparation of the origin, with the flags over it."""
    from neurotome.data.preparation.preparation import Preparation
    from neurotome.data.preparation.presets import preset

    values = _PREPARATIONS[args.origin] if args.origin in _PREPARATIONS else preset(args.origin)
    given = {name: getattr(args, name) for name in ("spacing_mm", "shape", "percentiles") if getattr(args, name)}
    return Preparation(**values | {name: tuple(value) for name, value in given.items()})
