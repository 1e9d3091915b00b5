"""A mesh of one size, for minutes: what reaches a node, how large it is, and what CPU it takes.

Every announcement and report is really made, and really read, once. A few nodes, drawn by chance,
are whole: they fold all of them, in the order in which they come, and watch their neighbours. To
check the signatures at every node would take days, so that is counted: so many messages, times what
one took.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from simulation.graph import Graph, arrivals, make_graph
from simulation.people import MODELS, START, Mesh, Person, each

from p2p_mesh.core import demand
from p2p_mesh.core.demand import Demand, Reporter, Tally
from p2p_mesh.core.health import TICK, Health, Ping, Pong, Probe
from p2p_mesh.core.inventory import Inventory, Offer, heartbeat, lifetime, pause, read
from p2p_mesh.core.invite import unseal
from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.records import ModelLoad
from p2p_mesh.core.wire import encode

WHOLE = 12
"""Nodes that are simulated whole."""

CHANGES = 0.02
"""Changes of what a node offers, a minute: one in fifty."""

ASKING = 0.1
"""Of the nodes have clients, who ask now and then."""

REPORTING = 100
"""Of those, so many are simulated."""

LISTENED = 600.0
"""Seconds of reports that are counted."""

USED = 3
"""Neighbours that a node uses at a time."""

SAMPLES = 200
"""Messages by which the cost of reading one is measured."""

EXPIRY = 5.0
"""Seconds between two looks for what has lapsed (node/members.py)."""

GOSSIP_COPY = 250
"""Bytes that GossipSub adds to each copy: two ids, key, signature, topic."""

HOP = 0.006
"""Seconds that libp2p takes over a message before it is passed on."""

FRAME = 60
"""Bytes of Yamux, Noise and TCP around a frame."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What reaches a node in a minute."""

    messages: float
    """Different ones."""
    copies: float
    """Frames, with all copies."""
    bytes: float
    cpu: float
    """Seconds, in `core`."""


@dataclass(frozen=True, slots=True)
class Report:
    nodes: int
    announcements: Traffic
    reports: Traffic
    pings: Traffic
    agree: float
    """Seconds from a change until the last node has it."""
    is_agreed: bool
    """Whether all that were simulated whole believe the same in the end."""
    lapse: float
    """Seconds after which a node that is gone is forgotten."""
    snapshot: float
    """Bytes that a newcomer is sent,"""
    snapshot_cpu: float
    """and seconds that it takes to read."""
    took: float

    @property
    def total(self) -> Traffic:
        parts = self.announcements, self.reports, self.pings
        return Traffic(
            sum(one.messages for one in parts),
            sum(one.copies for one in parts),
            sum(one.bytes for one in parts),
            sum(one.cpu for one in parts),
        )


def simulate(size: int, seed: int = 1) -> Report:
    start = time.monotonic()
    random = Random(f"{seed} {size}")
    mesh = Mesh(random)
    people = mesh.people(size)
    graph = make_graph(random, size)
    whole = random.sample(range(size), min(WHOLE, size))
    reach = [arrivals(graph.meshes, one, HOP) for one in whole]
    announcements, first, is_agreed = _announce(mesh, people, graph, reach, random)
    return Report(
        nodes=size,
        announcements=announcements,
        reports=_demand(mesh, people, graph, random),
        pings=_watch(graph, people, whole, random),
        agree=max(map(max, reach)),
        is_agreed=is_agreed,
        lapse=lifetime(size),
        snapshot=sum(len(offer.envelope) + FRAME for offer in first),
        snapshot_cpu=size * _reading(mesh, first),
        took=time.monotonic() - start,
    )


def _announce(
    mesh: Mesh, people: Sequence[Person], graph: Graph, reach: Sequence[list[float]], random: Random
) -> tuple[Traffic, list[Offer], bool]:
    """One period of the heartbeat, after everybody knew everybody."""
    size, period = len(people), heartbeat(len(people))
    first = [read(one.announce(size, START), mesh.public, START) for one in people]
    inventories = [Inventory() for _ in reach]
    for inventory in inventories:
        for offer in first:
            inventory.apply(offer)
    said = [
        (at, author, read(people[author].announce(size, at), mesh.public, at))
        for at, author in _moments(size, period, random)
    ]
    start = time.process_time()
    for inventory, delays in zip(inventories, reach, strict=True):
        coming = sorted((at + delays[author], author, offer) for at, author, offer in said)
        for _, _, offer in coming:
            inventory.apply(offer)
    folding = (time.process_time() - start) / len(inventories) / (period / 60)
    looking = each([partial(inventories[0].expire, START + period)] * 5) * 60 / EXPIRY
    minute = len(said) / (period / 60)
    own = 60 / period * each([partial(one.announce, size, START) for one in people[:SAMPLES]])
    size_of_one = sum(len(offer.envelope) for *_, offer in said) / len(said)
    traffic = Traffic(
        minute,
        minute * graph.copies,
        minute * graph.copies * (size_of_one + GOSSIP_COPY + FRAME),
        minute * _reading(mesh, first) + folding + looking + own,
    )
    is_agreed = all(one.offers() == inventories[0].offers() for one in inventories)
    return traffic, first, is_agreed


def _moments(size: int, period: float, random: Random) -> list[tuple[float, int]]:
    """Who announces itself when: at its heartbeat, and where it changes."""
    found = []
    for author in range(size):
        at = random.random() * pause(size, random)
        while at < period:
            found.append((START + at, author))
            at += min(pause(size, random), random.expovariate(CHANGES / 60))
    return sorted(found)


def _reading(mesh: Mesh, offers: Sequence[Offer]) -> float:
    """CPU seconds to check and read one announcement."""
    some = [offer.envelope for offer in offers[:SAMPLES]]
    return each([partial(read, one, mesh.public, START) for one in some])


def _demand(mesh: Mesh, people: Sequence[Person], graph: Graph, random: Random) -> Traffic:
    """The reports of those who have clients; of many, some are simulated, and count for all."""
    asking = max(1, round(ASKING * len(people)))
    some = random.sample(people, min(asking, REPORTING))
    said = [
        (at, author, author.report(report))
        for author in some
        for at, report in _reports(random, asking)
    ]
    minute = len(said) * asking / len(some) / (LISTENED / 60)
    sample = [(at, envelope) for at, _, envelope in said[:SAMPLES]]
    checking = each([partial(_heard, envelope, mesh.public, at) for at, envelope in sample])
    folded = Demand()
    heards = [demand.read(author.peer, _payload(envelope, mesh.public, at), at)
              for at, author, envelope in said]  # fmt: skip
    folding = each([partial(folded.apply, heard) for heard in heards])
    summing = each([partial(folded.totals, said[-1][0])] * 5) * asking / len(some) * 60 / EXPIRY
    size_of_one = sum(len(envelope) for *_, envelope in said) / len(said)
    return Traffic(
        minute,
        minute * graph.copies,
        minute * graph.copies * (size_of_one + GOSSIP_COPY + FRAME),
        minute * (checking + folding) + summing,
    )


def _reports(random: Random, asking: int) -> list[tuple[float, demand.DemandReport]]:
    """What a node reports, once it has for a while, whose clients ask a few times a minute."""
    tally, reporter, model = Tally(), Reporter(START), ModelId(random.choice(MODELS))
    reporter.adapt(asking)
    rate = random.choice((1, 4, 20)) / 60
    begun = START - random.random() * LISTENED
    found, asked = [], begun + random.expovariate(rate)
    for second in range(int(2 * LISTENED)):
        now = begun + second + random.random()
        while asked <= now:
            tally.count(model, asked)
            asked += random.expovariate(rate)
        report = reporter.next(tally.rates(now), (), now)
        if report is not None and START <= now < START + LISTENED:
            found.append((now, report))
    return found


def _payload(envelope: bytes, mesh: bytes, now: float) -> bytes:
    return unseal(demand.TOPIC, envelope, mesh, now)[1]


def _heard(envelope: bytes, mesh: bytes, now: float) -> None:
    author, payload = unseal(demand.TOPIC, envelope, mesh, now)
    demand.read(author.peer, payload, now)


def _watch(graph: Graph, people: Sequence[Person], whole: Sequence[int], random: Random) -> Traffic:
    """A minute of pings between a node, its neighbours, and those of them that it uses."""
    ping = len(encode(Ping(number=1 << 20))) + FRAME
    load = ModelLoad(model=MODELS[0], slots=8, active=3, prefill=900.0, first=0.2, whole=9.5)
    pong = len(encode(Pong(number=1 << 20, load=(load,)))) + FRAME
    start = time.process_time()
    sent = sum(
        _pings({people[other].peer: delay for other, delay in graph.connections[one].items()},
               random) for one in whole)  # fmt: skip
    cpu = (time.process_time() - start) / len(whole)
    each_node = sent / len(whole)
    # What a node sends, others receive: it hears as many pings as it sends, and a pong for each.
    return Traffic(2 * each_node, 2 * each_node, each_node * (ping + pong), cpu)


def _pings(neighbours: dict[PeerId, float], random: Random) -> int:
    health, count = Health(random), 0
    for peer in neighbours:
        health.met(peer, 0.0)
    for peer in random.sample(sorted(neighbours), min(USED, len(neighbours))):
        health.begun(peer, 0.0)
    for tick in range(math.ceil(60 / TICK)):
        now = tick * TICK
        for action in health.tick(now):
            if isinstance(action, Probe):
                count += 1
                delay = neighbours[action.peer]
                health.ponged(action.peer, 2 * delay, now + 2 * delay)
    return count
