"""J8: cached volumes and the wait of a training for its batches, against MONAI's PersistentDataset.

A cached session is handed over as one tensor of both contrasts; whoever receives it reads every voxel once, so that a
memory map pays for its pages. The wait of a training is shown as a limit: the same steps with all batches in memory;
a ratio of 0.95 is a stall of 5 %.
"""

# isort: off
from benchmarks import base  # before torch: sets the threads

# isort: on
import copy
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import PersistentDataset
from monai.transforms import Transform
from scipy import ndimage
from torch import Tensor

from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.record import Prepared
from neurotome.data.stores.batches import StepPlan, VolumeBatches, batch_of
from neurotome.data.stores.entries import SessionEntry, entry_file, write_entry
from neurotome.data.stores.store import Store
from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.tokenizers import NeuroQuant
from neurotome.tokenizers.shared_anatomy.neuroquant_training import NeuroQuantTraining
from neurotome.tokenizers.shared_anatomy.parts import Appearance, Trunk
from neurotome.types import Batch

Shape = tuple[int, int, int]
VIEWS = ("T1w", "T2w")
LIMIT_S, LIMIT = 3e-3, "limit: 3 ms a volume"
STEPS = 12


def make_store(folder: Path, shape: Shape, number: int) -> Store:
    """Write a store of brains with folds."""
    axes = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in shape), indexing="ij")
    mask = np.asarray(sum(a**2 for a in axes) < 1)
    (folder / "entries").mkdir(parents=True)
    entries = []
    for seed in range(number):
        folds = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(2, *shape)), (0, 1.5, 1.5, 1.5))
        image = np.where(mask, np.tanh(folds / folds.std()), -1).astype(np.float32)
        digest = f"{seed:064d}"
        sha = write_entry(folder / entry_file(digest), Prepared(image, VIEWS, mask, {}), VIEWS, None)
        entries.append(SessionEntry(f"{seed:02d}", "", None, "train", VIEWS, digest, entry_file(digest), sha))
    return Store.create(folder, Preparation(1.0, shape), VIEWS, entries)


class ReadBoth(Transform):
    """What the peer's users cache: both contrasts of a session as one tensor."""

    def __call__(self, path: str) -> Tensor:
        return torch.from_numpy(np.load(path))


def read(image: Tensor) -> Tensor:
    """Look at every voxel once."""
    image.amax()
    return image


def cached(folder: Path, shape: Shape, goal: float | None) -> Iterator[base.Case]:
    """Compare sessions that were seen before, one after the other, as an epoch sees them."""
    store = make_store(folder / "store", shape, 3)
    files = []
    for entry in store.sessions:
        files.append(str(folder / f"{entry.subject}.npy"))
        np.save(files[-1], store.load(entry).image[:, 0])
    peer_data = PersistentDataset(files, ReadBoth(), cache_dir=folder / "cache")

    def mapped(entry: SessionEntry) -> Tensor:
        return torch.from_numpy(store.load(entry).image)[:, 0]

    def waited(entry: SessionEntry) -> Tensor:
        time.sleep(LIMIT_S * len(VIEWS))
        return mapped(entry)

    def side(function: Callable[[Any], Tensor], items: Sequence[Any]) -> Callable[[], Tensor]:
        """Return the next item with every call; both sides of a case begin with the same one."""
        turn = cycle(items)
        return lambda: function(next(turn))

    def ours(entry: SessionEntry) -> Tensor:
        return read(mapped(entry))

    def copied(entry: SessionEntry) -> Tensor:
        return read(batch_of(store, [entry]).image[0, :, 0])

    def peer(index: int) -> Tensor:
        return read(peer_data[index])

    sizes, indices, peer_name = f"{len(VIEWS)} x {'x'.join(map(str, shape))}", range(len(files)), "PersistentDataset"
    sessions = store.sessions
    yield base.Case(f"session mapped, {sizes}", side(ours, sessions), side(peer, indices), peer_name, goal, 0.0)
    # more than the peer gives: with mask, ids and sites, in memory of its own; reported, not judged
    yield base.Case(f"session as a batch, {sizes}", side(copied, sessions), side(peer, indices), peer_name, None, 0.0)
    reached = None if goal is None else 1.0
    yield base.Case(f"session mapped, {sizes}", side(ours, sessions), side(waited, sessions), LIMIT, reached, 0.0)


def steps(network: NeuroQuant, batches: Iterable[Batch]) -> Tensor:
    """Train a copy of the network as the shipped demo does, and return the last loss."""
    torch.manual_seed(0)
    method = NeuroQuantTraining(copy.deepcopy(network)).train()
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    loss = torch.zeros(())
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16):
            loss = method.loss(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.detach()


def stall(folder: Path, tiny: bool) -> base.Case:
    """Compare steps that draw their batches with the same steps on batches that are there already."""
    shape: Shape = (16, 16, 16) if tiny else (48, 64, 56)
    store = make_store(folder / "train", shape, 4 if tiny else 32)
    plan = StepPlan(batch_sessions=2, crop=8) if tiny else StepPlan(batch_sessions=6, crop=16, brain_prob=0.0)
    drawn = VolumeBatches(store, plan, 1000, seed=0)
    number = 2 if tiny else STEPS
    ready = [drawn[step] for step in range(number)]
    torch.manual_seed(0)
    trunk = Trunk(
        channels=[8 if tiny else 32], num_res_blocks=1, decoder_res_blocks=2, attention_levels=[False],
        mid_blocks=False, stem_factor=2, downsample=[False], norm_groups=0, factored=False,
    )  # fmt: skip
    appearance = Appearance(
        channels=16, stages=[64], foreground_above=-0.95, embedding_channels=16, film_hidden=64, film_layers=1,
        film_sites="block",
    )  # fmt: skip
    quantizer = EMAQuantizer(256, 8)
    network = NeuroQuant(trunk=trunk, appearance=appearance, quantizer=quantizer, output="clamp", adversary=False)
    name = f"{number} training steps, {plan.batch_sessions} sessions, crop {plan.crop}"
    return base.Case(
        name,
        lambda: steps(network, (drawn[step] for step in range(number))),
        lambda: steps(network, ready),
        "batches in memory",
        None if tiny else 0.95,
        1e-6,
    )


def cases(tiny: bool, device: str) -> Iterator[base.Case]:
    """Return cached volumes at the published size, and the wait of the shipped demo's steps."""
    with tempfile.TemporaryDirectory() as folder:
        yield from cached(Path(folder), (16, 16, 16) if tiny else (144, 192, 144), None if tiny else 2.0)
        yield stall(Path(folder), tiny)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    return base.main("loading", cases, argv)


if __name__ == "__main__":
    raise SystemExit(main())
