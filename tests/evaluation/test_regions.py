"""Tables of volumes: which scan a row is about, what is refused, and the numbers by hand."""

from pathlib import Path

import pytest

from neurotome.errors import InputError
from neurotome.evaluation.regions import UNNAMED, RegionVolumes, ScanName, VolumeTable

SCANS = """subject,total intracranial,left hippocampus
sub-01_ses-1_T1w,1500000,4000
sub-01_ses-2_T1w,1500000,2000
sub-02_ses-1_T1w.nii.gz,1600000,5000
sub-03_T1w,1,1
sub-02_ses-1_T2w,1600000,0
"""
MADE = """,left hippocampus,right thalamus
sub-01_ses-1_desc-recon_T1w,3600,9
sub-01_ses-2_desc-recon_T1w,1000,9
sub-02_ses-1_desc-recon_T1w,5500,9
/data/rec/sub-02/anat/sub-02_ses-1_desc-recon_T2w.nii.gz,100,9
sub-09_desc-recon_T1w,1,9
"""


def tables(folder: Path, scans: str = SCANS, made: str = MADE) -> RegionVolumes:
    (folder / "scans.csv").write_text(scans)
    (folder / "made.csv").write_text(made)
    return RegionVolumes(VolumeTable.read(folder / "scans.csv"), VolumeTable.read(folder / "made.csv"))


@pytest.mark.parametrize(
    ("scan", "made", "name"),
    [
        ("sub-01_T1w", "sub-01_desc-recon_T1w.nii.gz", ScanName("01", "T1w")),
        ("sub-01_run-2_ses-x_T2w.nii", "sub-01_ses-x_run-2_desc-recon_T2w", ScanName("01", "T2w", ("run-2", "ses-x"))),
        ("sub-01_ce-gadolinium_T1w", "sub-01_ce-gadolinium_desc-recon_T1w", ScanName("01", "T1c")),
        ("sub-01_ses-1", "sub-01_ses-1", ScanName("01", UNNAMED, ("ses-1",))),
        ("IXI012-HH-T1.nii.gz", "IXI012-HH-T1_desc-recon.nii.gz", ScanName("IXI012-HH-T1", "T1w")),
    ],
)  # fmt: skip
def test_scan_and_reconstruction_have_one_name(scan: str, made: str, name: ScanName) -> None:
    assert ScanName.read(scan) == ScanName.read(made) == name


def test_numbers_by_hand(tmp_path: Path) -> None:
    found = tables(tmp_path).compare({"01", "02"}, "test", 0)
    assert set(found) == {"T1w", "T2w"}
    row = found["T1w"]["by_region"]["left hippocampus"]
    assert set(found["T1w"]["by_region"]) == {"left hippocampus"}  # the one region of both tables
    assert row["relative_error"]["values"] == pytest.approx({"01": (0.1 + 0.5) / 2, "02": 0.1})
    assert row["relative_error"]["mean"] == pytest.approx(0.2)
    assert row["bias_mm3"]["values"] == pytest.approx({"01": (-400 - 1000) / 2, "02": 500})
    assert row["n"] == 2
    # means of subjects: (3000, 2300) and (5000, 5500)
    assert row["pearson"] == pytest.approx(1)
    assert row["icc"] == pytest.approx(2 * 1000 * 1600 / (1000**2 + 1600**2))
    assert found["T1w"]["relative_error"]["mean"] == pytest.approx(0.2)
    assert found["T1w"]["left_out"] == {"other_subjects": 2, "unpaired": 0}
    empty = found["T2w"]["by_region"]["left hippocampus"]
    assert empty["relative_error"] is None
    assert empty["bias_mm3"]["mean"] == 100
    assert tables(tmp_path).compare({"01", "02", "03"}, "test", 0)["T1w"]["left_out"]["unpaired"] == 1


def test_a_table_of_freesurfer(tmp_path: Path) -> None:
    file = tmp_path / "aseg.tsv"
    file.write_text("Measure:volume\tLeft-Hippocampus\tEstimatedTotalIntraCranialVol\nsub-01\t4000.5\t1.5e6\n")
    table = VolumeTable.read(file)
    assert table.volumes == {
        ScanName("01", UNNAMED): {"Left-Hippocampus": 4000.5, "EstimatedTotalIntraCranialVol": 1.5e6}
    }
    file.rename(tmp_path / "aseg.csv")
    with pytest.raises(InputError, match=r"aseg\.csv: one column alone.*must end in \.tsv"):
        VolumeTable.read(tmp_path / "aseg.csv")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("4000", "many"), r"scans\.csv: line 2, column left hippocampus: many is no volume"),
        (("4000", ""), "line 2, column left hippocampus: an empty cell is no volume"),
        (("4000", "nan"), "line 2, column left hippocampus: nan"),
        (("4000", "-4"), "line 2, column left hippocampus: -4"),
        (("sub-03_T1w", "x/sub-02_ses-1_desc-recon_T1w"), r"scans\.csv: line 5: .* is the scan of line 4 once more"),
        (("total intracranial", "left hippocampus"), "occurs twice"),
        (("hippocampus", "amygdala"), r"made\.csv: shares no region with .*scans\.csv: left hippocampus, right"),
        (("_T1w", "_T2starw"), "shares no scan|is the scan of line"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: tuple[str, str], match: str) -> None:
    with pytest.raises(InputError, match=match):
        tables(tmp_path, SCANS.replace(*change), MADE.replace("_T2w", "_PDw"))


def test_tables_without_a_subject_of_the_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no scan of a subject of the val split.*measure the scans of sub-44"):
        tables(tmp_path).compare({"44"}, "val", 0)
