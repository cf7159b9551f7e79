"""What the README says is true: its tree, its commands, its links, its five lines of Python."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PACKAGE = ROOT / "src" / "neurotome"


def fenced(start: str) -> str:
    """Return the code block that begins with ``start``."""
    return next(block for block in re.findall(r"```\w*\n(.*?)```", README, re.DOTALL) if block.startswith(start))


def test_the_tree_is_the_package():
    named, folder = set(), ""
    for indent, name in re.findall(r"^( {2}| {4})(\w+)/ ", fenced("src/neurotome/"), re.MULTILINE):
        folder = name if len(indent) == 2 else folder
        named.add(folder if len(indent) == 2 else f"{folder}/{name}")
    packages = {p.parent.relative_to(PACKAGE).as_posix() for p in PACKAGE.glob("*/**/__init__.py")}
    assert named - {"configs"} == packages


def test_the_commands_are_the_verbs():
    from neurotome.cli.main import _parser

    listed = set(re.findall(r"^\| `neurotome (\w+)", README, re.MULTILINE))
    assert listed == set(_parser()[1])


def test_make_knows_the_targets():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_five_lines_use_what_there_is():
    import neurotome

    block = fenced("from neurotome import")
    for name in re.findall(r"[A-Z]\w+|\w+", block.splitlines()[0].split("import")[1]):
        assert hasattr(neurotome, name)
    for method in ("from_pretrained", "encode", "decode"):
        assert f".{method}(" in block
        assert callable(getattr(neurotome.Tokenizer, method))
