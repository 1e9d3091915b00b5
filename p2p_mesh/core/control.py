"""What the owner of a node may order it to do, and how an order proves itself.

An owner is an Ed25519 key that a node accepted; the mesh knows nothing of it. An order is signed by
that key over the node that is meant, the nonce which that node drew for this one stream, an end
date, and the command. Models are named by digest, never by path (specs/control/README.md).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from p2p_mesh.core.names import Digest, ModelId, PeerId
from p2p_mesh.core.records import Count, Record, ShortText
from p2p_mesh.core.signature import Key, Signed, public_bytes, sign, verify
from p2p_mesh.core.wire import Message, decode, encode
from p2p_mesh.errors import Refused, SettingsError

LIFETIME = 60
"""Seconds that an order holds: it is signed when the nonce has come, and sent at once."""

MAX_AHEAD = 120
"""Seconds that an order's end may lie ahead: its lifetime, and a clock that is a minute off."""

MAX_MODELS = 256
MAX_ERROR = 300

OWNER_PREFIX = "mo1_"

Nonce = Annotated[bytes, Meta(min_length=32, max_length=32)]
ModelDigest = Annotated[Digest, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class ListModels(Record, frozen=True, tag="list"):
    """Nothing but the report that follows each command."""


class LoadModel(Record, frozen=True, kw_only=True, tag="load"):
    digest: ModelDigest


class UnloadModel(Record, frozen=True, kw_only=True, tag="unload"):
    digest: ModelDigest


class StopNode(Record, frozen=True, tag="stop"):
    """The node ends, as by a signal."""


Command = ListModels | LoadModel | UnloadModel | StopNode


class Order(Record, frozen=True, kw_only=True):
    """What the owner signs."""

    target: ShortText
    """The peer id of the node that is meant."""
    nonce: Nonce
    until: Count
    """Unix seconds."""
    command: Command


class Challenge(Message, frozen=True, kw_only=True, tag="challenge"):
    """Opens each stream: what the order that comes on it must hold."""

    nonce: Nonce


class Ordered(Message, frozen=True, kw_only=True, tag="order"):
    owner: Key
    order: Signed


class ModelState(Record, frozen=True, kw_only=True):
    """A model of the node that was asked; `held` is one that lies on its disk alone."""

    id: Annotated[ModelId, Meta(min_length=1, max_length=256)]
    digest: ModelDigest | None = None
    state: ShortText
    progress: Annotated[float, Meta(ge=0, le=1)] = 0.0
    active: Count = 0
    queued: Count = 0
    error: Annotated[str, Meta(max_length=MAX_ERROR)] = ""


class Report(Message, frozen=True, kw_only=True, tag="report"):
    """The models as they are now that the command was begun."""

    models: Annotated[tuple[ModelState, ...], Meta(max_length=MAX_MODELS)] = ()


def give_order(
    command: Command, *, target: PeerId, nonce: bytes, key: Ed25519PrivateKey, now: float
) -> Ordered:
    order = Order(target=target, nonce=nonce, until=int(now) + LIFETIME, command=command)
    return Ordered(owner=public_bytes(key), order=sign("control", encode(order), key))


def check_order(
    ordered: Ordered, *, target: PeerId, nonce: bytes, owners: Collection[bytes], now: float
) -> Command:
    """The command, if an owner that was accepted gave it, to this node, on this stream, just now.
    Raises RemoteError.
    """
    if ordered.owner not in owners:
        raise Refused(f"this node does not accept the owner {owner_text(ordered.owner)}")
    order: Order = decode(verify("control", ordered.order, ordered.owner), Order)
    if order.target != target:
        raise Refused("the order is for another node", reason="borrowed")
    if order.nonce != nonce:
        raise Refused("the order was given before, or on another stream", reason="replayed")
    if not now < order.until <= now + MAX_AHEAD:
        raise Refused(
            "the order has ended, or ends too late; are the clocks of both machines right?",
            reason="expired",
        )
    return order.command


def owner_text(key: bytes) -> str:
    """An owner's public key as people hand it on."""
    return OWNER_PREFIX + base64.urlsafe_b64encode(key).decode().rstrip("=")


def read_owner(text: str) -> bytes:
    """The public key in what `meshnode owner key` printed. Raises SettingsError."""
    text = text.strip()
    body = text.removeprefix(OWNER_PREFIX)
    try:
        key = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != 32 or owner_text(key) != text:
        raise SettingsError(
            f"{text[:80]!r} is no public key of an owner: `meshnode owner key` prints it "
            f"(it starts with {OWNER_PREFIX})"
        )
    return key
