"""A constructor's signature is the schema of a config block: names, types and defaults are read from there.

    block ──check──▶ Call(class, arguments) ──build──▶ object

Everything is checked before anything is built. A class is named by ``class_path`` and is one of the public names of our
method folders; no other name is ever looked up, so nothing outside the package is imported. Values of plain types are
converted by pydantic, which is never shown a class.
"""

import dataclasses
import inspect
import json
import pathlib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from neurotome.errors import InputError, UsageError, did_you_mean, is_out_of_memory, printable
from neurotome.models.registry import constructor_words, public_classes
from neurotome.nn.recorded import bounded_modules
from neurotome.ranges import check_ranges

PLAIN = {str, int, float, bool, type(None), tuple, list, dict, set, pathlib.Path, Sequence, Mapping, Any, Ellipsis}


@dataclass(frozen=True)
class Call:
    """A constructor and its checked arguments.

    Args:
        target: A public class of ours, or a dataclass of settings.
        arguments: By name; parts are calls themselves.
        path: Dotted place in the config, for messages.
    """

    target: type
    arguments: dict[str, Any]
    path: str

    def build(self, **extra: Any) -> Any:
        """Return the object; ``extra`` arguments come from the program, not from the config.

        Raises:
            UsageError: The constructor refused a value.
        """
        arguments = {name: _built(value) for name, value in self.arguments.items()}
        try:
            with bounded_modules():
                return self.target(**{**arguments, **extra})
        except InputError:
            raise
        except Exception as error:  # whatever a constructor trips over, it is the config's value
            if is_out_of_memory(error):
                raise
            raise UsageError(f"{self.path}: {constructor_words(error)}") from error

    def resolved(self) -> dict[str, Any]:
        """Return the block with every default written out, as plain data."""
        values = {
            name: parameter.default
            for name, parameter in parameters(self.target).items()
            if parameter.default is not parameter.empty
        }
        values.update(self.arguments)
        plain = {name: _plain(value) for name, value in values.items() if _is_plain_value(value)}
        if dataclasses.is_dataclass(self.target):
            return plain
        return {"class_path": self.target.__name__, "init_args": plain}


def check(target: type, values: Any, path: str, skip: Sequence[str] = ()) -> Call:
    """Check ``values`` against the signature of ``target``.

    Args:
        target: A class of ours or a dataclass of settings.
        values: The block's arguments.
        path: Dotted place in the config, for messages.
        skip: Arguments that the program gives.

    Raises:
        UsageError: An unknown or missing key, a value of another type, a class that is not public or does not fit.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{path}: give a block of keys, not {_shown(values)}")
    known = {name: p for name, p in parameters(target).items() if name not in skip}
    for key in values:
        if key not in known:
            what = f"unknown key {_shown(key)} of {target.__name__}"
            raise UsageError(f"{path}: {what}{did_you_mean(str(key), list(known))}; {_admissible(known)}")
    missing = [name for name, p in known.items() if p.default is p.empty and name not in values]
    if missing:
        raise UsageError(f"{path}: {target.__name__} needs {', '.join(missing)}; {_admissible(known)}")
    checked = {key: _value(known[key].annotation, value, f"{path}.{key}") for key, value in values.items()}
    try:
        check_ranges(target, checked)
    except UsageError as error:
        raise UsageError(f"{path}.{error}") from error
    return Call(target, checked, path)


def check_class(kind: type, block: Any, path: str, skip: Sequence[str] = ()) -> Call:
    """Check a ``{class_path, init_args}`` block that must name a public subclass of ``kind``.

    Raises:
        UsageError: As :func:`check`; also for keys other than these two.
    """
    if not isinstance(block, Mapping) or "class_path" not in block:
        raise UsageError(f"{path}: give {{class_path: NAME, init_args: …}}, not {_shown(block)}")
    for key in block:
        if key not in ("class_path", "init_args"):
            hint = did_you_mean(str(key), ["class_path", "init_args"])
            raise UsageError(f"{path}: unknown key {_shown(key)}{hint}; a class block has class_path and init_args")
    target = named_class(block["class_path"], kind, path)
    values = block.get("init_args")
    return check(target, {} if values is None else values, path, skip)


def named_class(name: Any, kind: type, path: str) -> type:
    """Return the public class called ``name``.

    Raises:
        UsageError: It is none of our public classes, or not a ``kind``.
    """
    classes = public_classes(kind)
    if isinstance(name, str) and name in classes:
        return classes[name]
    hint = did_you_mean(str(name), list(classes))
    raise UsageError(
        f"{path}.class_path: {_shown(name)} is not a public {kind.__name__} of this package{hint}; "
        f"admissible are {', '.join(sorted(classes)) or 'none'}, without dots"
    )


def parameters(target: type) -> dict[str, inspect.Parameter]:
    """Return the constructor's parameters with evaluated annotations."""
    hints = typing.get_type_hints(target.__init__)  # type: ignore[misc]  # of this very class
    signature = inspect.signature(target)
    found = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            found[name] = parameter.replace(annotation=hints.get(name, Any))
    return found


def _value(hint: Any, value: Any, path: str) -> Any:
    """Check one value: a part, a list of parts, a nested block of settings, or a plain value."""
    if isinstance(value, str) and "$" in value:
        raise UsageError(f"{path}: {_shown(value)} holds '$'; configs hold values, there is no interpolation")
    options = [hint] if get_origin(hint) not in (Union, types.UnionType) else list(get_args(hint))
    if value is None and type(None) in options:
        return None
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(option, type):
            return check(option, value, path)
        if _is_object(option):
            return check_class(option, value, path)
        if get_origin(option) in (list, Sequence) and get_args(option) and _is_object(get_args(option)[0]):
            if not isinstance(value, list):
                raise UsageError(f"{path}: give a list, not {_shown(value)}")
            return [_value(get_args(option)[0], item, f"{path}.{i}") for i, item in enumerate(value)]
    return _plain_value(hint, value, path)


def _plain_value(hint: Any, value: Any, path: str) -> Any:
    try:  # of JSON, strictly: lists become tuples and whole numbers floats, but text no number and a truth value none
        return TypeAdapter(hint).validate_json(json.dumps(value, allow_nan=False), strict=True)
    except (ValidationError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: {_shown(value)} does not fit; admissible is {_described(hint)}") from error


def _is_object(hint: Any) -> bool:
    return isinstance(hint, type) and get_origin(hint) is None and hint not in PLAIN


def _described(hint: Any) -> str:
    """Return an annotation in words a config's author knows."""
    if get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_described(part) for part in get_args(hint))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if hint in names:
        return names[hint]
    parts = [p for p in get_args(hint) if p is not Ellipsis]
    if get_origin(hint) is tuple and Ellipsis not in get_args(hint):
        return f"a list of {len(parts)}, each {' / '.join(dict.fromkeys(_described(p) for p in parts))}"
    if parts and get_origin(hint) in (tuple, list, Sequence):
        return f"a list of which each is {_described(parts[0])}"
    return str(hint)


def _admissible(known: Mapping[str, object]) -> str:
    return f"admissible are {', '.join(known)}"


def _shown(value: Any) -> str:
    text = printable(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def _built(value: Any) -> Any:
    if isinstance(value, Call):
        return value.build()
    return [_built(item) for item in value] if isinstance(value, list) else value


def _is_plain_value(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | None | list | tuple | dict | Call) or dataclasses.is_dataclass(
        value
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Call):
        return value.resolved()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {k: _plain(v) for k, v in dataclasses.asdict(value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value
