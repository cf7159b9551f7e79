"""The public classes of the package: what configs and model folders may name, and nothing else.

A part of a network is stored as ``{"class": NAME, "arguments": {...}}`` where it is an object of its own, and as a
plain mapping of its fields where it is a group of arguments; the annotations of the constructor say which.
"""

import dataclasses
import importlib
import importlib.util
import inspect
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, Union

from neurotome.errors import printable
from neurotome.nn.recorded import Recorded

# folders and modules whose ``__all__`` is public; a folder is there when its first feature is
HOMES = ("tokenizers", "disentangle", "generative", "tasks", "nn.quantize", "data.stores.sources")
LONGEST_REASON = 300
T = TypeVar("T")


def public_classes(kind: type) -> dict[str, type]:
    """Return the concrete public subclasses of ``kind`` by name."""
    found: dict[str, type] = {}
    for home in HOMES:
        if importlib.util.find_spec(f"neurotome.{home}") is None:
            continue
        module = importlib.import_module(f"neurotome.{home}")
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isclass(value) and issubclass(value, kind) and not inspect.isabstract(value):
                found[name] = value
    return found


def plain_part(part: Recorded) -> dict[str, Any]:
    """Return a network or a part of one as plain data.

    Raises:
        ValueError: An argument is not plain, or its class is not public.
    """
    name = type(part).__name__
    if public_classes(Recorded).get(name) is not type(part):
        raise ValueError(f"{name} is not a public class of the package, so a model folder could not be read again")
    return {"class": name, "arguments": {key: _plain(f"{name}.{key}", value) for key, value in part.arguments.items()}}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Recorded):
        return plain_part(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(f"{name}.{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{name}.{key}", item) for key, item in value.items()}
    if not isinstance(value, str | bool | int | float | None):
        raise ValueError(f"{name} is {value!r}, which config.json cannot hold")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; give a finite number")
    return value


def built_part(plain: Any, kind: type[T]) -> T:
    """Return the network or part that plain data describe.

    Args:
        plain: As :func:`plain_part` gives it.
        kind: What it must be.

    Raises:
        ValueError: Not of this form, a class that is not public or not a ``kind``, arguments that do not fit.
        TypeError: Arguments that do not fit.
    """
    if not isinstance(plain, dict) or not isinstance(plain.get("arguments"), dict):
        raise ValueError(f"{str(plain)[:80]!r} is no part of a network")
    classes, name = public_classes(kind), plain.get("class")
    if not isinstance(name, str) or name not in classes:
        raise ValueError(f"class {str(name)[:80]!r} is not a public {kind.__name__} ({', '.join(sorted(classes))})")
    return _called(classes[name], plain["arguments"])


def constructor_words(error: Exception) -> str:
    """Return why a constructor refused its arguments, in one line of bearable length."""
    text = printable(" ".join(str(error).split()).split(" Exception raised from")[0])  # the stack of torch's C++
    text = text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 3]}..."
    return text if isinstance(error, ValueError | TypeError) else f"a value does not fit ({text})"


def _called(target: type, arguments: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(target.__init__)  # type: ignore[misc]  # of this very class
    return target(**{key: _built(value, hints.get(key, Any)) for key, value in arguments.items()})


def _built(value: Any, hint: Any) -> Any:
    """Return an argument: a part, a group of arguments, or a plain value, whose lists are tuples."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    if isinstance(value, list):
        inner = next((typing.get_args(o)[0] for o in options if typing.get_args(o)), Any)
        return tuple(_built(item, inner) for item in value)
    if isinstance(value, dict):
        for option in options:
            if dataclasses.is_dataclass(option) and isinstance(option, type):
                return _called(option, value)
            if isinstance(option, type) and issubclass(option, Recorded):
                return built_part(value, option)
    return value
