"""BIDS derivatives: the files beside the results that make a folder a dataset of its own.

    OUT/dataset_description.json     DatasetType derivative, GeneratedBy, SourceDatasets, DatasetLinks
    OUT/README                       what the results are, and what they are not
    OUT/.bidsignore                  latents, for which BIDS has no name yet

The source is linked relative to OUT where they are neighbours or one lies in the other. Elsewhere its place is not
written down: a path may name a person.
"""

import json
import os
from pathlib import Path
from typing import Any

import neurotome
from neurotome.data.datasets.text_files import read_json
from neurotome.files.atomic import write_atomically

BIDS_VERSION = "1.10.0"
# the name that BIDS URIs in sidecars give the source dataset
SOURCE_NAME = "raw"
DESCRIPTION = "dataset_description.json"
_MAX_STEPS_UP, _MAX_STEPS_DOWN = 3, 1
_README = """These images were computed by neurotome {version} (`neurotome {verb}`).

They are synthetic: what a network kept of a scan, or what it synthesised. Research only, not for diagnosis.
The sidecar of each result names its source, the model and the SHA-256 of both. Running the same command again
makes only what is missing or was changed.
"""
# one pattern for latent and sidecar: with two, the validator takes some sidecars for lonely ones
_IGNORED = "# codes of scans have no name in BIDS yet\n*_desc-latent_*\n"


def source_uri(path: Path, root: Path) -> str:
    """Return the BIDS URI of a file of the source dataset."""
    return f"bids:{SOURCE_NAME}:{Path(os.path.relpath(path, root)).as_posix()}"


def link(source: Path, target: Path) -> str | None:
    """Return where the source dataset lies relative to the results; None where that would name other folders."""
    place = Path(os.path.relpath(source.resolve(), target.resolve()))
    up = place.parts.count("..")
    near = up <= _MAX_STEPS_UP and len(place.parts) - up <= _MAX_STEPS_DOWN
    return place.as_posix() if near else None


def dataset_description(verb: str, source: Path, target: Path) -> dict[str, Any]:
    """Return the dataset_description.json of the results of a verb."""
    theirs = read_json(source / DESCRIPTION) if (source / DESCRIPTION).is_file() else {}
    place = link(source, target)
    origin = {"DOI": theirs["DatasetDOI"]} if isinstance(theirs.get("DatasetDOI"), str) else {}
    origin |= {} if place is None else {"URL": place}
    description = {
        "Name": f"neurotome {verb}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [generated_by()],
        "SourceDatasets": [origin] if origin else [],
    }
    return description if place is None else description | {"DatasetLinks": {SOURCE_NAME: place}}


def generated_by() -> dict[str, str]:
    """Return this package as BIDS names a pipeline."""
    return {"Name": "neurotome", "Version": neurotome.__version__}


def write_description(verb: str, source: Path, target: Path) -> None:
    """Write the files that make the results a BIDS dataset."""
    target.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataset_description(verb, source, target), indent=2) + "\n"
    readme = _README.format(version=neurotome.__version__, verb=verb)
    for name, content in ((DESCRIPTION, text), ("README", readme), (".bidsignore", _IGNORED)):
        write_atomically(target / name, [content.encode()])
