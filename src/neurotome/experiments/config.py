"""Experiments: one YAML file, shipped or yours, and ``--key value`` overrides.

    method:    {class_path: NeuroQuantTraining, init_args: {tokenizer: {class_path: NeuroQuant, init_args: {...}}}}
    data:      {class_path: Pairs, init_args: {...}}, a class of data.stores.sources; plain keys are those of Volumes
    trainer:   fields of training.fit.TrainerConfig
    optimizer: fields of training.optim.OptimizerConfig
    seed:      0
    tiny:      overrides under which the config steps in seconds, for tests

A dotted key may leave ``init_args`` out: ``--method.tokenizer.num_codes 64``.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from neurotome.errors import UsageError, did_you_mean, printable
from neurotome.files.yaml_text import parse_yaml

SECTIONS = ("method", "data", "trainer", "optimizer", "seed", "tiny")
FOLDERS = ("tokenizer", "disentangle", "generative", "task")
MAX_BYTES = 256 * 2**10  # a config is a page; more is not one
PLAIN_DATA = "Volumes"  # the class of a data block that names none


@dataclass(frozen=True)
class Config:
    """An experiment's merged keys; nothing is built yet.

    Args:
        name: Shipped name or file.
        tree: Sections as in the module's head, overrides applied, without ``tiny``.
        tiny: The overrides for tests.
        text: The file as written.
    """

    name: str
    tree: dict[str, Any]
    tiny: dict[str, Any]
    text: str

    @property
    def head(self) -> str:
        """The comment at the file's head."""
        lines = []
        for line in self.text.splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.lstrip("#").strip())
        return "\n".join(lines)

    def shrunk(self) -> "Config":
        """Return the config with its ``tiny`` block merged in."""
        return Config(self.name, merged(self.tree, self.tiny), {}, self.text)


def shipped() -> dict[str, Any]:
    """Return name -> file of every shipped config."""
    root = resources.files("neurotome") / "configs"
    found: dict[str, Any] = {}
    for folder in FOLDERS:
        if (root / folder).is_dir():
            files = sorted((root / folder).iterdir(), key=lambda f: f.name)
            found.update({f.name.removesuffix(".yaml"): f for f in files if f.name.endswith(".yaml")})
    return found


def shipped_benches() -> list[str]:
    """Return the names of the shipped benches."""
    folder = resources.files("neurotome") / "configs" / "bench"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_config(name: str, overrides: Iterable[tuple[str, str]] = ()) -> Config:
    """Read a shipped config or a file, and apply overrides.

    Args:
        name: A shipped name, or a path that ends in ``.yaml`` or ``.yml``.
        overrides: Dotted keys and YAML values.

    Raises:
        UsageError: No such config; not YAML; a section, key or value that is not admissible.
    """
    text = _read(name)
    tree = parse_yaml(text, name)
    if not isinstance(tree, dict):
        raise UsageError(f"{printable(name)}: a config is a block with the keys {', '.join(SECTIONS)}")
    tree["data"] = _data_block(tree.get("data"))
    for key, value in overrides:
        if key.split(".")[0] == "tiny":
            raise UsageError(f"--{printable(key)}: the block tiny is for tests alone; set the key itself")
        _override(tree, key, parse_yaml(value, f"--{key}"))
    _check_sections(tree, name)
    tree["data"] = _data_block(tree["data"])
    tiny = tree.pop("tiny", None)
    tiny = {} if tiny is None else tiny
    if not isinstance(tiny, dict) or not set(tiny) <= set(SECTIONS[:-1]):
        raise UsageError(f"{printable(name)}: tiny is a block with keys of {', '.join(SECTIONS[:-1])}")
    if "data" in tiny:
        tiny["data"] = _class_block(tiny["data"])
    tree.setdefault("seed", 0)
    return Config(name, tree, tiny, text)


def _data_block(block: Any) -> Any:
    """Return a ``data`` block as a class block; others than blocks as they are."""
    found = _class_block(block)
    return {"class_path": PLAIN_DATA, **found} if isinstance(found, dict) else found


def _class_block(block: Any) -> Any:
    """Return a block of plain keys as the ``init_args`` of a class block; others as they are."""
    if block is None or (isinstance(block, dict) and not block.keys() & {"class_path", "init_args"}):
        return {"init_args": block or {}}
    return block


def merged(tree: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``tree`` with ``over`` laid on it: blocks merge, everything else is replaced."""
    result = copy.deepcopy(dict(tree))
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result


def class_blocks(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every ``{class_path, init_args}`` block of a tree."""
    if isinstance(tree, dict):
        if "class_path" in tree:
            yield tree
        for value in tree.values():
            yield from class_blocks(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from class_blocks(value)


def _read(name: str) -> str:
    files = shipped()
    if name in files:
        return files[name].read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(
            f"there is no shipped config '{printable(name)}'{did_you_mean(name, list(files))}; "
            f"`neurotome configs` lists them, a file of yours ends in .yaml"
        )
    if not _is_file(path):
        raise UsageError(f"{printable(path)}: there is no such file; check the path")
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise UsageError(f"{printable(path)}: larger than {MAX_BYTES // 1024} KiB, which is no config")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{printable(path)}: not UTF-8 text; save it as UTF-8") from error


def _is_file(path: Path) -> bool:
    """Return whether a file is there; a name that no file system takes is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _check_sections(tree: dict[str, Any], name: str) -> None:
    for key in tree:
        if key not in SECTIONS:
            raise UsageError(
                f"{printable(name)}: unknown key '{printable(key)}'{did_you_mean(key, SECTIONS)}; "
                f"admissible are {', '.join(SECTIONS)}"
            )
    if "method" not in tree:
        raise UsageError(f"{printable(name)}: the key method is missing; `neurotome configs` lists examples")
    seed = tree.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UsageError(f"{printable(name)}: seed is {seed!r}; admissible is a whole number in [0, 2^32)")


def _override(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set one dotted key; between a class block and its argument ``init_args`` may be left out; lists take numbers."""
    *parents, last = key.split(".")
    node: Any = tree
    for part in parents:
        node = _arguments(node, part)
        if isinstance(node, list):
            node = node[_index(node, part, key)]
            continue
        if not isinstance(node, dict):
            raise UsageError(f"--{printable(key)}: '{printable(part)}' lies in something that is not a block")
        node = node.setdefault(part, {})
        if node is None:
            raise UsageError(f"--{printable(key)}: '{printable(part)}' is null; give the whole block instead")
    node = _arguments(node, last)
    if isinstance(node, list):
        node[_index(node, last, key)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UsageError(
            f"--{printable(key)}: there is no block '{printable('.'.join(parents))}' to hold '{printable(last)}'"
        )


def _index(node: list[Any], part: str, key: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", part) or int(part) >= len(node):
        raise UsageError(f"--{printable(key)}: '{printable(part)}' is no place in a list of {len(node)}, from 0")
    return int(part)


def _arguments(node: Any, part: str) -> Any:
    if isinstance(node, dict) and "class_path" in node and part not in ("class_path", "init_args"):
        if not isinstance(node.get("init_args"), dict):
            node["init_args"] = {}
        return node["init_args"]
    return node
