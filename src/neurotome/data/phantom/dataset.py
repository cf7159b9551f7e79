"""Writes a synthetic cohort as a BIDS raw dataset with its truth as a derivative.

    OUT/sub-001/anat/sub-001_T1w.nii.gz + .json              images (float32) and their acquisition
    OUT/participants.tsv + .json, dataset_description.json, README
    OUT/derivatives/truth/sub-001/anat/sub-001_dseg.nii.gz   1 ... 8 as in dseg.tsv
                                      _desc-lesion_dseg      1 necrosis, 2 oedema, 3 rim
                                      _desc-brain_mask
                                      .json of the dseg      causes, volumes, lesions, style of every scan
    OUT/derivatives/truth/phenotype/factors.tsv + .json      one row per subject: causes and volumes

Equal cohorts give equal bytes, whatever the number of processes. The folder appears under its name when it is whole.
"""

import gzip
import json
import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from neurotome.data.phantom.cohort import LABELS, Subject, SyntheticCohort
from neurotome.data.phantom.contrast import Scan
from neurotome.data.phantom.template import load_template
from neurotome.errors import InputError, UsageError
from neurotome.files.atomic import new_folder
from neurotome.files.json_text import parse_json
from neurotome.files.pool import results
from neurotome.files.progress import Report
from neurotome.modality import bids_suffix

GENERATOR = "neurotome phantom"
BIDS_VERSION = "1.10.0"
FACTORS = ("age", "sex", "site", "atrophy", "head_scale", "ventricle_mm", "grey_mm", "has_lesions", "source")
_README = """\
Synthetic brain MRI made by `neurotome phantom`. Nobody was scanned.

The anatomy is the MNI152 average (or label maps given by the user), deformed and folded anew for every subject; the
images follow from the signal equations of each contrast. Causes, volumes, lesions and the style of every scan are known
and stand in derivatives/truth. Intensities are relative: the brain's 99.5 percentile is 1 before bias and gamma are
applied, and everything outside the brain is exactly 0.

The MNI152 maps behind the anatomy are (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal
Neurological Institute, McGill University.
"""
_README_TRUTH = """\
What is known about the synthetic subjects.

phenotype/factors.tsv has one row per subject: causes (age, sex, site, atrophy, head size), volumes in ml, number of
lesions. The JSON beside each sub-*_dseg.nii.gz adds the lesions (centre and diameter in mm, kind) and the style of
every scan (sequence, gamma, blur, noise, bias, slice thickness). The dseg.tsv files explain the label maps' numbers.
"""
_COLUMNS = {
    "age": {"Description": "Age", "Units": "year"},
    "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
    "site": {"Description": "Scanner site, from 0"},
}
_TRUTH_COLUMNS = _COLUMNS | {
    "atrophy": {"Description": "Atrophy, about 0 (young) to 1; age explains most of it"},
    "head_scale": {"Description": "Linear size of the head relative to the mean"},
    "ventricle_mm": {"Description": "Velocity of the ventricles' wall, outward", "Units": "mm"},
    "grey_mm": {"Description": "Cortical thickness relative to the mean of the age, in template mm", "Units": "mm"},
    "has_lesions": {"Description": "Whether lesions were drawn"},
    "source": {"Description": "The anatomy that was deformed"},
    "num_lesions": {"Description": "Number of lesions"},
    "jacobian_min": {"Description": "Smallest Jacobian determinant of the deformation; positive"},
}


def write_dataset(
    cohort: SyntheticCohort,
    out: str | Path,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: Report | None = None,
) -> Path:
    """Write the cohort and return its folder.

    Args:
        cohort: What to write.
        out: Folder, absent or empty.
        workers: Number of processes, at least 1.
        overwrite: Replace an earlier phantom dataset; any other folder with content is refused all the same.
        progress: Called with the number of subjects written so far, their total, and an id.

    Raises:
        UsageError: ``out`` is a file or has content, or ``workers`` is below 1.
        InputError: Label maps were refused: all of them, and nothing is written; or some, and their subjects are
            missing from the dataset, which is whole otherwise.
        OutputError: The disk is full or read-only; nothing is left behind.
        WorkerKilled: A worker was killed, most likely for lack of memory.
    """
    out = Path(out).absolute()
    if workers < 1:
        raise UsageError(f"workers is {workers}; give at least 1")
    _refuse_occupied(out, overwrite)
    with new_folder(out) as part:
        rows: dict[int, dict[str, Any]] = {}
        refused: dict[str, InputError] = {}
        if workers > 1:
            load_template()  # builds its cache once
        write = partial(_write_subject, cohort, part)
        made = results(write, range(len(cohort)), workers if workers > 1 else 0, _name)
        for done, (index, row) in enumerate(made, start=1):
            if isinstance(row, InputError):
                refused.setdefault(str(row), row)
            else:
                rows[index] = row
            if progress is not None:
                progress(done, len(cohort), f"sub-{index + 1:03d}")
        if not rows:
            raise next(iter(refused.values()))
        ordered = [rows[index] for index in sorted(rows)]
        _write_top(part, ordered)
        _write_truth(part / "derivatives" / "truth", ordered)
    if refused:
        raise InputError(
            f"{len(cohort) - len(rows)} of {len(cohort)} subjects were left out. " + " | ".join(refused),
            file=out,
            remedy="the others are written; repair or remove these label maps and make the cohort again",
        )
    return out


def write_image(path: Path, array: Shaped[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]) -> None:
    """Write a NIfTI file whose bytes depend on the arguments only (no time, no name in the gzip header)."""
    from nibabel.nifti1 import Nifti1Image

    image: Any = Nifti1Image(array, affine)  # type: ignore[no-untyped-call]  # nibabel has no types
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"synthetic: neurotome phantom"
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))


def _refuse_occupied(out: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something which is not ours to replace."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out} is a file; give a folder that does not exist or is empty")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{out} is not empty; give another folder, or --overwrite to replace an earlier phantom")
    try:
        made_by = parse_json((out / "dataset_description.json").read_text())["GeneratedBy"][0]["Name"]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        made_by = None
    if made_by != GENERATOR:
        raise UsageError(f"{out} was not written by `{GENERATOR}`, so it is not overwritten; give another folder")


def _name(index: int) -> str:
    return f"subject {index + 1}"


def _write_subject(cohort: SyntheticCohort, root: Path, index: int) -> tuple[int, dict[str, Any] | InputError]:
    """Write one subject's images and label maps; return its index and truth, or why its label map is refused."""
    try:
        subject = cohort.subject(index)
    except InputError as error:
        return index, error
    anat = root / subject.id / "anat"
    truth = root / "derivatives" / "truth" / subject.id / "anat"
    anat.mkdir(parents=True)
    truth.mkdir(parents=True)
    for name, image in subject.images.items():
        stem = f"{subject.id}_{bids_suffix(name)}"
        write_image(anat / f"{stem}.nii.gz", image, subject.affine)
        _write_json(anat / f"{stem}.json", _sidecar(subject.scans[name]))
    write_image(truth / f"{subject.id}_dseg.nii.gz", subject.labels, subject.affine)
    write_image(truth / f"{subject.id}_desc-lesion_dseg.nii.gz", subject.lesion_map, subject.affine)
    write_image(truth / f"{subject.id}_desc-brain_mask.nii.gz", subject.mask.astype(np.uint8), subject.affine)
    row = _truth(subject)
    _write_json(truth / f"{subject.id}_dseg.json", {"Truth": row})
    _write_json(truth / f"{subject.id}_desc-brain_mask.json", {"Type": "Brain", "RawSources": [_raw(cohort, subject)]})
    return index, row


def _raw(cohort: SyntheticCohort, subject: Subject) -> str:
    return f"bids:raw:{subject.id}/anat/{subject.id}_{bids_suffix(cohort.modalities[0])}.nii.gz"


def _sidecar(scan: Scan) -> dict[str, Any]:
    """Return a scan's acquisition in BIDS terms, times in seconds."""
    sequence = scan.sequence
    fields: dict[str, Any] = {
        "Modality": "MR",
        "Manufacturer": GENERATOR,
        "ManufacturersModelName": f"site {scan.site}",
        "InstitutionName": f"site {scan.site}",
        "MagneticFieldStrength": 3,
        "MRAcquisitionType": "2D" if scan.slice_mm > 1 else "3D",
        "EchoTime": round(sequence.echo_ms / 1000, 6),
        "RepetitionTime": round(sequence.repetition_ms / 1000, 6),
        "FlipAngle": round(sequence.flip_deg, 3),
        "SliceThickness": scan.slice_mm,
        "SkullStripped": True,
        "Synthetic": True,
    }
    if sequence.inversion_ms:
        fields["InversionTime"] = round(sequence.inversion_ms / 1000, 6)
    if sequence.gadolinium:
        fields["ContrastBolusIngredient"] = "GADOLINIUM"
    return fields


def _truth(subject: Subject) -> dict[str, Any]:
    """Return everything known about a subject as plain values."""
    return {
        "participant_id": subject.id,
        "factors": {name: getattr(subject.factors, name) for name in FACTORS},
        "volumes_ml": subject.volumes_ml,
        "lesions": [asdict(lesion) for lesion in subject.lesions],
        "scans": {name: scan.record() for name, scan in subject.scans.items()},
        "jacobian_min": subject.jacobian_min,
    }


def _write_top(root: Path, rows: list[dict[str, Any]]) -> None:
    """Write the raw dataset's own files."""
    _write_json(root / "dataset_description.json", _description("Synthetic brain MRI", "raw"))
    (root / "README").write_text(_README)
    columns = ("age", "sex", "site")
    table = [[r["participant_id"], *(r["factors"][c] for c in columns)] for r in rows]
    _write_table(root / "participants.tsv", ("participant_id", *columns), table)
    _write_json(root / "participants.json", _COLUMNS)


def _write_truth(root: Path, rows: list[dict[str, Any]]) -> None:
    """Write the derivative's own files."""
    description = _description("Truth of the synthetic brain MRI", "derivative")
    description |= {"DatasetLinks": {"raw": "../.."}, "SourceDatasets": [{"URL": "../.."}]}
    _write_json(root / "dataset_description.json", description)
    (root / "README").write_text(_README_TRUTH)
    _write_table(root / "desc-lesion_dseg.tsv", ("index", "name"), [[1, "necrosis"], [2, "oedema"], [3, "rim"]])
    _write_table(root / "dseg.tsv", ("index", "name"), [[i, name] for i, name in enumerate(LABELS) if i])
    volumes = tuple(rows[0]["volumes_ml"])
    header = ("participant_id", *FACTORS, *(f"{v}_ml" for v in volumes), "num_lesions", "jacobian_min")
    table = [
        [
            row["participant_id"],
            *(row["factors"][c] for c in FACTORS),
            *(row["volumes_ml"][v] for v in volumes),
            len(row["lesions"]),
            row["jacobian_min"],
        ]
        for row in rows
    ]
    (root / "phenotype").mkdir()
    _write_table(root / "phenotype" / "factors.tsv", header, table)
    columns = _TRUTH_COLUMNS | {f"{v}_ml": {"Description": f"Volume: {v}", "Units": "mL"} for v in volumes}
    _write_json(root / "phenotype" / "factors.json", columns)


def _description(name: str, kind: str) -> dict[str, Any]:
    from neurotome import __version__

    return {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": kind,
        "License": "CC0",
        "Authors": ["neurotome"],
        "GeneratedBy": [{"Name": GENERATOR, "Version": __version__}],
    }


def _write_table(path: Path, header: tuple[str, ...], rows: list[list[Any]]) -> None:
    """Write a BIDS table: tabs, "n/a" for what is unknown."""
    lines = ["\t".join(header), *("\t".join(_cell(v) for v in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else "n/a"
    return str(value).replace("\t", " ").replace("\n", " ")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(_plain(value), indent=2, sort_keys=False, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """Return a value for JSON: NaN becomes null, floats keep nine digits."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value
