from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from meshnode_llama_cpp.text import Text

ABC = st.text("ab\u00e9", max_size=12)
STOPS = st.lists(st.text("ab\u00e9", min_size=1, max_size=4), max_size=3)


def spoken(stops: list[str], *pieces: bytes) -> tuple[list[str], bool]:
    """What each push gives, and the end."""
    text = Text(stops)
    parts = [text.push(piece) for piece in pieces]
    return [*parts, text.finish()], text.stopped


def cut(text: str, stops: list[str]) -> str:
    """The definition, character by character."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(st.binary(max_size=24), st.lists(st.integers(0, 24)))
def test_cutting_bytes_changes_nothing(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(edges)]
    parts, _ = spoken([], *pieces)
    assert "".join(parts) == data.decode(errors="replace")


@given(ABC, STOPS, st.lists(st.integers(0, 24)))
def test_stop_strings_end_the_text_however_it_is_cut(
    whole: str, stops: list[str], cuts: list[int]
) -> None:
    data = whole.encode()
    edges = [0, *sorted(cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(edges)]
    parts, stopped = spoken(stops, *pieces)
    assert "".join(parts) == cut(whole, stops)
    assert stopped == (cut(whole, stops) != whole)


def test_half_a_character_waits() -> None:
    assert spoken([], b"a\xc3", b"\xa9") == (["a", "é", ""], False)


def test_half_a_character_at_the_end_is_replaced() -> None:
    assert spoken([], b"a\xe2\x82") == (["a", "\ufffd"], False)


def test_a_stop_string_across_pieces_is_never_shown() -> None:
    assert spoken(["</end>"], b"Hi", b"</", b"en", b"d> more") == (["Hi", "", "", "", ""], True)


def test_what_only_looked_like_a_stop_string_is_delivered() -> None:
    assert spoken(["</end>"], b"Hi</", b"en", b"ough") == (["Hi", "", "</enough", ""], False)


def test_held_text_is_delivered_at_the_end() -> None:
    assert spoken(["</end>"], b"Hi</e") == (["Hi", "</e"], False)


def test_nothing_follows_a_stop_string() -> None:
    assert spoken(["."], b"One. Two", b". Three") == (["One", "", ""], True)
