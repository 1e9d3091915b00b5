"""A foreign server over HTTP: requests that are bounded in size and time, and whether it is there.

A server is gone when two calls in a row did not reach it. Whoever listens is told; the next call
that reaches it makes it one that is there again. A call that breaks off, which a proxy between may
do too, makes it one to be looked at at once. Proxies of the environment
are used as by other programs, but never for a server on this machine.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import trio

from meshnode_openai_endpoint.failure import blaming, failure
from p2p_mesh.errors import EngineDied, MeshError, Overloaded, RemoteError
from p2p_mesh.settings import Endpoint

QUICK = 10.0
"""Seconds that a server may take over what costs it nothing, and to accept a connection."""

SILENCE = 300.0
"""Seconds that it may say nothing at all while it computes."""

REPLY_BYTES = 64 << 20
ERROR_BYTES = 1 << 20
STREAM_BYTES = 256 << 20

CONNECTIONS = 256
KEPT = 16
"""Connections that are kept open while nothing is asked."""

GONE = 2
"""Calls in a row that do not reach a server before it counts as gone."""


class Server:
    """One server, as long as the node asks it. `open_server` makes it."""

    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient) -> None:
        self.endpoint = endpoint
        self.listeners: set[Callable[[str], None]] = set()
        """Told why, when the server is gone."""
        self._client = client
        self._api, self._root = bases(endpoint.url)
        self._lost = 0
        self._doubted = trio.Event()

    async def ask(self, path: str, body: Any = None, *, seconds: float = QUICK) -> bytes:
        """What a GET, or a POST with a body, replies. Raises what failure.py makes of a refusal,
        EngineDied where the server is not reached, RemoteError for a reply without measure.
        """
        async with self._opened(path, body, seconds) as response:
            chunks = Chunks(response, REPLY_BYTES, self._missed)
            with trio.move_on_after(seconds):
                return await chunks.whole()
            await chunks.end()
            raise EngineDied(f"the server at {self.endpoint.url} did not reply in {seconds:g} s")

    @asynccontextmanager
    async def stream(self, path: str, body: Any) -> AsyncIterator[Chunks]:
        """The bytes of a reply as they come; leaving the context closes the connection, which
        tells the server to stop. Raises as `ask` does.
        """
        async with self._opened(path, body, SILENCE) as response:
            chunks = Chunks(response, STREAM_BYTES, self._missed)
            try:
                yield chunks
            finally:
                await chunks.end()

    async def rest(self, seconds: float) -> None:
        """Returns after so long, or as soon as a call did not reach the server or broke off."""
        with trio.move_on_after(seconds):
            await self._doubted.wait()

    @asynccontextmanager
    async def _opened(self, path: str, body: Any, seconds: float) -> AsyncIterator[httpx.Response]:
        response = await self._send(path, body, seconds)
        try:
            if response.status_code != 200:
                raise blaming(await self._refusal(response), path)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise RemoteError("a reply that is compressed, which was not asked for")
            yield response
        finally:
            await response.aclose()

    async def _send(self, path: str, body: Any, seconds: float) -> httpx.Response:
        url = self._root + path if path.startswith("/") else f"{self._api}/{path}"
        request = self._client.build_request(
            "GET" if body is None else "POST",
            url,
            content=None if body is None else msgspec.json.encode(body),
            timeout=httpx.Timeout(QUICK, read=seconds),
        )
        try:
            response = await self._client.send(request, stream=True)
        except httpx.TransportError as error:
            raise self._missed(error) from error
        self._lost = 0
        return response

    async def _refusal(self, response: httpx.Response) -> MeshError:
        chunks = Chunks(response, ERROR_BYTES, self._missed)
        with trio.move_on_after(QUICK):
            raw = await chunks.whole()
            return failure(response.status_code, response.headers, raw, self.endpoint)
        await chunks.end()
        return failure(response.status_code, response.headers, b"", self.endpoint)

    def _missed(self, error: httpx.TransportError) -> MeshError:
        """What it means that a call did not get through."""
        where = f"the server at {self.endpoint.url}"
        if isinstance(error, httpx.PoolTimeout):
            return Overloaded(f"{CONNECTIONS} requests to {where} run already", retry_after=1.0)
        if isinstance(error, httpx.ReadTimeout):
            return EngineDied(f"{where} said nothing for too long", retry_after=1.0)
        self._doubted.set()
        self._doubted = trio.Event()
        if not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return EngineDied(f"{where} broke off: {_why(error)}", retry_after=1.0)
        reason = f"{where} is out of reach: {_why(error)}"
        self._lost += 1
        if self._lost >= GONE:
            for listener in tuple(self.listeners):
                listener(reason)
        return EngineDied(reason, retry_after=1.0)


class Chunks:
    """The body of a response, bounded. Whoever does not read to its end calls `end`."""

    def __init__(
        self,
        response: httpx.Response,
        most: int,
        missed: Callable[[httpx.TransportError], MeshError],
    ) -> None:
        self._raw = response.aiter_raw()
        self._most = most
        self._missed = missed
        self._size = 0

    async def next(self) -> bytes | None:
        """None at the end. Raises RemoteError for too much, EngineDied where it breaks off."""
        try:
            chunk = await anext(self._raw, None)
        except httpx.TransportError as error:
            raise self._missed(error) from error
        self._size += len(chunk or b"")
        if self._size > self._most:
            await self.end()
            raise RemoteError(f"a reply of more than {self._most} bytes")
        return chunk

    async def whole(self) -> bytes:
        parts = []
        while (chunk := await self.next()) is not None:
            parts.append(chunk)
        return b"".join(parts)

    async def end(self, seconds: float = 0.0) -> None:
        """Reads on for so long at most, then breaks off. Broken off anywhere but inside a read,
        each of httpx's nested generators would be left to the garbage collector, which trio
        reports.
        """
        with trio.move_on_after(seconds):
            try:
                while await anext(self._raw, None) is not None:
                    pass
            except (httpx.TransportError, httpx.StreamError):
                return  # it had ended already, in one way or another


@asynccontextmanager
async def open_server(
    endpoint: Endpoint, transport: httpx.AsyncBaseTransport | None = None
) -> AsyncIterator[Server]:
    """A server that may be asked; a transport stands for the network in tests."""
    headers = {
        "accept-encoding": "identity",
        "content-type": "application/json",
        "user-agent": "meshnode",
    }
    if key := endpoint.key:
        headers["authorization"] = key if " " in key else f"Bearer {key}"
    async with httpx.AsyncClient(
        headers=headers,
        transport=transport,
        trust_env=not is_local(endpoint.url),
        follow_redirects=False,
        limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=KEPT),
    ) as client:
        yield Server(endpoint, client)


def bases(url: str) -> tuple[str, str]:
    """Where OpenAI's paths begin, and where the server's own do: `http://host/v1` and
    `http://host`. A URL without a path means /v1; one with a path is taken at its word.
    """
    if not urlsplit(url).path:
        return f"{url}/v1", url
    return url, url.removesuffix("/v1")


def is_local(url: str) -> bool:
    """Whether a server is on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def name(url: str) -> str:
    """`host:port`, by which the models of a server are told from others."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _why(error: BaseException) -> str:
    """In the system's own words, which lie beneath those of httpx, of httpcore and of trio."""
    within = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else None
    if beneath := within or error.__cause__ or error.__context__:
        return _why(beneath)
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number > 0:  # those of names are below
        return os.strerror(number)
    return str(error) or repr(error)
