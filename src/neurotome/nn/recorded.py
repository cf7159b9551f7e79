"""Networks that remember how they were made, so that a model folder can make them again."""

import inspect
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from neurotome.ranges import check_ranges

MAX_MODULES = 20_000  # the largest networks in use have some thousand


@contextmanager
def bounded_modules() -> Iterator[None]:
    """Refuse to build networks of absurd depth within the context, before they fill the memory.

    Raises:
        ValueError: More than ``MAX_MODULES`` modules were put into others.
    """
    count = itertools.count(1)

    def counted(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        if next(count) > MAX_MODULES:
            raise ValueError(f"more than {MAX_MODULES} layers; give smaller numbers of blocks")

    handle = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


class Recorded(nn.Module):
    """A network that keeps its constructor's arguments.

    Attributes:
        arguments: By name, defaults included, as stored in a model folder's ``config.json``.
    """

    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Check and record the arguments.

        Raises:
            UsageError: One is outside the range that its annotation gives.
        """
        self = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = {name: value for name, value in bound.arguments.items() if name != "self"}
        check_ranges(cls, arguments)
        object.__setattr__(self, "arguments", arguments)
        return self
