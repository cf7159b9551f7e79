"""``neurotome configs``: the list of shipped experiments."""

import json

import pytest

from neurotome.cli.main import main
from neurotome.experiments.config import shipped


def test_the_list_is_grouped_with_demos_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines[lines.index("tokenizer:") + 1 : lines.index("task:") - 1]]
    assert set(names) == {name for name, file in shipped().items() if file.parent.name == "tokenizer"}
    demos = [name.endswith("-demo") for name in names]
    assert demos == sorted(demos, reverse=True)
    assert lines[lines.index("task:") + 1].startswith("  segmenter-demo ")
    assert max(map(len, lines)) <= 118


def test_a_description_is_one_whole_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["vq-vae"])
    assert main(["configs", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert set(listed) == set(shipped())
    assert all(text.endswith(".") for text in listed.values())
    assert "L1 1" not in listed["vq-vae"]  # the second sentence
    assert line.endswith(" …")
    assert listed["vq-vae"].startswith(line.split(maxsplit=1)[1].removesuffix(" …") + " ")
