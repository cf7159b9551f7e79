"""The rules of the source tree that a machine can check; each is seen failing on a made-up module below."""

import ast
import graphlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "neurotome"
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 400, 70

# higher floors import lower ones; of a folder with rooms each room has a floor of its own; the rest are modules
FLOORS = {
    "__main__": 10, "cli": 9,
    "experiments": 8,
    "apply": 7, "evaluation": 7, "report": 7,
    "scans": 6,
    "models": 5,
    "tokenizers": 4, "generative": 4, "disentangle": 4, "tasks": 4,
    "losses": 3, "training": 3,
    "nn": 2, "data": 2, "metrics": 2,
    "files": 1, "ranges": 1,
    "types": 0, "modality": 0, "errors": 0, "streams": 0,
}  # fmt: skip
ROOMS = {
    "data/imaging": 0,
    "data/preparation": 1, "data/phantom": 1,
    "data/datasets": 2,
    "data/stores": 3,
    "data/checking": 4,
}  # fmt: skip
METHODS = ("tokenizers", "generative", "disentangle", "tasks")
DATA_READERS = ("models", "scans", "apply", "evaluation", "report", "experiments", "cli", "data")
LIGHTNING = ("training", "cli", "experiments")
# a stem occurs once, unless the rooms make the difference plain: a verb and its work, a measure and its picture
SHARED_STEMS = {
    "__init__", "base",
    "audit", "bench", "check", "evaluate", "shards", "train",
}  # fmt: skip
FORBIDDEN_NAMES = (
    "utils",
    "util",
    "helpers",
    "helper",
    "common",
    "misc",
    "manager",
    "factory",
    "unified",
    "legacy",
    "v2",
)
FORBIDDEN_MODULES = ("pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle")
LAYER = re.compile(r"(Conv|ConvTranspose|BatchNorm|InstanceNorm|MaxPool|AvgPool|Dropout)[123]d$")
DIMENSION = re.compile(r"_[23]d$")


@cache
def parsed() -> dict[Path, ast.Module]:
    return {module: ast.parse(module.read_text()) for module in sorted(SRC.rglob("*.py"))}


def place(module: Path) -> str:
    """Return the folder of a module, or its own name where it lies beside the folders."""
    parts = module.relative_to(SRC).parts
    return parts[0] if len(parts) > 1 else module.stem


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "relative"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor_faults(module: Path, tree: ast.AST) -> Iterator[str]:
    here = place(module)
    if here == "__init__":  # the lazy top level
        return
    if here not in FLOORS:
        yield f"{here} is on no floor"
        return
    for name in imports(tree):
        if name == "relative":
            yield "relative import"
        if not name.startswith("neurotome.") or name == "neurotome.__version__":
            continue
        there, *rest = name.split(".")[1:]
        if there == here or there not in FLOORS:
            if there == here and _room_floor(module.relative_to(SRC).parts[:2]) < _room_floor((there, *rest)[:2]):
                yield f"{name} lies in a room above"
            continue
        if here in METHODS and there in METHODS:
            if rest[:1] != ["base"] and name != f"neurotome.{there}":
                yield f"sibling {name}: only tokenizers.base may be imported"
            elif there != "tokenizers":
                yield f"sibling {name}"
        elif FLOORS[there] >= FLOORS[here]:
            yield f"{name} lies on floor {FLOORS[there]}, {here} on {FLOORS[here]}"
        elif there == "data" and here not in DATA_READERS:
            yield f"{here} imports {name}; methods see a Batch"


def _room_floor(parts: Sequence[str]) -> int:
    return ROOMS.get("/".join(parts), -1 if len(parts) < 2 else 0)


def lightning_faults(module: Path, tree: ast.AST) -> Iterator[str]:
    allowed = place(module) in LIGHTNING or module == SRC / "data" / "stores" / "loaders.py"
    if not allowed and any(name.split(".")[0] in ("lightning", "pytorch_lightning") for name in imports(tree)):
        yield "imports lightning"


def name_faults(module: Path, tree: ast.AST) -> Iterator[str]:
    names = [module.stem, *module.relative_to(SRC).parts[:-1]]
    names += [n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    for name in names:
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")
        yield from (f"the name {name} says nothing ({word})" for word in words if word in FORBIDDEN_NAMES)


def size_faults(module: Path, tree: ast.AST) -> Iterator[str]:
    lines = max((n.end_lineno or 0 for n in ast.walk(tree) if hasattr(n, "end_lineno")), default=0)
    if lines > MAX_MODULE_LINES:
        yield f"{lines} lines, at most {MAX_MODULE_LINES}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        # a constructor's docstring stands on the class, another's belongs to the function but is no code
        docstring = node.body[0] if ast.get_docstring(node) is not None else None
        length = (node.end_lineno or 0) - node.lineno + 1
        if docstring is not None:
            length -= (docstring.end_lineno or 0) - docstring.lineno + 1
        if length > MAX_FUNCTION_LINES and node.name != "__init__":
            yield f"{node.name} has {length} lines, at most {MAX_FUNCTION_LINES}"


def dimension_faults(module: Path, tree: ast.AST) -> Iterator[str]:
    if module == SRC / "nn" / "nd.py":
        return
    for node in ast.walk(tree):
        name = getattr(node, "id", getattr(node, "attr", ""))
        made = node.name if isinstance(node, ast.FunctionDef) else ""
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if LAYER.search(name) or DIMENSION.search(made) or DIMENSION.search(called):
            yield f"{name or made or called} names a dimension"
        mode = ast.unparse(node.value) if isinstance(node, ast.keyword) and node.arg == "mode" else ""
        if mode.strip("'") in ("linear", "bilinear", "trilinear", "bicubic"):
            yield f"mode={mode} names a dimension"
        if isinstance(node, ast.Compare) and "spatial_dims" in ast.unparse(node):
            yield f"`{ast.unparse(node)}` branches on the dimension"


def call_faults(module: Path, tree: ast.AST) -> Iterator[str]:
    here = place(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield "assert"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield "bare except"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "print" and here != "cli":
                yield "print outside cli"
            if name in (
                "eval",
                "exec",
                "compile",
                "__import__",
                "os.system",
                "os.popen",
                "torch.load",
                "torch.save",
                "yaml.full_load",
            ):
                yield f"calls {name}"
            for word in node.keywords:
                given = f"{word.arg}={ast.unparse(word.value)}"
                # in training it is Lightning's word for our own checkpoint reader, which knows no pickle
                if given in ("shell=True", "allow_pickle=True") or (
                    given == "weights_only=False" and here != "training"
                ):
                    yield given
    if any(name.split(".")[0] in FORBIDDEN_MODULES for name in imports(tree)):
        yield "imports a pickle"
    if "__future__.annotations" in set(imports(tree)):
        yield "from __future__ import annotations hides shapes from the run-time check"


def device_faults(module: Path, tree: ast.AST) -> Iterator[str]:
    if place(module) in ("cli", "training"):
        return
    compared = {c for n in ast.walk(tree) if isinstance(n, ast.Compare) for c in ast.walk(n)}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if re.fullmatch(r"cuda(:\d+)?", text) and node not in compared:
            yield f"chooses the device {text}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".cuda"):
            yield "chooses the device by .cuda()"


RULES = (floor_faults, lightning_faults, name_faults, size_faults, dimension_faults, call_faults, device_faults)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_source_keeps(rule) -> None:
    faults = [
        f"{module.relative_to(SRC)}: {fault}" for module, tree in parsed().items() for fault in rule(module, tree)
    ]
    assert not faults, "\n".join(faults)


def long_function(lines: int) -> str:
    return "def f():\n" + "    x = 1\n" * lines


@pytest.mark.parametrize(
    ("rule", "file", "source"),
    [
        (floor_faults, "nn/a.py", "from neurotome.tokenizers import NeuroQuant"),
        (floor_faults, "nn/a.py", "from neurotome.data.stores.store import Store"),
        (floor_faults, "metrics/a.py", "import neurotome.nn.nd"),
        (floor_faults, "data/a.py", "from neurotome.metrics import psnr"),
        (floor_faults, "losses/a.py", "from neurotome.training.base import Method"),
        (floor_faults, "training/a.py", "from neurotome.data.stores.store import Store"),
        (floor_faults, "tokenizers/a.py", "from neurotome.data.stores.store import Store"),
        (floor_faults, "tokenizers/a.py", "from neurotome.generative.paths import LinearPath"),
        (floor_faults, "generative/a.py", "from neurotome.tokenizers.shared_anatomy.neuroquant import NeuroQuant"),
        (floor_faults, "generative/a.py", "from neurotome.disentangle import base"),
        (floor_faults, "report/a.py", "from neurotome.evaluation.audit import audit"),
        (floor_faults, "models/a.py", "from neurotome.scans.tokenizer import ScanTokenizer"),
        (floor_faults, "data/imaging/a.py", "from neurotome.data.stores.store import Store"),
        (floor_faults, "data/datasets/a.py", "def f():\n    from neurotome.data.stores.store import Store"),
        (floor_faults, "apply/a.py", "from neurotome.cli import say"),
        (floor_faults, "apply/a.py", "def f():\n    from neurotome.cli import say"),
        (floor_faults, "errors.py", "from neurotome.data.datasets import bids"),
        (floor_faults, "extra/a.py", "x = 1"),
        (floor_faults, "apply/a.py", "from . import files"),
        (lightning_faults, "tokenizers/a.py", "import lightning"),
        (lightning_faults, "data/a.py", "from lightning.pytorch import LightningDataModule"),
        (name_faults, "nn/utils.py", ""),
        (name_faults, "helpers/a.py", ""),
        (name_faults, "nn/a.py", "class ModelFactory: ..."),
        (name_faults, "nn/legacy_blocks.py", ""),
        (name_faults, "nn/vae_v2.py", ""),
        (size_faults, "nn/a.py", "x = 1\n" * 401),
        (size_faults, "nn/a.py", long_function(71)),
        (dimension_faults, "nn/a.py", "from torch import nn\nnn.Conv3d(1, 1, 3)"),
        (dimension_faults, "nn/a.py", "import torch.nn.functional as F\nF.interpolate(x, mode='trilinear')"),
        (dimension_faults, "nn/a.py", "y = 1 if spatial_dims == 3 else 2"),
        (dimension_faults, "nn/a.py", "def down_3d(x): ..."),
        (dimension_faults, "nn/a.py", "pool_2d(x)"),
        (call_faults, "nn/a.py", "print(1)"),
        (call_faults, "nn/a.py", "assert x"),
        (call_faults, "cli/a.py", "try:\n    f()\nexcept:\n    pass"),
        (call_faults, "cli/a.py", "import pickle"),
        (call_faults, "cli/a.py", "torch.load('x')"),
        (call_faults, "cli/a.py", "eval('1')"),
        (call_faults, "cli/a.py", "os.system('ls')"),
        (call_faults, "cli/a.py", "subprocess.run('ls', shell=True)"),
        (call_faults, "data/a.py", "np.load('x', allow_pickle=True)"),
        (call_faults, "nn/a.py", "from __future__ import annotations"),
        (device_faults, "apply/a.py", "x.to('cuda')"),
        (device_faults, "nn/a.py", "x.cuda()"),
    ],
)  # fmt: skip
def test_each_rule_can_fail(rule, file: str, source: str) -> None:
    assert list(rule(SRC / file, ast.parse(source)))


@pytest.mark.parametrize(
    ("rule", "file", "source"),
    [
        (floor_faults, "cli/a.py", "from neurotome.data.stores.store import Store"),
        (floor_faults, "generative/a.py", "from neurotome.tokenizers.base import Tokenizer"),
        (floor_faults, "nn/a.py", "from neurotome.types import Image\nfrom neurotome.nn.nd import Conv"),
        (floor_faults, "__init__.py", "from neurotome.scans.tokenizer import ScanTokenizer"),
        (lightning_faults, "data/stores/loaders.py", "import lightning"),
        (dimension_faults, "nn/nd.py", "nn.Conv3d"),
        (call_faults, "cli/a.py", "print(1)"),
        (call_faults, "nn/a.py", "model.eval()"),
        (device_faults, "apply/a.py", "x.device.type == 'cuda'"),
        (size_faults, "nn/a.py", long_function(69)),
    ],
)  # fmt: skip
def test_each_rule_lets_good_code_pass(rule, file: str, source: str) -> None:
    assert not list(rule(SRC / file, ast.parse(source)))


def name_of(module: Path) -> str:
    """Return the dotted name of a module or a package."""
    parts = module.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def arrows(trees: Mapping[str, ast.AST]) -> dict[str, set[str]]:
    """Return which module imports which, late imports and those for types counted."""
    return {
        here: {
            max((n for n in trees if name == n or name.startswith(f"{n}.")), key=len, default=here)
            for name in imports(tree)
        }
        - {here, "neurotome"}
        for here, tree in trees.items()
        if here != "neurotome"
    }


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the modules of a circle; nothing where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert not circle(arrows({name_of(module): tree for module, tree in parsed().items()}))


def test_a_circle_is_found_where_there_is_one() -> None:
    sources = {
        "neurotome.a": "from neurotome import b",
        "neurotome.b": "def f():\n    import neurotome.c",
        "neurotome.c": "if TYPE_CHECKING:\n    from neurotome.a import A",
        "neurotome.d": "from neurotome.a import A",
        "neurotome.e": "",
    }
    found = circle(arrows({name: ast.parse(source) for name, source in sources.items()}))
    assert set(found) == {"neurotome.a", "neurotome.b", "neurotome.c"}


def test_a_stem_occurs_once() -> None:
    stems = Counter(module.stem for module in parsed())
    assert {stem for stem, count in stems.items() if count > 1} <= SHARED_STEMS


def test_a_public_class_name_occurs_once() -> None:
    names = Counter(
        node.name
        for tree in parsed().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not {name for name, count in names.items() if count > 1}


def test_tests_mirror_the_rooms() -> None:
    here = Path(__file__).parent
    rooms = {module.parent.relative_to(SRC) for module in parsed()}
    strange = {f.parent.relative_to(here) for f in here.rglob("test_*.py")} - rooms - {Path("benchmarks")}
    assert not strange, strange


def test_every_module_says_what_it_is() -> None:
    bare = [str(module.relative_to(SRC)) for module, tree in parsed().items() if not ast.get_docstring(tree)]
    assert not bare, bare


def test_the_public_names_are_there_and_nothing_is_exported_twice() -> None:
    import importlib

    seen: dict[str, str] = {}
    for folder in METHODS:
        if not (SRC / folder).is_dir():
            continue
        module = importlib.import_module(f"neurotome.{folder}")
        for name in module.__all__:
            assert hasattr(module, name)
            home = seen.setdefault(name, getattr(getattr(module, name), "__module__", folder))
            assert home == getattr(getattr(module, name), "__module__", folder), f"{name} means two things"
