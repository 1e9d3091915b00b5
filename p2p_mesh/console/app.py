"""The routes of :3131. Reading the status is free on this machine; whatever changes something
or reveals a secret needs the token that the node writes to its node.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from p2p_mesh.console.metrics import MEDIA_TYPE as METRICS
from p2p_mesh.console.metrics import metrics
from p2p_mesh.core.control import Command, ListModels, LoadModel, StopNode, UnloadModel
from p2p_mesh.core.invite import MAX_TOKEN, MAX_USES
from p2p_mesh.core.names import Digest
from p2p_mesh.core.plans import Topology, Wanted, read_topology
from p2p_mesh.core.records import Role
from p2p_mesh.errors import RequestError
from p2p_mesh.http.application import application
from p2p_mesh.http.body import Fields, boolean, integer, mapping, number, parse, text, word
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

MAX_NAME = MAX_TOKEN
"""Characters of what names a model, a peer or an invite; a token is the longest."""

MAX_RTT = 10_000
"""Milliseconds."""

_NO_ROUTES: Mapping[str, Sequence[BaseRoute]] = MappingProxyType({})


class Console(Protocol):
    """What the console shows and does."""

    def status(self) -> dict[str, Any]:
        """Plain values; docs/api.md has the shape."""
        ...

    async def plan(self, wanted: Wanted) -> dict[str, Any]:
        """How a model would be served; docs/api.md has the shape. Raises ModelError for what is no
        model of this node, Unavailable.
        """
        ...

    async def invite(
        self, role: Role, until: int | None, uses: int | None = None, join_by: int | None = None
    ) -> str:
        """A new invite, as a token; memberships from it last `until` then, and `uses` nodes come
        in by it until `join_by`, in Unix seconds. Raises LocalError where this node does not hold
        the mesh key.
        """
        ...

    async def invites(self) -> list[dict[str, Any]]:
        """The invites that were made here. Raises LocalError as `invite` does."""
        ...

    async def revoke(self, text: str) -> dict[str, Any]:
        """Takes an invite back, or a peer's membership: the `version` of the revocation, and the
        `peers` that are out, and the id of the `invite` that lets nobody in any more, or None.
        Raises LocalError.
        """
        ...


class Commands(Protocol):
    """What the owner has this node do, and orders others to do."""

    async def load(self, reference: str) -> str:
        """Begins to load a model; its id. Raises ModelError and LocalError."""
        ...

    async def unload(self, reference: str) -> str:
        """Begins to unload a model; its id. Raises LocalError."""
        ...

    async def order(self, peer: str, command: Command) -> dict[str, Any]:
        """What the peer reports. Raises MeshError."""
        ...


def create_app(
    console: Console,
    commands: Commands,
    *,
    policy: Policy,
    token: str,
    routes: Mapping[str, Sequence[BaseRoute]] = _NO_ROUTES,
    journal: Journal,
) -> ASGIApp:
    """The management port as an ASGI application; `routes` are the plugins', by plugin."""
    endpoints, orders = Endpoints(console), Orders(commands)
    plugins = [Mount(f"/plugins/{name}", routes=list(own)) for name, own in routes.items()]
    return application(
        [
            *_page(),
            Route("/api/status", endpoints.status),
            Route("/metrics", endpoints.metrics, methods=["GET"]),
            Route("/api/plan", endpoints.plan, methods=["POST"]),
            Route("/api/invites", endpoints.invites, methods=["GET"]),
            Route("/api/invites", endpoints.invite, methods=["POST"]),
            Route("/api/revocations", endpoints.revoke, methods=["POST"]),
            Route("/api/load", orders.load, methods=["POST"]),
            Route("/api/unload", orders.unload, methods=["POST"]),
            Route("/api/orders", orders.order, methods=["POST"]),
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
        return _fresh(self._console.status())

    async def metrics(self, _request: Request) -> Response:
        text = metrics(self._console.status())
        return Response(text, headers={"cache-control": "no-store"}, media_type=METRICS)

    async def plan(self, request: Request) -> Response:
        fields = Fields(parse(await request.body()))
        trip = fields.take("max_rtt", number(0, MAX_RTT, above=True))
        wanted = Wanted(
            model=fields.require("model", _name),
            split=fields.take("split", boolean),
            flash=fields.take("flash", boolean),
            shards=fields.take("shards", boolean),
            context=fields.take("ctx", integer(16, 2**24)),
            slots=fields.take("parallel", integer(1, 256)),
            most_round_trip=None if trip is None else trip / 1e3,
            topology=fields.take("stages", _topology),
        )
        fields.end()
        return _fresh(await self._console.plan(wanted))

    async def invites(self, _request: Request) -> Response:
        return _fresh({"invites": await self._console.invites()})

    async def invite(self, request: Request) -> Response:
        fields = Fields(parse(await request.body()))
        role = fields.take("role", _role) or "member"
        until = fields.take("until", integer(0, 2**53))
        uses = fields.take("uses", integer(1, MAX_USES))
        join_by = fields.take("join_by", integer(0, 2**53))
        fields.end()
        return _fresh({"invite": await self._console.invite(role, until, uses, join_by)})

    async def revoke(self, request: Request) -> Response:
        return _fresh(await self._console.revoke(await _only(request, "what")))


class Orders:
    """What has this node, or another one of its owner, do something."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def load(self, request: Request) -> Response:
        return _fresh({"model": await self._commands.load(await _only(request, "model"))})

    async def unload(self, request: Request) -> Response:
        return _fresh({"model": await self._commands.unload(await _only(request, "model"))})

    async def order(self, request: Request) -> Response:
        fields = Fields(parse(await request.body()))
        peer = fields.require("peer", _name)
        name = fields.require("command", word("list", "load", "unload", "stop"))
        if name in ("load", "unload"):
            digest = fields.require("digest", _digest)
            command: Command = (LoadModel if name == "load" else UnloadModel)(digest=digest)
        else:
            command = ListModels() if name == "list" else StopNode()
        fields.end()
        return _fresh(await self._commands.order(peer, command))


def _fresh(value: Any) -> Response:
    return JSONResponse(value, headers={"cache-control": "no-store"})


async def _only(request: Request, field: str) -> str:
    """The one field of a body."""
    fields = Fields(parse(await request.body()))
    value = fields.require(field, _name)
    fields.end()
    return value


def _name(value: Any, name: str) -> str:
    if not 0 < len(text(value, name)) <= MAX_NAME:
        raise RequestError(f"{name} must have 1 to {MAX_NAME} characters", param=name)
    return str(value)


def _topology(value: Any, name: str) -> Topology:
    return read_topology(json.dumps(mapping(value, name)).encode())


def _digest(value: Any, name: str) -> Digest:
    if not re.fullmatch(r"[0-9a-f]{64}", text(value, name)):
        raise RequestError(f"{name} must be a SHA-256 in 64 hexadecimal digits", param=name)
    return Digest(value)


def _role(value: Any, name: str) -> Role:
    match text(value, name):
        case "member":
            return "member"
        case "client":
            return "client"
    raise RequestError(f"{name} must be member or client", param=name)
