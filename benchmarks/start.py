"""J12: how long a user waits: `neurotome --help` in a process of its own, and loading a model.

The first is seconds beside the goal of half a second; the second a ratio to reading the file from the page cache.
"""

# isort: off
from benchmarks import base  # before torch: sets the threads

# isort: on
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from neurotome.data.preparation.preparation import Preparation
from neurotome.models.folder import read_folder, write_model_folder
from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.tokenizers import NeuroQuant
from neurotome.tokenizers.base import Tokenizer
from neurotome.tokenizers.shared_anatomy.parts import Trunk

TINY = Trunk(channels=[8, 8], attention_levels=[False, False], norm_groups=4)


def help_seconds(rounds: int) -> list[float]:
    """Time `neurotome --help` from the start of the process to its end."""
    command = [str(Path(sys.executable).parent / "neurotome"), "--help"]
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return seconds


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    arguments = sys.argv[1:] if argv is None else argv
    tiny = "--tiny" in arguments
    out = Path(arguments[arguments.index("--out") + 1]) if "--out" in arguments else base.RESULTS
    rounds = 2 if tiny else base.ROUNDS
    found = help_seconds(rounds)
    print(f"neurotome --help: median {statistics.median(found):.3f} s of {rounds} (goal < 0.5 s)")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        network = NeuroQuant(trunk=TINY, quantizer=EMAQuantizer(8, 64)) if tiny else NeuroQuant()
        preparation = Preparation(1.0, (144, 192, 144))
        write_model_folder(model, network, preparation=preparation, stats={}, styles={}, subjects=(), card="")
        weights = model / "model.safetensors"

        def load() -> torch.Tensor:
            read_folder(model, Tokenizer)
            return torch.zeros(1)

        def read() -> torch.Tensor:
            weights.read_bytes()
            return torch.zeros(1)

        size = weights.stat().st_size / 2**20
        case = base.Case(f"from_pretrained, {size:.0f} MB", load, read, "read the file")
        result = base.compare(case, rounds=rounds)
    print(base.table([result]))
    print(f"loading takes {1 / result.ratio:.1f} times a page-cache read of the file")
    content: dict[str, Any] = {
        "job": "start", "tiny": tiny, "environment": base.environment("cpu"), "help_seconds": found,
        "load_over_read": 1 / result.ratio, "load_seconds": result.ours_s, "read_seconds": result.peer_s,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "start.json").write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
