"""What needs no socket; the rest is in tests/real/test_http_server.py."""

import errno
from typing import Any

import pytest
import trio
import trio.testing
from starlette.types import Message

from p2p_mesh.http.server import Exchange, Room, why_not

FINAL: Message = {"type": "http.response.body", "body": b"", "more_body": False}


class Hypercorn:
    """Tells the application of the disconnect from inside its last send, as Hypercorn does, and
    through a queue that a body may have filled.
    """

    def __init__(self, queued: int = 0) -> None:
        self._put, self._get = trio.open_memory_channel[Message](max(queued, 1))
        self.receive = self._get.receive
        self.is_sent = False
        self.sent: list[Message] = []
        self.written: list[bytes] = []
        for _ in range(queued):
            self._put.send_nowait({"type": "http.request", "body": b"x", "more_body": True})

    async def write(self, data: bytes) -> None:
        self.written.append(data)

    async def take(self, message: Message) -> None:
        self.sent.append(message)

    async def send(self, message: Message) -> None:
        await self._put.send({"type": "http.disconnect"})
        await trio.sleep(1)
        self.is_sent = True


async def test_disconnect_is_told_after_the_last_send(
    autojump_clock: trio.testing.MockClock,
) -> None:
    hypercorn = Hypercorn()
    exchange = Exchange({}, hypercorn.receive, hypercorn.send, hypercorn.write)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def listen() -> None:
            assert (await exchange.receive())["type"] == "http.disconnect"
            assert hypercorn.is_sent

        await trio.testing.wait_all_tasks_blocked()
        await exchange.send(FINAL)


async def test_unread_body_does_not_hold_the_last_send(
    autojump_clock: trio.testing.MockClock,
) -> None:
    hypercorn = Hypercorn(queued=10)
    exchange = Exchange({}, hypercorn.receive, hypercorn.send, hypercorn.write)
    with trio.fail_after(5):
        await exchange.send(FINAL)
    assert (await exchange.receive())["type"] == "http.disconnect"


def body(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


def head(*headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": headers}


async def test_chunks_after_the_first_are_written_as_they_stand() -> None:
    hypercorn, scope = Hypercorn(), {"http_version": "1.1", "method": "POST"}
    exchange = Exchange(scope, hypercorn.receive, hypercorn.take, hypercorn.write)
    for message in (head(), body(b"first"), body(b"second, of 21 bytes.."), body(b"")):
        await exchange.send(message)
    assert hypercorn.sent == [head(), body(b"first"), body(b"")]
    assert hypercorn.written == [b"15\r\nsecond, of 21 bytes..\r\n"]


@pytest.mark.parametrize(
    ("version", "method", "headers"),
    [
        ("1.0", "POST", ()),
        ("1.1", "HEAD", ()),
        ("1.1", "GET", ((b"Content-Length", b"3"),)),
    ],
)
async def test_what_has_no_chunks_goes_through_the_machine(
    version: str, method: str, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    hypercorn, scope = Hypercorn(), {"http_version": version, "method": method}
    exchange = Exchange(scope, hypercorn.receive, hypercorn.take, hypercorn.write)
    for message in (head(*headers), body(b"a"), body(b"b")):
        await exchange.send(message)
    assert len(hypercorn.sent) == 3
    assert hypercorn.written == []


def test_reason_names_the_flag() -> None:
    assert why_not(errno.EADDRINUSE, "::1", 9337, "--port") == (
        "port 9337 is in use; choose another with --port"
    )
    assert "--console" in why_not(errno.EACCES, "::1", 80, "--console")
    assert "10.9.9.9 is not an address" in why_not(errno.EADDRNOTAVAIL, "10.9.9.9", 1, "--port")
    assert "ENFILE" in why_not(errno.ENFILE, "::1", 1, "--port")


class FakeStream:
    """A connection from an address."""

    def __init__(self, address: str) -> None:
        self.socket = self
        self._address = address

    def getpeername(self) -> tuple[str, int]:
        return self._address, 1


def test_room_is_bounded_in_all_and_for_each_other_machine() -> None:
    room = Room(most=4, most_of_one=1)
    far: Any = FakeStream("192.0.2.7")
    near: Any = FakeStream("127.0.0.1")
    with room.taken_by(far) as first, room.taken_by(far) as second:
        assert (first, second) == (True, False)
        with room.taken_by(near), room.taken_by(near), room.taken_by(near) as third:
            assert third
            with room.taken_by(near) as fourth:
                assert not fourth
    with room.taken_by(far) as again:
        assert again
