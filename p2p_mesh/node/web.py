"""The two HTTP servers of a node: the API for clients, and the port for its owner."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING

import trio

from p2p_mesh import state
from p2p_mesh.console.app import create_app as create_console
from p2p_mesh.front.app import create_app as create_front
from p2p_mesh.http.guard import Policy
from p2p_mesh.http.server import EVERYWHERE, serve
from p2p_mesh.journal import Journal
from p2p_mesh.settings import Settings

if TYPE_CHECKING:
    from p2p_mesh.node.node import Node


async def open_http(node: Node, token: str, directory: Path, nursery: trio.Nursery) -> None:
    """Both ports answer when it returns, until `nursery` ends. Raises SettingsError."""
    settings, journal = node.settings, node.journal
    rules = policy(settings, directory, journal)
    front = create_front(
        node.answers,
        policy=rules,
        clock=node.clock,
        random=SystemRandom(),
        journal=journal,
        remote_media=settings.remote_media,
    )
    host = EVERYWHERE if settings.listen else "localhost"
    bind = partial(serve, host=host, journal=journal)
    port = await nursery.start(partial(bind, front, port=settings.port, flag="--port"))
    node.api_url = f"http://localhost:{port}/v1"
    page = create_console(
        node, node.control, policy=rules, token=token, routes=node.plugins.routes(), journal=journal
    )
    port = await nursery.start(partial(bind, page, port=settings.console, flag="--console"))
    node.console_url = f"http://localhost:{port}"
    journal.info("api_ready", f"The API answers on {node.api_url}", api_url=node.api_url)


def policy(settings: Settings, directory: Path, journal: Journal) -> Policy:
    """Who may call: with `listen`, whoever has the key, which is made where none was given."""
    key = settings.api_key
    if settings.listen and not key:
        key, is_new = state.api_key(directory)
        if is_new:
            journal.info(
                "api_key", f"The API key, shown once and kept in {directory}: {key}", api_key=key
            )
    return Policy(
        listen=settings.listen,
        api_key=key or None,
        allow_hosts=frozenset(settings.allow_host),
        allow_origins=frozenset(settings.allow_origin),
    )
