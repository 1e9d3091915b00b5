"""A node's membership while it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh import state
from p2p_mesh.core.inventory import Inventory, announce, read
from p2p_mesh.core.invite import (
    Credential,
    Member,
    Ticket,
    invite_id,
    join,
    make_invite,
    read_token,
    redeemed,
)
from p2p_mesh.core.names import PeerId, peer_id
from p2p_mesh.core.records import Announcement, Resources
from p2p_mesh.core.revocation import Revoked, read_revocation, seal_revocation
from p2p_mesh.core.signature import Signed, public_bytes
from p2p_mesh.errors import LocalError, Unavailable
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.net.identity import Identity
from p2p_mesh.node import membership as module
from p2p_mesh.node.membership import Membership
from p2p_mesh.state.arrivals import Arrivals

NOW = 1_000_000.0
NODE, GUEST = Identity(b"n" * 32), Identity(b"g" * 32)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"o" * 32)


async def nobody(identity: Identity, ticket: Ticket, **more: Any) -> Credential:
    raise AssertionError("nothing is to be redeemed")


class Running:
    """A membership, and what it told."""

    def __init__(self, path: Path) -> None:
        self.entries: list[Entry] = []
        self.adopted: list[Signed] = []
        self.inventory = Inventory()
        journal = Journal(self.entries.append)
        self.membership = Membership(path, self.inventory, journal, lambda: NOW)
        self.membership.adopt = self.adopt

    def adopt(self, signed: Signed) -> bool:
        self.adopted.append(signed)
        return True


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[Running]:
    """That of a node which founded its mesh."""
    one = Running(path)
    await one.membership.belong((), NODE, "home", nobody)
    await one.membership.listens(4001)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.membership.run)
        yield one
        nursery.cancel_scope.cancel()


async def join_by(one: Running, guest: Identity) -> Member:
    """Connects a guest that came by an invite of the mesh, and announces itself."""
    token = await one.membership.invite((), "member", None)
    ticket = read_token(token)
    credential = join(ticket, guest.public_key)
    announcement = Announcement(
        sequence=(1, 1), issued_at=NOW, lifetime=60.0, name="guest", version="0",
        resources=Resources(memory_total=1, memory_free=1, threads=1),
        addresses=("/ip4/1.1.1.1/tcp/1",),
    )  # fmt: skip
    envelope = announce(announcement, guest.key, credential)
    one.inventory.apply(read(envelope, ticket.invite.mesh, NOW))
    return Member(guest.peer_id, "member", None, invite=ticket.invite.key)


async def until_kept(path: Path, mesh: Any, signed: Signed) -> None:
    with trio.fail_after(5):
        while state.revocation(path, mesh) != signed:  # noqa: ASYNC110 - a file tells nobody
            await trio.sleep(0.01)


async def test_port_is_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        assert one.membership.belonging is not None
        assert state.meshes(tmp_path)[0].port == 4001


async def test_token_is_redeemed_before_the_node_belongs(tmp_path: Path) -> None:
    ticket = read_token(make_invite(OTHER_KEY, b"i" * 32, name="other", uses=1))
    asked: list[PeerId] = []

    async def give(identity: Identity, ticket: Ticket, **more: Any) -> Credential:
        asked.append(identity.peer_id)
        return redeemed(OTHER_KEY, ticket.invite, identity.public_key)

    for _ in range(2):
        belonging = await Running(tmp_path).membership.belong((ticket,), NODE, "x", give)
        assert belonging.mesh == public_bytes(OTHER_KEY)
    assert asked == [NODE.peer_id]


async def test_connected_members_are_seeds_of_the_next_start(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        member = await join_by(one, GUEST)
        one.membership.connected = {member.peer: member}
    again = Running(tmp_path).membership
    await again.belong((), NODE, "home", nobody)
    seeds, revocation = await again.kept()
    assert seeds == (f"/ip4/1.1.1.1/tcp/1/p2p/{GUEST.peer_id}",)
    assert revocation is None


async def test_who_came_is_known_when_it_is_away(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        member = await join_by(one, GUEST)
    async with running(tmp_path) as again:
        (invite,) = await again.membership.invites()
        assert invite["peers"] == (member.peer,)


async def test_members_that_are_only_heard_of_are_no_seeds(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        await join_by(one, GUEST)
    again = Running(tmp_path).membership
    await again.belong((), NODE, "home", nobody)
    assert (await again.kept())[0] == ()


async def test_revoked_peer_is_out_and_told(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        member = await join_by(one, GUEST)
        assert await one.membership.seen() == (member,)
        said = await one.membership.revoke(member.peer)
        assert member.invite is not None
        invited = invite_id(member.invite)
        assert said == {"version": 1, "peers": [member.peer], "invite": invited}
        assert len(one.adopted) == 1
        (invite,) = await one.membership.invites()
        assert (invite["closed"], invite["peers"]) == (True, (member.peer,))


async def test_peer_whose_invite_is_not_known_is_out_and_that_is_said(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        said = await one.membership.revoke(GUEST.peer_id)
        assert said == {"version": 1, "peers": [], "invite": None}


async def test_invite_of_who_was_connected_is_known_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NOTE_EVERY", 0.01)
    async with running(tmp_path) as one:
        assert one.membership.belonging is not None
        one.membership.connected = {
            GUEST.peer_id: Member(GUEST.peer_id, "member", None, invite=b"i" * 32)
        }
        path = tmp_path / "meshes" / one.membership.belonging.id / "arrivals"
        with trio.fail_after(5):
            while Arrivals(path).invite_of(GUEST.public_key) != b"i" * 32:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_arrivals_that_cannot_be_kept_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise LocalError("no space")

    monkeypatch.setattr(module, "NOTE_EVERY", 0.01)
    async with running(tmp_path) as one:
        monkeypatch.setattr(state.Inviter, "saw", full)
        one.membership.connected = {GUEST.peer_id: Member(GUEST.peer_id, "member", None)}
        with trio.fail_after(5):
            while not one.entries:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert [entry.event for entry in one.entries] == ["arrivals_not_kept"]


async def test_older_list_that_comes_after_a_newer_one_loses_neither(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        (tmp_path / "b").mkdir()
        state.import_mesh(tmp_path / "b", state.export_mesh(tmp_path))
        (there,) = state.meshes(tmp_path / "b")
        key = state.mesh_key(tmp_path)
        assert key is not None
        newer, older = (
            seal_revocation(Revoked(version=version, peers=(peer * 32,)), key)
            for version, peer in ((5, b"x"), (4, b"y"))
        )
        one.membership.heard(newer)
        one.membership.heard(older)
        with trio.fail_after(5):
            while not one.adopted:  # noqa: ASYNC110
                await trio.sleep(0.01)
        both = read_revocation(one.adopted[0], there.mesh)
        assert (both.version, both.peers) == (6, (b"x" * 32, b"y" * 32))


async def test_revocation_of_another_is_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        assert one.membership.belonging is not None
        mesh = one.membership.belonging.id
        (tmp_path / "b").mkdir()
        state.import_mesh(tmp_path / "b", state.export_mesh(tmp_path))
        (there,) = state.meshes(tmp_path / "b")
        signed = state.Inviter(tmp_path / "b", there, lambda: NOW).revoke(GUEST.peer_id, ())
        one.membership.heard(signed)
        await until_kept(tmp_path, mesh, signed)
        assert not one.adopted


async def test_holder_answers_a_revocation_that_lacks_its_own(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        assert one.membership.belonging is not None
        (tmp_path / "b").mkdir()
        state.import_mesh(tmp_path / "b", state.export_mesh(tmp_path))
        (there,) = state.meshes(tmp_path / "b")
        theirs = state.Inviter(tmp_path / "b", there, lambda: NOW).revoke(GUEST.peer_id, ())
        await one.membership.revoke(peer_id(b"x" * 32))
        one.membership.heard(theirs)
        with trio.fail_after(5):
            while len(one.adopted) < 2:  # noqa: ASYNC110
                await trio.sleep(0.01)
        await until_kept(tmp_path, one.membership.belonging.id, one.adopted[1])


async def test_revocation_that_cannot_be_kept_is_told(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        forged = Signed(payload=b"x", signature=b"s" * 64)
        one.membership.heard(forged)
        with trio.fail_after(5):
            while not one.entries:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert [entry.event for entry in one.entries] == ["revocation_not_kept"]


async def test_peers_that_cannot_be_kept_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise LocalError("no space")

    async with running(tmp_path) as one:
        monkeypatch.setattr(state, "remember_peers", full)
    assert [entry.event for entry in one.entries] == ["peers_not_kept"]


async def test_invite_is_redeemed_here(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        token = await one.membership.invite((), "member", None, uses=1)
        invite = read_token(token).invite
        assert await one.membership.redeem(invite, GUEST.public_key)
        assert await one.membership.standing(()) is not None
        used = {found["id"]: found["used"] for found in await one.membership.invites()}
        assert sorted(used.values()) == [0, 1]


async def test_starting_node_says_so(tmp_path: Path) -> None:
    membership = Running(tmp_path).membership
    for call in (membership.invites, lambda: membership.revoke("x")):
        with pytest.raises(LocalError, match="still starting"):
            await call()
    invite = read_token(make_invite(OTHER_KEY, b"i" * 32, name="x", uses=1)).invite
    with pytest.raises(Unavailable, match="still starting"):
        await membership.redeem(invite, GUEST.public_key)
