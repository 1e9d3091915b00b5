from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode_llama_cpp.drawing import Drawn, Fed, Start
from meshnode_skippy.wire import Batch, Orders, Result, decode, encode_batch, encode_result

from p2p_mesh.core.records import Sampling, TokenLogprob
from p2p_mesh.errors import RemoteError
from p2p_mesh.serve.backend import Wire


def batch(rows: int = 3, width: int = 8) -> Batch:
    made = Batch(epoch=2, number=7, rows=rows)
    made.slots[:] = 1
    made.positions[:] = range(rows)
    made.tokens[:] = range(100, 100 + rows)
    made.outputs[-1] = 1
    made.given = np.random.default_rng(1).standard_normal((rows, width)).astype(np.float32)
    made.orders = Orders(
        (("forget", 1, 0), ("trim", 1, 5), ("copy", 0, 1)),
        ends=(3,),
        begins=(Start(1, Sampling(temperature=0), choice=2, before=(1, 2)),),
        fed=(Fed(1, rows - 1, position=4, guesses=(5, 6), targets=(-1,)),),
    )
    made.timed(0.5)
    made.timed(0.25)
    return made


def body(parts: list[Any]) -> bytearray:
    return bytearray(b"".join(bytes(part) for part in parts))


def again(made: Batch, wire: Wire) -> Batch:
    found = decode(body(encode_batch(made, wire)))
    assert isinstance(found, Batch)
    return found


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 61])
def test_a_batch_is_the_same_on_the_other_side(rows: int) -> None:
    made = batch(rows)
    found = again(made, "f32")
    for name in ("slots", "positions", "tokens", "outputs", "given"):
        assert np.array_equal(getattr(found, name), getattr(made, name)), name
    assert found.orders == made.orders
    assert (found.epoch, found.number, found.slowest, found.total) == (2, 7, 0.5, 0.75)


def test_halves_and_bytes_are_close() -> None:
    made = batch()
    assert made.given is not None
    for wire, most in (("f16", 2e-3), ("q8", 2e-2)):
        found = again(made, wire)  # type: ignore[arg-type]
        assert found.given is not None
        assert found.given.dtype == np.float32
        assert float(np.abs(found.given - made.given).max()) < most
    made.given[:] = 0
    assert np.array_equal(again(made, "q8").given, made.given)  # type: ignore[arg-type]


def test_what_a_half_cannot_hold_is_as_large_as_it_can() -> None:
    made = batch()
    assert made.given is not None
    made.given[0, 0], made.given[0, 1] = 1e6, -1e6
    found = again(made, "f16")
    assert found.given is not None
    assert found.given[0, :2].tolist() == [65504, -65504]


def test_a_narrower_wire_is_shorter() -> None:
    sizes = [len(body(encode_batch(batch(8, 512), wire))) for wire in ("f32", "f16", "q8")]
    assert sizes[0] > 1.9 * sizes[1] > 3.5 * sizes[2] * 0.9


def test_results_come_back() -> None:
    drawn = [Drawn(1, (5, 9), (TokenLogprob(token=5, logprob=-1.0),)), Drawn(2, failure="no")]
    found = decode(body(encode_result(batch(), drawn)))
    assert found == Result(2, 7, 0.5, 0.75, tuple(drawn))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_remote_error(data: bytes) -> None:
    try:
        decode(bytearray(data))
    except RemoteError:
        return


@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_no_broken_batch_does_either(place: int, data: bytes) -> None:
    broken = body(encode_batch(batch(), "f32"))
    place = min(place, len(broken) - len(data))
    broken[place : place + len(data)] = data
    for one in (broken, broken[:-place] if place else broken[:10]):
        try:
            decode(one)
        except RemoteError:
            continue
