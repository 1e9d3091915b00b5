"""What passes between stages: batches of rows from one to the next, results from the last to the
first (specs/activations/README.md).

A body is a head, and for a batch the arrays of its rows, the orders that are obeyed before them,
and the activations. Numbers are little-endian; arrays begin at multiples of four.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from meshnode_llama_cpp.drawing import Drawn, Fed, Start
from msgspec import Struct
from numpy.typing import NDArray

from p2p_mesh.errors import RemoteError
from p2p_mesh.serve.backend import Wire

MAX_BODY = 32 << 20
MAX_ROWS = 4096

_HEAD = struct.Struct("<BBHIIIIff")
"""Kind, wire, reserved; epoch, number, rows, bytes of orders; seconds of the slowest, of all."""
_BATCH, _RESULT = 1, 2
_MOST_HALF = np.float32(65504)  # more would be infinite in float16, and spoil all that follows
_WIRES: tuple[Wire, ...] = ("f32", "f16", "q8")

Order = tuple[Literal["forget", "trim", "copy", "save", "restore", "drop"], int, int]
"""Of a memory: `forget` a slot, `trim` a slot to a position, `copy` a slot to another, `save` what
a slot holds under a number, `restore` that to a slot, `drop` the number.
"""


class Orders(Struct, frozen=True, array_like=True):
    """What stages do before and after the rows of a batch."""

    memory: tuple[Order, ...] = ()
    """In this order, before."""
    ends: tuple[int, ...] = ()
    """Slots for which nothing more is drawn,"""
    begins: tuple[Start, ...] = ()
    """and sequences that begin, before."""
    fed: tuple[Fed, ...] = ()
    """What is drawn, after."""


class Batch:
    """Rows on their way. `given` is what the stage before computed of them; None for the first."""

    __slots__ = ("epoch", "given", "number", "orders", "outputs", "positions", "slots", "slowest",
                 "tokens", "total")  # fmt: skip

    def __init__(self, epoch: int, number: int, rows: int) -> None:
        self.epoch, self.number = epoch, number
        self.slots = np.zeros(rows, np.int32)
        self.positions = np.zeros(rows, np.int32)
        self.tokens = np.zeros(rows, np.int32)
        self.outputs = np.zeros(rows, np.int8)
        self.orders = Orders()
        self.given: NDArray[np.float32] | None = None
        self.slowest = self.total = 0.0
        """Seconds that stages computed: the slowest one, and all of them."""

    def timed(self, seconds: float) -> None:
        self.slowest, self.total = max(self.slowest, seconds), self.total + seconds


class Result(Struct, frozen=True):
    """What the last stage drew."""

    epoch: int
    number: int
    slowest: float
    total: float
    drawn: tuple[Drawn, ...]


_orders = msgspec.msgpack.Encoder()
_orders_of: msgspec.msgpack.Decoder[Orders] = msgspec.msgpack.Decoder(Orders)
_drawn_of: msgspec.msgpack.Decoder[tuple[Drawn, ...]] = msgspec.msgpack.Decoder(tuple[Drawn, ...])


def encode_batch(batch: Batch, wire: Wire) -> list[Any]:
    """A body, in parts that need not be joined."""
    orders = _orders.encode(batch.orders)
    head = _HEAD.pack(
        _BATCH, _WIRES.index(wire), 0, batch.epoch, batch.number, len(batch.slots), len(orders),
        batch.slowest, batch.total,
    )  # fmt: skip
    assert batch.given is not None
    arrays = b"".join((
        head, batch.slots.tobytes(), batch.positions.tobytes(), batch.tokens.tobytes(),
        _padded(batch.outputs.tobytes()), _padded(orders),
    ))  # fmt: skip
    return [arrays, *_pack(batch.given, wire)]


def encode_result(batch: Batch, drawn: Sequence[Drawn]) -> list[Any]:
    body = _orders.encode(drawn)
    head = _HEAD.pack(
        _RESULT, 0, 0, batch.epoch, batch.number, 0, len(body), batch.slowest, batch.total
    )
    return [head + body]


def decode(body: bytearray) -> Batch | Result:
    """Raises RemoteError for what is neither."""
    try:
        return _decode(body)
    except (struct.error, ValueError, IndexError, msgspec.MsgspecError) as error:
        raise RemoteError(f"the stage before sent what is no batch: {error}") from error


def _decode(body: bytearray) -> Batch | Result:
    kind, wire, _, epoch, number, rows, length, slowest, total = _HEAD.unpack_from(body)
    at = _HEAD.size
    if kind == _RESULT:
        drawn = _drawn_of.decode(memoryview(body)[at : at + length])
        return Result(epoch, number, slowest, total, drawn)
    if kind != _BATCH or not 0 < rows <= MAX_ROWS:
        raise ValueError(f"kind {kind} with {rows} rows")
    batch = Batch.__new__(Batch)
    batch.epoch, batch.number, batch.slowest, batch.total = epoch, number, slowest, total
    for name in ("slots", "positions", "tokens"):
        setattr(batch, name, np.frombuffer(body, np.int32, rows, at))
        at += 4 * rows
    batch.outputs = np.frombuffer(body, np.int8, rows, at)
    at += _up(rows)
    batch.orders = _orders_of.decode(memoryview(body)[at : at + length])
    batch.given = _unpack(body, at + _up(length), rows, _WIRES[wire])
    return batch


def _pack(rows: NDArray[np.float32], wire: Wire) -> list[Any]:
    if wire == "f32":
        return [np.ascontiguousarray(rows).data.cast("B")]
    if wire == "f16":
        return [np.clip(rows, -_MOST_HALF, _MOST_HALF).astype(np.float16).data.cast("B")]
    scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    return [scale.astype(np.float32).tobytes(), np.rint(rows / scale).astype(np.int8).tobytes()]


def _unpack(body: bytearray, at: int, rows: int, wire: Wire) -> NDArray[np.float32]:
    if wire == "f32":
        return np.frombuffer(body, np.float32, offset=at).reshape(rows, -1)
    if wire == "f16":
        return np.frombuffer(body, np.float16, offset=at).reshape(rows, -1).astype(np.float32)
    scale = np.frombuffer(body, np.float32, rows, at).reshape(rows, 1)
    numbers = np.frombuffer(body, np.int8, offset=at + 4 * rows).reshape(rows, -1)
    return numbers.astype(np.float32) * scale


def _up(length: int) -> int:
    return -(-length // 4) * 4


def _padded(data: bytes) -> bytes:
    return data + bytes(_up(len(data)) - len(data))
