"""J4: code search, lookup and moving-average update in one training pass, against vector-quantize-pytorch and MONAI.

What must agree is the squared distance of each vector to its code: where two codes are equally near to rounding, either
side may take either, and the distance is the same.
"""

# isort: off
from benchmarks import base  # before torch: sets the threads

# isort: on
from collections.abc import Callable, Iterator

import torch
from monai.networks.layers.vector_quantizer import EMAQuantizer as MonaiQuantizer
from vector_quantize_pytorch import VectorQuantize

from neurotome.nn.quantize.ema import EMAQuantizer

SIZES = (((24, 24, 24), 1024, 64, 7.0, None), ((40, 50, 50), 8192, 64, 1.5, 0.1))


def latent(grid: tuple[int, int, int], dim: int, device: str) -> torch.Tensor:
    """Draw a latent ``(1, d, x, y, z)``, channels last as an encoder leaves it."""
    z = torch.randn(1, dim, *grid, generator=torch.Generator().manual_seed(0))
    return z.to(device).contiguous(memory_format=torch.channels_last_3d)


def ours(z: torch.Tensor, book: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return one training pass of ours."""
    quantizer = EMAQuantizer(*book.shape, revive_below=0, reservoir=len(book)).to(z.device)
    quantizer.start(book.clone(), torch.ones(len(book), device=z.device))

    def step() -> torch.Tensor:
        with torch.no_grad():
            out = quantizer(z)
        return out.vectors.movedim(1, -1).flatten(0, 3)

    return step


def vqp(z: torch.Tensor, book: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return one training pass of vector-quantize-pytorch."""
    quantizer = VectorQuantize(
        dim=book.shape[1], codebook_size=len(book), decay=0.99, kmeans_init=False, threshold_ema_dead_code=0
    ).to(z.device)
    quantizer._codebook.embed.data.copy_(book[None])
    quantizer._codebook.embed_avg.data.copy_(book[None])
    quantizer._codebook.cluster_size.data.fill_(1)
    vectors = z.flatten(2).transpose(1, 2).contiguous()

    def step() -> torch.Tensor:
        with torch.no_grad():
            out, _, _ = quantizer(vectors)
        return out.flatten(0, 1)

    return step


def monai(z: torch.Tensor, book: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return one training pass of MONAI's quantiser."""
    quantizer = MonaiQuantizer(spatial_dims=3, num_embeddings=len(book), embedding_dim=book.shape[1], decay=0.99)
    quantizer = quantizer.to(z.device).train()
    quantizer.embedding.weight.data.copy_(book)
    quantizer.ema_w.data.copy_(book)
    quantizer.ema_cluster_size.data.fill_(1)

    def step() -> torch.Tensor:
        with torch.no_grad():
            out, _, _ = quantizer(z)
        return out.movedim(1, -1).flatten(0, 3)

    return step


def distances(z: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what makes of quantised vectors ``(n, d)`` their squared distances to the latent."""
    return lambda vectors: (vectors - z.movedim(1, -1).flatten(0, 3)).square().sum(1)


def cases(tiny: bool, device: str) -> Iterator[base.Case]:
    """Return the sizes of the goal, or small ones."""
    for grid, codes, dim, goal, memory in (((4, 4, 4), 16, 8, None, None),) if tiny else SIZES:
        z = latent(grid, dim, device)
        book = torch.randn(codes, dim, generator=torch.Generator().manual_seed(1)).to(device)
        n = grid[0] * grid[1] * grid[2]
        for name, peer in (("vector-quantize-pytorch", vqp), ("MONAI EMAQuantizer", monai)):
            yield base.Case(
                f"{n} x {codes} x {dim}", ours(z, book), peer(z, book), name, goal, 1e-4, memory, distances(z)
            )


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    return base.main("quantizer", cases, argv)


if __name__ == "__main__":
    raise SystemExit(main())
