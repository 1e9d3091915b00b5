"""Who is admitted, and what the others learn: nothing."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from p2p_mesh.core.admission import Hello, Proof, Revocation
from p2p_mesh.core.names import mesh_id
from p2p_mesh.core.wire import Ask, ErrorMessage, frame
from p2p_mesh.errors import Refused, Unavailable
from p2p_mesh.net import admission
from p2p_mesh.net.identity import Identity
from p2p_mesh.net.protocols import protocol_id
from p2p_mesh.testing.members import Mesh, Node, opened, request, text_of, until
from p2p_mesh.testing.network import MemoryNetwork
from p2p_mesh.testing.strangers import Stranger, stranger

Clock = trio.testing.MockClock


@asynccontextmanager
async def knocking(
    mesh: Mesh, identity: Identity | None = None, **more: Any
) -> AsyncIterator[tuple[Node, Stranger]]:
    """A node, and a stranger that is connected to it."""
    wire = MemoryNetwork()
    keys = identity.key_pair() if identity else None
    async with (
        opened(mesh.node(**more), transport=wire.transport()) as node,
        stranger(wire.transport(), keys=keys) as guest,
    ):
        await guest.dial(node)
        yield node, guest


def fresh() -> Identity:
    return Identity(secrets.token_bytes(32))


def is_refusal(answer: object, words: str) -> bool:
    return isinstance(answer, ErrorMessage) and answer.code == "refused" and words in answer.message


def reasons(node: Node) -> list[str]:
    """Why it says that it refused."""
    return [entry.fields["reason"] for entry in node.events("bad_peer")]


async def test_member_is_admitted(autojump_clock: Clock) -> None:
    mesh, us = Mesh(), fresh()
    async with knocking(mesh, us) as (node, guest):
        _, answer = await guest.handshake(node, mesh.credential(us), us.key)
        assert isinstance(answer, Proof)
        await until(lambda: node.came == [us.peer_id])


async def test_borrowed_credential_is_refused(autojump_clock: Clock) -> None:
    mesh, us = Mesh(), fresh()
    async with knocking(mesh, us) as (node, guest):
        _, answer = await guest.handshake(node, mesh.credential(fresh()), us.key)
        assert is_refusal(answer, "another node")
        assert not node.came
        assert reasons(node) == ["borrowed"]


async def test_replayed_handshake_is_refused(autojump_clock: Clock) -> None:
    mesh, us = Mesh(), fresh()
    hello = Hello(version=1, mesh=mesh_id(mesh.public), nonce=bytes(32))
    async with knocking(mesh, us) as (node, guest):
        proof, _ = await guest.handshake(node, mesh.credential(us), us.key, hello=hello)
        await until(lambda: node.came)
        for conn in guest.host.get_network().get_connections():
            await conn.close()
        await until(lambda: node.gone)
        await guest.dial(node)
        _, answer = await guest.handshake(
            node, mesh.credential(us), us.key, hello=hello, proof=proof
        )
        assert is_refusal(answer, "replayed handshake")
        assert len(node.came) == 1
        assert reasons(node) == ["replayed"]


async def test_other_mesh_is_refused_before_it_learns_ours(autojump_clock: Clock) -> None:
    mesh, other, us = Mesh(), Mesh(), fresh()
    async with knocking(mesh, us) as (node, guest):
        _, answer = await guest.handshake(
            node, other.credential(us), us.key, mesh=mesh_id(other.public)
        )
        assert is_refusal(answer, "another mesh")
        assert mesh_id(mesh.public).encode() not in guest.heard


async def test_foreign_credential_is_refused_unanswered(autojump_clock: Clock) -> None:
    mesh, other, us = Mesh(), Mesh(), fresh()
    async with knocking(mesh, us) as (node, guest):
        _, answer = await guest.handshake(node, other.credential(us), us.key)
        assert is_refusal(answer, "signature")
        assert mesh.public not in guest.heard
        assert reasons(node) == ["forged"]


async def test_ended_membership_is_refused(autojump_clock: Clock) -> None:
    mesh, us = Mesh(), fresh()
    async with knocking(mesh, us, now=lambda: 2000.0) as (node, guest):
        _, answer = await guest.handshake(node, mesh.credential(us, until=1999), us.key)
        assert is_refusal(answer, "ended")
        assert not node.came
        assert reasons(node) == ["expired"]


async def test_other_version_is_refused_by_name(autojump_clock: Clock) -> None:
    mesh, us = Mesh(), fresh()
    hello = Hello(version=9, mesh=mesh_id(mesh.public), nonce=bytes(32))
    async with knocking(mesh, us) as (node, guest):
        _, answer = await guest.handshake(node, mesh.credential(us), us.key, hello=hello)
        assert is_refusal(answer, "version 9")


async def test_connection_without_admission_is_closed(autojump_clock: Clock) -> None:
    async with knocking(Mesh()) as (_, guest):
        await trio.sleep(admission.GRACE - 1)
        assert guest.host.get_connected_peers()
        await trio.sleep(2)
        assert not guest.host.get_connected_peers()


async def test_handshake_that_stalls_ends(autojump_clock: Clock) -> None:
    mesh = Mesh()
    async with knocking(mesh) as (node, guest):
        stream = await guest.open(node, protocol_id("admission"))
        await stream.write(b"\x05")
        await trio.sleep(admission.DEADLINE + 1)
        assert not node.net._admission._under_way


async def test_stranger_is_served_nothing(autojump_clock: Clock) -> None:
    async with knocking(Mesh()) as (node, guest):
        for protocol in (protocol_id("inventory"), protocol_id("inference"), "/meshsub/1.2.0"):
            assert await guest.send(node, protocol, b"\x00") == b""
        assert not node.asked


async def test_dialer_refuses_a_seed_of_another_mesh(autojump_clock: Clock) -> None:
    wire = MemoryNetwork()
    ours, theirs = Mesh().node(), Mesh().node()
    async with (
        opened(theirs, transport=wire.transport()),
        opened(ours, transport=wire.transport()),
    ):
        with pytest.raises(Refused, match="another mesh"):
            await ours.net.connect(theirs.peer_id, theirs.net.addresses())
        await trio.sleep(1)
        assert not ours.net.members()
        assert not ours.net._host.is_connected(theirs.peer_id)


async def test_own_credential_is_checked_first(autojump_clock: Clock) -> None:
    mesh = Mesh()
    node = mesh.node()
    node.credential = mesh.credential(fresh())
    with pytest.raises(Refused, match="another node"):
        async with opened(node, transport=MemoryNetwork().transport()):
            pass


async def test_stream_that_overtakes_admission_waits(autojump_clock: Clock) -> None:
    mesh, us = Mesh(), fresh()
    async with knocking(mesh, us) as (node, guest), trio.open_nursery() as nursery:
        answers: list[bytes] = []

        async def early() -> None:
            await trio.sleep(0.5)
            answers.append(
                await guest.send(node, protocol_id("inference"), frame(Ask(request=request())))
            )

        nursery.start_soon(early)
        await guest.handshake(node, mesh.credential(us), us.key, pause=1)
    assert b"delta" in answers[0]


async def test_expelled_peer_is_gone_at_once(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport()),
    ):
        await second.net.connect(first.peer_id, first.net.addresses())
        assert await text_of(first, second.peer_id) == "hello"
        await first.net.expel(second.peer_id, "revoked")
        assert first.gone == [(second.peer_id, "revoked")]
        with pytest.raises(Unavailable):
            await text_of(first, second.peer_id)


async def test_revoked_peer_is_refused_and_shown_the_list(autojump_clock: Clock) -> None:
    mesh, us = Mesh(), fresh()
    signed = mesh.revoke(peers=(us.public_key,))
    async with knocking(mesh, us, revocation=signed) as (node, guest):
        _, answer = await guest.handshake(node, mesh.credential(us), us.key)
        assert isinstance(answer, Revocation)
        assert answer.revocation == signed
        assert reasons(node) == ["revoked"]
        assert not node.came


async def test_stranger_with_a_revoked_credential_is_not_shown_the_list(
    autojump_clock: Clock,
) -> None:
    mesh, us, thief = Mesh(), fresh(), fresh()
    async with knocking(mesh, thief, revocation=mesh.revoke(peers=(us.public_key,))) as (
        node, guest,
    ):  # fmt: skip
        _, answer = await guest.handshake(node, mesh.credential(us), thief.key)
        assert is_refusal(answer, "another node")


async def test_list_that_comes_with_a_proof_is_heard_before_it_is_judged(
    autojump_clock: Clock,
) -> None:
    mesh, us = Mesh(), fresh()
    signed = mesh.revoke(peers=(us.public_key,))
    async with knocking(mesh, us) as (node, guest):
        _, answer = await guest.handshake(node, mesh.credential(us), us.key, revocation=signed)
        assert isinstance(answer, Revocation)
        assert node.revocations == [signed]


async def test_forged_list_is_an_offence(autojump_clock: Clock) -> None:
    mesh, us = Mesh(), fresh()
    async with knocking(mesh, us) as (node, guest):
        _, answer = await guest.handshake(
            node, mesh.credential(us), us.key, revocation=Mesh().revoke(peers=(b"x" * 32,))
        )
        assert is_refusal(answer, "signature of the revocation")
        assert not node.revocations


async def test_peer_that_is_revoked_in_the_midst_of_its_handshake_stays_out(
    autojump_clock: Clock,
) -> None:
    mesh, us = Mesh(), fresh()
    async with knocking(mesh, us) as (node, guest), trio.open_nursery() as nursery:

        async def revoke() -> None:
            await trio.sleep(0.5)
            node.net.adopt(mesh.revoke(peers=(us.public_key,)))

        nursery.start_soon(revoke)
        await guest.handshake(node, mesh.credential(us), us.key, pause=1)
        await trio.sleep(1)
        assert not node.came
