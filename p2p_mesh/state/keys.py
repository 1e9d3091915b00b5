"""Keys that move: the mesh's to another node, and the node's to a new one."""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from p2p_mesh.core.identity import pack, unpack
from p2p_mesh.core.invite import MAX_SEEDS, MAX_TOKEN, Invite, found
from p2p_mesh.core.names import PeerId, mesh_id, peer_id
from p2p_mesh.core.records import Record, ShortText
from p2p_mesh.core.revocation import read_revocation
from p2p_mesh.core.signature import Key, public_bytes
from p2p_mesh.core.wire import decode, encode
from p2p_mesh.errors import LocalError, RemoteError, SettingsError
from p2p_mesh.state.belonging import Belonging, current, keep, mesh_key, of_mesh, remember, renewed
from p2p_mesh.state.directory import locked, read, write
from p2p_mesh.state.peers import known_peers
from p2p_mesh.state.revocation import revocation

SECRET_PREFIX = "mk1_"


class _Secret(Record, frozen=True, kw_only=True):
    """A mesh key as text: the key, and how to find the mesh."""

    seed: Key
    name: ShortText
    seeds: Annotated[tuple[ShortText, ...], Meta(max_length=MAX_SEEDS)] = ()


@dataclass(frozen=True, slots=True)
class Rotated:
    before: PeerId
    after: PeerId


def export_mesh(directory: Path) -> str:
    """The mesh key as one secret text. Raises LocalError where this node holds none."""
    key = mesh_key(directory)
    if key is None:
        raise LocalError("this node does not hold the mesh key; ask the node that started the mesh")
    mesh = mesh_id(public_bytes(key))
    past = of_mesh(directory, mesh)
    seeds = dict.fromkeys((*(past.seeds if past else ()), *known_peers(directory, mesh)))
    secret = _Secret(
        seed=key.private_bytes_raw(),
        name=past.name if past else "mesh",
        seeds=tuple(seeds)[:MAX_SEEDS],
    )
    return SECRET_PREFIX + base64.urlsafe_b64encode(encode(secret)).decode().rstrip("=")


def import_mesh(directory: Path, text: str, *, replace: bool = False) -> Belonging:
    """Makes the node a member of that mesh that holds its key, from its next start. Another
    mesh's key that it holds goes only with `replace`. Raises SettingsError and LocalError.
    """
    secret = _read_secret(text.strip())
    key = Ed25519PrivateKey.from_private_bytes(secret.seed)
    mesh = mesh_id(public_bytes(key))
    with locked(directory):
        held = mesh_key(directory)
        if held is not None and public_bytes(held) != public_bytes(key) and not replace:
            raise LocalError(
                f"this node holds the key of another mesh, {mesh_id(public_bytes(held))}, which "
                "would be lost: keep it (meshnode mesh export), then import again with --replace"
            )
        fresh = Belonging(
            mesh=public_bytes(key),
            name=secret.name,
            credential=found(key, _node(directory)),
            seeds=secret.seeds,
        )
        past = of_mesh(directory, mesh)
        belonging = msgspec.structs.replace(past, credential=fresh.credential) if past else fresh
        if (now := current(directory)) is not None:
            keep(directory, now)
        write(directory / "mesh.key", secret.seed)
        remember(directory, belonging)
        return belonging


def _read_secret(text: str) -> _Secret:
    try:
        if not text.startswith(SECRET_PREFIX) or len(text) > MAX_TOKEN:
            raise ValueError("no mesh key")
        body = text[len(SECRET_PREFIX) :]
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        secret: _Secret = decode(raw, _Secret)
        return secret
    except (RemoteError, ValueError, binascii.Error) as error:
        raise SettingsError(
            "this is no key of a mesh, or part of it is missing: copy the whole text "
            f"(it starts with {SECRET_PREFIX})"
        ) from error


def rotate_identity(directory: Path) -> Rotated:
    """Gives the node a new key, and that a membership of its own; the old key is gone.
    Raises LocalError where it takes a new token to be admitted again.
    """
    with locked(directory):
        before, seed = _node(directory), secrets.token_bytes(32)
        after = public_bytes(Ed25519PrivateKey.from_private_bytes(seed))
        known = current(directory)
        again = renewed(directory, known, after) if known is not None else None
        if known is not None and (again is None or _is_shut(directory, again)):
            raise LocalError(
                f"the invite that this node joined {known.name} by lets no new identity in: get a "
                f"new token, remove {directory / 'node.key'}, and start with --join TOKEN"
            )
        # First the key: whatever happens in between, the next start makes the membership anew.
        write(directory / "node.key", pack(seed))
        if again is not None:
            remember(directory, again)
        return Rotated(peer_id(before), peer_id(after))


def _is_shut(directory: Path, belonging: Belonging) -> bool:
    signed = revocation(directory, belonging.id)
    invite = belonging.credential.invite
    if signed is None or invite is None:
        return False
    revoked = read_revocation(signed, belonging.mesh)
    return revoked.is_shut(decode(invite.payload, Invite).key)


def _node(directory: Path) -> bytes:
    """The public key of the node, which gets one here if it never ran."""
    path = directory / "node.key"
    data = read(path)
    if data is None:
        data = pack(secrets.token_bytes(32))
        write(path, data)
    if (seed := unpack(data)) is None:
        raise SettingsError(f"{path} is damaged or no key of a node: restore it from a backup")
    return public_bytes(Ed25519PrivateKey.from_private_bytes(seed))
