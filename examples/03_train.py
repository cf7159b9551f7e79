"""3. Train a small tokenizer: two contrasts, shared anatomy codes, a style vector for the contrast.

The same call again continues a training that was stopped, and does nothing where it is finished.

    python examples/03_train.py [FOLDER] [--steps N]
"""

import argparse
from pathlib import Path

import neurotome

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/examples"))
parser.add_argument("--steps", type=int, default=560, help="a few hundred at least, or images are blurred")
args = parser.parse_args()

# any key of the config can be set; the codebooks start from data after a fifth of the steps
start = max(1, min(100, args.steps // 5))
method = "method.tokenizer"
done = neurotome.train(
    "anatome-demo",
    args.folder / "store",
    args.folder / "run",
    overrides={
        "trainer.max_steps": args.steps,
        f"{method}.quantizer.start_after": start,
        f"{method}.detail_quantizer.start_after": start,
    },
    seed=0,
    device="auto",
)
print(done.message)
print("model:", done.model)
