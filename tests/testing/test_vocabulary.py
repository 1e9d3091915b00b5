"""Vocabularies for models that tests write."""

from __future__ import annotations

import pytest

from p2p_mesh.testing.vocabulary import BYTE, CONTROL, sentence_pieces, word_pieces


@pytest.mark.parametrize("pieces", [sentence_pieces, word_pieces])
@pytest.mark.parametrize("count", [300, 32_000])
def test_as_many_pieces_as_wanted_and_none_twice(pieces: object, count: int) -> None:
    assert callable(pieces)
    found = [piece for piece, _ in pieces(count)]
    assert len(found) == len(set(found)) == count


def test_every_byte_can_be_spelled() -> None:
    spelled = [piece for piece, kind in sentence_pieces(512) if kind == BYTE]
    assert (len(spelled), spelled[0], spelled[255]) == (256, "<0x00>", "<0xFF>")


def test_controls_come_first() -> None:
    assert [piece for piece, kind in word_pieces(300) if kind == CONTROL] == [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
    ]  # fmt: skip
    assert sentence_pieces(5)[3:] == [("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL)]


def test_letters_begin_words_and_go_on() -> None:
    pieces = {piece for piece, _ in word_pieces(300)}
    assert {"q", "\u2581q", "\u2581the"} <= pieces
