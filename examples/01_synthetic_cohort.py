"""1. Make a cohort of synthetic brains: T1w and T2w of every subject, with known anatomy, site, age and sex.

No scan of a person is needed for any of these examples. The cohort is a BIDS dataset; the truth behind it (label maps,
lesions, factors) lies under ``derivatives/truth``.

    python examples/01_synthetic_cohort.py [FOLDER] [--subjects N]
"""

import argparse
from pathlib import Path

from neurotome.data.phantom.cohort import SyntheticCohort
from neurotome.data.phantom.dataset import write_dataset

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/examples"))
parser.add_argument("--subjects", type=int, default=24)
args = parser.parse_args()

# 4.5 mm keeps everything small: a training of a minute, on one core
cohort = SyntheticCohort(args.subjects, spacing_mm=4.5, modalities=("T1w", "T2w"), num_sites=2, seed=0)
raw = write_dataset(cohort, args.folder / "raw", overwrite=True)

for scan in sorted(raw.glob("sub-*/anat/*.nii.gz"))[:4]:
    print(scan)
print("what is true of every subject:", raw / "derivatives" / "truth" / "phenotype" / "factors.tsv")
