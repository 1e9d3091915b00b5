"""What passes between the node and its engine process: length-prefixed msgpack records.

A frame is its length as four little-endian bytes, then one record. The node sends commands, the
engine reports. Both are this package, of one version, so a frame that does not decode is a bug
or memory gone wrong: either side gives the other up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

from p2p_mesh.core.records import Delta, InferenceRequest, KvType, Query, Reply
from p2p_mesh.serve.backend import Capability

MAX_FRAME = 64 * 2**20
_HEAD = 4


class Open(Struct, frozen=True, tag="open"):
    """Load this model. Comes first, and once."""

    name: str
    path: str
    context: int
    slots: int
    threads: int
    memory_limit: int | None = None
    kv_type: KvType = "f16"
    gpu_layers: int | None = None
    """None: all that fit."""
    flash: bool = True
    """Flash attention, which saves memory; without, attention over what a CPU holds is faster
    (memory.flashes).
    """
    deterministic: bool = False
    """An answer is the same alone, in company and resumed (scheduler.EXACT)."""
    speculation: bool = True
    draft: str | None = None
    """The path of a model that guesses tokens."""
    projector: str | None = None
    """The path of a projector for images or sounds."""


class Ask(Struct, frozen=True, tag="ask"):
    """Answer this; `number` names the answer on this connection."""

    number: int
    request: InferenceRequest


class Look(Struct, frozen=True, tag="look"):
    """A query; its reply is one frame."""

    number: int
    query: Query


class Cancel(Struct, frozen=True, tag="cancel"):
    """Of an answer or a query; harmless once it has ended."""

    number: int


class Progress(Struct, frozen=True, tag="progress"):
    share: float


class Ready(Struct, frozen=True, tag="ready"):
    """The model is loaded and has computed a first token."""

    numerics: str
    device: str
    capabilities: tuple[Capability, ...] = ("generate",)
    notes: tuple[str, ...] = ()
    """What somebody who runs this model should know, in sentences."""


class Failed(Struct, frozen=True, tag="failed"):
    """The model cannot be served; the engine ends."""

    reason: str


class Answer(Struct, frozen=True, tag="answer"):
    number: int
    delta: Delta


class Replied(Struct, frozen=True, tag="replied"):
    number: int
    reply: Reply


class Rejected(Struct, frozen=True, tag="rejected"):
    """The request cannot be taken; its answer ends here."""

    number: int
    code: str
    message: str
    param: str | None = None


Command = Open | Ask | Look | Cancel
Report = Progress | Ready | Failed | Answer | Replied | Rejected

_encoder = msgspec.msgpack.Encoder()


def encode(record: Struct) -> bytes:
    """A frame; ValueError for a record that is too large or that holds broken Unicode."""
    body = _encoder.encode(record)
    if len(body) > MAX_FRAME:
        raise ValueError(f"{len(body)} bytes are more than a frame may have, {MAX_FRAME}")
    return len(body).to_bytes(_HEAD, "little") + body


T = TypeVar("T")


class Frames(Generic[T]):
    """Cuts a stream of bytes into records."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._decoder = decoder
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[T]:
        """The records that are complete with these bytes; ValueError if they are none."""
        self._held += data
        start = 0
        try:
            while (end := self._end(start)) <= len(self._held):
                record = self._decoder.decode(self._held[start + _HEAD : end])
                start = end
                yield record
        except msgspec.MsgspecError as error:
            raise ValueError(f"not a record: {error}") from error
        finally:
            del self._held[:start]

    def _end(self, start: int) -> int:
        """Where the frame that starts there ends; beyond what is held if even that is unknown."""
        if start + _HEAD > len(self._held):
            return start + _HEAD
        length = int.from_bytes(self._held[start : start + _HEAD], "little")
        if length > MAX_FRAME:
            raise ValueError(f"a frame of {length} bytes, more than {MAX_FRAME}")
        return start + _HEAD + length


def commands() -> Frames[Command]:
    return Frames(msgspec.msgpack.Decoder(Command))


def reports() -> Frames[Report]:
    return Frames(msgspec.msgpack.Decoder(Report))
