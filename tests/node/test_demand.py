"""What a node says of its demand, and when; what it makes of what others say."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from p2p_mesh.core.demand import DemandReport, Rate
from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.wire import decode, encode
from p2p_mesh.errors import RemoteError
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.node.demand import Demanded
from p2p_mesh.node.extensions import Voice
from p2p_mesh.testing.members import Mesh, Node, opened

M = ModelId("m")
START = 1_000_000.0


class Ear:
    """Keeps what is published, and when."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, DemandReport]] = []
        self.failures: list[Exception] = []

    async def publish(self, payload: bytes) -> None:
        if self.failures:
            raise self.failures.pop()
        self.heard.append((trio.current_time(), decode(payload, DemandReport)))


def demanded(
    wishes: Callable[[], tuple[ModelId, ...]] = tuple, said: list[Entry] | None = None
) -> Demanded:
    return Demanded(
        wishes, boot=START, clock=lambda: START + trio.current_time(),
        journal=Journal(*([said.append] if said is not None else [])),
    )  # fmt: skip


@asynccontextmanager
async def telling(mine: Demanded) -> AsyncIterator[Ear]:
    ear = Ear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mine.tell, ear.publish)
        yield ear
        nursery.cancel_scope.cancel()


async def test_nothing_is_said_while_nothing_is_wanted(autojump_clock: object) -> None:
    async with telling(demanded()) as ear:
        await trio.sleep(3600)
    assert ear.heard == []


async def test_request_is_told_at_once_and_its_end_later(autojump_clock: object) -> None:
    mine = demanded()
    async with telling(mine) as ear:
        await trio.sleep(100)
        mine.count(M)
        await trio.sleep(1)
        assert [(when, one.rates[0].model) for when, one in ear.heard] == [(100.1, M)]
        await trio.sleep(3600)
    assert len(ear.heard) < 20
    assert ear.heard[-1][1].rates == ()
    assert ear.heard[-1][0] == pytest.approx(100 + 230, abs=30)


async def test_flood_of_requests_is_a_report_every_five_seconds(autojump_clock: object) -> None:
    mine = demanded()
    async with telling(mine) as ear:
        for _ in range(600):
            mine.count(M)
            await trio.sleep(0.1)
    assert 8 <= len(ear.heard) <= 13
    assert ear.heard[-1][1].rates[0].rate > 200


async def test_wish_is_told_until_it_is_none(autojump_clock: object) -> None:
    wishes = [M]
    mine = demanded(lambda: tuple(wishes))
    async with telling(mine) as ear:
        await trio.sleep(59)
        assert [when for when, _ in ear.heard] == pytest.approx([0, 20, 40], abs=1)
        assert mine.rates() == {M: 1.0}
        wishes.clear()
        mine.wake()
        await trio.sleep(1)
        assert ear.heard[-1][1].wishes == ()
    assert mine.rates() == {}


async def test_who_is_new_hears_of_a_wish_soon(autojump_clock: object) -> None:
    mine = demanded(lambda: (M,))
    async with telling(mine) as ear:
        await trio.sleep(1)
        mine.met([PeerId("bob")])
        await trio.sleep(5)
        mine.met([PeerId("bob")])
        await trio.sleep(6)
        mine.met([])
        await trio.sleep(6)
    assert [when for when, _ in ear.heard] == pytest.approx([0, 5], abs=0.5)


async def test_report_that_cannot_be_published_is_no_end(autojump_clock: object) -> None:
    said: list[Entry] = []
    mine = demanded(lambda: (M,), said)
    async with telling(mine) as ear:
        ear.failures.append(RemoteError("nobody listens"))
        await trio.sleep(30)
    assert [entry.event for entry in said] == ["demand_failed"]
    assert len(ear.heard) == 1


async def test_rates_of_others_are_added_to_ours(autojump_clock: object) -> None:
    mine = demanded(lambda: (M,))
    mine.count(M)
    alone = mine.rates()[M]
    report = DemandReport(
        sequence=(1, 1), issued_at=START, lifetime=60, rates=(Rate(model=M, rate=4.0),),
        wishes=(ModelId("w"),),
    )  # fmt: skip
    mine.heard(PeerId("bob"), encode(report))
    mine.heard(PeerId("bob"), encode(report))
    assert mine.rates() == {M: alone + 4.0, "w": 1.0}
    with pytest.raises(RemoteError):
        mine.heard(PeerId("bob"), b"\xff")


async def test_client_counts_for_less_than_a_member(autojump_clock: object) -> None:
    mine = demanded(tuple[ModelId, ...])
    for role, most in (("client", 60.0), ("member", 660.0)):
        report = DemandReport(
            sequence=(1, 1), issued_at=START, lifetime=60, rates=(Rate(model=M, rate=1e6),),
        )  # fmt: skip
        mine.heard(PeerId(role), encode(report), role=role)  # type: ignore[arg-type]
        assert mine.rates() == {M: pytest.approx(most, rel=0.01)}


def voice(node: Node) -> Voice:
    return Voice(node.identity.key, node.credential, node.mesh_key, node.now)


async def test_client_is_heard_over_gossip() -> None:
    mesh = Mesh()
    member, client = mesh.node(), mesh.node(role="client")
    ours, theirs = (
        Demanded(wishes, boot=node.now(), clock=node.now, journal=Journal())
        for node, wishes in ((member, tuple[ModelId, ...]), (client, lambda: (M,)))
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(opened(member))
        await stack.enter_async_context(opened(client, seeds=member.seeds()))
        nursery = await stack.enter_async_context(trio.open_nursery())
        await ours.open(member.net, voice(member), nursery)
        await theirs.open(client.net, voice(client), nursery)
        with trio.fail_after(30):
            while M not in ours.rates():
                theirs.met([])
                theirs.met([member.peer_id])
                await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
