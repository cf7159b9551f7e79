"""4. Measure the model on subjects it has not seen, beside baselines, and write a page that says what came out.

``evaluate`` refuses subjects of the training. A figure without its baseline says little: 'trilinear' is the scan shrunk
to the grid of the codes and enlarged again, 'lookup' translates every intensity by a fixed curve.

    python examples/04_evaluate.py [FOLDER]
"""

import argparse
from pathlib import Path

import neurotome
from neurotome.report.page import write_report

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/examples"))
args = parser.parse_args()

run = args.folder / "run"
truth = args.folder / "raw" / "derivatives" / "truth" / "phenotype" / "factors.tsv"
metrics = neurotome.evaluate(run / "model", args.folder / "store", run, truth=truth, overwrite=True)

for contrast, measured in metrics["reconstruction"].items():
    own, trilinear = measured["psnr_db"]["mean"], measured["baselines"]["trilinear"]["psnr_db"]["mean"]
    print(f"{contrast}: {own:.1f} dB in the brain, trilinear {trilinear:.1f} dB, n = {measured['psnr_db']['n']}")
for pair, measured in metrics["translation"].items():
    print(f"{pair}: {measured['psnr_db']['mean']:.1f} dB")
write_report(run)
print("page:", run / "report.html")
