import pytest

from neurotome.data.datasets.manifest import scan
from neurotome.errors import InputError
from tests.data.scans import brain_array, write_bids, write_nifti


@pytest.fixture
def visits(tmp_path):
    for subject in ("1", "2"):
        for session in ("a", "b"):
            write_nifti(
                tmp_path / f"sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}_T1w.nii", brain_array()
            )
    return tmp_path


def sites(root):
    return [s.site for s in scan(root).sessions]


def test_a_row_per_visit_holds_for_its_visit(visits):
    rows = ["sub-1\tses-a\tLondon", "sub-1\tb\tParis", "sub-2\tn/a\tRome"]
    (visits / "participants.tsv").write_text("participant_id\tsession_id\tsite\n" + "\n".join(rows))
    assert sites(visits) == ["London", "Paris", "Rome", "Rome"]


def test_a_visit_without_a_row_has_the_site_of_all_others_or_none(visits):
    rows = ["sub-1\tses-x\tLondon", "sub-1\tses-y\tParis", "sub-2\tses-x\tRome"]
    (visits / "participants.tsv").write_text("participant_id\tsession_id\tsite\n" + "\n".join(rows))
    assert sites(visits) == [None, None, "Rome", "Rome"]
    assert sum("names several sites for sub-1" in note for note in scan(visits).notes) == 1


@pytest.mark.parametrize("column", ["participant_id\tsite\n", "participant_id\tsite\tage\n"])
def test_two_rows_that_disagree_are_refused(visits, column):
    tail = "\t60" * ("age" in column)
    table = visits / "participants.tsv"
    table.write_text(f"{column}sub-1\tLondon{tail}\nsub-2\tRome{tail}\n1\tParis{tail}\n")
    with pytest.raises(InputError, match=r"line 4: sub-1 is on line 2 already.*session_id") as error:
        scan(visits)
    assert error.value.file == table.resolve()
    table.write_text(f"{column}sub-1\tLondon{tail}\n1\tLondon{tail}\n")
    assert sites(visits) == ["London", "London", None, None]


@pytest.mark.parametrize("missing", ["n/a", "N/A", "NA", "NaN", "", "None", "null"])
def test_a_missing_site_is_no_site(visits, missing):
    (visits / "participants.tsv").write_text(f"participant_id\tsite\n1\t{missing}\n2\tRome\n")
    assert sites(visits) == [None, None, "Rome", "Rome"]
    (visits / "T1w.json").write_text(f'{{"Site": "{missing}"}}')
    assert sites(visits) == [None, None, "Rome", "Rome"]


def test_a_site_stays_on_its_line(tmp_path):
    root = write_bids(tmp_path, ["1", "2"], ("T1w",))
    (root / "T1w.json").write_text('{"Site": "a\\tb\\nc\\u001b[31m"}')
    (root / "sub-2/sub-2_T1w.json").write_text('{"Site": 7}')
    manifest = scan(root)
    assert manifest.sites == ("7", r"a\tb\nc\x1b[31m")
    (root / "again.tsv").write_text(manifest.to_tsv())
    assert scan(root / "again.tsv").sessions == manifest.sessions


def test_two_sidecars_of_one_level_that_disagree_cost_the_scan(tmp_path):
    root = write_bids(tmp_path, ["1"], ("T1w",))
    write_nifti(root / "sub-1/anat/sub-1_acq-x_run-1_T1w.nii", brain_array())
    (root / "acq-x_T1w.json").write_text('{"Site": "a"}')
    (root / "run-1_T1w.json").write_text('{"Site": "b"}')
    damaged = [row.path.name for row in scan(root).rows if row.damage is not None]
    assert damaged == ["sub-1_acq-x_run-1_T1w.nii"]


def test_a_sidecar_with_dots_in_its_entities_applies(tmp_path):
    write_nifti(tmp_path / "sub-1/anat/sub-1_acq-1.5mm_T1w.nii.gz", brain_array())
    write_nifti(tmp_path / "sub-1/anat/sub-1_acq-1.0mm_T2w.nii.gz", brain_array())
    (tmp_path / "sub-1/anat/sub-1_acq-1.5mm_T1w.json").write_text('{"Site": "a"}')
    assert {row.modality: row.site for row in scan(tmp_path).rows} == {"T1w": "a", "T2w": None}


def test_an_unfetched_table_is_named(tmp_path):
    root = write_bids(tmp_path, ["1"])
    (root / "participants.tsv").unlink()
    (root / "participants.tsv").symlink_to(".git/annex/objects/K.tsv")
    with pytest.raises(InputError, match=r"participants\.tsv.*datalad get"):
        scan(root)
