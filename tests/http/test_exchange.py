import pytest
import trio
import trio.testing
from starlette.types import Message

from p2p_mesh.http.exchange import Exchange
from p2p_mesh.http.stream import WRITE_NOW

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
        self.pushed: list[bytes] = []
        self.has_room = True
        for _ in range(queued):
            self._put.send_nowait({"type": "http.request", "body": b"x", "more_body": True})

    async def write(self, data: bytes) -> None:
        self.written.append(data)

    def push(self, data: bytes) -> bool:
        self.pushed.append(data)
        return self.has_room

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
    exchange = Exchange({}, hypercorn.receive, hypercorn.send, hypercorn.write, hypercorn.push)
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
    exchange = Exchange({}, hypercorn.receive, hypercorn.send, hypercorn.write, hypercorn.push)
    with trio.fail_after(5):
        await exchange.send(FINAL)
    assert (await exchange.receive())["type"] == "http.disconnect"


def body(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


def head(*headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": headers}


async def test_chunks_after_the_first_are_written_as_they_stand() -> None:
    hypercorn, scope = Hypercorn(), {"http_version": "1.1", "method": "POST"}
    exchange = Exchange(scope, hypercorn.receive, hypercorn.take, hypercorn.write, hypercorn.push)
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
    exchange = Exchange(scope, hypercorn.receive, hypercorn.take, hypercorn.write, hypercorn.push)
    for message in (head(*headers), body(b"a"), body(b"b")):
        await exchange.send(message)
    assert len(hypercorn.sent) == 3
    assert hypercorn.written == []


async def test_more_of_a_chunked_body_is_pushed() -> None:
    hypercorn, scope = Hypercorn(), {"http_version": "1.1", "method": "POST"}
    exchange = Exchange(scope, hypercorn.receive, hypercorn.take, hypercorn.write, hypercorn.push)
    push = exchange.scope["extensions"][WRITE_NOW]
    await exchange.send(head())
    assert not push(b"the head has not gone out")
    await exchange.send(body(b"first"))
    assert push(b"second")
    assert hypercorn.pushed == [b"6\r\nsecond\r\n"]
    hypercorn.has_room = False
    assert not push(b"third")


async def test_nothing_is_pushed_into_a_body_that_ends() -> None:
    hypercorn, scope = Hypercorn(), {"http_version": "1.1", "method": "POST"}
    exchange = Exchange(scope, hypercorn.receive, hypercorn.take, hypercorn.write, hypercorn.push)
    for message in (head(), body(b"first"), FINAL):
        await exchange.send(message)
    assert not exchange.push(b"late")
