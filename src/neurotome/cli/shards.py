"""``neurotome encode MODEL STORE OUT --shards``: the latents of a whole store, for training on them."""

import argparse
from pathlib import Path

from neurotome.cli import answer, counted, existing, load_tokenizer, natural, positive
from neurotome.errors import UsageError

_ONE_SCAN = ("modality", "mask", "allow_head", "volume", "use_qform", "root", "float_latent")
_SHARD_MB = 256


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a whole store to the verb ``encode``."""
    group = parser.add_argument_group("a whole store, for training on latents")
    group.add_argument("--shards", action="store_true", help="IN is a store; write its latents as shards with an index")
    group.add_argument(
        "--draws", type=positive, metavar="N", help="entries per training session; all but the first are augmented: "
        "mirrored, shifted (default: 1)",
    )  # fmt: skip
    group.add_argument("--shift", type=natural, metavar="VOXELS", help="largest shift of a draw (default: 2)")
    group.add_argument("--shard-mb", type=positive, metavar="MB", help=f"size of a shard (default: {_SHARD_MB})")
    group.add_argument("--seed", type=natural, metavar="S", help="seed of the draws (default: 0)")


def wants_shards(args: argparse.Namespace) -> bool:
    """Return whether a store is to be encoded.

    Raises:
        UsageError: Flags that do not go together.
    """
    if args.verb != "encode":
        return False
    if not args.shards:
        for name in ("draws", "shift", "shard_mb", "seed"):
            if getattr(args, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} is for a whole store; give --shards with it")
        return False
    for name in _ONE_SCAN:
        if getattr(args, name, None):
            raise UsageError(f"--{name.replace('_', '-')} is for scans; a store was prepared already")
    return True


def run_shards(args: argparse.Namespace) -> int:
    """Encode a store."""
    existing(args.model, "model folder")
    existing(args.source, "store")
    from neurotome.apply.shards import ShardPlan, ShardWriter
    from neurotome.data.stores.store import Store
    from neurotome.files.atomic import check_writable
    from neurotome.files.progress import Progress

    out = Path(args.target)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; shards need a folder")
    store = Store.open(args.source)
    plan = ShardPlan(
        draws=args.draws or 1,
        seed=args.seed or 0,
        shift_voxels=2 if args.shift is None else args.shift,
        shard_bytes=(args.shard_mb or _SHARD_MB) << 20,
    )
    tokenizer = load_tokenizer(args, masks=True)
    writer = ShardWriter(tokenizer, store, plan)
    if args.dry_run:
        text = f"{counted(len(writer.cases), 'entry', 'entries')} of {counted(len(store.sessions), 'session')}"
        answer(args, {"entries": len(writer.cases), "request": writer.request}, f"{text}; nothing is written")
        return 0
    check_writable(out)
    with Progress("encoded", args.quiet or args.json) as progress:
        found = writer.write(out, overwrite=args.overwrite, progress=progress)
    result = {"entries": found.entries, "shards": found.shards, "kept": found.kept, "bytes": found.size_bytes}
    kept = (
        f", {counted(found.kept, 'shard')} {'was' if found.kept == 1 else 'were'} already there" if found.kept else ""
    )
    size = f"{counted(found.shards, 'shard')} ({found.size_bytes / 2**20:.1f} MB)"
    answer(args, result, f"{counted(found.entries, 'entry', 'entries')} in {size}{kept}\n{out}")
    return 0
