"""What the pages say is there: links, anchors, pictures, make targets, commands with their flags, Python's imports."""

import ast
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from neurotome.cli.main import Parser, _config_options, _parser, split_overrides
from neurotome.errors import NeurotomeError
from neurotome.experiments.config import shipped, shipped_benches

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", ".github/**/*.md")
    for page in ROOT.glob(pattern)
    if page.name != "CHANGELOG.md"  # tells what commands were once
)
CONFIGS = sorted((ROOT / "src" / "neurotome" / "configs").rglob("*.yaml"))
SCRIPTS = sorted((ROOT / "examples").glob("*.sh")) + sorted((ROOT / "examples").glob("*.sbatch"))

FENCE = re.compile(r"^( *)```([\w{}-]*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
# flags of other programs that running text names: SynthSeg, SLURM, Docker, Podman
FOREIGN = {"--vol", "--requeue", "--signal", "--ntasks", "--build-arg", "--user", "--userns"}
# a word that takes the place of what a user types: STORE, RUN/model, DATA, …
FREE = re.compile(r"^[A-Z][A-Z0-9_]*(/|$)|[$<>…*]|\.ya?ml$")


@cache
def verbs() -> dict[str, Parser]:
    """Return the parser of every verb."""
    return _parser()[1]


@cache
def sections() -> frozenset[str]:
    """Return the blocks that a config has."""
    return frozenset({"method", *(option.lstrip("-").split(".")[0] for option in _config_options())})


def prose(text: str) -> str:
    """Return a page without its code blocks."""
    return FENCE.sub("", text)


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield language and text of every code block of a page."""
    for indent, language, body in FENCE.findall(text):
        yield language, re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors of a page: of its headings, as code hosts and Sphinx make them."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose(page.read_text(encoding="utf-8")), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return frozenset(found)


def link_faults(page: Path, text: str) -> Iterator[str]:
    """Yield every link of a page that leads nowhere."""
    for target in LINK.findall(INLINE.sub("", prose(text))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"{target}: there is no such file"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            yield f"{target}: no heading of {file.name} makes this anchor; it has {sorted(anchors(file))}"


def listed(text: str) -> list[str]:
    """Return the pages that a page's tables of contents list."""
    trees = [body for language, body in blocks(text) if language == "{toctree}"]
    return [f"{name}.md" for tree in trees for name in re.findall(r"^[\w/.-]+$", tree, re.MULTILINE)]


def directive_faults(page: Path, text: str) -> Iterator[str]:
    """Yield pages of a table of contents and included files that are not there."""
    included = re.findall(r"^```\{(?:literal)?include\} (\S+)$", text, re.MULTILINE)
    for target in [*listed(text), *included]:
        if not (page.parent / target).exists():
            yield f"{target}: there is no such file"


def reference_faults(text: str) -> Iterator[str]:
    """Yield names of the reference that nothing in the package has."""
    for kind, name in re.findall(r"^\.\. auto(module|class|function):: (\S+)$", text, re.MULTILINE):
        module, _, last = name.rpartition(".")
        if kind == "module":
            found = importlib.util.find_spec(name) is not None
        else:
            found = hasattr(importlib.import_module(module), last)
        if not found:
            yield f"{name}: there is no such {kind}"


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield the words after ``neurotome`` of every command in a shell text."""
    text = re.sub(r"\\\n\s*", " ", text)
    text = re.sub(r"\n +(?=--)", " ", text)  # a command of a comment that goes on in the next line
    for line in text.splitlines():
        for part in re.split(r"&&|\|\|?|;(?: |$)|\$\(", line):
            found = re.search(r"(?:^|[\s/(])neurotome +(?=[\w\[-])(.*)", part)
            if found is None or part.lstrip().startswith("#"):
                continue
            words = re.sub(r"\[([A-Z]+)\]", r"\1", found[1].split(" # ")[0])  # [OUT]: may be left out
            try:
                yield shlex.split(words, comments=True)
            except ValueError:
                yield words.split()


def command_faults(words: list[str], *, whole: bool) -> Iterator[str]:
    """Yield what is wrong with a command; ``whole`` ones must also be complete."""
    said = " ".join(["neurotome", *words])
    if not words or words[0].startswith("-"):
        return
    verb, rest = words[0], words[1:]
    if verb not in verbs():
        if verb != "VERB":
            yield f"`{said}`: there is no verb {verb}"
        return
    for word in rest:
        name = word.split("=")[0]
        if not re.fullmatch(r"--?[a-z][\w.-]*", name):
            continue
        if "." in name and verb == "train":
            if name.lstrip("-").split(".")[0] not in sections():
                yield f"`{said}`: configs have no {name}"
        elif name not in verbs()[verb].options():
            yield f"`{said}`: {verb} has no {name}"
    names = {"train": shipped(), "configs": [*shipped(), *shipped_benches()]}.get(verb)
    if names is not None and rest and not rest[0].startswith("-") and not FREE.search(rest[0]) and rest[0] not in names:
        yield f"`{said}`: there is no config {rest[0]}"
    if whole and "…" not in said and "..." not in said:
        try:
            _, plain = split_overrides(rest)
            verbs()[verb].parse_args([re.sub(r"^(\$\w+|<\w+>|\$\{.*\})$", "1", word) for word in plain])
        except NeurotomeError as error:
            yield f"`{said}`: {error}"
        except SystemExit:
            pass


def flag_faults(words: list[str]) -> Iterator[str]:
    """Yield flags of ours in running text that no verb has."""
    known = {option for parser in verbs().values() for option in parser.options()} | {"--version"} | FOREIGN
    for word in words:
        name = word.split("=")[0]
        if re.fullmatch(r"--[a-z][a-z-]+", name) and name not in known:
            yield f"`{' '.join(words)}`: no verb has {name}"


def python_faults(source: str) -> Iterator[str]:
    """Yield what cannot be parsed or imported in a Python example."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        yield f"{error}: {source.splitlines()[0]}"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "neurotome":
            module = importlib.import_module(node.module or "")
            yield from (f"{node.module} has no {a.name}" for a in node.names if not hasattr(module, a.name))


def make_faults(text: str) -> Iterator[str]:
    """Yield make targets that the Makefile does not have."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in sorted(set(re.findall(r"(?:^|`|\s)make ([a-z][a-z-]*)(?=[`\s]|$)", text, re.MULTILINE))):
        if not re.search(rf"^{target}:", makefile, re.MULTILINE):
            yield f"make {target}: the Makefile has no such target"


def page_faults(page: Path, text: str) -> list[str]:
    """Return everything that a page says and is not so."""
    faults = [*link_faults(page, text), *directive_faults(page, text), *reference_faults(text)]
    for language, body in blocks(text):
        if language == "python" and "class BlockAverage" not in body:  # the worked example has its own test
            faults += python_faults(body)
        elif language in ("", "sh", "bash", "console"):
            faults += [fault for words in command_lines(body) for fault in command_faults(words, whole=True)]
            faults += make_faults(re.sub(r"#.*", "", body))
    for code in INLINE.findall(prose(text)):
        code = " ".join(code.split())
        if code.startswith("neurotome "):
            faults += [fault for words in command_lines(code) for fault in command_faults(words, whole=False)]
        elif code.startswith("--"):
            faults += flag_faults(code.replace("=", " ").split()[:1])
        elif code.startswith("make "):
            faults += make_faults(code)
    return faults


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_says_what_is_so(page: Path) -> None:
    faults = page_faults(page, page.read_text(encoding="utf-8"))
    assert not faults, "\n".join(faults)


def test_the_heads_of_configs_name_commands_that_there_are() -> None:
    faults = []
    for config in CONFIGS:
        head = [line.removeprefix("#") for line in config.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
        for words in command_lines(re.sub(r" {3,}\(or: .*", "", "\n".join(head))):
            faults += [f"{config.name}: {fault}" for fault in command_faults(words, whole=False)]
    assert not faults, "\n".join(faults)


def test_the_scripts_name_commands_that_there_are() -> None:
    assert SCRIPTS
    faults = []
    for script in SCRIPTS:
        commands = list(command_lines(script.read_text(encoding="utf-8")))
        assert commands, script
        faults += [f"{script.name}: {fault}" for words in commands for fault in command_faults(words, whole=True)]
    assert not faults, "\n".join(faults)


def test_every_page_is_reached_from_the_first_one() -> None:
    first = ROOT / "docs" / "index.md"
    reached, queue = set(), [first]
    while queue:
        page = queue.pop()
        if page in reached:
            continue
        reached.add(page)
        text = page.read_text(encoding="utf-8")
        targets = [target.partition("#")[0] for target in LINK.findall(prose(text))]
        for target in [*listed(text), *targets]:
            file = (page.parent / target).resolve()
            if file.suffix == ".md" and file.exists() and (ROOT / "docs") in file.parents:
                queue.append(file)
    assert {p for p in PAGES if (ROOT / "docs") in p.parents} - reached == set()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[a](gone.md)", "gone.md: there is no such file"),
        ("![a](gone.png)", "gone.png"),
        ("```{toctree}\n:maxdepth: 1\n\ngone\n```", "gone.md"),
        ("```{literalinclude} gone.py\n```", "gone.py"),
        ("# One\n[a](#two)", "#two: no heading"),
        ("[a](../README.md#no-such-heading)", "no-such-heading"),
        ("```{eval-rst}\n.. autoclass:: neurotome.tokenizers.NoSuchClass\n```", "there is no such class"),
        ("```{eval-rst}\n.. automodule:: neurotome.no_such_module\n```", "there is no such module"),
        ("`neurotome chek DATA`", "there is no verb chek"),
        ("`neurotome check DATA --shape 1`", "check has no --shape"),
        ("```\nneurotome train no-such-config STORE --out RUN\n```", "there is no config no-such-config"),
        ("```sh\nneurotome train neuroquant STORE\n```", "--out"),
        ("```\nneurotome prepare A B --spacing \\\n  one\n```", "one"),
        ("```\nneurotome train neuroquant S --out R --trainr.max_steps 3\n```", "configs have no --trainr.max_steps"),
        ("```\nmake a | neurotome evaluate M S --out D --splti x\n```", "evaluate has no --splti"),
        ("use `--no-such-flag`", "no verb has --no-such-flag"),
        ("run `make no-such-target`", "no such target"),
        ("```python\nfrom neurotome import NoSuchName\n```", "neurotome has no NoSuchName"),
        ("```python\nx = = 1\n```", "invalid syntax"),
    ],
)
def test_a_wrong_page_is_seen(tmp_path: Path, text: str, fault: str) -> None:
    page = ROOT / "docs" / "made-up.md"
    (tmp_path / "made-up.md").write_text(text)
    faults = page_faults(page if "../README" in text else tmp_path / "made-up.md", text)
    assert any(fault in found for found in faults), faults


def test_a_right_page_has_no_fault(tmp_path: Path) -> None:
    text = (
        "# One `two`: three\n[a](#one-two-three) [b](../README.md) [c](https://example.org/x#y)\n"
        "`neurotome evaluate` `neurotome train neuroquant STORE --out RUN` `--mask FILE`\n"
        "```\n$ neurotome check DATA | head   # words\nneurotome prepare DATA STORE \\\n  --shape 8 8 8\n```\n"
        "```python\nfrom neurotome import Tokenizer\n```\n"
    )
    page = ROOT / "docs" / "made-up.md"
    assert page_faults(page, text.replace("(#one-two-three)", "(https://example.org)")) == []
    (tmp_path / "made-up.md").write_text(text)
    assert page_faults(tmp_path / "made-up.md", text.replace("../README.md", "made-up.md")) == []


@pytest.mark.parametrize("folder", ["tokenizers", "tasks", "nn.quantize"])
def test_every_public_class_is_in_the_reference(folder: str) -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference" / "api").glob("*.md"))
    named = set(re.findall(r"auto\w+:: \S+\.(\w+)$", pages, re.MULTILINE))
    assert set(importlib.import_module(f"neurotome.{folder}").__all__) - named == set()


def said_by_the_source() -> str:
    """Return every text in the source, one a line; the parts of an f-string around its values stand alone."""
    trees = [ast.parse(module.read_text(encoding="utf-8")) for module in (ROOT / "src" / "neurotome").rglob("*.py")]
    constants = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return "\n".join(" ".join(value.split()) for value in constants if isinstance(value, str))


def test_the_questions_quote_messages_that_there_are() -> None:
    page = (ROOT / "docs" / "how-to" / "faq.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    said = said_by_the_source()
    assert quoted
    assert [message for message in quoted if message not in said] == []
