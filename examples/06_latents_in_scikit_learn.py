"""6. Latents as features: can a scan's scanner site be read from its anatomy, and from its style?

Every scan becomes two vectors, the mean of its latent and its style. A linear classifier predicts the site, and the
folds of the cross-validation are subjects: the two contrasts of a person never lie on both sides.

    python examples/06_latents_in_scikit_learn.py [FOLDER]
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neurotome import Tokenizer, read_volume
from neurotome.data.stores.store import Store

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/examples"))
args = parser.parse_args()

raw = args.folder / "raw"
with (raw / "derivatives" / "truth" / "phenotype" / "factors.tsv").open(encoding="utf-8") as table:
    site_of = {row["participant_id"]: row["site"] for row in csv.DictReader(table, delimiter="\t")}

tokenizer = Tokenizer.from_pretrained(args.folder / "run" / "model")
anatomy, style, sites, subjects = [], [], [], []
# the model has seen the training subjects, so features of all are for a first look alone, never for a claim
for session in Store.open(args.folder / "store").sessions:
    for contrast in session.modalities:
        encoded = tokenizer.encode(read_volume(raw / session.sources[contrast]), modality=contrast).encoded
        anatomy.append(encoded.latent.mean(dim=(2, 3, 4)).squeeze(0).numpy())  # (d,)
        style.append(encoded.style.squeeze(0).numpy())
        sites.append(site_of[f"sub-{session.subject}"])
        subjects.append(session.subject)

print(f"{len(sites)} scans of {len(set(subjects))} subjects at {len(set(sites))} sites")
classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
folds = GroupKFold(n_splits=min(4, len(set(subjects))))
for name, features in (("anatomy", anatomy), ("style", style)):
    score = cross_val_score(classifier, np.stack(features), sites, groups=subjects, cv=folds, scoring="accuracy")
    print(f"site from {name}: {np.mean(score):.2f} right (chance {max(map(sites.count, sites)) / len(sites):.2f})")
