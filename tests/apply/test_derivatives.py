import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from neurotome.apply.derivatives import dataset_description, link, source_uri, write_description
from neurotome.cli.main import main
from tests.toy import bids

pytestmark = pytest.mark.usefixtures("toys")

VALIDATOR = Path(sys.executable).parent / "bids-validator-deno"


def issues(folder: Path) -> list[dict]:
    """What the official validator finds wrong, warnings aside."""
    done = subprocess.run([str(VALIDATOR), "--json", str(folder)], capture_output=True, text=True, timeout=120)
    found = json.loads(done.stdout)["issues"]["issues"]
    return [issue for issue in found if issue["severity"] == "error"]


@pytest.mark.slow
@pytest.mark.skipif(not VALIDATOR.exists(), reason="bids-validator-deno is not installed")
def test_the_official_validator_accepts_what_the_verbs_write(tmp_path: Path, toy_model: Path) -> None:
    raw = bids(tmp_path / "raw", subjects=2)
    anat = raw / "sub-00" / "anat"
    shutil.copy(anat / "sub-00_T1w.nii.gz", anat / "sub-00_acq-hi_run-2_T1w.nii.gz")
    out = raw / "derivatives" / "neurotome"
    assert main(["translate", str(toy_model), str(raw), str(out), "--to", "T2w", "--quiet"]) == 0
    assert main(["encode", str(toy_model), str(raw), str(tmp_path / "codes"), "--quiet"]) == 0
    assert main(["decode", str(toy_model), str(tmp_path / "codes"), str(tmp_path / "back"), "--quiet"]) == 0
    for folder, number in ((out, 3), (tmp_path / "codes", 5), (tmp_path / "back", 5)):
        assert issues(folder) == []
        assert len(list(folder.rglob("*_desc-*.json"))) == number
    # the test can fail: a result with a name that BIDS does not know is an error
    (out / "sub-00" / "anat" / "sub-00_desc-x_T9w.nii.gz").write_bytes(b"")
    assert issues(out)


def test_uris_in_sidecars_lead_from_the_results_to_the_sources(tmp_path: Path, toy_model: Path) -> None:
    raw, out = bids(tmp_path / "raw", subjects=2), tmp_path / "out"
    assert main(["reconstruct", str(toy_model), str(raw), str(out), "--quiet"]) == 0
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    sidecars = list(out.rglob("*_desc-*.json"))
    assert len(sidecars) == 4
    for sidecar in sidecars:
        (uri,) = json.loads(sidecar.read_text())["Sources"]
        kind, name, place = uri.split(":", 2)
        assert (kind, (out / links[name] / place).resolve().is_file()) == ("bids", True)


def test_a_far_source_is_not_told(tmp_path: Path) -> None:
    near, far = tmp_path / "raw", tmp_path / "home" / "jane.doe" / "study" / "raw"
    assert link(near, tmp_path / "out") == "../raw"
    assert link(near, near / "derivatives" / "out") == "../.."
    assert link(far, tmp_path / "out") is None
    assert source_uri(far / "sub-1" / "anat" / "x.nii", far) == "bids:raw:sub-1/anat/x.nii"
    far.mkdir(parents=True)
    description = dataset_description("translate", far, tmp_path / "out")
    assert "jane" not in json.dumps(description)
    assert "DatasetLinks" not in description


def test_the_description_says_what_made_the_results(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "dataset_description.json").write_text(json.dumps({"Name": "x", "DatasetDOI": "doi:10.1/2"}))
    write_description("translate", raw, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert content["DatasetType"] == "derivative"
    assert content["GeneratedBy"][0]["Name"] == "neurotome"
    assert content["SourceDatasets"] == [{"DOI": "doi:10.1/2", "URL": "../raw"}]
    assert str(tmp_path) not in json.dumps(content)
    assert "synthetic" in (tmp_path / "out" / "README").read_text()
