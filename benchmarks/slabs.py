"""J3: full-volume decode in slabs against the same network whole; published channels, random weights.

The peak memory of each side is measured in a process of its own, above the level with the model and the code in memory.
"""

# isort: off
from benchmarks import base  # before torch: sets the threads

# isort: on
import math
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch

from neurotome.nn.slabs.computing import Slabs
from neurotome.tokenizers import KLVAE, NeuroQuant, Tokenizer
from neurotome.tokenizers.base import Encoded

NETWORKS: dict[str, Callable[[], Tokenizer]] = {"NeuroQuant": lambda: NeuroQuant(adversary=False), "KLVAE": KLVAE}
SLABS = {"tiny": Slabs(planes=3, small=0), "full": Slabs()}
MEMORY = "--memory-of"


def sides(name: str, size: int, device: str, slabs: Slabs) -> dict[str, Callable[[], torch.Tensor]]:
    """Return the decode in slabs and the whole one, of one random code."""
    torch.manual_seed(0)
    network = NETWORKS[name]().to(device).eval()
    latent = torch.randn(1, network.latent_channels, *network.latent_shape((size,) * 3))
    style = torch.randn(1, network.modality_channels) if isinstance(network, NeuroQuant) else None
    if isinstance(network, NeuroQuant) and network.film is not None:  # it starts at zero
        torch.nn.init.normal_(network.film.mlp[-1].weight, std=0.02)
    encoded = Encoded(
        latent.to(device), {}, None if style is None else style.to(device), {}, (size, size, size)
    )  # fmt: skip
    ids = torch.zeros(1, dtype=torch.long, device=device)

    @torch.inference_mode()
    def ours() -> torch.Tensor:
        image: torch.Tensor = slabs(network.decode, encoded, ids)
        return image

    @torch.inference_mode()
    def peer() -> torch.Tensor:
        return network.decode(encoded, ids)

    return {"ours": ours, "peer": peer}


def case(name: str, size: int, device: str, kind: str, goal: float | None, memory: float | None) -> base.Case:
    """Compare one cube."""
    both = sides(name, size, device, SLABS[kind])

    def alone(side: str) -> float | None:
        words = [sys.executable, "-m", "benchmarks.slabs", MEMORY, name, str(size), device, kind, side]
        words += ["--threads", str(torch.get_num_threads())]
        said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        return None if math.isnan(float(said)) else float(said)

    return base.Case(
        f"{name}, {size}^3", both["ours"], both["peer"], "the volume whole", goal, 1e-4, memory, alone=alone
    )


def cases(tiny: bool, device: str) -> Iterator[base.Case]:
    """Return the networks at the size of the goal, or one at a small size."""
    if tiny:
        yield case("KLVAE", 16, device, "tiny", None, None)
        return
    size, slower = (256, 1.15) if device.startswith("cuda") else (96, 1.3)
    for name in NETWORKS:
        yield case(name, size, device, "full", 1 / slower, 0.4)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark, or with ``--memory-of`` print the peak memory of one side."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == [MEMORY]:
        name, size, device, kind, side = words[1:6]
        run = sides(name, int(size), device, SLABS[kind])[side]
        peak = base.peak_mb(run, device)
        print(math.nan if peak is None else peak)
        return 0
    return base.main("slabs", cases, argv)


if __name__ == "__main__":
    raise SystemExit(main())
