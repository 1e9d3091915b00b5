"""What a user may call a peer, and what a shell completes: names that the running node knows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import click

from p2p_mesh.cli.client import Client
from p2p_mesh.core.invite import TOKEN_PREFIX
from p2p_mesh.core.names import PeerId, public_key
from p2p_mesh.errors import LocalError, MeshError

_WORD = re.compile(r"[\w.@-]+", re.ASCII)
_INVITE = re.compile(r"[0-9a-f]{12}")

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def find_peer(text: str, peers: Iterable[dict[str, Any]]) -> str:
    """The peer id of a peer that is named by it, or by a node name that one peer alone has.
    Raises LocalError.

    A peer chooses its name itself: what looks like an id is never taken for one.
    """
    if is_peer_id(text):
        return text
    found = [one["peer_id"] for one in peers if one["name"] == text]
    if len(found) > 1:
        raise LocalError(f"{len(found)} peers are called {text}: give the peer id instead")
    if not found:
        raise LocalError(f"no peer is called {text}; `meshnode status` lists them")
    return str(found[0])


def is_peer_id(text: str) -> bool:
    try:
        public_key(PeerId(text))
    except ValueError:
        return False
    return True


def is_invite(text: str) -> bool:
    """Whether a text can be the id of an invite, or its token."""
    return text.startswith(TOKEN_PREFIX) or _INVITE.fullmatch(text) is not None


def completion(path: str, names: Callable[[Any], Iterable[str]]) -> Complete:
    """Completes with what the running node answers on a path; with nothing where none runs."""

    def complete(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
        try:
            found = Client.find(ctx.params.get("data_dir")).get(path)
        except MeshError:
            return []
        # A peer chooses its name, and a shell would take some characters for more than a name.
        return sorted({name for name in names(found) if _WORD.fullmatch(name)
                       and name.startswith(begun)})  # fmt: skip

    return complete


complete_peer = completion(
    "/api/status", lambda found: (one[key] for one in found["peers"] for key in ("name", "peer_id"))
)
complete_served = completion("/api/status", lambda found: (one["id"] for one in found["models"]))
complete_standby = completion("/api/status", lambda found: (one["id"] for one in found["standby"]))
