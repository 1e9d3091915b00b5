"""Errors out of nurseries."""

from __future__ import annotations

import pytest
import trio

from p2p_mesh.net.groups import bare


async def fail(error: Exception) -> None:
    raise error


async def nested() -> None:
    with bare():
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            inner.start_soon(fail, KeyError())
            outer.start_soon(trio.sleep_forever)


async def test_first_error_comes_out_bare() -> None:
    with pytest.raises(KeyError):
        await nested()


async def test_cancellation_passes() -> None:
    with trio.move_on_after(0) as scope, bare():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
    assert scope.cancelled_caught


def test_plain_error_passes() -> None:
    with pytest.raises(ValueError, match="plain"), bare():
        raise ValueError("plain")
