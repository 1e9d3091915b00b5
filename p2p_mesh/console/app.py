"""The routes of :3131. Reading the status is free on this machine; whatever changes something
or reveals a secret needs the token that the node writes to its node.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from p2p_mesh.core.records import Role
from p2p_mesh.errors import RequestError
from p2p_mesh.http.application import application
from p2p_mesh.http.body import Fields, integer, parse, text
from p2p_mesh.http.guard import Access, Policy
from p2p_mesh.journal import Journal

# The page's files by path. They hold nothing of the node, so they need no key.
PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/console.css": ("console.css", "text/css; charset=utf-8"),
    "/console.js": ("console.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

_PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

_NO_ROUTES: Mapping[str, Sequence[BaseRoute]] = MappingProxyType({})


class Console(Protocol):
    """What the console shows and does."""

    def status(self) -> dict[str, Any]:
        """Plain values; docs/api.md has the shape."""
        ...

    async def invite(self, role: Role, until: int | None) -> str:
        """A new invite, as a token; memberships from it last `until` then, in Unix seconds.
        Raises LocalError where this node does not hold the mesh key.
        """
        ...


def create_app(
    console: Console,
    *,
    policy: Policy,
    token: str,
    routes: Mapping[str, Sequence[BaseRoute]] = _NO_ROUTES,
    journal: Journal,
) -> ASGIApp:
    """The management port as an ASGI application; `routes` are the plugins', by plugin."""
    endpoints = Endpoints(console)
    plugins = [Mount(f"/plugins/{name}", routes=list(own)) for name, own in routes.items()]
    return application(
        [
            *_page(),
            Route("/api/status", endpoints.status),
            Route("/api/invites", endpoints.invite, methods=["POST"]),
            *plugins,
        ],
        policy=policy,
        access=Access(open_paths=frozenset(PAGE), token=token),
        journal=journal,
    )


def _page() -> Iterator[Route]:
    for path, (name, media_type) in PAGE.items():
        content = (files("p2p_mesh.console") / "static" / name).read_bytes()
        # A response is an ASGI application, and can be sent any number of times.
        response = Response(content, headers=_PAGE_HEADERS, media_type=media_type)
        yield Route(path, response, methods=["GET"])


class Endpoints:
    """What the page and the commands call."""

    def __init__(self, console: Console) -> None:
        self._console = console

    async def status(self, _request: Request) -> Response:
        return JSONResponse(self._console.status(), headers={"cache-control": "no-store"})

    async def invite(self, request: Request) -> Response:
        fields = Fields(parse(await request.body()))
        role = fields.take("role", _role) or "member"
        until = fields.take("until", integer(0, 2**53))
        fields.end()
        invite = await self._console.invite(role, until)
        return JSONResponse({"invite": invite}, headers={"cache-control": "no-store"})


def _role(value: Any, name: str) -> Role:
    match text(value, name):
        case "member":
            return "member"
        case "client":
            return "client"
    raise RequestError(f"{name} must be member or client", param=name)
