"""Records to bytes and back, and frames in a stream of bytes (specs/README.md, "Frames").

A frame is an unsigned varint length and a msgpack map tagged `type`. Whatever the bytes,
decoding raises RemoteError or nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from p2p_mesh.core.records import Delta, InferenceRequest, ModelLoad, Query, Reply, ShortText
from p2p_mesh.errors import MeshError, RemoteError, from_code

MIB = 1 << 20
ADMISSION_LIMIT = 64 << 10
INVENTORY_LIMIT = 128 << 10
INFERENCE_LIMIT = 9 * MIB
"""A body of 8 MiB, as the front takes it, and what msgpack and the request add."""

_VARINT_BYTES = 5  # a length below 2**35, far above every limit

Loads = Annotated[tuple[ModelLoad, ...], Meta(max_length=256)]

T = TypeVar("T")


class Message(Struct, frozen=True, omit_defaults=True, tag_field="type"):
    """Base of what is framed; each subclass names its `type`."""


class ErrorMessage(Message, frozen=True, kw_only=True, tag="error"):
    """The other side cannot go on, and why; ends what the stream was for."""

    code: ShortText
    message: str
    param: ShortText | None = None
    retry_after: Annotated[float, Meta(ge=0, le=86_400)] | None = None
    load: Loads = ()
    """As in `end`."""

    @classmethod
    def of(cls, error: MeshError, load: tuple[ModelLoad, ...] = ()) -> ErrorMessage:
        return cls(
            code=error.code,
            message=str(error)[:4096],
            param=error.param,
            retry_after=error.retry_after,
            load=load,
        )

    def error(self) -> MeshError:
        return from_code(
            self.code, self.message[:4096], param=self.param, retry_after=self.retry_after
        )


class End(Message, frozen=True, kw_only=True, tag="end"):
    """Nothing follows. The end of a stream without it is a failure."""

    load: Loads = ()
    """How busy the node is; on inference streams."""


@lru_cache(maxsize=64)
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


_encoder = msgspec.msgpack.Encoder()


def encode(record: object) -> bytes:
    return _encoder.encode(record)


def decode(data: bytes, kind: type[T] | Any) -> T:
    """The record in `data`. Raises RemoteError where it holds none within the limits."""
    try:
        record: T = _decoder(kind).decode(data)  # type: ignore[arg-type]
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise RemoteError(f"a malformed message: {error}"[:300]) from error
    return record


def frame(message: object) -> bytes:
    """The message as it stands in a stream: its length, then itself."""
    return framed(encode(message))


def framed(body: bytes) -> bytes:
    return varint(len(body)) + body


def varint(number: int) -> bytes:
    """Unsigned LEB128, as in protobuf and multiformats."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class Frames:
    """Cuts the bytes of a stream into frames. Feed what arrives, take what is whole."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = bytearray()

    @property
    def is_between(self) -> bool:
        """True where no part of a frame is held: here a stream may end."""
        return not self._held

    def feed(self, data: bytes) -> None:
        self._held += data

    def __iter__(self) -> Iterator[bytes]:
        while (body := self._next()) is not None:
            yield body

    def _next(self) -> bytes | None:
        head = self._head()
        if head is None:
            return None
        length, start = head
        if len(self._held) < start + length:
            return None
        with memoryview(self._held) as held:
            body = bytes(held[start : start + length])
        del self._held[: start + length]
        return body

    def only(self, data: bytes) -> bytes | None:
        """The frame that `data` is, where it is exactly one and no part of another is held: most
        come so, and need not be put together. None: it is to be fed.
        """
        if self._held or (head := self._head(data)) is None:
            return None
        length, start = head
        return data[start:] if len(data) == start + length else None

    def _head(self, data: bytes | bytearray | None = None) -> tuple[int, int] | None:
        """The length of the next frame and where its body starts, once known."""
        data = self._held if data is None else data
        length = 0
        for index, byte in enumerate(data[:_VARINT_BYTES]):
            length |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                if length > self._limit:
                    raise RemoteError(f"a frame of {length} bytes; the limit is {self._limit}")
                return length, index + 1
        if len(data) >= _VARINT_BYTES:
            raise RemoteError("a frame whose length never ends")
        return None


class Ask(Message, frozen=True, kw_only=True, tag="ask"):
    """Opens an answer on an inference stream; deltas come back, then `end` or `error`."""

    request: InferenceRequest


class Grew(Message, frozen=True, kw_only=True, tag="delta"):
    """What the answer grew by since the last message; several deltas may travel together."""

    deltas: Annotated[tuple[Delta, ...], Meta(min_length=1, max_length=4096)]


class Look(Message, frozen=True, kw_only=True, tag="look"):
    """A question that is answered whole: `found` comes back and `end`, or `error`."""

    query: Query


class Found(Message, frozen=True, kw_only=True, tag="found"):
    """The one reply to a `look`."""

    reply: Reply


class Cancel(Message, frozen=True, tag="cancel"):
    """The asker wants no more of the answer; `end` comes back, and the stream can be reused."""
