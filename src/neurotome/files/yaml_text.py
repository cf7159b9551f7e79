"""YAML 1.2 as plain data: its core schema, read, and written so that it reads as the same.

``1e-3`` and ``0o17`` are numbers; ``on``, ``12:30``, ``1_000`` and ``2020-01-01`` are text. What settings do not need
is refused: tags beside those of the core schema, aliases, keys that are not text or stand twice, deep nesting.
PyYAML reads YAML 1.1; its scanner is kept, its table of scalars replaced.
"""

import re
from typing import Any

import yaml

from neurotome.errors import UsageError, printable

MAX_DEPTH = 24
_TAG = "tag:yaml.org,2002:"
_LINE_ENDS = frozenset("\x85\u2028\u2029")
# https://yaml.org/spec/1.2.2/#103-core-schema: tag, what it looks like, first characters
_SCALARS = (
    ("null", r"(?:null|Null|NULL|~|)", ["n", "N", "~", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))", list("-+.")),
)


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise _refusal("aliases (*name) are not admitted", self.get_event())  # type: ignore[no-untyped-call]
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refusal(f"more than {MAX_DEPTH} levels", self.get_event())  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != f"{_TAG}str":
                raise _refusal(f"key {key.value!r} is not text", key)
            if key.value in seen:
                raise _refusal(f"key {key.value!r} is given twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would read as something other than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> Any:
        """Escape what ends a line in YAML 1.1 alone: PyYAML would write it as it is, and read it as a space."""
        return self.represent_scalar(f"{_TAG}str", data, style='"' if set(data) & _LINE_ENDS else None)


def _refusal(problem: str, at: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, at.start_mark)


def _int(loader: Any, node: Any) -> int:
    return int(node.value.replace("0o", "0"), {"0o": 8, "0x": 16}.get(node.value[:2], 10))  # 010 is ten


def _float(loader: Any, node: Any) -> float:
    return float(re.sub(r"\.(?=[a-zA-Z])", "", node.value))


_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {
    key: make
    for key, make in yaml.SafeLoader.yaml_constructors.items()
    if key is None or key.removeprefix(_TAG) in ("null", "bool", "str", "seq", "map")
} | {f"{_TAG}int": _int, f"{_TAG}float": _float}
_Dumper.add_representer(str, _Dumper.represent_str)
for _tag, _pattern, _first in _SCALARS:
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(f"{_TAG}{_tag}", re.compile(f"^{_pattern}$"), _first)


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML into plain data.

    Raises:
        UsageError: It is not YAML, holds a tag, an alias, a key twice, or is nested too deep.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise UsageError(f"{printable(name)}{where}: {printable(' '.join(str(what).split()))}") from error


def yaml_text(value: Any, *, flow: bool = False) -> str:
    """Return plain data as YAML that :func:`parse_yaml` reads as the same.

    Args:
        value: Mappings with text as keys, lists, text, numbers, truth values, None.
        flow: Whether to write the value of an option: ``{a: 1}``.
    """
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=flow)
    return text.removesuffix("...\n").strip(" \n") if flow else text
