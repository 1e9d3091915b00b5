"""A foreign server over HTTP: what is sent, what is bounded, when it counts as gone."""

import errno
import gc
import os
import warnings
from contextlib import suppress
from functools import partial
from typing import Any

import httpx
import pytest
import trio
from meshnode_openai_endpoint import server as module
from meshnode_openai_endpoint.server import bases, is_local, name, open_server
from trio.testing import MockClock

from p2p_mesh.errors import EngineDied, MeshError, RemoteError, RequestError, Unavailable
from p2p_mesh.settings import Endpoint
from tests.plugins.openai_endpoint.foreign import ENDPOINT, REFUSED, Foreign


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://h:1", ("http://h:1/v1", "http://h:1")),
        ("http://h:1/v1", ("http://h:1/v1", "http://h:1")),
        ("https://h/api/v1", ("https://h/api/v1", "https://h/api")),
        ("https://h/v1beta/openai", ("https://h/v1beta/openai", "https://h/v1beta/openai")),
    ],
)
def test_paths_begin_where_the_url_says(url: str, wanted: tuple[str, str]) -> None:
    assert bases(url) == wanted


def test_servers_have_names() -> None:
    urls = ("http://h:1/v1", "http://h", "https://h", "http://[::1]:8")
    assert [name(url) for url in urls] == ["h:1", "h:80", "h:443", "[::1]:8"]


def test_own_machine_is_known() -> None:
    assert all(map(is_local, ("http://localhost:1", "http://127.0.0.9", "http://[::1]")))
    assert not any(map(is_local, ("http://192.168.0.1", "http://example.org")))


async def test_key_is_sent_as_what_it_is() -> None:
    for key, header in (("sk-1", "Bearer sk-1"), ("Basic eDp5", "Basic eDp5"), ("", None)):
        foreign = Foreign()
        async with open_server(Endpoint("http://h", key), foreign) as server:
            await server.ask("models")
        assert foreign.requests[0].headers.get("authorization") == header
        assert foreign.requests[0].headers["accept-encoding"] == "identity"


async def test_body_makes_it_a_post() -> None:
    foreign = Foreign(**{"/tokenize": {"tokens": []}})
    async with open_server(ENDPOINT, foreign) as server:
        assert await server.ask("/tokenize", {"content": "x"}) == b'{"tokens": []}'
    assert foreign.requests[0].method == "POST"
    assert foreign.bodies("/tokenize") == [{"content": "x"}]


async def test_redirect_is_not_followed() -> None:
    foreign = Foreign(**{"/v1/models": (307, {})})
    async with open_server(ENDPOINT, foreign) as server:
        with pytest.raises(Unavailable, match="sends elsewhere"):
            await server.ask("models")
    assert len(foreign.requests) == 1


@pytest.mark.parametrize("status", [200, 400])
async def test_reply_is_bounded(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    for limit in ("REPLY_BYTES", "ERROR_BYTES"):
        monkeypatch.setattr(module, limit, 8)
    async with open_server(ENDPOINT, Foreign(**{"/x": (status, "123456789")})) as server:
        with pytest.raises(RemoteError, match="more than 8 bytes"):
            await server.ask("/x")


async def test_compression_is_refused() -> None:
    class Squeezed(Foreign):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, headers={"content-encoding": "gzip"}, stream=self.body())

        def body(self) -> Any:
            return httpx.ByteStream(b"bomb")

    async with open_server(ENDPOINT, Squeezed()) as server:
        with pytest.raises(RemoteError, match="compressed"):
            await server.ask("models")


async def test_server_is_gone_after_two_misses_in_a_row() -> None:
    foreign = Foreign()
    said: list[str] = []
    async with open_server(ENDPOINT, foreign) as server:
        server.listeners.add(said.append)
        for reply, gone in ((REFUSED, 0), ({}, 0), (REFUSED, 0), (REFUSED, 1), ({}, 1)):
            foreign.replies["/x"] = reply
            with suppress(EngineDied):
                await server.ask("/x")
            assert len(said) == gone
    assert said == ["the server at http://foreign:8080 is out of reach: refused"]


async def test_broken_replies_alone_do_not_make_a_server_gone() -> None:
    said: list[str] = []
    async with open_server(ENDPOINT, Foreign(**{"/x": httpx.ReadError("reset")})) as server:
        server.listeners.add(said.append)
        for _ in range(5):
            with pytest.raises(EngineDied, match="broke off: reset"):
                await server.ask("/x")
    assert said == []


async def test_miss_ends_a_rest(autojump_clock: MockClock) -> None:
    async with open_server(ENDPOINT, Foreign(**{"/x": REFUSED})) as server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.rest, 100)
            await trio.sleep(3)
            with pytest.raises(EngineDied):
                await server.ask("/x")
        assert trio.current_time() == 3
        await server.rest(7)
        assert trio.current_time() == 10


async def test_server_that_never_ends_its_reply(autojump_clock: MockClock) -> None:
    foreign = Foreign(**{"/x": [b"{", trio.Event()]})
    async with open_server(ENDPOINT, foreign) as server:
        with pytest.raises(EngineDied, match="did not reply in 10 s"):
            await server.ask("/x")
    assert foreign.streams[0].closed.is_set()


async def test_system_says_why_nobody_is_there() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    async with open_server(Endpoint(f"http://127.0.0.1:{port}")) as server:
        with pytest.raises(EngineDied, match="out of reach: " + os.strerror(errno.ECONNREFUSED)):
            await server.ask("models")


async def _speak(head: bytes, pause: float, left: trio.Event, stream: trio.SocketStream) -> None:
    try:
        async with stream:
            await stream.receive_some()
            await stream.send_all(head)
            while True:
                await stream.send_all(b"5\r\ndata:\r\n")
                await trio.sleep(pause)
    except trio.BrokenResourceError:
        left.set()


async def test_leaving_a_stream_closes_it_and_leaves_nothing_behind() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    left = trio.Event()
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, partial(_speak, head, 0.001, left), 0, host="127.0.0.1")
        listeners: Any = await nursery.start(serve)
        port = listeners[0].socket.getsockname()[1]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            async with open_server(Endpoint(f"http://127.0.0.1:{port}")) as server:
                async with server.stream("chat/completions", {}) as chunks:
                    assert await chunks.next() == b"data:"
                gc.collect()
                with trio.fail_after(5):
                    await left.wait()
        assert [str(one.message) for one in caught] == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"",
    ],
)
async def test_nonsense_instead_of_http(raw: bytes) -> None:
    async def babble(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(raw)

    async with trio.open_nursery() as nursery:
        listeners: Any = await nursery.start(partial(trio.serve_tcp, babble, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        async with open_server(Endpoint(f"http://127.0.0.1:{port}")) as server:
            with pytest.raises(MeshError) as caught:
                await server.ask("models")
            assert not isinstance(caught.value, RequestError)
        nursery.cancel_scope.cancel()
