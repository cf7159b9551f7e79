"""JSON of others: one kind of error for all that cannot be read."""

import math

import pytest

from neurotome.files.json_text import parse_json

NOT_FINITE = ["NaN", "[-Infinity]", '{"a": 1e400}', "9" * 400]


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a":' * 100_000, b"\xff\xfe\xff", ""])
def test_what_is_no_json_is_a_value_error(text):
    for finite in (False, True):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text, finite=finite)


@pytest.mark.parametrize("text", NOT_FINITE)
def test_numbers_that_are_not_finite_are_refused_on_request(text):
    parse_json(text)
    with pytest.raises(ValueError, match="not a finite number"):
        parse_json(text, finite=True)


def test_values_come_back():
    text = b'{"a": [1, -2.5, null, "x"], "b": 123456789012345678901}'
    assert parse_json(text) == parse_json(text, finite=True) == {"a": [1, -2.5, None, "x"], "b": 123456789012345678901}
    assert math.isnan(parse_json("NaN"))
