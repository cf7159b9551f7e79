"""YAML 1.2: the core schema, nothing else, and written so that it reads as the same."""

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotome.errors import UsageError
from neurotome.files.yaml_text import parse_yaml, yaml_text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: 1\na: 2", "'a' is given twice"),
        ("a: {b: 1, b: 2}", "'b' is given twice"),
        ("a: &x 1\nb: *x", "aliases"),
        ("a: !!python/object/apply:os.system ['touch canary']", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("1: a", "'1' is not text"),
        ("[a]: 1", "is not text"),
        ("? {a: 1}\n: 2", "is not text"),
        ("[" * 60 + "]" * 60, "more than 24 levels"),
        ("[" * 20000, "more than 24 levels"),
        ("a: \x00", "special characters"),
        ("a: 'open", "line 1"),
        ("a: 1\n b: 2", "line 2"),
    ],
)
def test_yaml_is_plain_data(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        parse_yaml(text, "x.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("-1", -1), ("+.5", 0.5), ("1_000", "1_000"), ("no", "no"), ("on", "on"), ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"), ("0x10", 16), ("true", True), ("null", None), ("~", None), ("", None),
        ("'1'", "1"), ("[1, 2.0, a]", [1, 2.0, "a"]), ("007", 7), ("010", 10), ("089", 89), ("fp32", "fp32"),
        ("32-true", "32-true"),
    ],
)  # fmt: skip
def test_scalars_read_as_yaml_1_2(text: str, value: object) -> None:
    assert parse_yaml(text, "x") == value
    assert type(parse_yaml(text, "x")) is type(value)
    assert parse_yaml("<<: {a: 1}", "x") == {"<<": {"a": 1}}  # a key like any other, nothing is merged


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0o17", 15), ("0o8", "0o8"), ("0x1F", 31), ("-0x1F", "-0x1F"), ("1e3", 1000.0), ("1.e1", 10.0),
        ("yes", "yes"), ("Off", "Off"), ("y", "y"), ("True", True), ("FALSE", False), ("tRUE", "tRUE"), ("NULL", None),
        ("190:20:30", "190:20:30"), ("1:30.5", "1:30.5"), ("0b11", "0b11"), ("1_0.5", "1_0.5"), (".5", 0.5), (".", "."),
        ("-.INF", -math.inf), ("=", "="), ("!!float 1", 1.0), ("!!str 1", "1"), ("!!int '7'", 7),
        ('"\\/\\u00e9"', "/é"), ("%YAML 1.2\n--- 1e1", 10.0),
    ],
)  # fmt: skip
def test_the_core_schema(text: str, value: object) -> None:
    assert parse_yaml(text, "x") == value
    assert type(parse_yaml(text, "x")) is type(value)


@pytest.mark.parametrize(
    "text",
    ["!!timestamp 2020-01-01", "!!binary aGk=", "!!set {a}", "!!omap [a: 1]", "!!float 1:30", "!!int 1:30", "!!bool x",
     "!!merge <<: {a: 1}", "--- 1\n--- 2", "!own 1", "9" * 5000],
)  # fmt: skip
def test_what_the_core_schema_lacks_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="x"):
        parse_yaml(text, "x")


WORDS = ["1e-3", "on", "No", "~", "", "0o17", "0x10", "12:30", "1_0", ".inf", "null", "é", "a: b", "# c", "x\ny", "'"]
TEXTS = st.text(max_size=8) | st.sampled_from(WORDS)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(TEXTS, part, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_what_is_written_reads_as_the_same(value: object) -> None:
    for flow in (False, True):
        assert parse_yaml(yaml_text(value, flow=flow), "x") == value


@pytest.mark.parametrize(
    "odd", ["\x85", "\u2028", "\u2029", "\ufeff", "\xa0", "\x1b", "\x7f", "\x00", "\t", "\r", "\n"]
)
@pytest.mark.parametrize("form", ["{}", "a{}b", "a {} b", "{}a", "a{}", "a\n{}b: c", "{}{}"])
def test_ends_of_lines_stay_what_they_are(odd: str, form: str) -> None:
    text = form.replace("{}", odd)
    for value in (text, {"a": text}, {text: 1}, [text, {"b": [text]}]):
        for flow in (False, True):
            assert parse_yaml(yaml_text(value, flow=flow), "x") == value


def test_equal_parts_are_written_out() -> None:
    """Aliases are refused when read, so none is written."""
    part = [1, 2]
    assert parse_yaml(yaml_text({"a": part, "b": part}), "x") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize("word", WORDS)
def test_a_reader_of_yaml_1_1_sees_the_same_text(word: str) -> None:
    assert yaml.safe_load(yaml_text({"a": word})) == {"a": word}
