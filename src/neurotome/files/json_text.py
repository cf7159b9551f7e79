"""JSON from files that others may have written: whatever cannot be read is a ``ValueError``."""

import json
import math
from typing import Any


def parse_json(text: str | bytes, *, finite: bool = False, unique: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The JSON text.
        finite: Whether to refuse ``NaN``, ``Infinity`` and numbers outside double precision. Records of scans keep
            the fields of their headers, and a field that no code selects may hold NaN.
        unique: Whether to refuse an object with two values under one key.

    Raises:
        ValueError: Not JSON, nested too deep, or a number that is not admissible.
    """
    try:
        pairs = _unique if unique else None
        if not finite:
            return json.loads(text, object_pairs_hook=pairs)
        return json.loads(
            text, object_pairs_hook=pairs, parse_constant=_refuse, parse_float=_finite_float, parse_int=_finite_int
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:80]!r} occurs twice")
    return found


def _refuse(text: str) -> Any:
    raise ValueError(f"{text[:20]} is not a finite number")


def _finite_float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _finite_int(text: str) -> int:
    _finite_float(text)
    return int(text)
