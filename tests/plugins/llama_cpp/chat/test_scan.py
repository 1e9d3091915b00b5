from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from meshnode_llama_cpp.chat.scan import Json, markers

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def test_the_first_marker_is_found() -> None:
    found = markers("<a>", "<ab>").find("x<ab><a>")
    assert found is not None
    assert found[0] == "<ab>"


def test_the_end_may_be_the_beginning_of_a_marker() -> None:
    assert markers("<abc>").doubtful("x<ab") == 3
    assert markers("<abc>").doubtful("x<abd") == 0
    assert markers().doubtful("<") == 0
    assert not markers().may_begin("<")


@given(st.dictionaries(st.text(), VALUES), st.text(), st.booleans())
def test_an_object_is_followed_to_its_end(value: Any, after: str, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert Json().push(text + after) == (text, len(text))
    letters = Json()
    assert "".join(letters.push(letter)[0] for letter in text) == text
    assert letters.ended


def test_what_stands_wrongly_in_a_string_is_mended() -> None:
    text, _ = Json().push('{"a": "x\ny\\d\\" \t"}')
    assert json.loads(text) == {"a": 'x\ny\\d" \t'}


def test_a_wrong_bracket_is_not_taken() -> None:
    scan = Json()
    assert scan.push('{"a": [1}') == ('{"a": [1', 8)
    assert scan.broken


def test_brackets_may_be_open_already() -> None:
    scan = Json(within="{")
    assert scan.push(', "id": "}"} x') == (', "id": "}"}', 12)
    assert scan.ended
