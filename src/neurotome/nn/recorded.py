"""Networks that remember how they were made, so that a model folder can make them again."""

import inspect
from typing import Any, Self

from torch import nn


class Recorded(nn.Module):
    """A network that keeps its constructor's arguments.

    Attributes:
        arguments: By name, defaults included, as stored in a model folder's ``config.json``.
    """

    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the arguments."""
        self = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        object.__setattr__(self, "arguments", {k: v for k, v in bound.arguments.items() if k != "self"})
        return self
