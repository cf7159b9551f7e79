"""Private text is found, its field is named, and its content appears nowhere."""

import json
import struct
import time

import nibabel
import numpy as np
import pytest

from neurotome.data.checking.check import check
from neurotome.data.checking.privacy import looks_private, sidecar_findings, table_findings
from neurotome.data.imaging.reader import read_volume
from tests.data.scans import brain_array, header_bytes, write_bids, write_gzip, write_nifti

PLANTED = ("Mustermann", "19700131", "Erika", "Charite", "99887766", "erika@example.org")


@pytest.mark.parametrize(
    "text",
    [
        "Mustermann^Erika", "Mustermann, Erika", "Erika Mustermann", "MUSTERMANN ERIKA", "PatientName: x", "ID=12a",
        "born 1970-01-31", "31.01.1970", "1/31/1970", "31-Jan-1970", "Jan 31 1970", "19700131", "Time=093550.000",
        "at 09:35:50", "09:35", "12345678", "123-45-6789", "erika@example.org", "/home/erika/x", "C:\\Users\\erika",
    ],
)  # fmt: skip
def test_what_looks_private(text):
    assert looks_private(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "FSL5.0.11", "spm - 3D normalized", "T1 MPRAGE SAG", "Magnetic Resonance Image", "TE=4.2", "version 1.10.0",
        "www.bic.mni.mcgill.ca/ServicesAtlases/ICBM152NLin2009", "0.5 1.25 3.14159", "Brain Mask", "none",
    ],
)  # fmt: skip
def test_what_does_not(text):
    assert looks_private(text) is None


def codes_of(report):
    return {
        (f.code, f.file) for f in report.findings if "private" in f.code or "text" in f.code or "indirect" in f.code
    }


@pytest.mark.parametrize("field", ["descrip", "aux_file", "intent_name", "db_name", "data_type"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_text_fields_of_the_header(tmp_path, field, order):
    block = header_bytes(brain_array().astype(f"{order}f4"), **{field: b"E^Mu"})
    write_gzip(tmp_path / "a_T1w.nii.gz", block)
    report = check(tmp_path / "a_T1w.nii.gz")
    (one,) = [f for f in report.findings if f.code == "private-header"]
    assert field in one.reason
    assert "E^Mu" not in json.dumps(report.to_json())


def test_what_is_left_behind_the_end_of_a_text_is_found(tmp_path):
    write_gzip(tmp_path / "a_T1w.nii.gz", header_bytes(brain_array(), descrip=b"FSL5.0\0ustermann^Erika"))
    assert codes_of(check(tmp_path)) == {("private-header", "a_T1w.nii.gz")}


def test_a_signature_of_a_tool_says_nothing_about_a_person(tmp_path):
    for n, text in enumerate((b"FSL5.0", b"FreeSurfer May 11 2020", b"6.0.5:9e026117", b"spm - realigned", b"")):
        write_gzip(tmp_path / f"{n}_T1w.nii.gz", header_bytes(brain_array(seed=n), descrip=text))
    assert {c for c, _ in codes_of(check(tmp_path))} <= {"header-text"}


def test_nifti_2_and_extensions(tmp_path):
    image = nibabel.Nifti2Image(brain_array(), np.diag([3, 3, 3, 1]))
    image.set_sform(image.affine, 1)
    image.header["descrip"] = b"Mustermann^Erika"
    nibabel.save(image, tmp_path / "a_T1w.nii.gz")
    image = nibabel.Nifti1Image(brain_array(seed=1), np.diag([3, 3, 3, 1]))
    image.set_sform(image.affine, 1)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"all is well"))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(44, b"made for Mustermann, Erika"))
    nibabel.save(image, tmp_path / "b_T1w.nii.gz")
    image.header.extensions[:] = [nibabel.nifti1.Nifti1Extension(40, b"x" * 40)]
    block = image.to_bytes().replace(struct.pack("<2i", 48, 40), struct.pack("<2i", 48, 2))  # 2 is DICOM
    write_gzip(tmp_path / "c_T2w.nii.gz", block)
    report = check(tmp_path)
    assert codes_of(report) == {
        ("private-header", "a_T1w.nii.gz"),
        ("private-header", "b_T1w.nii.gz"),
        ("header-text", "b_T1w.nii.gz"),
        ("private-header", "c_T2w.nii.gz"),
    }
    assert "Mustermann" not in json.dumps(report.to_json())


def test_many_or_long_extensions_take_no_time_and_one_line(tmp_path):
    for letter, extension in (("a", b"a" * (1 << 21)), ("b", None)):
        image = nibabel.Nifti1Image(brain_array(seed=ord(letter)), np.diag([3, 3, 3, 1]))
        image.set_sform(image.affine, 1)
        texts = [extension] if extension else [b"note %d" % n for n in range(3000)] + [b"Mustermann^Erika"]
        image.header.extensions.extend(nibabel.nifti1.Nifti1Extension(44, text) for text in texts)
        nibabel.save(image, tmp_path / f"{letter}_T1w.nii.gz")
    start = time.process_time()
    report = check(tmp_path)
    assert time.process_time() - start < 5
    assert ("private-header", "b_T1w.nii.gz") in codes_of(report)
    assert sum(f.file == "b_T1w.nii.gz" for f in report.findings) < 40


def test_the_history_of_a_freesurfer_image(tmp_path):
    image = nibabel.MGHImage(brain_array(), np.diag([3, 3, 3, 1]))
    nibabel.save(image, tmp_path / "plain_T1w.mgz")
    import gzip

    block = gzip.decompress((tmp_path / "plain_T1w.mgz").read_bytes())
    write_gzip(tmp_path / "history_T2w.mgz", block + b"\0\0\0\x03mri_convert /home/erika/mustermann.dcm out.mgz\0")
    assert codes_of(check(tmp_path)) == {("private-header", "history_T2w.mgz")}


def test_keys_of_sidecars(tmp_path):
    content = {
        "PatientName": "Erika Mustermann",
        "PatientBirthDate": "1970",
        "AcquisitionDateTime": "2001",
        "InstitutionName": "Charite",
        "global": {"const": {"OtherPatientIDs": ["99887766"]}},
        "AcquisitionTime": "09:35:50",
        "SeriesDescription": "for Mustermann, Erika",
        "Mustermann^Erika": "Mustermann^Erika",
        "PatientID": "anonymous",
        "InstitutionAddress": "Site 3",
        "PatientSex": "",
        "Manufacturer": "Siemens",
        "ManufacturersModelName": "Prisma Fit",
        "ConversionSoftwareVersion": "v1.0.20200331",
        "EchoTime": 0.003,
        "ImageOrientationText": None,
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = sidecar_findings(tmp_path / "a.json", "a.json")
    named = {f.reason.split(" is filled")[0].removeprefix("key ") for f in found if f.code == "private-sidecar"}
    assert named == {
        "PatientName", "PatientBirthDate", "AcquisitionDateTime", "InstitutionName", "OtherPatientIDs",
        "SeriesDescription", "with an unusual name",
    }  # fmt: skip
    assert [f.reason for f in found if f.code == "indirect-sidecar"] == ["key AcquisitionTime is filled in"]
    assert not any(p in str(found) for p in PLANTED)


def test_columns_of_tables(tmp_path):
    (tmp_path / "p.tsv").write_text(
        "participant_id\tage\tsex\tsurname\tremark\tvisit\n"
        "sub-01\t34\tF\tMustermann\tok\t1970-01-31\n"
        "sub-02\t93\tM\tn/a\twrite to erika@example.org\tn/a\n"
    )
    found = table_findings(tmp_path / "p.tsv", "p.tsv")
    assert [f.reason.split(")")[0] for f in found] == [
        "column 2 (age",
        "column 4 (surname",
        "column 5 (remark",
        "column 6 (visit",
    ]
    assert not any(p in str(found) for p in (*PLANTED, "93", "1970"))


def test_nothing_planted_is_repeated_anywhere(tmp_path):
    raw = write_bids(tmp_path / "raw", ["01", "02"])
    anat = raw / "sub-01/anat"
    write_nifti(anat / "sub-01_T1w.nii.gz", brain_array(), descrip=b"Mustermann^Erika 19700131")
    # a broken file still has a header
    broken = header_bytes(brain_array(seed=8), aux_file=b"Mustermann^Erika")[:-100]
    write_gzip(anat / "sub-01_T2w.nii.gz", broken)
    (anat / "sub-01_T1w.json").write_text(json.dumps({"PatientName": "Mustermann", "PatientID": "99887766"}))
    (anat / "sub-01_T2w.json").write_text('{"PatientName": "Mustermann" "Charite"')
    (raw / "T1w.json").write_text(json.dumps({"InstitutionName": "Charite"}))
    (raw / "participants.tsv").write_text("participant_id\tname\nsub-01\tErika Mustermann\nsub-02\terika@example.org\n")
    report = check(raw)
    codes = [f.code for f in report.findings]
    assert codes.count("private-header") == 2
    assert codes.count("private-sidecar") == 3
    assert {"private-column", "unreadable", "bids-sidecar"} <= set(codes)
    assert not [p for p in PLANTED if p in json.dumps(report.to_json())]


def test_what_a_model_made_is_said(tmp_path):
    """Phantoms have another mark: they are made to be trained on."""
    write_bids(tmp_path, ["01", "02"])
    raw = tmp_path
    scan = next(raw.rglob("sub-01_T1w.nii.gz"))
    volume = read_volume(scan)
    scan.unlink()
    volume.save(scan, synthetic=True)
    (one,) = [f for f in check(raw).findings if f.code == "synthetic"]
    assert one.file.endswith("sub-01_T1w.nii.gz")
    assert one.severity == "warning"
