"""``neurotome evaluate``: the printed headline, and ``--regions``, tables of another program."""

import json
from pathlib import Path

import pytest

from neurotome.cli.evaluate import headline
from neurotome.cli.main import main
from neurotome.data.stores.store import Store

pytestmark = pytest.mark.usefixtures("toys")


def table(file: Path, subjects: list[str], volume: float, name: str = "sub-{}_T1w") -> str:
    rows = [f"{name.format(s)},{volume + i},{volume / 2}" for i, s in enumerate(subjects)]
    file.write_text("\n".join(["subject,left hippocampus,white matter", *rows]) + "\n")
    return str(file)


def test_region_volumes_are_compared_over_the_split(
    tmp_path: Path, toy_model: Path, toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everyone = [e.subject for e in Store.open(toy_store).sessions]
    split = {e.subject for e in Store.open(toy_store).split("train")}
    out = tmp_path / "out"
    words = ["evaluate", str(toy_model), str(toy_store), "--out", str(out), "--device", "cpu", "--quiet"]
    words += ["--split", "train", "--allow-train", "--regions"]
    scans = table(tmp_path / "scans.csv", everyone, 4000.0)
    made = table(tmp_path / "made.csv", everyone, 4400.0, "sub-{}_desc-recon_T1w")
    assert main([*words, scans, made]) == 0
    said = capsys.readouterr().out
    assert f"white matter: off by 10.0%, bias +200 mm3 (+200 to +200), r –, ICC –, n = {len(split)}" in said
    assert f"left out: {len(everyone) - len(split)} scans of subjects outside the split" in said
    metrics = json.loads((out / "metrics.json").read_text())
    row = metrics["regions"]["T1w"]["by_region"]
    assert row["white matter"]["icc"] is None  # JSON knows no NaN
    assert row["left hippocampus"]["icc"] == pytest.approx(1)
    assert metrics["regions"]["T1w"]["relative_error"]["n"] == len(split)
    assert len(metrics["protocol"]["regions_scans_sha256"]) == 64

    strange = table(tmp_path / "strange.csv", ["99"], 1.0)
    assert main([*words, strange, strange, "--overwrite"]) == 3
    assert "no scan of a subject of the train split" in capsys.readouterr().err
    assert main([*words, scans, str(tmp_path / "none.csv"), "--overwrite"]) == 2
    assert json.loads((out / "metrics.json").read_text()) == metrics


def test_the_headline_is_aligned_and_counts_subjects() -> None:
    gap, probes = {"code_gap": {"mean": 1.4}}, {"probes": {"token_vector": 0.68, "chance": 0.5}}
    metrics = {
        "protocol": {"split": "val"},
        "reconstruction": {"T1w": {"psnr_db": {"mean": 25.87, "n": 8}, "baselines": {"trilinear": {"psnr_db": 18.9}}}},
        "translation": {
            "T2w->T1w": {
                "psnr_db": {"mean": 9.16, "ci95": [9.0, 9.3], "n": 1},
                "baselines": {
                    "monotone_ceiling": {"psnr_db": {"mean": 12.0, "ci95": [11.5, 12.5]}},
                    "monotone_map": {"psnr_db": {"mean": 11.0, "ci95": [10.5, 11.5]}},
                },
                "paired": {"over_monotone_map_db": {"mean": -1.84, "ci95": [-2.0, -1.5]}},
            }
        },
        "bits": {"own_per_voxel": 0.84, "own_per_brain_voxel": 2.4},
        "codebook": {"utilisation": 1.0},
        "audit": gap | probes,
    }
    text = headline(metrics)
    assert text.splitlines() == [
        "reconstruct T1w        25.9 dB in the brain, 8 validation subjects",
        "  Trilinear, same latent grid      18.9 dB",
        "translate   T2w->T1w    9.2 (9.0 to 9.3) dB in the brain, 1 validation subject",
        "  Monotone map, no network         11.0 (10.5 to 11.5) dB; the model against it -1.8 (-2.0 to -1.5)",
        "  Best monotone map                12.0 (11.5 to 12.5) dB",
        "2.40 bits per brain voxel (0.84 of the grid)",
        "codebook used 100%",
        "code gap 1.40 (0: the contrasts' codes are identical, 1: unrelated)",
        "the contrast is predicted from one code with accuracy 68% (chance 50%)",
    ]
    assert headline(metrics | {"codebook": {}}).splitlines()[6:] == [
        "the contrast is predicted from one latent vector with accuracy 68% (chance 50%)"
    ]
