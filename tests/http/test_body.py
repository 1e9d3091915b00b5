import json
import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.errors import RequestError
from p2p_mesh.http.body import (
    MAX_DEPTH,
    Fields,
    array,
    boolean,
    integer,
    items,
    kind,
    mapping,
    number,
    parse,
    text,
    word,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_what_is_json_is_read_as_json(value: dict[str, Any]) -> None:
    assert parse(json.dumps(value).encode()) == value


@given(st.binary())
def test_anything_is_an_object_or_a_request_error(body: bytes) -> None:
    with suppress(RequestError):
        assert isinstance(parse(body), dict)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": -1E+309}',
        b'{"a": 1e0999}',
        b'{"a": 1' + b"0" * 400 + b"}",
        b'{"a": [1' + b"0" * 400 + b".5]}",
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": "\xff"}',
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a": ["\\ud83d x"]}',
        b'{"\\ud800": 1, "\\ud800": 2}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
    ],
)
def test_what_is_not_plainly_right_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse(body)
    json.dumps([str(caught.value), caught.value.param], ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (b"18446744073709551615", 2**64 - 1),
        (b"18446744073709551616", 2.0**64),
        (b"-9223372036854775808", -(2**63)),
        (b"-9223372036854775809", -(2.0**63)),
        (b"1e308", 1e308),
        (b"1e-999", 0.0),
    ],
)
def test_integer_beyond_64_bits_is_a_float(number: bytes, value: float) -> None:
    found = parse(b'{"a": ' + number + b"}")["a"]
    assert (found, type(found)) == (value, type(value))


def test_pairs_of_surrogates_are_one_character() -> None:
    assert parse(b'{"a": "\\ud83d\\ude00"}') == {"a": "\N{GRINNING FACE}"}


def test_depth_within_the_limit_is_read() -> None:
    deep = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    assert list(parse(b'{"a": ' + deep + b"}")) == ["a"]


def test_duplicate_is_named() -> None:
    with pytest.raises(RequestError) as caught:
        parse(b'{"top_p": 1, "top_p": 1}')
    assert caught.value.param == "top_p"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "a boolean"),
        (1.5, "a number"),
        ("x", "a string"),
        ([], "an array"),
        ({}, "an object"),
    ],
)
def test_kind_in_words(value: object, words: str) -> None:
    assert kind(value) == words


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (text, 1),
        (boolean, 1),
        (array, {}),
        (mapping, []),
        (integer(0, 5), True),
        (integer(0, 5), 1.0),
        (integer(0, 5), 6),
        (integer(0, 5), -1),
        (number(0, 2), "1"),
        (number(0, 2), False),
        (number(0, 2), 2.1),
        (number(0, 2), float("inf")),
        (number(0, 2), 10**400),
        (number(0, 2, above=True), 0),
    ],
)
def test_wrong_value_names_the_field(read: Any, value: object) -> None:
    with pytest.raises(RequestError, match="field") as caught:
        read(value, "field")
    assert caught.value.param == "field"


@pytest.mark.parametrize(
    ("read", "value", "shown"),
    [
        (integer(1, 5), True, "true"),
        (number(0, 2), False, "false"),
        (text, None, "null"),
        (boolean, 1, "1"),
        (text, [], "an empty array"),
        (text, ["x"], "an array"),
        (word("low"), True, "true"),
        (word("low"), 5, "5"),
        (word("low"), {}, "an object"),
        (integer(1, 5), 1e30, "1e+30"),
    ],
)
def test_wrong_value_is_shown_as_json(read: Any, value: object, shown: str) -> None:
    with pytest.raises(RequestError, match=rf", not {re.escape(shown)}$"):
        read(value, "field")


def test_right_values_are_read() -> None:
    assert integer(0, 5)(5, "x") == 5
    assert number(0, 2)(2, "x") == 2.0
    assert number(0, 2, above=True)(0.1, "x") == 0.1


def test_null_is_absent() -> None:
    fields = Fields({"a": None})
    assert fields.take("a", text) is None
    fields.end()


def test_missing_field_is_named() -> None:
    with pytest.raises(RequestError, match=r"messages\[2\]\.role is missing: say who") as caught:
        Fields({}, "messages[2]").require("role", text, "say who")
    assert caught.value.param == "messages[2].role"


def test_field_left_over_is_refused_by_name() -> None:
    fields = Fields({"a": "1", "topp": 1})
    assert fields.take("a", text) == "1"
    with pytest.raises(RequestError, match="topp") as caught:
        fields.end()
    assert caught.value.param == "topp"


def test_long_name_is_cut_in_the_error() -> None:
    with pytest.raises(RequestError) as caught:
        Fields({"x" * 10_000: 1}).end()
    assert len(str(caught.value)) + len(caught.value.param or "") < 500


def test_neutral_value_passes_and_others_are_refused() -> None:
    Fields({"n": 1}).neutral("n", 1)
    Fields({}).neutral("n", 1)
    for value in (2, True, 1.0, "1"):
        with pytest.raises(RequestError, match=r"^n: .* is not supported, only 1 is$") as caught:
            Fields({"n": value}).neutral("n", 1)
        assert caught.value.param == "n"


@pytest.mark.parametrize(
    ("value", "values", "message"),
    [
        (False, (True,), "x: false is not supported, only true is"),
        ("a" * 50, ("b", "c"), f'x: "{"a" * 39} is not supported, only "b" or "c" is'),
        ({}, (), "x is not supported"),
    ],
)
def test_refused_value_is_told_from_a_refused_field(
    value: object, values: tuple[object, ...], message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        Fields({"x": value}).neutral("x", *values)
    assert str(caught.value) == message


def test_unknown_field_is_compared_with_the_known_ones() -> None:
    fields = Fields({"role": "user", "contents": "hello"}, "messages[0]")
    fields.take("role", text)
    fields.take("content", text)
    with pytest.raises(RequestError, match=r"did you mean messages\[0\]\.content\?$") as caught:
        fields.end()
    assert caught.value.param == "messages[0].contents"


@pytest.mark.parametrize(("given", "known"), [("stor", "store"), ("usr", "user"), ("m", None)])
def test_every_way_to_take_a_field_makes_it_known(given: str, known: str | None) -> None:
    fields = Fields({given: 1})
    fields.drop("store")
    fields.neutral("user")
    with pytest.raises(RequestError) as caught:
        fields.end()
    meant = f"; did you mean {known}?" if known else ""
    assert str(caught.value) == f"'{given}' is not a field that is supported here{meant}"


def test_dropped_fields_have_no_effect() -> None:
    fields = Fields({"user": {"any": "thing"}})
    fields.drop("user", "store")
    fields.end()


def test_word_is_one_of_those_allowed() -> None:
    assert word("low", "high")("low", "x") == "low"
    for value in ("medium", 1, None, ["low"]):
        with pytest.raises(RequestError, match="x must be one of low, high") as caught:
            word("low", "high")(value, "x")
        assert caught.value.param == "x"


def test_items_are_read_one_by_one() -> None:
    assert items(integer(0, 5), 1, 2)([1, 5], "x") == (1, 5)
    for value, param in (([], "x"), ([1, 2, 3], "x"), ([1, 6], "x[1]"), ("ab", "x")):
        with pytest.raises(RequestError) as caught:
            items(integer(0, 5), 1, 2)(value, "x")
        assert caught.value.param == param
