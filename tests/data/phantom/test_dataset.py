import hashlib
import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from neurotome.data.phantom import dataset as phantom_dataset
from neurotome.data.phantom.cohort import SyntheticCohort
from neurotome.data.phantom.dataset import write_dataset
from neurotome.errors import UsageError

COHORT = SyntheticCohort(
    num_subjects=3, spacing_mm=8.0, modalities=("T1w", "T2w", "FLAIR", "PDw", "T1c"), lesion_fraction=1.0
)


def tree(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(COHORT, tmp_path_factory.mktemp("phantom") / "ds")


def test_images_and_truth_are_what_the_cohort_says(dataset):
    subject = COHORT.subject(1)
    image = nibabel.load(dataset / "sub-002/anat/sub-002_ce-gadolinium_T1w.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), subject.images["T1c"])
    np.testing.assert_array_equal(image.affine, subject.affine)
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header.get_xyzt_units()[0] == "mm"
    anat = dataset / "derivatives/truth/sub-002/anat"
    for name, array in {
        "dseg": subject.labels,
        "desc-lesion_dseg": subject.lesion_map,
        "desc-brain_mask": subject.mask,
    }.items():
        np.testing.assert_array_equal(np.asarray(nibabel.load(anat / f"sub-002_{name}.nii.gz").dataobj), array)
    truth = json.loads((anat / "sub-002_dseg.json").read_text())["Truth"]
    assert truth["volumes_ml"]["ventricle"] == pytest.approx(subject.volumes_ml["ventricle"])
    assert truth["lesions"][0]["diameter_mm"] == pytest.approx(subject.lesions[0].diameter_mm)
    assert truth["scans"]["T2w"]["gamma"] == pytest.approx(subject.scans["T2w"].gamma)


def test_tables_hold_every_subject(dataset):
    people = pd.read_csv(dataset / "participants.tsv", sep="\t")
    assert list(people.columns) == ["participant_id", "age", "sex", "site"]
    factors = pd.read_csv(dataset / "derivatives/truth/phenotype/factors.tsv", sep="\t")
    assert list(factors.participant_id) == list(people.participant_id) == ["sub-001", "sub-002", "sub-003"]
    described = json.loads((dataset / "derivatives/truth/phenotype/factors.json").read_text())
    assert set(described) == set(factors.columns) - {"participant_id"}
    assert factors.ventricle_ml[1] == pytest.approx(COHORT.anatomy(1).volumes_ml()["ventricle"], rel=1e-4)


def test_sidecars_speak_bids_in_seconds(dataset):
    flair = json.loads((dataset / "sub-001/anat/sub-001_FLAIR.json").read_text())
    scan = COHORT.subject(0).scans["FLAIR"]
    assert flair["InversionTime"] == pytest.approx(scan.sequence.inversion_ms / 1000, abs=1e-6)
    assert 8 < flair["RepetitionTime"] < 10
    contrast = json.loads((dataset / "sub-001/anat/sub-001_ce-gadolinium_T1w.json").read_text())
    assert contrast["ContrastBolusIngredient"] == "GADOLINIUM"


@pytest.mark.slow
def test_the_official_validator_finds_no_error(dataset):
    tool = Path(sys.executable).with_name("bids-validator-deno")
    if not tool.exists():
        pytest.skip("bids-validator-deno is not installed")
    done = subprocess.run(
        [str(tool), str(dataset), "--recursive", "--format", "json"], capture_output=True, text=True, timeout=120
    )
    if not done.stdout.lstrip().startswith("{"):
        pytest.skip(f"bids-validator-deno does not run here: {done.stderr[-200:]}")
    report = json.loads(done.stdout)
    assert sorted(report["summary"]["subjects"]) == ["001", "002", "003"]
    parts = [report, *report["derivativesSummary"].values()]
    assert len(parts) == 2
    errors = [(i["code"], i["location"]) for p in parts for i in p["issues"]["issues"] if i["severity"] == "error"]
    assert errors == []


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(dataset, tmp_path):
    other = write_dataset(COHORT, tmp_path / "two", workers=2)
    assert tree(other) == tree(dataset)


def test_a_folder_with_content_is_refused_and_left_alone(tmp_path):
    small = SyntheticCohort(num_subjects=1, spacing_mm=12.0, modalities=("T1w",))
    out = tmp_path / "out"
    out.mkdir()
    write_dataset(small, out)  # empty is fine
    before = tree(out)
    with pytest.raises(UsageError, match="--overwrite"):
        write_dataset(small, out)
    assert tree(out) == before
    seen = []
    cohort = SyntheticCohort(num_subjects=2, spacing_mm=12.0)
    write_dataset(cohort, out, overwrite=True, progress=lambda *words: seen.append(words))
    assert seen == [(1, 2, "sub-001"), (2, 2, "sub-002")]
    assert (out / "sub-002").is_dir()
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("precious")
    with pytest.raises(UsageError, match="not written by"):
        write_dataset(small, foreign, overwrite=True)
    assert tree(foreign).keys() == {"chapter1.tex"}
    with pytest.raises(UsageError, match="is a file"):
        write_dataset(small, foreign / "chapter1.tex")
    with pytest.raises(UsageError, match="workers is 0"):
        write_dataset(small, tmp_path / "x", workers=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "thesis"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    written = []

    def full(path, array, affine):
        written.append(path)
        if len(written) > 5:
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(phantom_dataset, "write_image", full)
    with pytest.raises(OSError, match="No space"):
        write_dataset(SyntheticCohort(num_subjects=3, spacing_mm=12.0), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
