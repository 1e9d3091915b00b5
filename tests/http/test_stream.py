from functools import partial

import pytest
import trio
import trio.testing
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message

from p2p_mesh.http.stream import (
    PENDING_LIMIT,
    WRITE_NOW,
    Body,
    ClientGone,
    Deferred,
    EventStream,
    Outbox,
    Write,
    event,
    until_disconnect,
)


class Client:
    """What an application sees of a client: it stays until `gone` is set."""

    def __init__(self) -> None:
        self.gone = trio.Event()
        self.sent: list[Message] = []
        self.is_watched = False

    async def receive(self) -> Message:
        self.is_watched = True
        try:
            await self.gone.wait()
        finally:
            self.is_watched = False
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if message.get("more_body") is False:
            assert not self.is_watched
        self.sent.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent if "body" in message]


def test_event_is_one_line_and_an_empty_one() -> None:
    assert event(b"{}") == b"data: {}\n\n"


async def test_result_of_the_work_comes_back() -> None:
    client = Client()

    async def work() -> str:
        return "done"

    assert await until_disconnect(client.receive, work) == "done"
    assert not client.is_watched


async def test_error_of_the_work_comes_out_bare() -> None:
    async def work() -> None:
        raise KeyError("it")

    with pytest.raises(KeyError):
        await until_disconnect(Client().receive, work)


async def test_work_is_cancelled_when_the_client_leaves() -> None:
    client = Client()
    client.gone.set()
    with pytest.raises(ClientGone):
        await until_disconnect(client.receive, trio.sleep_forever)


async def test_cancellation_from_outside_is_not_taken_for_a_departure() -> None:
    with trio.move_on_after(0) as scope:
        await until_disconnect(Client().receive, trio.sleep_forever)
    assert scope.cancelled_caught


async def test_deferred_response_is_sent() -> None:
    client = Client()

    async def make() -> Response:
        return PlainTextResponse("hello")

    await Deferred(make)({"type": "http", "method": "GET"}, client.receive, client.send)
    assert client.bodies == [b"hello"]


async def test_deferred_response_is_not_made_for_nobody() -> None:
    client = Client()
    client.gone.set()
    await Deferred(trio.sleep_forever)({}, client.receive, client.send)
    assert client.sent == []


async def test_stream_sends_its_head_with_the_first_write() -> None:
    client = Client()

    async def run(write: Write) -> None:
        assert client.sent == []
        await write(b"one")
        await write(b"two")

    await EventStream(run, {"x-request-id": "7"})({}, client.receive, client.send)
    assert [message["type"] for message in client.sent] == [
        "http.response.start",
        *["http.response.body"] * 3,
    ]
    assert client.sent[0]["status"] == 200
    assert (b"x-request-id", b"7") in client.sent[0]["headers"]
    assert (b"content-type", b"text/event-stream; charset=utf-8") in client.sent[0]["headers"]
    assert client.bodies == [b"one", b"two", b""]


async def test_empty_stream_is_a_response_too() -> None:
    client = Client()

    async def run(write: Write) -> None:
        pass

    await EventStream(run)({}, client.receive, client.send)
    assert len(client.sent) == 2


async def test_error_before_the_first_write_can_be_a_status() -> None:
    client = Client()

    async def run(write: Write) -> None:
        raise KeyError("it")

    with pytest.raises(KeyError):
        await EventStream(run)({}, client.receive, client.send)
    assert client.sent == []


async def test_stream_ends_without_its_end_when_the_client_leaves() -> None:
    client = Client()

    async def run(write: Write) -> None:
        await write(b"one")
        client.gone.set()
        await trio.sleep_forever()

    await EventStream(run)({}, client.receive, client.send)
    assert client.bodies == [b"one"]


async def test_what_is_put_at_once_is_one_write() -> None:
    written: list[bytes] = []

    async def write(data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        written.append(data)

    async def work(outbox: Outbox) -> None:
        for _ in range(10):
            await outbox.put(b"x")

    await Outbox(write).fill(work)
    assert written == [b"x" * 10]


async def test_what_comes_later_is_written_later(autojump_clock: trio.testing.MockClock) -> None:
    written: list[tuple[float, bytes]] = []
    start = trio.current_time()

    async def write(data: bytes) -> None:
        written.append((trio.current_time() - start, data))

    async def work(outbox: Outbox) -> None:
        await outbox.put(b"a")
        await trio.sleep(1)
        await outbox.put(b"b")

    await Outbox(write).fill(work)
    assert written == [(0, b"a"), (1, b"b")]


async def test_what_comes_during_a_write_waits_for_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    written: list[bytes] = []

    async def write(data: bytes) -> None:
        await trio.sleep(10)
        written.append(data)

    async def work(outbox: Outbox) -> None:
        for place in range(5):
            await outbox.put(b"%d" % place)
            await trio.sleep(1)

    await Outbox(write).fill(work)
    assert written == [b"0", b"1234"]


async def test_slow_client_slows_the_work(autojump_clock: trio.testing.MockClock) -> None:
    largest = 0

    async def write(data: bytes) -> None:
        nonlocal largest
        largest = max(largest, len(data))
        await trio.sleep(1)

    async def work(outbox: Outbox) -> None:
        for _ in range(100):
            await outbox.put(b"x" * 10_000)

    await Outbox(write).fill(work)
    assert largest <= PENDING_LIMIT + 10_000


async def test_error_of_the_work_ends_the_writing() -> None:
    async def work(outbox: Outbox) -> None:
        raise KeyError("it")

    with pytest.raises(KeyError):
        await Outbox(partial(trio.sleep, 0)).fill(work)


async def test_what_comes_alone_is_written_without_a_turn_of_the_loop(
    autojump_clock: trio.testing.MockClock,
) -> None:
    written: list[bytes] = []

    async def write(data: bytes) -> None:
        written.append(data)

    async def work(outbox: Outbox) -> None:
        await outbox.put(b"a")
        await trio.sleep(1)
        await outbox.put(b"b")
        assert written == [b"a", b"b"]

    await Outbox(write).fill(work)


async def test_order_is_kept_where_one_comes_alone_after_many(
    autojump_clock: trio.testing.MockClock,
) -> None:
    written: list[bytes] = []

    async def write(data: bytes) -> None:
        await trio.sleep(0.5)
        written.append(data)

    async def work(outbox: Outbox) -> None:
        for place in range(6):
            await outbox.put(b"%d" % place)
            await trio.sleep(0.3 * place)

    await Outbox(write).fill(work)
    assert b"".join(written) == b"012345"


async def test_what_is_offered_alone_is_written_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What is not, is put, and is then not counted again."""
    written, at_once = list[bytes](), list[bytes]()

    async def write(data: bytes) -> None:
        written.append(data)

    def now(data: bytes) -> bool:
        at_once.append(data)
        return data != b"no room"

    async def work(outbox: Outbox) -> None:
        for data in (b"the first", b"a", b"no room", b"b"):
            await trio.sleep(1)
            if not outbox.put_nowait(data):
                await outbox.put(data)
        assert outbox.put_nowait(b"c") is False  # with b
        await outbox.put(b"c")
        assert outbox.put_nowait(b"d") is False  # c waits

    await Outbox(write, now).fill(work)
    assert at_once == [b"a", b"no room", b"b"]
    assert written == [b"the first", b"no room", b"c"]


async def test_nothing_is_written_before_the_head() -> None:
    client, pushed = Client(), list[bytes]()

    def push(data: bytes) -> bool:
        pushed.append(data)
        return True

    async def run(body: Body) -> None:
        assert not body.now(b"a")
        await body(b"b")
        assert body.now(b"c")

    scope = {"extensions": {WRITE_NOW: push}}
    await EventStream(run)(scope, client.receive, client.send)
    assert pushed == [b"c"]
    assert client.bodies == [b"b", b""]


async def test_a_server_that_offers_nothing_is_sent_all() -> None:
    client = Client()

    async def run(body: Body) -> None:
        await body(b"a")
        assert not body.now(b"b")

    await EventStream(run)({}, client.receive, client.send)
