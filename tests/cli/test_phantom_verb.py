import argparse
import json

import pytest

from neurotome.cli import phantom
from neurotome.errors import UsageError


def run(*words):
    parser = argparse.ArgumentParser()
    phantom.add_parser(parser.add_subparsers())
    args = parser.parse_args(["phantom", *map(str, words)])
    return args.run(args)


def test_it_writes_what_it_was_asked_for(tmp_path, capsys):
    out = tmp_path / "ds"
    words = ("--subjects", 2, "--modalities", "T1w", "FLAIR", "--spacing", 12, "--sites", 2, "--seed", 3)
    assert run(out, *words, "--lesions", 1, "--confound", "site", "age", "0.8", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["subjects"] == 2
    assert said["modalities"] == ["T1w", "FLAIR"]
    assert (out / "sub-002/anat/sub-002_FLAIR.nii.gz").is_file()
    assert run(out, *words, "--overwrite", "--quiet") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("2 subjects (T1w, FLAIR, 12 mm) in ")
    assert shown.err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--subjects", 0), "num_subjects is 0"),
        (("--modalities", "T1w", "T9w"), "unknown modality 'T9w'"),
        (("--spacing", 99), "spacing_mm is 99"),
        (("--confound", "site", "age", "much"), "is no number"),
        (("--confound", "site", "height", "0.5"), "age, sex, site"),
        (("--workers", 0, "--subjects", 1), "workers is 0"),
    ],
)
def test_a_wrong_value_is_exit_code_2_and_writes_nothing(tmp_path, words, message):
    with pytest.raises(UsageError, match=message) as caught:
        run(tmp_path / "out", *words)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_help_names_units_and_defaults(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    text = " ".join(capsys.readouterr().out.split())
    for words in ("in mm", "default: 3.0", "default: 48", "0-1", "--confound A B R"):
        assert words in text
