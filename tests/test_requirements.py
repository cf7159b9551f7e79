"""The declared bounds, the set of lowest versions and the lock say the same of every direct dependency."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# tools of the lock, not of users; torchvision must fit the torch that is installed and never comes by itself
UNBOUND = {"ruff", "mypy", "types-pyyaml", "torchvision"}
DOCS = {"sphinx", "myst-parser", "furo"}


def declared() -> Iterator[Requirement]:
    """Yield every direct dependency, those of the extras included."""
    for line in [*PROJECT["dependencies"], *(x for extra in PROJECT["optional-dependencies"].values() for x in extra)]:
        yield Requirement(line)


def pinned(name: str) -> dict[str, Version]:
    """Return the versions that a constraints file pins."""
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in pins}


@pytest.mark.parametrize("requirement", declared(), ids=lambda requirement: requirement.name)
def test_a_bound_is_the_lowest_version_and_admits_the_locked_one(requirement: Requirement) -> None:
    name = canonicalize_name(requirement.name)
    lowest, lock = pinned("lowest.txt"), pinned("lock.txt")
    bounds = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
    if name not in UNBOUND | DOCS:
        assert bounds == [lowest[name]], f"requirements/lowest.txt has {lowest[name]}"
    if name != "torchvision":
        assert lock[name] in requirement.specifier


def test_no_constraints_file_pins_what_breaks_a_cpu_installation() -> None:
    assert "torchvision" not in {**pinned("lowest.txt"), **pinned("lock.txt")}


def test_the_oldest_set_has_nothing_that_is_not_declared() -> None:
    assert set(pinned("lowest.txt")) <= {canonicalize_name(requirement.name) for requirement in declared()}


def test_the_workflow_tests_every_python_that_is_declared() -> None:
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    (pythons,) = re.findall(r"python: \[(.*)\]", workflow)
    named = re.findall(r"3\.\d+", pythons)
    assert f">={named[0]}" == PROJECT["requires-python"]
    classified = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d", c)]
    assert classified == named
    for constraints in re.findall(r"constraints: (requirements/\S+)", workflow):
        assert (ROOT / constraints).exists()


def test_the_workflow_calls_targets_that_there_are() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    called = re.findall(r"run: make (\S+)", (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    assert {"test", "pytest", "docs"} == set(called)
    assert [target for target in called if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_the_container_is_given_every_file_that_it_copies() -> None:
    recipe = (ROOT / "Containerfile").read_text(encoding="utf-8")
    admitted = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", recipe, re.MULTILINE) for word in line.split()]
    assert copied
    assert [word for word in copied if not (ROOT / word).exists() or word not in admitted] == []
