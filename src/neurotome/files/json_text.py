"""JSON from files that others may have written: whatever cannot be read is a ``ValueError``."""

import json
import math
from typing import Any


def parse_json(text: str | bytes, *, finite: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The JSON text.
        finite: Whether to refuse ``NaN``, ``Infinity`` and numbers outside double precision. Records of scans keep
            the fields of their headers, and a field that no code selects may hold NaN.

    Raises:
        ValueError: Not JSON, nested too deep, or a number that is not admissible.
    """
    try:
        if not finite:
            return json.loads(text)
        return json.loads(text, parse_constant=_refuse, parse_float=_finite_float, parse_int=_finite_int)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _refuse(text: str) -> Any:
    raise ValueError(f"{text[:20]} is not a finite number")


def _finite_float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _finite_int(text: str) -> int:
    _finite_float(text)
    return int(text)
