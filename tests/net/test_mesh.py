"""Two nodes of net code on the memory network: joining, talking, parting."""

from __future__ import annotations

import pytest
import trio

from p2p_mesh.errors import LocalError, Unavailable
from p2p_mesh.testing.members import Mesh, opened, request, text_of, until
from p2p_mesh.testing.network import MemoryNetwork


async def test_nodes_admit_each_other(autojump_clock: trio.testing.MockClock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport(), seeds=first.seeds()),
    ):
        await until(lambda: first.came and second.came)
        assert first.came == [second.peer_id]
        assert set(second.net.members()) == {first.peer_id}


async def test_late_joiner_gets_snapshot(autojump_clock: trio.testing.MockClock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with opened(first, transport=wire.transport()):
        envelope = await first.announce()
        async with opened(second, transport=wire.transport(), seeds=first.seeds()):
            await until(lambda: second.known)
            assert second.known == {first.peer_id: envelope}


async def test_announcement_is_gossiped(autojump_clock: trio.testing.MockClock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport(), seeds=first.seeds()),
    ):
        await until(lambda: first.came and second.came)
        await trio.sleep(3)
        envelope = await first.announce()
        await until(lambda: second.known)
        assert second.known[first.peer_id] == envelope
        assert first.peer_id not in [peer for peer, _ in second.gone]


async def test_peer_answers(autojump_clock: trio.testing.MockClock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport(), seeds=first.seeds()),
    ):
        assert await text_of(second, first.peer_id, "abc") == "abc"
        assert await text_of(first, second.peer_id, "xyz") == "xyz"
        assert first.asked == [("r", second.peer_id)]


async def test_simultaneous_dials_agree(autojump_clock: trio.testing.MockClock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport()),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(first.net.connect, second.peer_id, second.net.addresses())
        nursery.start_soon(second.net.connect, first.peer_id, first.net.addresses())
        await until(lambda: first.came and second.came)
        assert await text_of(first, second.peer_id) == "hello"
        assert (first.came, second.came) == ([second.peer_id], [first.peer_id])


async def test_leaving_is_seen_once(autojump_clock: trio.testing.MockClock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with opened(first, transport=wire.transport()):
        async with opened(second, transport=wire.transport(), seeds=first.seeds()):
            await until(lambda: first.came)
        await until(lambda: first.gone, seconds=1)
        await trio.sleep(10)
        assert first.gone == [(second.peer_id, "the connection closed")]
        assert not first.net.members()


async def test_killed_peer_is_seen_within_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    machine = wire.transport()
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=machine, seeds=first.seeds()),
    ):
        await until(lambda: first.came)
        wire.kill(machine)
        await until(lambda: first.gone, seconds=1)


async def test_frozen_peer_is_seen(autojump_clock: trio.testing.MockClock) -> None:
    # Defect G: nothing closes such a connection but the ping that does not come back.
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    machine = wire.transport()
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=machine, seeds=first.seeds()),
    ):
        await until(lambda: first.came)
        await trio.sleep(10)
        wire.freeze(machine)
        await until(lambda: first.gone, seconds=30)


async def test_seed_is_found_when_it_comes_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    machine = wire.transport()
    seed = f"{machine.address}/p2p/{first.peer_id}"
    async with opened(second, transport=wire.transport(), seeds=[seed]):
        await trio.sleep(300)
        async with opened(first, transport=machine):
            await until(lambda: second.came, seconds=60)
        await until(lambda: second.gone)
        await trio.sleep(300)
        async with opened(first, transport=machine):
            await until(lambda: len(second.came) == 2, seconds=60)


async def test_unknown_peer_is_unavailable(autojump_clock: trio.testing.MockClock) -> None:
    node = Mesh().node()
    stranger = Mesh().node()
    async with opened(node, transport=MemoryNetwork().transport()):
        with pytest.raises(Unavailable, match="does not answer"):
            async with node.net.ask(stranger.peer_id, request()):
                pass


async def test_node_does_not_dial_itself(autojump_clock: trio.testing.MockClock) -> None:
    node = Mesh().node()
    machine = MemoryNetwork().transport()
    seed = f"{machine.address}/p2p/{node.peer_id}"
    async with opened(node, transport=machine, seeds=[seed, "nonsense"]):
        await trio.sleep(5)
        assert [entry.event for entry in node.entries] == ["bad_seed"]
        with pytest.raises(LocalError, match="itself"):
            await node.net.connect(node.peer_id)


async def test_error_of_the_body_comes_out_bare(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with opened(Mesh().node(), transport=MemoryNetwork().transport()):
            raise ZeroDivisionError


async def test_cancelled_node_says_farewell(autojump_clock: trio.testing.MockClock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with opened(first, transport=wire.transport()):
        with trio.move_on_after(5):
            async with opened(second, transport=wire.transport(), seeds=first.seeds()):
                await trio.sleep_forever()
        assert first.came
        await until(lambda: first.gone, seconds=1)


async def test_membership_ends(autojump_clock: trio.testing.MockClock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    start = trio.current_time()
    first = mesh.node(now=lambda: 1000 + trio.current_time() - start)
    second = mesh.node(until=1100, now=lambda: 1000.0)
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport(), seeds=first.seeds()),
    ):
        await until(lambda: first.came)
        await trio.sleep(90)
        assert not first.gone
        await trio.sleep(20)
        assert first.gone == [(second.peer_id, "its membership has ended")]
        assert not first.net.members()


async def test_peer_that_comes_by_itself_is_not_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    # Its old address answers nothing; meanwhile it dials us, and that is enough.
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    dead = wire.transport()
    wire.freeze(dead)
    async with opened(first, transport=wire.transport()), trio.open_nursery() as nursery:
        start = trio.current_time()
        nursery.start_soon(first.net.connect, second.peer_id, [dead.address])
        await trio.sleep(1)
        async with opened(second, transport=wire.transport(), seeds=first.seeds()):
            await until(lambda: first.came)
            member = await first.net.connect(second.peer_id, [dead.address])
            assert member.peer == second.peer_id
            assert trio.current_time() - start < 5
