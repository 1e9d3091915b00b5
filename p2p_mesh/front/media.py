"""Links to images, fetched where this node may: what a request carries afterwards is the data.

A link is a stranger's wish for a request from inside this machine's network. So a host is
resolved here, every address of it must be a public one, and the connection goes to the very
address that was checked: a name that resolves differently a moment later changes nothing. The
same holds for each redirect. Proxies of the environment are not used, since they would resolve
the name themselves.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import msgspec
import trio

from p2p_mesh.core.records import ChatPrompt
from p2p_mesh.errors import RequestError
from p2p_mesh.front.messages import LINK, Message
from p2p_mesh.front.openai import Question

MAX_BYTES = 6 * 2**20
"""Of all images of a request; 8 MiB as base64, what a body may have."""
MAX_LINKS = 16
MAX_REDIRECTS = 3
SECONDS = 10.0
"""For all links of a request together."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_IMAGE = re.compile(r"image/[\w.+-]{1,64}", re.ASCII)
_HEADERS = {"accept": "image/*", "accept-encoding": "identity", "user-agent": "meshnode"}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]


def is_public(address: str) -> bool:
    """Whether an address is somewhere on the open internet, whatever is wrapped in it."""
    found = ipaddress.ip_address(address)
    return all(_is_public(one) for one in (found, *_within(found)))


def _is_public(address: Address) -> bool:
    return address.is_global and not (
        address.is_multicast or address.is_reserved or getattr(address, "is_site_local", False)
    )


def _within(address: Address) -> tuple[Address, ...]:
    """IPv4 addresses that an IPv6 address leads to: mapped, 6to4, Teredo, NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return ()
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return tuple(one for one in found if one is not None)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host."""
    found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Checked(httpx.AsyncBaseTransport):
    """Sends a request to a public address of its host, and to no other."""

    def __init__(self, inner: httpx.AsyncBaseTransport, resolve: Resolve) -> None:
        self._inner = inner
        self._resolve = resolve

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        port = request.url.port or (443 if request.url.scheme == "https" else 80)
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            raise RequestError(f"{host[:256]!a} has no address") from None
        if not addresses or not all(map(is_public, addresses)):
            raise RequestError(f"{host[:256]!a} is not on the open internet")
        # Another request, since redirects of this one are relative to its name. Its Host header is
        # written already, and the certificate is still checked against the name.
        checked = httpx.Request(
            request.method,
            request.url.copy_with(host=addresses[0]),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": host},
        )
        return await self._inner.handle_async_request(checked)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _connections() -> httpx.AsyncBaseTransport:
    # Kept alive, a connection to an address would serve whatever name leads to that address.
    return httpx.AsyncHTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))


class Media:
    """Fetches links."""

    def __init__(
        self,
        resolve: Resolve = resolve,
        connections: Callable[[], httpx.AsyncBaseTransport] = _connections,
    ) -> None:
        self._resolve = resolve
        self._connections = connections

    async def fetched(self, question: Question) -> Question:
        """The question with the images themselves. Raises RequestError, naming the link."""
        prompt = question.requests[0].prompt
        if not isinstance(prompt, ChatPrompt) or not (links := _links(prompt)):
            return question
        if len(links) > MAX_LINKS:
            name = _name(*list(links)[MAX_LINKS])
            raise RequestError(f"{name}: {MAX_LINKS} links can be fetched at most", param=name)
        client = httpx.AsyncClient(
            transport=Checked(self._connections(), self._resolve), headers=_HEADERS,
            timeout=SECONDS, follow_redirects=True, max_redirects=MAX_REDIRECTS, trust_env=False,
        )  # fmt: skip
        async with client:
            data = await _fetch_all(client, links)
        request = msgspec.structs.replace(question.requests[0], prompt=_with(prompt, data))
        return replace(question, requests=(request,))


def _links(prompt: ChatPrompt) -> dict[tuple[int, int], str]:
    """Links by message and part."""
    return {
        (place, number): part["image_url"]["url"]
        for place, message in enumerate(prompt.messages)
        if not isinstance(message["content"], str | None)
        for number, part in enumerate(message["content"])
        if part["type"] == "image_url" and LINK.match(part["image_url"]["url"])
    }


def _with(prompt: ChatPrompt, data: dict[tuple[int, int], str]) -> ChatPrompt:
    messages: list[Message] = [dict(message) for message in prompt.messages]
    for (place, number), url in data.items():
        parts: list[Any] = list(messages[place]["content"])
        parts[number] = {"type": "image_url", "image_url": {"url": url}}
        messages[place]["content"] = parts
    return msgspec.structs.replace(prompt, messages=tuple(messages))


def _name(place: int, number: int) -> str:
    return f"messages[{place}].content[{number}].image_url.url"


async def _fetch_all(
    client: httpx.AsyncClient, links: dict[tuple[int, int], str]
) -> dict[tuple[int, int], str]:
    data: dict[tuple[int, int], str] = {}
    left = MAX_BYTES
    with trio.move_on_after(SECONDS):
        for (place, number), url in links.items():
            name = _name(place, number)
            image, data[place, number] = await _fetch(client, url, name, left)
            left -= image
        return data
    message = f"{name} could not be fetched: the links took longer than {SECONDS:g} s together"
    raise RequestError(message, param=name)


async def _fetch(client: httpx.AsyncClient, url: str, name: str, left: int) -> tuple[int, str]:
    """The size of an image, and the image as a data URL."""
    try:
        async with client.stream("GET", url) as response:
            sort = _sort(response)
            image = await _read(response, left)
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        why = str(error) or type(error).__name__
        raise RequestError(f"{name} could not be fetched: {why[:200]}", param=name) from None
    except RequestError as error:
        raise RequestError(f"{name} could not be fetched: {error}", param=name) from None
    return len(image), f"data:{sort};base64,{base64.b64encode(image).decode()}"


def _sort(response: httpx.Response) -> str:
    """The content type of what must be an image, and not compressed: it might grow."""
    if response.status_code != 200:
        raise RequestError(f"its server answers with {response.status_code}")
    sort = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not _IMAGE.fullmatch(sort):
        raise RequestError("it is not an image")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise RequestError("it comes compressed")
    return str(sort)


async def _read(response: httpx.Response, left: int) -> bytes:
    image = bytearray()
    chunks = response.aiter_raw()
    while (chunk := await anext(chunks, None)) is not None:
        image += chunk
        if len(image) > left:
            await _end(chunks)
            raise RequestError(f"images from links may have {MAX_BYTES} bytes together")
    return bytes(image)


async def _end(chunks: AsyncIterator[bytes]) -> None:
    """Breaks off within a read. Anywhere else each of httpx's nested generators would be left to
    the garbage collector, which trio reports.
    """
    with trio.move_on_after(0):
        while await anext(chunks, None) is not None:
            pass
