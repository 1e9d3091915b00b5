"""Who may call, and with what: a web page must not reach a local node behind its user's back.

1. `Host` must name this machine, so that a page cannot come in through a name of its own that
   it points here (DNS rebinding). An IP literal cannot be pointed anywhere.
2. `Origin`, which every browser sends with what could change something, must be this machine's
   or a named one; `Sec-Fetch-Site: cross-site` without an origin is a page's link or image.
3. A key, where one is set. A preflight carries none, so it is answered before.
4. A body must be `application/json`, which a form on a foreign page cannot send, and small.

`Policy`, `refusal` and what they call are pure; `Guard` applies them, and reads the body whole
before the application sees the request.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Collection
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import trio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p2p_mesh.errors import SettingsError
from p2p_mesh.http.failure import Failure

BODY_LIMIT = 8 * 2**20
BODY_TIMEOUT = 60.0
"""Seconds that a body may take to arrive."""
DRAIN_TIMEOUT = 1.0
"""Seconds that a refused body is still read, since a client that is cut off while it sends
often never sees why."""

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Policy:
    """What the settings say about who may call. `api_key` is asked of everybody where it is set,
    and must be set where other machines can reach the port.
    """

    listen: bool = False
    api_key: str | None = None
    allow_hosts: Collection[str] = ()
    allow_origins: Collection[str] = ()
    hostname: str = field(default_factory=socket.gethostname)

    def __post_init__(self) -> None:
        if self.listen and not self.api_key:
            raise SettingsError("--listen opens the node to other machines and needs --api-key")

    def admits_host(self, host: str) -> bool:
        name = _host_name(host)
        if name is None:
            return False
        if is_loopback(name) or name in {_folded(one) for one in self.allow_hosts}:
            return True
        return self.listen and (_address(name) is not None or name == _folded(self.hostname))

    def admits_origin(self, origin: str, host: str) -> bool:
        """Whether a page from there may call; `host` is the header, which was admitted."""
        if origin.lower() in {one.lower().rstrip("/") for one in self.allow_origins}:
            return True
        scheme, _, authority = origin.lower().partition("://")
        if scheme not in ("http", "https"):
            return False
        name = _host_name(authority)
        return name is not None and (is_loopback(name) or authority == host.lower())


@dataclass(frozen=True, slots=True)
class Access:
    """What one port asks for besides: paths that need no key, and the token without which
    nothing there can be changed.
    """

    open_paths: frozenset[str] = frozenset()
    token: str | None = None


def is_loopback(name: str) -> bool:
    """Whether a host name or address means this machine and no other."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(name)
    mapped = getattr(address, "ipv4_mapped", None)
    return address is not None and (mapped or address).is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _folded(name: str) -> str:
    return name.lower().rstrip(".")


def _host_name(host: str) -> str | None:
    """The name or address in a Host header, without port and brackets; None if it is neither."""
    try:
        parts = urlsplit(f"//{host}")
        if parts.netloc != host or "@" in host or not parts.hostname:
            return None
        _ = parts.port  # raises where the port is no number
    except ValueError:
        return None
    return _folded(parts.hostname)


def refusal(
    method: str, path: str, headers: Headers, policy: Policy, access: Access
) -> Failure | None:
    """Why a request is refused by its head alone, or None. A preflight is not asked for a key."""
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not policy.admits_host(hosts[0]):
        named = ", ".join(hosts)[:100] or "nothing"
        return Failure(
            403, "forbidden_host", f"this node is not called {named!a}; see --allow-host"
        )
    return (
        _foreign(headers, hosts[0], policy)
        or (
            None
            if is_preflight(method, headers)
            else _locked(method, path, headers, policy, access)
        )
        or _unreadable(method, headers)
    )


def is_preflight(method: str, headers: Headers) -> bool:
    return method == "OPTIONS" and "access-control-request-method" in headers


def _foreign(headers: Headers, host: str, policy: Policy) -> Failure | None:
    origins = headers.getlist("origin")
    if any(not policy.admits_origin(one, host) for one in origins):
        shown = ", ".join(origins)[:100]
        message = f"pages from {shown!a} may not call this node; see --allow-origin"
        return Failure(403, "forbidden_origin", message)
    if not origins and headers.get("sec-fetch-site") == "cross-site":
        return Failure(403, "forbidden_origin", "pages from other sites may not call this node")
    return None


def _locked(
    method: str, path: str, headers: Headers, policy: Policy, access: Access
) -> Failure | None:
    if access.token is not None and method not in _SAFE:
        if _bears(headers, access.token):
            return None
        return _unauthorized("this call needs the token that the node wrote to its node.json")
    if policy.api_key is None or (path in access.open_paths and method in _SAFE):
        return None
    if _bears(headers, policy.api_key) or (access.token and _bears(headers, access.token)):
        return None
    return _unauthorized("this node asks for its API key, as `Authorization: Bearer KEY`")


def _unauthorized(message: str) -> Failure:
    return Failure(401, "invalid_api_key", message, headers={"www-authenticate": "Bearer"})


def _bears(headers: Headers, secret: str) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    # compare_digest takes as long for a wrong key as for the right one, but only for bytes.
    same = hmac.compare_digest(given.strip().encode(), secret.encode())
    return same and scheme.lower() == "bearer"


def _unreadable(method: str, headers: Headers) -> Failure | None:
    length = headers.get("content-length", "0")
    has_body = length != "0" or "transfer-encoding" in headers
    # A form can only send POST, and a POST without a body too.
    if not has_body and method != "POST":
        return None
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        message = "the body must be sent with `Content-Type: application/json`"
        return Failure(415, "unsupported_media_type", message)
    if headers.get("content-encoding", "identity").lower() != "identity":
        return Failure(415, "unsupported_media_type", "a compressed body is not supported")
    if length.isdecimal() and int(length) > BODY_LIMIT:
        return _TOO_LARGE
    return None


_TOO_LARGE = Failure(413, "body_too_large", f"the body may have {BODY_LIMIT // 2**20} MiB at most")
_TOO_SLOW = Failure(408, "body_too_slow", f"the body took longer than {BODY_TIMEOUT:.0f} seconds")


class Guard:
    """Lets through what the policy admits, with the headers that its browser asks for."""

    def __init__(self, app: ASGIApp, policy: Policy, access: Access) -> None:
        self._app = app
        self._policy = policy
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        refused = refusal(scope["method"], scope["path"], headers, self._policy, self._access)
        origin = headers.get("origin")
        if origin and (refused is None or not refused.code.startswith("forbidden")):
            send = _shared(send, origin)
        if refused is None and is_preflight(scope["method"], headers):
            await _preflight(headers)(scope, receive, send)
            return
        if refused is not None:
            await _drain(receive)
            await refused.response()(scope, receive, send)
            return
        body = await _read(receive)
        if isinstance(body, Failure):
            await body.response()(scope, receive, send)
        elif body is not None:
            await self._app(scope, _replayed(body, receive), send)


def _shared(send: Send, origin: str) -> Send:
    """Lets the page that asked read the response."""

    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["access-control-allow-origin"] = origin
            headers["access-control-expose-headers"] = "x-request-id, retry-after"
            headers.add_vary_header("origin")
        await send(message)

    return sender


def _preflight(headers: Headers) -> Response:
    allowed = {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": headers.get("access-control-request-headers", ""),
        "access-control-max-age": "600",
    }
    if "access-control-request-private-network" in headers:
        allowed["access-control-allow-private-network"] = "true"
    return Response(status_code=204, headers=allowed)


async def _read(receive: Receive) -> bytes | Failure | None:
    """The whole body; None if the client left before its end."""
    body = bytearray()
    is_more = True
    with trio.move_on_after(BODY_TIMEOUT):
        while is_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            is_more = message.get("more_body", False)
            if len(body) > BODY_LIMIT:
                if is_more:
                    await _drain(receive)
                return _TOO_LARGE
        return bytes(body)
    return _TOO_SLOW


async def _drain(receive: Receive) -> None:
    with trio.move_on_after(DRAIN_TIMEOUT):
        while (await receive()).get("more_body", False):
            pass


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, then whatever comes after it."""
    is_given = False

    async def again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
