"""The HTTP server on real sockets, with clients that behave badly."""

from __future__ import annotations

import json
import os
import random
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import httpx
import pytest
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from p2p_mesh.core.records import Delta
from p2p_mesh.errors import SettingsError
from p2p_mesh.front.app import create_app
from p2p_mesh.http.guard import BODY_LIMIT, Policy
from p2p_mesh.http.server import HEAD_LIMIT, has_ipv6, serve
from p2p_mesh.http.stream import WRITE_NOW
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.testing.inference import ScriptedInference, deltas

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


def front(inference: ScriptedInference) -> ASGIApp:
    return create_app(
        inference,
        policy=Policy(),
        clock=lambda: 1_700_000_000,
        random=random.Random(1),
        journal=Journal(),
    )


class Site:
    """A running server, and connections to it that are closed after its end."""

    def __init__(self, port: int, streams: AsyncExitStack) -> None:
        self.port = port
        self._streams = streams

    async def open(self) -> trio.SocketStream:
        """A client whose kernel takes in little for it."""
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._streams.enter_context(sock)
        await sock.connect(("127.0.0.1", self.port))
        return trio.SocketStream(sock)

    async def send(self, data: bytes) -> trio.SocketStream:
        stream = await self.open()
        await stream.send_all(data)
        return stream

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}")


@asynccontextmanager
async def served(app: ASGIApp, **options: Any) -> AsyncIterator[Site]:
    """A server that must be down within a second of the end, and have failed nowhere."""
    entries: list[Entry] = []
    options = {"host": "127.0.0.1", "port": 0, "journal": Journal(entries.append), **options}
    async with AsyncExitStack() as streams:
        async with trio.open_nursery() as nursery:
            port = await nursery.start(partial(serve, app, **options))
            try:
                with trio.fail_after(15):
                    yield Site(port, streams)
            finally:
                nursery.cancel_scope.cancel()
                stopping = trio.current_time()
        assert trio.current_time() - stopping < 1
    assert entries == []


def post(body: dict[str, Any], *more: str, path: str = "/v1/chat/completions") -> bytes:
    data = json.dumps(body).encode()
    head = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
        *more,
    ]
    return "\r\n".join([*head, "", ""]).encode() + data


async def read_until(stream: trio.SocketStream, mark: bytes) -> bytes:
    got = b""
    while mark not in got:
        data = await stream.receive_some()
        assert data, got
        got += data
    return got


async def read_all(stream: trio.SocketStream) -> bytes:
    got = b""
    with trio.fail_after(5):
        async for data in stream:
            got += data
    return got


@needs_ipv6
async def test_both_loopback_addresses_answer_for_localhost() -> None:
    async with served(front(ScriptedInference()), host="localhost") as site:
        for address in ("127.0.0.1", "[::1]", "localhost"):
            async with httpx.AsyncClient(base_url=f"http://{address}:{site.port}") as client:
                assert (await client.get("/health")).json() == {"status": "ok"}


async def test_connection_is_kept() -> None:
    async with (
        served(front(ScriptedInference(*deltas("a")))) as site,
        site.client() as client,
    ):
        used = set()
        for body in (CHAT, {**CHAT, "stream": True}, {"model": 5}, CHAT):
            response = await client.post("/v1/chat/completions", json=body)
            used.add(response.extensions["network_stream"].get_extra_info("client_addr"))
            assert "server" not in response.headers
        assert len(used) == 1


async def test_idle_connection_is_closed() -> None:
    async with served(front(ScriptedInference(*deltas("a"))), idle_timeout=0.2) as site:
        silent = await site.open()
        assert await read_all(silent) == b""
        streamed = await site.send(post({**CHAT, "stream": True}))
        assert (await read_all(streamed)).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        half = await site.send(b"GET / HTTP/1.1\r\nHost: local")
        assert await read_all(half) == b""


async def test_long_answer_does_not_count_as_idle() -> None:
    go_on = trio.Event()
    inference = ScriptedInference(go_on, *deltas("a"))
    async with served(front(inference), idle_timeout=0.1) as site:
        stream = await site.send(post(CHAT, "Connection: close"))
        await trio.sleep(0.3)
        go_on.set()
        assert (await read_all(stream)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("stream", [False, True])
async def test_connection_that_shall_close_is_closed(stream: bool) -> None:
    async with served(front(ScriptedInference(*deltas("a")))) as site:
        client = await site.send(post({**CHAT, "stream": stream}, "Connection: close"))
        assert (await read_all(client)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("more", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("steps", [(), (Delta(text="a"),)])
async def test_client_that_leaves_cancels_its_answer(
    steps: tuple[Delta, ...], stream: bool, more: bytes
) -> None:
    inference = ScriptedInference(*steps, trio.Event())
    async with served(front(inference)) as site:
        client = await site.send(post({**CHAT, "stream": stream}) + more)
        if stream and steps:
            await read_until(client, b'"content":"a"')
        await inference.started.wait()
        await client.aclose()
        with trio.fail_after(0.1):
            await inference.cancelled.wait()


async def test_closed_connection_leaves_nothing_behind() -> None:
    async with served(front(ScriptedInference(*deltas("a")))) as site:
        before = trio.lowlevel.current_statistics().tasks_living
        for body in (CHAT, {**CHAT, "stream": True}):
            client = await site.send(post(body))
            await read_until(client, b"usage" if body is CHAT else b"[DONE]")
            await client.aclose()
        await trio.sleep(0.1)
        assert trio.lowlevel.current_statistics().tasks_living == before


async def test_half_closed_client_counts_as_gone() -> None:
    inference = ScriptedInference(trio.Event())
    async with served(front(inference)) as site:
        client = await site.send(post(CHAT))
        await inference.started.wait()
        await client.send_eof()
        with trio.fail_after(0.1):
            await inference.cancelled.wait()


def flood() -> ScriptedInference:
    return ScriptedInference(*deltas(*["x" * 65_536] * 400))


async def test_client_that_reads_nothing_is_dropped() -> None:
    inference = flood()
    async with served(front(inference), write_timeout=0.3) as site:
        client = await site.send(post({**CHAT, "stream": True}))
        with trio.fail_after(5):
            await inference.cancelled.wait()
        assert not (await read_all(client)).endswith(b"0\r\n\r\n")


async def test_shutdown_does_not_wait_for_clients() -> None:
    inference = flood()
    async with served(front(inference)) as site:
        clients = [await site.open() for _ in range(3)]
        await clients[0].send_all(post({**CHAT, "stream": True}))  # reads nothing
        await clients[1].send_all(b"GET /health HTTP/1.1\r\n")  # half a head
        await inference.started.wait()
        await trio.sleep(0.1)
    assert inference.active == 0


async def test_slow_reader_gets_everything() -> None:
    inference = ScriptedInference(*deltas(*["x" * 10_000] * 50))
    async with served(front(inference), write_timeout=2) as site:
        client = await site.send(post({**CHAT, "stream": True}, "Connection: close"))
        await trio.sleep(0.3)
        assert (await read_all(client)).count(b"x" * 10_000) == 50


async def test_port_is_free_again_at_once() -> None:
    async with served(front(ScriptedInference())) as site:
        client = await site.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await read_until(client, b"ok")
    async with served(front(ScriptedInference()), port=site.port) as again:
        assert again.port == site.port


@pytest.mark.parametrize("taken", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
async def test_port_in_use_is_said_before_anything_else(taken: str) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host=taken)
    port = listener.socket.getsockname()[1]
    with pytest.raises(SettingsError, match=f"^port {port} is in use; choose another with --port"):
        await serve(front(ScriptedInference()), host="localhost", port=port)
    await listener.aclose()


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host"])
async def test_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match=host):
        await serve(front(ScriptedInference()), host=host, port=0)


def is_inherited_socket(descriptor: int) -> bool:
    try:
        return os.get_inheritable(descriptor) and stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return False


async def test_sockets_are_not_inherited() -> None:
    async with served(front(ScriptedInference())) as site:
        await site.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await trio.sleep(0.05)
        assert not any(is_inherited_socket(one) for one in range(3, 256))


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with served(front(ScriptedInference(*deltas("a")))) as site:
        client = await site.open()
        last = b"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        await client.send_all(post(CHAT) + post({**CHAT, "stream": True}) + last)
        got = await read_all(client)
    assert got.count(b"HTTP/1.1 200") == 2
    assert got.index(b'"chat.completion"') < got.index(b"[DONE]") < got.index(b"GET /last")


async def test_declared_body_over_the_limit_is_refused() -> None:
    async with (
        served(front(ScriptedInference(*deltas("a")))) as site,
        site.client() as client,
    ):
        large = {**CHAT, "user": "x" * (BODY_LIMIT + 1)}
        response = await client.post("/v1/chat/completions", json=large)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_chunked_body_over_the_limit_is_refused() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(12):
            yield b" " * 2**20

    async with (
        served(front(ScriptedInference(*deltas("a")))) as site,
        site.client() as client,
    ):
        headers = {"content-type": "application/json"}
        response = await client.post("/v1/chat/completions", content=chunks(), headers=headers)
        assert response.status_code == 413
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def pour(client: trio.SocketStream, data: bytes) -> None:
    """Sends for as long as the server takes it."""
    with suppress(trio.BrokenResourceError):
        while True:
            await client.send_all(data)


async def test_endless_body_is_cut_off() -> None:
    async with served(front(ScriptedInference())) as site:
        client = await site.open()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        await client.send_all(head + b"Content-Type: text/plain\r\n\r\n")
        chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pour, client, chunk)
                assert b" 415 " in await read_until(client, b"\r\n")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /health HTTP/1.0\r\n\r\n", 403),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2 * HEAD_LIMIT, 431),
        (b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        (b"GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"PRI * HTTP/2.0\r\n\r\n", 403),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    ],
)
async def test_odd_requests_have_an_answer(sent: bytes, status: int) -> None:
    async with served(front(ScriptedInference())) as site:
        client = await site.send(sent)
        with trio.fail_after(2):
            assert (await read_until(client, b"\r\n")).startswith(b"HTTP/1.1 %d" % status)


async def test_upgrades_are_not_made() -> None:
    async with served(front(ScriptedInference())) as site:
        get = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\n"
        h2c = await site.send(get + b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n")
        assert (await read_all(h2c)).startswith(b"HTTP/1.1 200")
        websocket = await site.send(
            get + b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert (await read_until(websocket, b"\r\n")).startswith(b"HTTP/1.1 403")


# Applications that are not ours, as plugins bring them.


async def count(_request: Request) -> Response:
    async def numbers() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"%d" % number

    return StreamingResponse(numbers())


@pytest.mark.parametrize("keep", [False, True])
async def test_starlettes_own_stream_is_closed_too(keep: bool) -> None:
    app = Starlette(routes=[Route("/count", count)])
    async with served(app, idle_timeout=0.2) as site:
        client = await site.open()
        more = b"" if keep else b"Connection: close\r\n"
        await client.send_all(b"GET /count HTTP/1.1\r\nHost: localhost\r\n" + more + b"\r\n")
        assert (await read_all(client)).endswith(b"1\r\n2\r\n0\r\n\r\n")


async def test_unread_body_does_not_hold_a_connection() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("no", status_code=418)(scope, receive, send)

    async with served(refuse) as site:
        client = await site.open()
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
        await client.send_all(head)
        with trio.fail_after(5):
            await pour(client, b"x" * 65_536)


async def test_application_that_fails_costs_its_connection_only() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async with served(fail) as site:
        for _ in range(2):
            client = await site.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await read_all(client)).startswith(b"HTTP/1.1 500")


async def test_many_clients_at_once() -> None:
    inference = ScriptedInference(*deltas(*"abcdefgh"))
    async with (
        served(front(inference)) as site,
        site.client() as client,
        trio.open_nursery() as nursery,
    ):

        async def ask() -> None:
            body = {**CHAT, "stream": True}
            response = await client.post("/v1/chat/completions", json=body)
            assert response.text.endswith("data: [DONE]\n\n")

        for _ in range(60):
            nursery.start_soon(partial(ask))
    assert len(inference.requests) == 60


async def test_what_is_pushed_to_a_slow_reader_is_whole_and_in_order() -> None:
    """The system takes a part of a push; the rest goes before what follows."""
    chunks = [bytes([65 + place % 26]) * 60_000 for place in range(100)]
    refused = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal refused
        push = scope["extensions"][WRITE_NOW]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for chunk in chunks:
            if not push(chunk):
                refused += 1
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async with served(app) as site:
        stream = await site.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await trio.sleep(0.5)
        got = await read_all(stream)
    _head, _, body = got.partition(b"\r\n\r\n")
    assert body == b"".join(b"ea60\r\n%b\r\n" % chunk for chunk in chunks) + b"0\r\n\r\n"
    assert 1 < refused < 100
