"""Run-time checks of array shapes and types, for tests only: beartype on the annotations that name arrays.

Other annotations are mypy's business; tests hand wrong values over on purpose.
"""

import functools
import types
import typing
from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray


def check(function: Callable[..., Any]) -> Any:
    """Return ``function`` with its array annotations checked at each call."""
    arrays = {name: hint for name, hint in function.__annotations__.items() if _names_an_array(hint)}
    if not arrays or not isinstance(function, types.FunctionType):
        return function
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__, copy.__qualname__, copy.__module__ = (
        function.__kwdefaults__,
        function.__qualname__,
        function.__module__,
    )
    copy.__annotations__ = arrays
    return functools.wraps(function)(beartype(copy))


def _names_an_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_names_an_array(part) for part in typing.get_args(hint))
