"""Vocabularies for models that tests write: pieces and their kinds, as a GGUF header has them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6

_SPACE = "\u2581"
_LETTERS = tuple(map(chr, range(33, 127)))
_WORDS = ("the", "a", "of", "and", "to", "in", "is", "it", "you", "that", "he", "was", "for", "on")

Piece = tuple[str, int]


def sentence_pieces(count: int) -> list[Piece]:
    """Of SentencePiece: any text can be spelled with it, byte by byte if need be."""
    return list(islice(_sentence_pieces(), count))


def word_pieces(count: int) -> list[Piece]:
    """Of WordPiece: any ASCII text can be spelled with it, from `[UNK]` upwards."""
    return list(islice(_word_pieces(), count))


def _sentence_pieces() -> Iterator[Piece]:
    yield "<unk>", UNKNOWN
    for control in ("<s>", "</s>", "<|im_start|>", "<|im_end|>"):
        yield control, CONTROL
    for byte in range(256):
        yield f"<0x{byte:02X}>", BYTE
    for letter in (_SPACE, *_LETTERS):
        yield letter, NORMAL
    for word in _WORDS:
        yield f"{_SPACE}{word}", NORMAL
    yield from _fillers()


def _word_pieces() -> Iterator[Piece]:
    """Each character as it begins a word, and as it goes on."""
    for control in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"):
        yield control, CONTROL
    for letter in _LETTERS:
        yield letter, NORMAL
    for start in dict.fromkeys((*_LETTERS, *_WORDS)):
        yield f"{_SPACE}{start}", NORMAL
    yield from _fillers()


def _fillers() -> Iterator[Piece]:
    number = 0
    while True:
        yield f"{_SPACE}w{number}", NORMAL
        number += 1
