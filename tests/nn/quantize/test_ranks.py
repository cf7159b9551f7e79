"""The quantizer on several ranks: one codebook everywhere, whatever each rank has seen. Real processes, gloo."""

import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist

from neurotome.nn.quantize.ema import EMAQuantizer

RANKS, CELLS, PASSES = 2, 6, 4


def batch_of(rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch and the cells of it that are coded; rank 0 has none in odd steps."""
    g = torch.Generator().manual_seed(10 * step + rank)
    z = torch.randn(1, 2, CELLS, CELLS, CELLS, generator=g)
    where = torch.rand(1, CELLS, CELLS, CELLS, generator=g) < 0.4 * rank + 0.1
    return z, where & (rank != 0 or step % 2 == 0)


def train(rank: int, folder: Path) -> None:
    """Start a codebook, follow the data, revive; what each rank ends with is written down."""
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    torch.manual_seed(rank)
    waiting = EMAQuantizer(4, 2, reservoir=60)
    for step in range(4 * PASSES):
        waiting(batch_of(rank, step)[0], where=batch_of(rank, step)[1])
    plain, revived = (EMAQuantizer(4, 2, decay=0.5, revive_below=share, reservoir=4) for share in (0.0, 0.5))
    for quantizer in (plain, revived):
        quantizer.start(torch.eye(4, 2) - torch.eye(4, 2).flip(0), torch.tensor([5.0, 5, 5, 1e-3]))
        for step in range(PASSES):
            z, where = batch_of(rank, step)
            quantizer(z, where=where)
    torch.save(
        {"waiting": waiting.state_dict(), "plain": plain.state_dict(), "revived": revived.state_dict()},
        folder / f"{rank}.pt",
    )
    dist.destroy_process_group()


def test_ranks_end_with_one_codebook_and_it_is_that_of_all_their_tokens(tmp_path):
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=train, args=(rank, tmp_path)) for rank in range(RANKS)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=60)
        alive = rank.is_alive()
        rank.kill()
        assert not alive, "a rank waits for another one"
        assert rank.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS))
    for name in first:
        for key in ("codebook", "counts", "sums"):
            assert torch.equal(first[name][key], second[name][key]), (name, key)
    assert first["waiting"]["reservoir.state"][2] == second["waiting"]["reservoir.state"][2] == 1
    # alone, with the tokens of both ranks
    alone = EMAQuantizer(4, 2, decay=0.5, revive_below=0, reservoir=4)
    alone.start(torch.eye(4, 2) - torch.eye(4, 2).flip(0), torch.tensor([5.0, 5, 5, 1e-3]))
    for step in range(PASSES):
        both = [batch_of(rank, step) for rank in range(RANKS)]
        alone(torch.cat([z for z, _ in both]), where=torch.cat([where for _, where in both]))
    assert torch.allclose(alone.codebook, first["plain"]["codebook"], atol=1e-6)
    assert first["revived"]["counts"].min() > 0.5
