"""What the README says is true: its tree, its commands, its links, its lines of Python."""

import re
import runpy
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


def test_the_python_runs_as_it_is_pasted(tmp_path, monkeypatch, capsys, toys):
    """On a small cohort in the place of the demo's, with a toy in the place of its model."""
    import nibabel as nib
    import torch

    from neurotome.data.phantom.cohort import SyntheticCohort
    from neurotome.data.phantom.dataset import write_dataset
    from neurotome.data.preparation.preparation import Preparation
    from neurotome.models.subjects import TrainingSubjects
    from neurotome.scans.tokenizer import ScanTokenizer
    from tests.toy import ToyTokenizer

    write_dataset(SyntheticCohort(1, spacing_mm=8.0), tmp_path / "runs/demo/cohort")
    styles = {(name, "all"): torch.tensor([0.0, number]) for number, name in enumerate(("T1w", "T2w"))}
    model = ScanTokenizer(ToyTokenizer(), Preparation(8.0, (24, 28, 24)), {}, styles, {}, TrainingSubjects(), "")
    model.save_pretrained(tmp_path / "runs/demo/model")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pasted.py").write_text(fenced("from neurotome import"))
    runpy.run_path("pasted.py")
    assert capsys.readouterr().out.startswith("LatentScan(T1w, ")
    source = nib.load("runs/demo/cohort/sub-001/anat/sub-001_T1w.nii.gz")
    assert nib.load("sub-001_desc-synth_T2w.nii.gz").shape == source.shape


def test_the_reference_names_every_public_function_and_method():
    import inspect

    import neurotome

    text = (ROOT / "docs/reference/python.md").read_text()
    for name in set(neurotome.__all__) - {"__version__"}:
        assert f"neurotome.{name}" in text, name
    for name, method in inspect.getmembers(neurotome.Tokenizer, inspect.isroutine):
        if not name.startswith("_"):
            assert f"`{name}(" in text, name
            given = [p for p in inspect.signature(method).parameters if p not in ("self", "cls")]
            said = re.search(rf"`{name}\(([^`]*)\)", text).group(1)
            assert [re.split("[=:]", word)[0].strip(" *") for word in said.split(",") if word.strip(" *")] == given, (
                name
            )
