"""Revocations: adopted, acted on at once, told on, and heard by newcomers."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from p2p_mesh.core.invite import Member, check
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.revocation import Revoked
from p2p_mesh.core.signature import Signed
from p2p_mesh.errors import Refused, Unavailable
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.net.revocation import Revocations
from p2p_mesh.testing.members import Mesh, Node, enter, opened, text_of, until
from p2p_mesh.testing.network import MemoryNetwork

Clock = trio.testing.MockClock
US = Member(PeerId("12D3KooW9pP4Seg3kZYhySpuVjn1RPdQBsUFZKiFxGMGQN5MeL6A"), "member", None)


def kept(mesh: Mesh, entries: list[Entry], signed: Signed | None = None) -> Revocations:
    return Revocations(mesh.public, US, Journal(entries.append), signed)


def test_newest_list_is_kept() -> None:
    mesh, entries = Mesh(), list[Entry]()
    revocations = kept(mesh, entries)
    assert revocations.mark == b""
    newer = mesh.revoke(version=2, peers=(b"x" * 32,))
    assert revocations.adopt(newer)
    assert not revocations.adopt(newer)
    assert not revocations.adopt(mesh.revoke(version=1))
    assert revocations.signed == newer
    assert [entry.fields["version"] for entry in entries] == [2]


def test_list_of_another_mesh_is_refused() -> None:
    with pytest.raises(Refused, match="signature of the revocation"):
        kept(Mesh(), []).adopt(Mesh().revoke())


def test_list_is_for_those_that_have_another() -> None:
    mesh = Mesh()
    signed = mesh.revoke(peers=(b"x" * 32,))
    revocations = kept(mesh, [], signed)
    assert len(revocations.mark) == 16
    assert revocations.unless(b"") == signed
    assert revocations.unless(revocations.mark) is None


def test_kept_list_is_told_to_nobody() -> None:
    mesh, entries, told = Mesh(), list[Entry](), list[Revoked]()
    Revocations(
        mesh.public, US, Journal(entries.append), mesh.revoke(),
        changed=lambda signed, revoked: told.append(revoked),
    )  # fmt: skip
    assert not told
    assert not entries


def test_older_list_that_the_newest_lacks_is_told_on_once() -> None:
    mesh, entries, told = Mesh(), list[Entry](), list[tuple[Signed, int]]()
    revocations = Revocations(
        mesh.public, US, Journal(entries.append), mesh.revoke(version=5, peers=(b"x" * 32,)),
        changed=lambda signed, revoked: told.append((signed, revoked.version)),
    )  # fmt: skip
    stray = mesh.revoke(version=4, peers=(b"y" * 32,))
    assert revocations.adopt(stray)
    assert not revocations.adopt(stray)
    assert not revocations.adopt(mesh.revoke(version=4, peers=(b"x" * 32,)))
    assert told == [(stray, 5)]
    assert revocations.revoked.version == 5
    assert not entries


async def line(stack: AsyncExitStack, mesh: Mesh, count: int) -> list[Node]:
    """Nodes that each know the one before."""
    wire, nodes = MemoryNetwork(), list[Node]()
    for _ in range(count):
        seeds = nodes[-1].seeds() if nodes else ()
        node = mesh.node()
        nodes.append(await enter(stack, node, transport=wire.transport(), seeds=seeds))
    for one in nodes:
        await until(lambda one=one: one.net.members(), 10)  # type: ignore[misc]
    return nodes


async def test_revoked_member_is_gone_everywhere(autojump_clock: Clock) -> None:
    mesh = Mesh()
    async with AsyncExitStack() as stack:
        first, middle, last, out = await line(stack, mesh, 4)
        for one in (first, middle, last, out):
            await one.announce()
        await until(lambda: all(len(one.known) == 4 for one in (first, middle, last)), 30)
        await until(lambda: all(len(one.net.members()) == 3 for one in (first, last)), 30)
        await trio.sleep(3)
        assert first.net.adopt(mesh.revoke(peers=(out.identity.public_key,)))
        assert out.peer_id not in first.net.members()
        with trio.fail_after(5):
            for one in (first, middle, last):
                await until(lambda one=one: out.peer_id not in one.net.members())  # type: ignore[misc]
                assert out.peer_id not in one.known
                assert (out.peer_id, "its membership was revoked") in one.gone
        with pytest.raises(Refused, match="was revoked"):
            await text_of(first, out.peer_id)


async def test_revoked_node_notices_and_goes_on_alone(autojump_clock: Clock) -> None:
    mesh = Mesh()
    async with AsyncExitStack() as stack:
        first, out = await line(stack, mesh, 2)
        signed = mesh.revoke(peers=(out.identity.public_key,))
        first.net.adopt(signed)
        await until(lambda: out.net.is_revoked, 60)
        assert out.revocations == [signed]
        assert len(out.events("revoked")) == 1
        assert not first.net.is_revoked
        with pytest.raises(Unavailable, match="was revoked"):
            await out.net.connect(first.peer_id)
        await trio.sleep(120)
        assert not out.net.members()
        assert not first.net.members()
        assert len(out.events("revoked")) == 1


async def test_node_that_was_revoked_starts_alone(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, out = mesh.node(), mesh.node()
    out.revocation = mesh.revoke(peers=(out.identity.public_key,))
    async with (
        opened(first, transport=wire.transport()),
        opened(out, transport=wire.transport(), seeds=first.seeds()),
    ):
        await trio.sleep(60)
        assert out.events("revoked")
        assert not out.net.members()
        assert not first.came


async def test_newcomer_hears_of_it_before_it_judges(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, newcomer = mesh.node(), mesh.node()
    first.revocation = mesh.revoke(peers=(b"x" * 32,))
    async with (
        opened(first, transport=wire.transport()),
        opened(newcomer, transport=wire.transport(), seeds=first.seeds()),
    ):
        await until(lambda: newcomer.came, 10)
        assert newcomer.net.revoked == first.net.revoked
        assert newcomer.revocations == [first.revocation]


async def test_newcomer_refuses_a_seed_that_is_out(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    out, newcomer = mesh.node(), mesh.node()
    newcomer.revocation = mesh.revoke(peers=(out.identity.public_key,))
    async with (
        opened(out, transport=wire.transport()),
        opened(newcomer, transport=wire.transport(), seeds=out.seeds()),
    ):
        await until(lambda: out.net.is_revoked, 30)
        assert not newcomer.came
        await trio.sleep(300)
        assert len(newcomer.events("refused")) == 1  # it is sought no more


async def test_list_that_a_newcomer_brings_is_told_on(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    bringer = mesh.node(revocation=mesh.revoke(peers=(b"x" * 32,)))
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport(), seeds=first.seeds()),
    ):
        await until(lambda: second.came, 10)
        await trio.sleep(3)
        async with opened(bringer, transport=wire.transport(), seeds=first.seeds()):
            await until(lambda: second.revocations == [bringer.revocation], 10)
            assert first.revocations == [bringer.revocation]


async def test_revoked_invite_drops_all_that_came_by_it(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, guest = mesh.node(), mesh.node(role="client")
    async with (
        opened(first, transport=wire.transport()),
        opened(guest, transport=wire.transport(), seeds=first.seeds()),
    ):
        await until(lambda: first.came, 10)
        invite = check(guest.credential, mesh.public, 0.0).invite
        first.net.adopt(mesh.revoke(invites=(invite,)))
        assert first.gone == [(guest.peer_id, "its membership was revoked")]


async def test_forged_list_in_gossip_is_an_offence(autojump_clock: Clock) -> None:
    mesh = Mesh()
    async with AsyncExitStack() as stack:
        first, second = await line(stack, mesh, 2)
        await trio.sleep(3)
        await second.net._tell_on(Mesh().revoke(peers=(b"x" * 32,)))
        await second.net.publish("revocation", b"\xc1")
        await until(lambda: first.events("bad_peer"), 10)
        assert not first.revocations


async def test_node_that_was_cut_off_hears_of_it_when_it_returns(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, away, out = mesh.node(), mesh.node(), mesh.node()
    machine = wire.transport()
    async with (
        opened(first, transport=wire.transport()),
        opened(away, transport=machine, seeds=first.seeds()),
        opened(out, transport=wire.transport(), seeds=first.seeds()),
    ):
        await until(lambda: len(first.came) == 2 and away.came, 10)
        wire.freeze(machine)
        await trio.sleep(30)
        signed = mesh.revoke(peers=(out.identity.public_key,))
        first.net.adopt(signed)
        await trio.sleep(30)
        assert not away.revocations
        wire.thaw(machine)
        await until(lambda: away.revocations == [signed], 120)
        assert out.peer_id not in away.net.members()


async def test_two_lists_of_one_version_end_as_one_everywhere(autojump_clock: Clock) -> None:
    mesh = Mesh()
    async with AsyncExitStack() as stack:
        nodes = await line(stack, mesh, 3)
        await trio.sleep(3)
        for place, node in enumerate(nodes):
            node.net.adopt(mesh.revoke(peers=(bytes([place]) * 32,)))
        await until(lambda: len({one.net.revoked for one in nodes}) == 1, 10)


@pytest.mark.parametrize("away_dials", [True, False])
async def test_older_list_of_another_holder_reaches_one_through_a_member(
    autojump_clock: Clock, away_dials: bool
) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    newest, stray = (
        mesh.revoke(version=version, peers=(peer * 32,)) for version, peer in ((5, b"x"), (4, b"y"))
    )
    first, member = mesh.node(revocation=newest), mesh.node(revocation=newest)
    away = mesh.node(revocation=stray)
    async with (
        opened(first, transport=wire.transport()),
        opened(member, transport=wire.transport(), seeds=first.seeds()),
        opened(away, transport=wire.transport(), seeds=member.seeds() if away_dials else ()),
    ):
        await until(lambda: first.came, 10)
        await trio.sleep(3)
        if not away_dials:
            await member.net.connect(away.peer_id, away.net.addresses())
        await until(lambda: stray in first.revocations, 10)
        await until(lambda: away.net.revoked == first.net.revoked, 10)
        assert first.net.revoked.version == 5


async def test_revoked_node_that_is_dialed_hears_why_and_blames_nobody(
    autojump_clock: Clock,
) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, out = mesh.node(), mesh.node()
    async with (
        opened(out, transport=wire.transport()),
        opened(first, transport=wire.transport()),
    ):
        # The dialer hears of the list after its own proof has gone, so that did not tell of it.
        revoked, judge = mesh.revoke(peers=(out.identity.public_key,)), first.net._admission._check

        def hear_and_check(*heard: Any) -> Member:
            first.net.adopt(revoked)
            return judge(*heard)

        first.net._admission._check = hear_and_check  # type: ignore[method-assign, assignment]
        with pytest.raises(Refused, match="was revoked"):
            await first.net.connect(out.peer_id, out.net.addresses())
        await until(lambda: out.net.is_revoked, 5)
        assert not out.events("bad_peer")
