"""What two prompts have in common, and which node has probably read how much of one already.

A prompt is hashed as the client sent it, since the asker may lack the tokenizer: its bytes are
cut into blocks, and a link is the hash of all up to the end of a block. Prompts that begin alike
have the first links in common, and a chat's next turn has all of the turn before it. Links never
leave the node: two nodes need not agree on them.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import msgspec

from p2p_mesh.core.names import PeerId
from p2p_mesh.core.records import ChatPrompt, InferenceRequest, TextPrompt, TokenPrompt

MAX_LINKS = 512
BLOCK = 256
"""Bytes of a block, at first."""

DOUBLED = 96
"""Blocks after which they become twice as long. So the first KiB are told apart finely, and 512
links cover 1 MiB of a prompt: more than the context of nearly every model.
"""

LINK = 8
HELD = 4096
"""Links of one model at one node: what fits into a KV cache, roughly."""

TOTAL = 65_536
"""Links of all nodes and models together; some 10 MB."""

_encoder = msgspec.msgpack.Encoder()
_sorting = msgspec.msgpack.Encoder(order="deterministic")


def _ends() -> tuple[int, ...]:
    ends, end = [], 0
    for index in range(MAX_LINKS):
        end += BLOCK << index // DOUBLED
        ends.append(end)
    return tuple(ends)


_ENDS = _ends()
"""Where each block ends: bytes of the prompt that the link there stands for."""

COVERED = _ENDS[-1]


def links(request: InferenceRequest) -> tuple[bytes, ...]:
    """The hashes of the prompt up to the end of each of its blocks. What follows the last whole
    block is left out: a longer prompt would have another block there.
    """
    running = hashlib.blake2b(digest_size=LINK)
    data = _beginning(request.prompt)
    found: list[bytes] = []
    start = 0
    for end in _ENDS:
        if end > len(data):
            break
        running.update(data[start:end])
        found.append(running.digest())
        start = end
    return tuple(found)


def _beginning(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> memoryview:
    """As much of the prompt as links can cover."""
    data = bytearray()
    for piece in _pieces(prompt):
        data += memoryview(piece)[: COVERED - len(data)]
        if len(data) == COVERED:
            break
    return memoryview(data)


def _pieces(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> Iterator[bytes]:
    match prompt:
        case TextPrompt():
            yield prompt.text[:COVERED].encode(errors="surrogatepass")
        case TokenPrompt():
            yield array("I", prompt.tokens[: COVERED // 4]).tobytes()
        case ChatPrompt():
            # First what templates write first, and what changes all that follows.
            yield written((prompt.tools, prompt.variables))
            yield from map(written, prompt.messages)


def written(value: object) -> bytes:
    """The bytes of a value, the same in whatever order a client wrote its fields."""
    try:
        return _sorting.encode(value)
    except TypeError:  # a key that is no text, which no client's JSON can hold
        return _encoder.encode(value)


class Prefixes:
    """Which links each node probably has in its KV cache: those of the prompts that it read last.
    None is this node itself. A model is known by its digest, or else its id.
    """

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[PeerId | None, str], OrderedDict[bytes, None]] = OrderedDict()
        self._total = 0

    def remember(self, peer: PeerId | None, model: str, links: Sequence[bytes]) -> None:
        """A node has read a prompt."""
        if not links:
            return
        held = self._held.setdefault((peer, model), OrderedDict())
        self._held.move_to_end((peer, model))
        before = len(held)
        # Backwards, so that the beginning is the youngest: a chain is forgotten from its end.
        for link in reversed(links):
            held[link] = None
            held.move_to_end(link)
        while len(held) > HELD:
            held.popitem(last=False)
        self._total += len(held) - before
        while self._total > TOTAL:
            _, oldest = self._held.popitem(last=False)
            self._total -= len(oldest)

    def shared(self, peer: PeerId | None, model: str, links: Sequence[bytes]) -> float:
        """Which share of a prompt the node has probably read already."""
        held = self._held.get((peer, model))
        if not held or not links:
            return 0.0
        count = next((n for n, link in enumerate(links) if link not in held), len(links))
        return _ENDS[count - 1] / _ENDS[len(links) - 1] if count else 0.0

    def forget(self, peer: PeerId | None) -> None:
        """The node is gone, and its cache with it."""
        for key in [key for key in self._held if key[0] == peer]:
            self._total -= len(self._held.pop(key))
