"""The hooks: what a plugin can add to a node. Stable; a change that breaks one raises API_VERSION.

A plugin is a module (or object) under the `meshnode` entry-point group. It says which version
it was written for and implements any of the hooks below:

    from p2p_mesh.hookspecs import hookimpl

    meshnode_api = 1

    @hookimpl
    def meshnode_backends():
        return [MyBackend()]

A plugin that fails to import, asks for another version, names a hook that does not exist, or
raises, is listed with its reason by `meshnode plugins` and skipped; the node runs on.
Except for `meshnode_event`, a hook may not await: it is called before the node starts and has
5 seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pluggy

from p2p_mesh.core.names import PeerId

if TYPE_CHECKING:
    import click
    from starlette.routing import BaseRoute

    from p2p_mesh.serve.backend import Backend, Source
    from p2p_mesh.settings import Settings

PROJECT = "meshnode"
API_VERSION = 1

_hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class Topic:
    """A gossip topic of a plugin's own, `/meshnode/<mesh id>/plugin/<name>`, among members.

    `receive(author, payload)` gets what admitted members published; `attach(publish)` is called
    once, when the node is up, with the function that publishes a payload.
    """

    name: str
    receive: Callable[[PeerId, bytes], Awaitable[None]]
    attach: Callable[[Callable[[bytes], Awaitable[None]]], None]
    max_bytes: int = 65_536


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened on this node; `name` and `fields` are those of the JSON log."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@_hookspec
def meshnode_backends() -> Sequence[Backend]:  # type: ignore[empty-body]
    """The backends that this plugin brings (serve/backend.py). May not await."""


@_hookspec
def meshnode_sources(settings: Settings) -> Sequence[Source]:  # type: ignore[empty-body]
    """Where else this plugin finds models, by the settings in force. May not await."""


@_hookspec
def meshnode_commands(group: click.Group) -> None:
    """Add commands to `meshnode`; a name that is taken is refused. May not await."""


@_hookspec
def meshnode_routes() -> Sequence[BaseRoute]:  # type: ignore[empty-body]
    """Routes on the management port, mounted under `/plugins/<plugin>`. May not await."""


@_hookspec
def meshnode_topics() -> Sequence[Topic]:  # type: ignore[empty-body]
    """Gossip topics that this plugin reads and writes. May not await."""


@_hookspec
def meshnode_event(event: Event) -> Awaitable[None] | None:
    """Told of each event of this node's log. May await, for at most 5 seconds."""
