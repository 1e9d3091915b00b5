"""Invites that are redeemed: who gives a membership, to whom, and how often."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import trio

from p2p_mesh.core.admission import Hello, Redeem, Redeemed, Transcript, ask_redeem
from p2p_mesh.core.invite import (
    Credential,
    Invite,
    Ticket,
    check,
    make_invite,
    read_token,
    redeemed,
)
from p2p_mesh.core.names import PeerId, mesh_id
from p2p_mesh.core.wire import ADMISSION_LIMIT, ErrorMessage
from p2p_mesh.errors import Overloaded, Refused, Unavailable
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.net.identity import Identity
from p2p_mesh.net.protocols import Stream, protocol_id
from p2p_mesh.net.redemption import (
    ATTEMPTS_OF_A_PEER,
    FAILURES,
    FAILURES_OF_AN_INVITE,
    MINUTE,
    Pace,
    redeem,
)
from p2p_mesh.testing.members import Mesh, Node, opened, until
from p2p_mesh.testing.network import MemoryNetwork
from p2p_mesh.testing.strangers import Stranger, stranger

Clock = trio.testing.MockClock


def fresh() -> Identity:
    return Identity(secrets.token_bytes(32))


def ticket(mesh: Mesh, *nodes: Node, seeds: tuple[str, ...] = ()) -> Ticket:
    found = tuple(seed for node in nodes for seed in node.seeds())
    return read_token(make_invite(mesh.key, b"i" * 32, name="home", uses=1, seeds=(*found, *seeds)))


def giver(mesh: Mesh) -> Callable[[Invite, bytes], Credential]:
    """As a holder of the mesh key that counts one use."""
    came: set[bytes] = set()

    def give(invite: Invite, peer: bytes) -> Credential:
        came.add(peer)
        if len(came) > 1:
            raise Refused("the invite was used 1 times, and is for no more", reason="spent")
        return redeemed(mesh.key, invite, peer)

    return give


async def ask(
    wire: MemoryNetwork, token: Ticket, identity: Identity, entries: list[Entry] | None = None
) -> Credential:
    journal = Journal((entries if entries is not None else []).append)
    return await redeem(
        identity, token, journal=journal, rng=Random(1), transports=[wire.transport()]
    )


async def test_newcomer_gets_a_membership_and_is_admitted(autojump_clock: Clock) -> None:
    wire, mesh, us = MemoryNetwork(), Mesh(), fresh()
    holder = mesh.node(redeems=giver(mesh))
    async with opened(holder, transport=wire.transport()):
        entries: list[Entry] = []
        credential = await ask(wire, ticket(mesh, holder), us, entries)
        assert check(credential, mesh.public, 0.0).peer == us.peer_id
        assert [entry.event for entry in entries] == ["redeeming", "redeemed"]
        assert not holder.came
        guest = Node(us, mesh.public, credential)
        async with opened(guest, transport=wire.transport(), seeds=holder.seeds()):
            await until(lambda: holder.came == [us.peer_id], 10)


async def test_same_peer_gets_the_same_again(autojump_clock: Clock) -> None:
    wire, mesh, us = MemoryNetwork(), Mesh(), fresh()
    holder = mesh.node(redeems=giver(mesh))
    async with opened(holder, transport=wire.transport()):
        token = ticket(mesh, holder)
        assert await ask(wire, token, us) == await ask(wire, token, us)


async def test_spent_invite_ends_the_asking(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    holder = mesh.node(redeems=giver(mesh))
    async with opened(holder, transport=wire.transport()):
        token = ticket(mesh, holder)
        await ask(wire, token, fresh())
        with pytest.raises(Refused, match="not redeemed: the invite was used 1 times"):
            await ask(wire, token, fresh())


async def test_revoked_invite_ends_the_asking_at_any_member(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    invite = ticket(mesh).invite
    member = mesh.node(revocation=mesh.revoke(invites=(invite.key,)))
    async with opened(member, transport=wire.transport()):
        with pytest.raises(Refused, match="revoked"):
            await ask(wire, ticket(mesh, member), fresh())


async def test_newcomer_waits_for_the_holder_and_says_so_once(autojump_clock: Clock) -> None:
    wire, mesh, us = MemoryNetwork(), Mesh(), fresh()
    member, holder = mesh.node(), mesh.node(redeems=giver(mesh))
    machine, entries, given = wire.transport(), list[Entry](), list[Credential]()
    seed = f"{machine.address}/p2p/{holder.peer_id}"
    async with opened(member, transport=wire.transport()), trio.open_nursery() as nursery:

        async def wait() -> None:
            given.append(await ask(wire, ticket(mesh, member, seeds=(seed,)), us, entries))

        nursery.start_soon(wait)
        await trio.sleep(200)
        said = [entry.message for entry in entries if entry.event == "not_redeemed"]
        assert len(said) == 1
        assert "does not hold the mesh key" in said[0]
        async with opened(holder, transport=machine):
            await until(lambda: given, 60)


async def test_seed_of_another_mesh_does_not_end_the_asking(autojump_clock: Clock) -> None:
    wire, mesh, us = MemoryNetwork(), Mesh(), fresh()
    moved, holder = Mesh().node(), mesh.node(redeems=giver(mesh))
    async with (
        opened(moved, transport=wire.transport()),
        opened(holder, transport=wire.transport()),
    ):
        assert await ask(wire, ticket(mesh, moved, holder), us)


async def test_holder_that_gives_the_wrong_membership_is_passed_over(
    autojump_clock: Clock,
) -> None:
    wire, mesh, us, entries = MemoryNetwork(), Mesh(), fresh(), list[Entry]()
    wrong = mesh.node(redeems=lambda invite, peer: redeemed(mesh.key, invite, b"x" * 32))
    async with opened(wrong, transport=wire.transport()):
        with trio.move_on_after(20):
            await ask(wire, ticket(mesh, wrong), us, entries)
        assert "of another node" in entries[-1].message


async def test_hanging_seed_delays_nobody(autojump_clock: Clock) -> None:
    wire, mesh, us = MemoryNetwork(), Mesh(), fresh()
    machine = wire.transport()
    silent, holder = mesh.node(), mesh.node(redeems=giver(mesh))
    async with (
        opened(silent, transport=machine),
        opened(holder, transport=wire.transport()),
    ):
        wire.freeze(machine)
        with trio.fail_after(5):
            await ask(wire, ticket(mesh, silent, holder), us)


async def test_token_without_addresses_is_waited_for_in_words(autojump_clock: Clock) -> None:
    entries: list[Entry] = []
    with trio.move_on_after(5):
        await ask(MemoryNetwork(), ticket(Mesh()), fresh(), entries)
    assert "names no address" in entries[-1].message


async def knock(
    guest: Stranger, node: Node, make: Callable[[Transcript], Redeem], mesh: Mesh
) -> Any:
    """What a node answers to a redeem."""
    stream = Stream(await guest.open(node, protocol_id("admission")), node.peer_id, ADMISSION_LIMIT)
    ours = Hello(version=1, mesh=mesh_id(mesh.public), nonce=secrets.token_bytes(32))
    await stream.tell(ours)
    theirs: Hello = await stream.hear(Hello)
    transcript = Transcript(
        mesh=ours.mesh,
        prover=str(guest.host.get_id()),
        verifier=node.peer_id,
        prover_nonce=ours.nonce,
        verifier_nonce=theirs.nonce,
    )
    await stream.tell(make(transcript))
    return await stream.hear(Redeemed | ErrorMessage)


async def test_replayed_redeem_is_refused(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    token = ticket(mesh)
    holder = mesh.node(redeems=giver(mesh))
    kept: list[Redeem] = []

    def make(transcript: Transcript) -> Redeem:
        kept.append(ask_redeem(transcript, token.signed, token.seed))
        return kept[0]

    async with (
        opened(holder, transport=wire.transport()),
        stranger(wire.transport()) as guest,
    ):
        await guest.dial(holder)
        assert isinstance(await knock(guest, holder, make, mesh), Redeemed)
        answer = await knock(guest, holder, make, mesh)
        assert isinstance(answer, ErrorMessage)
        assert "replayed" in answer.message
        assert holder.events("bad_peer")[0].fields["reason"] == "replayed"


async def test_stranger_without_the_token_learns_nothing(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    token = ticket(mesh)
    holder = mesh.node(redeems=giver(mesh))
    async with (
        opened(holder, transport=wire.transport()),
        stranger(wire.transport()) as guest,
    ):
        await guest.dial(holder)
        answers = {
            (await knock(guest, holder, make, mesh)).message
            for make in (
                lambda transcript: ask_redeem(transcript, token.signed, b"x" * 32),
                lambda transcript: ask_redeem(
                    transcript, read_token(make_invite(Mesh().key, b"i" * 32, name="x")).signed,
                    b"i" * 32,
                ),
            )
        }  # fmt: skip
        assert all("signature" in answer for answer in answers)
        assert mesh.public not in guest.heard


async def test_asking_over_and_over_is_bounded(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    token = ticket(mesh)
    holder = mesh.node(redeems=giver(mesh))
    async with (
        opened(holder, transport=wire.transport()),
        stranger(wire.transport()) as guest,
    ):
        await guest.dial(holder)
        answers = [
            await knock(guest, holder, lambda one: ask_redeem(one, token.signed, token.seed), mesh)
            for _ in range(ATTEMPTS_OF_A_PEER + 1)
        ]
        assert all(isinstance(answer, Redeemed) for answer in answers[:-1])
        assert answers[-1].code == "overloaded"


def fail(pace: Pace, peer: str, invite: bytes) -> None:
    with pytest.raises(Refused), pace.attempt(PeerId(peer), invite):
        raise Refused("the invite is spent")


def gives(pace: Pace, peer: str, invite: bytes) -> bool:
    """Whether a redemption is looked at; it then gives a membership."""
    try:
        with pace.attempt(PeerId(peer), invite):
            return True
    except Overloaded:
        return False


async def test_one_invite_keeps_out_nobody_with_another(autojump_clock: Clock) -> None:
    pace = Pace()
    assert gives(pace, "known", b"spent")
    for number in range(FAILURES_OF_AN_INVITE):
        fail(pace, str(number), b"spent")
    assert not gives(pace, "x", b"spent")
    assert gives(pace, "x", b"good")
    assert gives(pace, "known", b"spent")  # it was redeemed by that peer already
    await trio.sleep(MINUTE)
    assert gives(pace, "x", b"spent")


async def test_memberships_that_are_given_slow_nobody_down(autojump_clock: Clock) -> None:
    pace = Pace()
    assert all(gives(pace, str(number), b"class") for number in range(100))


async def test_pace_is_of_all_invites_together(autojump_clock: Clock) -> None:
    pace = Pace()
    for number in range(FAILURES):
        fail(pace, str(number), bytes([number // FAILURES_OF_AN_INVITE]))
    assert not gives(pace, "x", b"good")
    await trio.sleep(MINUTE)
    assert gives(pace, "x", b"good")


async def test_member_that_is_no_holder_says_so(autojump_clock: Clock) -> None:
    with pytest.raises(Unavailable, match="does not hold"):
        await Mesh().node().redeem(ticket(Mesh()).invite, b"x" * 32)
