"""2. Look for faults in the dataset, then put every scan on one grid: the store that training reads.

Preparing orients, resamples, crops and scales intensities to [-1, 1]. Each step is recorded and undone later, when a
result is written on the grid of its source. Subjects, not scans, are divided into training, validation and test.

    python examples/02_check_and_prepare.py [FOLDER]
"""

import argparse
from pathlib import Path

from neurotome.data.checking.check import check
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.build import prepare

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/examples"))
args = parser.parse_args()

report = check(args.folder / "raw")
print("findings:", report.counts)
for finding in report.findings[:3]:
    print(" ", finding.severity, finding.reason)

# the brain of these phantoms fits 32 x 40 x 40 voxels of 4.5 mm; too small a grid would be refused
preparation = Preparation(spacing_mm=4.5, shape=(32, 40, 40))
done = prepare(args.folder / "raw", args.folder / "store", preparation=preparation, modalities=["T1w", "T2w"])
done.raise_failures()
for split in ("train", "val", "test"):
    print(split, [f"sub-{session.subject}" for session in done.store.split(split)])
