"""A backend as a stranger would ship it: it uses every hook, and says back what it is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import click
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from p2p_mesh.core.names import PeerId
from p2p_mesh.hookspecs import Event, Topic, hookimpl
from p2p_mesh.serve.backend import Backend
from p2p_mesh.testing.backend import Echo

meshnode_api = 1


@dataclass
class Heard:
    events: list[str] = field(default_factory=list)
    posts: list[str] = field(default_factory=list)
    publish: Callable[[bytes], Awaitable[None]] | None = None


_heard = Heard()


class Eager(Echo):
    """Claims to be fast, so that it is chosen where others could serve too."""

    def assess(self, load, resources):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
        import dataclasses

        return dataclasses.replace(super().assess(load, resources), tokens_per_second=1e6)


@hookimpl
def meshnode_backends() -> Sequence[Backend]:
    return [Eager()]


@hookimpl
def meshnode_commands(group: click.Group) -> None:
    @group.command("echo", help="Say it again.")
    @click.argument("words", nargs=-1)
    def echo(words: tuple[str, ...]) -> None:
        click.echo(" ".join(words))


@hookimpl
def meshnode_routes() -> Sequence[BaseRoute]:
    async def heard(request: Request) -> JSONResponse:
        return JSONResponse({"events": _heard.events, "posts": _heard.posts})

    async def post(request: Request) -> JSONResponse:
        assert _heard.publish is not None
        await _heard.publish(b"hello")
        return JSONResponse({})

    return [Route("/heard", heard), Route("/post", post, methods=["POST"])]


@hookimpl
def meshnode_topics() -> Sequence[Topic]:
    async def receive(author: PeerId, payload: bytes) -> None:
        _heard.posts.append(payload.decode())

    def attach(publish: Callable[[bytes], Awaitable[None]]) -> None:
        _heard.publish = publish

    return [Topic("echo", receive, attach)]


@hookimpl
async def meshnode_event(event: Event) -> None:
    _heard.events.append(event.name)
