"""Orders between nodes on the memory network: the owner's are obeyed, and nobody else's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh.core.control import (
    Challenge,
    Command,
    ListModels,
    LoadModel,
    ModelState,
    Ordered,
    Report,
    StopNode,
    give_order,
)
from p2p_mesh.core.names import Digest, ModelId, PeerId
from p2p_mesh.core.signature import public_bytes
from p2p_mesh.core.wire import ErrorMessage
from p2p_mesh.errors import MeshError, ModelError, Refused, RemoteError, Unavailable
from p2p_mesh.net import control
from p2p_mesh.net.control import PROTOCOL
from p2p_mesh.net.protocols import Stream
from p2p_mesh.testing.members import Mesh, Node, opened, until
from p2p_mesh.testing.network import MemoryNetwork

Clock = trio.testing.MockClock

OWNER = Ed25519PrivateKey.from_private_bytes(b"w" * 32)
REPORT = Report(models=(ModelState(id=ModelId("m"), state="ready"),))


class Obeying:
    """Keeps what it was told to do."""

    def __init__(self, error: MeshError | None = None, seconds: float = 0) -> None:
        self.told: list[tuple[Command, bytes, PeerId]] = []
        self._error = error
        self._seconds = seconds

    async def __call__(self, command: Command, owner: bytes, peer: PeerId) -> Report:
        self.told.append((command, owner, peer))
        await trio.sleep(self._seconds)
        if self._error:
            raise self._error
        return REPORT


@asynccontextmanager
async def pair(
    obeying: Obeying, *, owner: Ed25519PrivateKey | None = OWNER
) -> AsyncIterator[tuple[Node, Node]]:
    """A node that has that owner, and another member."""
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport(), seeds=first.seeds()),
    ):
        if owner is not None:
            first.net.control.accept([public_bytes(owner)], obeying)
        await until(lambda: first.came and second.came)
        yield first, second


@pytest.mark.parametrize("command", [ListModels(), LoadModel(digest=Digest("ab" * 32)), StopNode()])
async def test_owner_is_obeyed(autojump_clock: Clock, command: Command) -> None:
    obeying = Obeying()
    async with pair(obeying) as (first, second):
        assert await second.net.order(first.peer_id, command, OWNER) == REPORT
        assert obeying.told == [(command, public_bytes(OWNER), second.peer_id)]
        assert not first.events("bad_peer")


async def test_any_other_is_refused_counted_and_named(autojump_clock: Clock) -> None:
    obeying, other = Obeying(), Ed25519PrivateKey.generate()
    async with pair(obeying) as (first, second):
        with pytest.raises(Refused, match="does not accept the owner"):
            await second.net.order(first.peer_id, StopNode(), other)
        (offence,) = first.events("bad_peer")
        assert offence.fields["peer"] == second.peer_id
        assert "does not accept the owner" in offence.message
        assert obeying.told == []


async def test_node_without_an_owner_obeys_nobody(autojump_clock: Clock) -> None:
    async with pair(Obeying(), owner=None) as (first, second):
        with pytest.raises(Refused, match="does not accept"):
            await second.net.order(first.peer_id, StopNode(), OWNER)


async def test_order_that_was_overheard_is_not_obeyed_again(autojump_clock: Clock) -> None:
    obeying = Obeying()
    async with pair(obeying) as (first, second):
        protocols = second.net._protocols
        async with protocols.open(first.peer_id, PROTOCOL) as stream:
            challenge: Challenge = await stream.hear(Challenge)
            ordered = give_order(
                StopNode(), target=first.peer_id, nonce=challenge.nonce, key=OWNER,
                now=first.now(),
            )  # fmt: skip
            await stream.tell(ordered)
            assert await stream.hear(Report) == REPORT
        answer = await said(second, first, ordered)
        assert answer.code == "refused"
        assert "another stream" in answer.message
        assert len(obeying.told) == 1
        assert first.events("bad_peer")


async def said(second: Node, first: Node, ordered: Ordered) -> ErrorMessage:
    """What the first node says to an order as it stands."""
    async with second.net._protocols.open(first.peer_id, PROTOCOL) as stream:
        await stream.hear(Challenge)
        await stream.tell(ordered)
        answer: ErrorMessage = await stream.hear(Report | ErrorMessage)
    return answer


async def test_order_for_another_node_is_refused(autojump_clock: Clock) -> None:
    obeying = Obeying()
    async with pair(obeying) as (first, second):
        # The node in the middle has the nonce of the one, and the owner's order to the other.
        async with second.net._protocols.open(first.peer_id, PROTOCOL) as stream:
            challenge: Challenge = await stream.hear(Challenge)
            await stream.tell(
                give_order(StopNode(), target=second.peer_id, nonce=challenge.nonce,
                           key=OWNER, now=first.now())
            )  # fmt: skip
            answer = await stream.hear(Report | ErrorMessage)
        assert "another node" in answer.message
        assert obeying.told == []


async def test_second_order_on_a_stream_is_not_heard(autojump_clock: Clock) -> None:
    obeying = Obeying()
    async with (
        pair(obeying) as (first, second),
        second.net._protocols.open(first.peer_id, PROTOCOL) as stream,
    ):
        challenge: Challenge = await stream.hear(Challenge)
        ordered = give_order(
            ListModels(), target=first.peer_id, nonce=challenge.nonce, key=OWNER, now=first.now()
        )
        await stream.tell(ordered)
        await stream.tell(ordered)
        await trio.sleep(5)
        assert len(obeying.told) == 1


async def test_what_the_node_cannot_do_is_said(autojump_clock: Clock) -> None:
    async with pair(Obeying(ModelError("it does not fit"))) as (first, second):
        with pytest.raises(ModelError, match="does not fit"):
            await second.net.order(first.peer_id, LoadModel(digest=Digest("ab" * 32)), OWNER)
        assert not first.events("bad_peer")


async def test_silent_caller_does_not_hold_the_node(autojump_clock: Clock) -> None:
    async with (
        pair(Obeying()) as (first, second),
        second.net._protocols.open(first.peer_id, PROTOCOL) as stream,
    ):
        await stream.hear(Challenge)
        answer = await stream.hear(Report | ErrorMessage)
        assert "in time" in answer.message
        assert not first.net.control._streams


async def test_command_that_hangs_is_given_up(autojump_clock: Clock) -> None:
    async with pair(Obeying(seconds=3600)) as (first, second):
        with pytest.raises(Unavailable, match="did not begin in time"):
            await second.net.order(first.peer_id, ListModels(), OWNER)


async def test_node_that_says_nothing_is_given_up(autojump_clock: Clock) -> None:
    async def silent(stream: Stream, _member: object) -> None:
        await trio.sleep(3600)

    async with pair(Obeying()) as (first, second):
        first.net._protocols.serve(PROTOCOL, silent)
        with pytest.raises(Unavailable, match=f"in {control.DEADLINE:g} s"):
            await second.net.order(first.peer_id, ListModels(), OWNER)


async def test_member_has_few_streams(autojump_clock: Clock) -> None:
    async with pair(Obeying(seconds=5)) as (first, second), trio.open_nursery() as nursery:
        for _ in range(control.MAX_STREAMS):
            nursery.start_soon(second.net.order, first.peer_id, ListModels(), OWNER)
        await trio.sleep(1)
        with pytest.raises(Unavailable, match="being taken"):
            await second.net.order(first.peer_id, ListModels(), OWNER)


async def test_nonsense_is_an_offence(autojump_clock: Clock) -> None:
    async with pair(Obeying()) as (first, second):
        async with second.net._protocols.open(first.peer_id, PROTOCOL) as stream:
            await stream.hear(Challenge)
            await stream.send(b"\x81\xa4type\xa5order")
            answer = await stream.hear(Report | ErrorMessage)
        assert answer.code == RemoteError.code
        assert first.events("bad_peer")
