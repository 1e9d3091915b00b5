"""Pings on the memory network: peers that stop answering, hints, and stalls of the own loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from p2p_mesh.core.health import HOPELESS, PINGS_TAKEN, SILENCE, TICK, Down, Ping, Pong
from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import Delta, InferenceRequest, ModelLoad
from p2p_mesh.errors import RemoteError, Unavailable
from p2p_mesh.net import health
from p2p_mesh.net.protocols import Stream
from p2p_mesh.testing.members import Mesh, Node, enter, opened, request, text_of, until
from p2p_mesh.testing.network import MemoryNetwork, MemoryTransport

Clock = trio.testing.MockClock
LOAD = ModelLoad(model=ModelId("echo"), slots=4, active=1)


class Town:
    """Two nodes that are connected, and the machine of the second."""

    def __init__(self, **more: Any) -> None:
        self.wire, self.mesh = MemoryNetwork(), Mesh()
        self.first, self.second = self.mesh.node(), self.mesh.node(**more)
        self.machine = self.wire.transport()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[Node, Node, MemoryTransport]]:
        async with (
            opened(self.first, transport=self.wire.transport()),
            opened(self.second, transport=self.machine, seeds=self.first.seeds()),
        ):
            await until(lambda: self.first.came and self.second.came)
            yield self.first, self.second, self.machine


async def endless(asked: InferenceRequest) -> AsyncIterator[Delta]:
    while True:
        yield Delta(text=".", tokens=(1,))
        await trio.sleep(0.1)


async def mute(asked: InferenceRequest) -> AsyncIterator[Delta]:
    await trio.sleep_forever()
    yield Delta()


async def all_of(deltas: AsyncIterator[Delta]) -> None:
    with trio.fail_after(60):
        async for _ in deltas:
            pass


@pytest.mark.parametrize("generate", [endless, mute])
async def test_frozen_peer_in_use_breaks_its_answers_soon(
    generate: Any, autojump_clock: Clock
) -> None:
    town = Town(generate=generate)
    async with town.open() as (first, second, machine):
        async with first.net.ask(second.peer_id, request()) as deltas:
            await trio.sleep(10)
            town.wire.freeze(machine)
            start = trio.current_time()
            with pytest.raises(Unavailable, match="does not answer"):
                await all_of(deltas)
        assert trio.current_time() - start <= SILENCE + 2 * TICK
        assert second.peer_id in first.suspects


async def test_killed_peer_is_suspect_within_a_second(autojump_clock: Clock) -> None:
    town = Town()
    async with town.open() as (first, second, machine):
        await text_of(first, second.peer_id)
        town.wire.kill(machine)
        await until(lambda: second.peer_id in first.suspects, seconds=1)


async def test_silent_connection_is_dropped_and_made_again(autojump_clock: Clock) -> None:
    town = Town()
    async with town.open() as (first, second, machine):
        await text_of(first, second.peer_id)
        town.wire.freeze(machine)
        await until(lambda: first.gone, seconds=HOPELESS + 5)
        town.wire.thaw(machine)
        await until(lambda: len(first.came) == 2, seconds=60)
        await until(lambda: second.peer_id not in first.suspects)
        assert await text_of(first, second.peer_id) == "hello"


async def test_peer_is_checked_before_it_is_used(autojump_clock: Clock) -> None:
    town = Town()
    async with town.open() as (first, second, machine):
        await trio.sleep(5)
        town.wire.freeze(machine)
        first.net._pulse._health._watched[second.peer_id].sign -= 60
        start = trio.current_time()
        with pytest.raises(Unavailable, match="does not answer"):
            await text_of(first, second.peer_id)
        assert trio.current_time() - start <= health.CHECK + 0.01
        assert second.peer_id in first.suspects


async def test_check_of_one_that_answers_passes(autojump_clock: Clock) -> None:
    town = Town()
    async with town.open() as (first, second, _):
        first.net._pulse._health._watched[second.peer_id].sign -= 60
        await first.net.check(second.peer_id)
        assert await text_of(first, second.peer_id) == "hello"
        assert not first.net._pulse._checks


async def test_peer_that_is_connected_waits_behind_no_dials(autojump_clock: Clock) -> None:
    town = Town()
    async with town.open() as (first, second, _):
        for _ in range(health.MAX_SEEKING):
            first.net._pulse._seeking.acquire_nowait()  # as if so many dead ones were dialed
        await first.net.check(second.peer_id)
        assert not first.health


async def test_peer_that_comes_while_it_waits_to_be_dialed_is_pinged(autojump_clock: Clock) -> None:
    town = Town()
    async with town.open() as (first, second, machine):
        pulse = first.net._pulse
        await text_of(first, second.peer_id)
        for _ in range(health.MAX_SEEKING):
            pulse._seeking.acquire_nowait()
        town.wire.kill(machine)
        await until(lambda: second.peer_id in pulse._sought)
        town.wire._dead.clear()
        await second.net.connect(first.peer_id, first.net.addresses())
        await until(lambda: len(first.came) == 2)
        await first.net.check(second.peer_id)
        assert second.peer_id in pulse._sought
        for _ in range(health.MAX_SEEKING):
            pulse._seeking.release()
        await until(lambda: not pulse._sought)


async def check_all(node: Node, peer: Node) -> None:
    await node.net.check(peer.peer_id)


async def test_stall_under_a_check_makes_nobody_suspect(autojump_clock: Clock) -> None:
    town = Town()
    async with town.open() as (first, second, _):
        await trio.sleep(5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(check_all, first, second)
            await trio.sleep(0.001)
            autojump_clock.jump(health.CHECK + 0.2)  # the pong comes meanwhile, unread
        assert not first.health


async def test_stall_while_a_stream_is_reopened_makes_nobody_suspect(autojump_clock: Clock) -> None:
    town = Town()
    async with town.open() as (first, second, _):
        await text_of(first, second.peer_id)
        await trio.sleep(5)
        line = first.net._pulse._lines[second.peer_id]
        line.cut()
        await until(lambda: second.peer_id not in first.net._pulse._lines)
        autojump_clock.jump(health.REOPEN + 0.2)
        await trio.sleep(5)
        assert first.net._pulse._lines[second.peer_id] is not line
        assert not first.health


async def kill_soon(town: Town) -> None:
    await trio.sleep(0.2)
    town.wire.kill(town.machine)


async def test_checks_end_when_the_peer_is_gone(autojump_clock: Clock) -> None:
    town = Town()
    async with town.open() as (first, second, machine):
        start = trio.current_time()
        town.wire.freeze(machine)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_soon, town)
            with pytest.raises(Unavailable, match="does not answer"):
                await first.net.check(second.peer_id)
        assert trio.current_time() - start < health.CHECK


async def test_pongs_bring_load_and_round_trip(autojump_clock: Clock) -> None:
    town = Town(loads=(LOAD,))
    async with town.open() as (first, second, _):
        await text_of(first, second.peer_id)
        first.heard_loads.clear()
        await until(lambda: first.heard_loads, seconds=3)
        assert first.heard_loads[0] == (second.peer_id, (LOAD,))
        assert first.net.rtt(second.peer_id) == pytest.approx(0.02, abs=0.01)


async def test_quiet_peers_stay_trusted(autojump_clock: Clock) -> None:
    town = Town()
    async with town.open() as (first, second, _):
        await trio.sleep(600)
        assert first.health == second.health == []
        assert len(first.net._pulse._lines) == 1


async def test_slow_link_makes_nobody_suspect(autojump_clock: Clock) -> None:
    town = Town(generate=mute)
    async with town.open() as (first, second, _):
        town.wire.latency = 0.4
        with trio.move_on_after(120):
            async with first.net.ask(second.peer_id, request()) as deltas:
                await anext(deltas)
        assert not first.health


async def test_own_stall_makes_nobody_suspect(autojump_clock: Clock) -> None:
    town = Town(generate=endless)
    async with town.open() as (first, second, _):
        async with first.net.ask(second.peer_id, request()) as deltas:
            for _ in range(100):
                await anext(deltas)
            autojump_clock.jump(60)  # as a machine that was suspended
            for _ in range(100):
                await anext(deltas)
        assert not first.health
        assert not second.health


async def test_hint_makes_others_ask_at_once(autojump_clock: Clock) -> None:
    town = Town()
    third = town.mesh.node()
    async with town.open() as (first, second, machine), AsyncExitStack() as stack:
        await enter(stack, third, transport=town.wire.transport(), seeds=first.seeds())
        await until(lambda: third.came)
        await third.net.connect(second.peer_id, second.net.addresses())
        await trio.sleep(20)
        town.wire.freeze(machine)
        await text_that_fails(third, second)
        start = trio.current_time()
        await until(lambda: second.peer_id in first.suspects, seconds=3)
        assert trio.current_time() - start <= 3


async def text_that_fails(node: Node, peer: Node) -> None:
    with pytest.raises(Unavailable):
        await text_of(node, peer.peer_id)


async def test_false_hint_is_not_believed(autojump_clock: Clock) -> None:
    town = Town()
    third = town.mesh.node()
    async with town.open() as (first, second, _), AsyncExitStack() as stack:
        await enter(stack, third, transport=town.wire.transport(), seeds=first.seeds())
        await until(lambda: third.came)
        async with third.net._protocols.open(first.peer_id, health.PROTOCOL) as stream:
            for _ in range(20):
                await stream.tell(Down(peer=second.peer_id))
                await trio.sleep(1)
        assert not first.health


async def drain(stream: Stream) -> None:
    while True:
        await stream.receive()


async def test_flood_of_pings_ends_its_stream(autojump_clock: Clock) -> None:
    town = Town()
    async with town.open() as (first, second, _):
        stream = await second.net._protocols.connect(first.peer_id, health.PROTOCOL)
        for number in range(10 * PINGS_TAKEN):
            await stream.tell(Ping(number=number))
        with pytest.raises(Unavailable):
            await drain(stream)
        (entry,) = first.events("bad_peer")
        assert "pings and hints" in entry.message
        assert not first.net._pulse._streams


async def test_peer_keeps_few_streams(autojump_clock: Clock) -> None:
    town = Town()
    async with town.open() as (first, second, _), AsyncExitStack() as stack:
        for _ in range(2 * health.MAX_STREAMS):
            opening = second.net._protocols.open(first.peer_id, health.PROTOCOL)
            await stack.enter_async_context(opening)
        await trio.sleep(1)
        assert first.net._pulse._streams[second.peer_id] <= health.MAX_STREAMS


async def test_pong_that_nobody_asked_for_is_an_offence(autojump_clock: Clock) -> None:
    async def lie(stream: Stream, member: Member) -> None:
        while True:
            await stream.hear(Ping)
            await stream.tell(Pong(number=77))

    town = Town()
    async with town.open() as (first, second, _):
        second.net._protocols.serve(health.PROTOCOL, lie)
        with pytest.raises(Unavailable):
            await first.net.check(second.peer_id)
        assert "nobody sent" in first.events("bad_peer")[0].message
        assert second.peer_id in first.suspects


async def test_stream_that_fails_alone_is_opened_again(autojump_clock: Clock) -> None:
    town = Town()
    async with town.open() as (first, second, _):
        await text_of(first, second.peer_id)
        await trio.sleep(5)
        line = first.net._pulse._lines[second.peer_id]
        line.cut()
        await trio.sleep(5)
        assert first.net._pulse._lines[second.peer_id] is not line
        assert not first.health


async def test_peer_that_resets_every_stream_is_suspect(autojump_clock: Clock) -> None:
    opened_streams = 0

    async def reset(stream: Stream, member: Member) -> None:
        nonlocal opened_streams
        opened_streams += 1
        raise RemoteError("no")

    town = Town()
    async with town.open() as (first, second, _):
        second.net._protocols.serve(health.PROTOCOL, reset)
        await text_of(first, second.peer_id)
        await trio.sleep(60)
        assert second.peer_id in first.suspects
        assert opened_streams < 40


async def test_oldest_stream_makes_room(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "MAX_LINES", 1)
    town = Town()
    third = town.mesh.node()
    async with town.open() as (first, second, _), AsyncExitStack() as stack:
        await enter(stack, third, transport=town.wire.transport(), seeds=first.seeds())
        await until(lambda: len(first.came) == 2)
        await trio.sleep(60)
        assert len(first.net._pulse._lines) == 1
        assert not first.health
        assert not second.health


async def test_client_is_pinged_and_never_looked_for(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, client = mesh.node(), mesh.node(role="client")
    async with opened(first, transport=wire.transport()):
        async with opened(client, transport=wire.transport(), seeds=first.seeds()):
            await until(lambda: first.came and client.came)
            await client.net.check(first.peer_id)
            await trio.sleep(20)
            assert first.net.rtt(client.peer_id) is not None
        await until(lambda: first.gone)
        await trio.sleep(10)
        assert not first.suspects
