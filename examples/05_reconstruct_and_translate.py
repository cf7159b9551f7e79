"""5. Use the model: one scan to codes, back to the same contrast, and to the other one, on the grid it came with.

``save`` marks the header as synthetic. A name that says so too (``desc-recon``, ``desc-synth``) keeps results apart
from scans.

    python examples/05_reconstruct_and_translate.py [FOLDER]
"""

import argparse
from pathlib import Path

from neurotome import Tokenizer, read_volume
from neurotome.data.stores.store import Store

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/examples"))
args = parser.parse_args()

tokenizer = Tokenizer.from_pretrained(args.folder / "run" / "model")
test = Store.open(args.folder / "store").split("test")[0]
scan = read_volume(args.folder / "raw" / test.sources["T1w"])

code = tokenizer.encode(scan, modality="T1w")
print("codes:", {name: tuple(codes.shape) for name, codes in code.encoded.codes.items()})

out = args.folder / "results"
out.mkdir(exist_ok=True)
name = f"sub-{test.subject}"
code.save(out / f"{name}_T1w_desc-latent.safetensors")
tokenizer.decode(code).save(out / f"{name}_desc-recon_T1w.nii.gz")
tokenizer.decode(code, modality="T2w").save(out / f"{name}_desc-synth_T2w.nii.gz")
for file in sorted(out.iterdir()):
    print(file)
