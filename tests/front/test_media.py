import base64
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from p2p_mesh.core.names import RequestId
from p2p_mesh.core.records import ChatPrompt
from p2p_mesh.errors import RequestError
from p2p_mesh.front.media import MAX_BYTES, Media, is_public, resolve
from p2p_mesh.front.openai import Drawn, Question, question

PNG = b"\x89PNG"
DATA = "data:image/png;base64," + base64.b64encode(PNG).decode()
DRAWN = Drawn(id=RequestId("chatcmpl-1"), seed=7, asked_at=0)
PUBLIC, PRIVATE = "93.184.216.34", "10.0.0.1"


class Site:
    """The internet: names, and one server behind all of them, which is asked by address."""

    def __init__(self, **names: list[str]) -> None:
        self.names = {"example.org": [PUBLIC], **names}
        self.asked: list[tuple[str, str]] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        if host not in self.names:
            raise OSError("unknown")
        return self.names[host]

    def connections(self) -> httpx.AsyncBaseTransport:
        names = ("image", "text", "large", "packed", "gone", "slow", "away", "loop", "inside")
        routes = [Route(f"/{name}", partial(self._answer, getattr(self, name))) for name in names]
        return httpx.ASGITransport(Starlette(routes=routes))

    async def _answer(self, make: Callable[[], Response], request: Request) -> Response:
        self.asked.append((request.url.hostname or "", request.headers["host"]))
        if request.url.path == "/slow":
            await trio.sleep_forever()
        return make()

    def image(self) -> Response:
        return Response(PNG, media_type="Image/PNG; q=1")

    def text(self) -> Response:
        return Response("<html>", media_type="text/html")

    def large(self) -> Response:
        return Response(bytes(MAX_BYTES + 1), media_type="image/png")

    def packed(self) -> Response:
        return Response(PNG, media_type="image/png", headers={"content-encoding": "gzip"})

    def gone(self) -> Response:
        return Response(PNG, 404, media_type="image/png")

    def slow(self) -> Response:
        raise AssertionError

    def away(self) -> Response:
        return RedirectResponse("http://other.org/image")

    def loop(self) -> Response:
        return RedirectResponse("/loop")

    def inside(self) -> Response:
        return RedirectResponse("http://inner.org/image")


def asking(*urls: str) -> Question:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    text = {"type": "text", "text": "what?"}
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": [text, *parts]}]
    return question("chat", {"model": "m", "messages": messages}, DRAWN, links=True)


async def fetch(site: Site, *urls: str) -> list[str]:
    """The images that a request has in the end."""
    found = await Media(site.resolve, site.connections).fetched(asking(*urls))
    prompt = found.requests[0].prompt
    assert isinstance(prompt, ChatPrompt)
    parts: Any = prompt.messages[1]["content"]
    return [part["image_url"]["url"] for part in parts[1:]]


async def test_links_become_data() -> None:
    site = Site()
    assert await fetch(site, "http://example.org/image", DATA) == [DATA, DATA]
    assert site.asked == [("example.org", "example.org")]


async def test_what_has_no_links_stays_as_it_is() -> None:
    asked = asking(DATA)
    assert await Media(Site().resolve).fetched(asked) is asked


class Body(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"x"


async def test_connection_goes_to_the_address_that_was_checked() -> None:
    targets: list[tuple[str, Any]] = []

    class Noted(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            targets.append((str(request.url), request.extensions["sni_hostname"]))
            return httpx.Response(200, headers={"content-type": "image/png"}, stream=Body())

    await Media(Site().resolve, Noted).fetched(asking("https://example.org/a?b"))
    assert targets == [(f"https://{PUBLIC}/a?b", "example.org")]


class Endless(httpx.AsyncByteStream):
    """As a socket: it gives up at a cancellation."""

    def __init__(self) -> None:
        self.ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while True:
                await trio.lowlevel.checkpoint()
                yield bytes(2**20)
        finally:
            self.ended = True


async def test_what_has_no_end_is_broken_off_within_a_read() -> None:
    stream = Endless()

    class One(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, headers={"content-type": "image/png"}, stream=stream)

    with pytest.raises(RequestError, match="6291456 bytes together"):
        await Media(Site().resolve, One).fetched(asking("http://example.org/endless"))
    assert stream.ended


async def test_redirects_are_followed() -> None:
    site = Site(**{"other.org": ["2606:4700::1111"]})
    assert await fetch(site, "http://example.org/away") == [DATA]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("http://example.org/text", "not an image"),
        ("http://example.org/large", "6291456 bytes"),
        ("http://example.org/packed", "compressed"),
        ("http://example.org/gone", "404"),
        ("http://example.org/loop", "redirects"),
        ("http://example.org/inside", "not on the open internet"),
        ("http://inner.org/image", "not on the open internet"),
        ("http://both.org/image", "not on the open internet"),
        ("http://empty.org/image", "not on the open internet"),
        ("http://nowhere.org/image", "no address"),
        ("http://[::1/image", "could not be fetched"),
        ("http:///image", "could not be fetched"),
    ],
)
async def test_what_may_not_be_fetched_is_named(path: str, why: str) -> None:
    site = Site(**{"inner.org": [PRIVATE], "both.org": [PUBLIC, PRIVATE], "empty.org": []})
    with pytest.raises(RequestError, match=why) as caught:
        await fetch(site, path)
    assert caught.value.param == "messages[1].content[1].image_url.url"
    assert "inner.org" not in [host for _, host in site.asked]


async def test_images_have_one_limit_together() -> None:
    class Half(Site):
        def image(self) -> Response:
            return Response(bytes(MAX_BYTES // 2 + 1), media_type="image/png")

    with pytest.raises(RequestError) as caught:
        await fetch(Half(), *["http://example.org/image"] * 2)
    assert caught.value.param == "messages[1].content[2].image_url.url"


async def test_time_is_limited(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(RequestError, match="longer than 10 s") as caught:
        await fetch(Site(), "http://example.org/image", "http://example.org/slow")
    assert caught.value.param == "messages[1].content[2].image_url.url"
    assert trio.current_time() <= 10.1


async def test_number_of_links_is_limited() -> None:
    with pytest.raises(RequestError, match="16 links") as caught:
        await fetch(Site(), *["http://example.org/image"] * 17)
    assert caught.value.param == "messages[1].content[17].image_url.url"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1",
        "2002:a00:1::", "::127.0.0.1",
    ],
)  # fmt: skip
def test_address_that_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700:4700::1111"])
def test_address_that_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("host", "addresses"),
    [("127.0.0.1", ["127.0.0.1"]), ("127.1", ["127.0.0.1"]), ("0x7f000001", ["127.0.0.1"]),
     ("2130706433", ["127.0.0.1"]), ("::1", ["::1"])],
)  # fmt: skip
async def test_an_address_however_it_is_written(host: str, addresses: list[str]) -> None:
    assert await resolve(host, 80) == addresses


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=12))
async def test_any_link_is_an_error_that_names_it(rest: str) -> None:
    with pytest.raises(RequestError) as caught:
        await fetch(Site(), f"http://{rest}")
    assert caught.value.param == "messages[1].content[1].image_url.url"
