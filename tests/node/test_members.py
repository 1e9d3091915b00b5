"""What a node announces, and what it makes of others' announcements."""

from collections.abc import Sequence

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trio.testing import MockClock

from p2p_mesh.core.inventory import Inventory, read
from p2p_mesh.core.invite import Member, found, public_bytes
from p2p_mesh.core.names import ModelId, PeerId, peer_id
from p2p_mesh.core.records import (
    DetokenizeQuery,
    InferenceRequest,
    Query,
    Reply,
    Resources,
    ServedModel,
    Text,
    TextPrompt,
)
from p2p_mesh.errors import RemoteError
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.node import members as module
from p2p_mesh.node.members import Announcer, Members, announce

MESH_KEY = Ed25519PrivateKey.from_private_bytes(b"m" * 32)
MESH = public_bytes(MESH_KEY)
KEY = Ed25519PrivateKey.from_private_bytes(b"n" * 32)
PEER = peer_id(public_bytes(KEY))
RESOURCES = Resources(memory_total=2, memory_free=1, threads=1)
TINY = ServedModel(id=ModelId("tiny"), context=8, slots=1)
NOW = 1000.0


def announcer() -> Announcer:
    return Announcer(KEY, found(MESH_KEY, public_bytes(KEY)), name="alice", boot=900.0)


class Case:
    def __init__(self) -> None:
        self.said: list[Entry] = []
        self.changes = 0
        self.now = NOW
        self.inventory = Inventory()
        self.known: list[tuple[PeerId, Sequence[str]]] = []
        self.members = Members(
            self.inventory, mesh_key=MESH, journal=Journal(self.said.append),
            clock=lambda: self.now, answer=_no_answer, look=_look, changed=self._change,
        )  # fmt: skip
        self.members.know = lambda peer, addresses: self.known.append((peer, addresses))

    def _change(self) -> None:
        self.changes += 1


def _no_answer(request: InferenceRequest) -> module.Answer:
    raise NotImplementedError(request.id)


async def _look(query: Query) -> Reply:
    return Text(text=query.model)


async def test_query_of_a_peer_is_passed_on() -> None:
    query = DetokenizeQuery(model=ModelId("tiny"), tokens=(1,))
    asker = Member(PEER, "member", None)
    assert await Case().members.look(query, asker) == Text(text="tiny")


def test_each_announcement_is_newer_than_the_last() -> None:
    mine = announcer()
    first, second = (mine.make([TINY], RESOURCES, ["/ip4/1.2.3.4/tcp/1"], NOW) for _ in range(2))
    offers = [read(one, MESH, NOW).announcement for one in (first, second)]
    assert [one.sequence for one in offers] == [(900_000, 1), (900_000, 2)]
    assert offers[0].models == (TINY,)


def test_news_is_folded_in_and_told() -> None:
    case = Case()
    envelope = announcer().make([TINY], RESOURCES, ["/ip4/1.2.3.4/tcp/1"], NOW)
    assert case.members.heard(envelope)
    assert case.members.heard(envelope)
    assert [entry.event for entry in case.said] == ["model_offered"]
    assert case.known == [(PEER, ("/ip4/1.2.3.4/tcp/1",))]
    assert case.members.snapshot() == [envelope]
    assert case.changes == 1


def test_model_is_told_of_once() -> None:
    case, mine = Case(), announcer()
    for _ in range(3):
        case.members.heard(mine.make([TINY], RESOURCES, [], NOW))
    assert len(case.said) == 1


def test_own_announcement_is_no_news() -> None:
    case = Case()
    case.members.keep(announcer().make([TINY], RESOURCES, [], NOW))
    assert case.said == []
    assert len(case.members.snapshot()) == 1


def test_nonsense_is_refused() -> None:
    with pytest.raises(RemoteError):
        Case().members.heard(b"nonsense")


def test_peers_come_and_go() -> None:
    case = Case()
    case.members.heard(announcer().make([TINY], RESOURCES, [], NOW))
    case.members.joined(Member(PEER, "member", None))
    assert PEER in case.members.connected
    case.members.left(PEER, "it was killed")
    assert case.members.connected == {}
    assert case.inventory.is_suspect(PEER)
    case.members.joined(Member(PEER, "member", None))
    assert not case.inventory.is_suspect(PEER)


def test_new_announcement_lifts_the_suspicion() -> None:
    case, mine = Case(), announcer()
    case.members.heard(mine.make([TINY], RESOURCES, [], NOW))
    case.members.left(PEER, "it was killed")
    case.members.heard(mine.make([TINY], RESOURCES, [], NOW))
    assert not case.inventory.is_suspect(PEER)


def test_silent_members_lapse() -> None:
    case = Case()
    case.members.heard(announcer().make([TINY], RESOURCES, [], NOW))
    case.now += module.LIFETIME
    case.members.expire()
    assert case.members.snapshot() == []
    assert case.known[-1] == (PEER, ())  # and nobody dials it any more
    assert case.said[-1].event == "member_lapsed"


def test_peers_request_goes_to_this_nodes_own_models() -> None:
    request = InferenceRequest(id="r", model=ModelId("m"), prompt=TextPrompt(text="x"))  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="r"):
        Case().members.answer(request, Member(PEER, "member", None))


async def test_announces_at_changes_and_at_the_heartbeat(autojump_clock: MockClock) -> None:
    sent: list[float] = []
    changed = trio.Event()
    entries: list[Entry] = []

    async def publish(envelope: bytes) -> None:
        sent.append(trio.current_time() - start)
        if len(sent) == 2:
            raise RemoteError("nobody listens")

    async with trio.open_nursery() as nursery:
        start = trio.current_time()
        nursery.start_soon(
            announce, publish, lambda: b"envelope", lambda: changed, Journal(entries.append)
        )
        await trio.sleep(5)
        changed.set()
        changed = trio.Event()
        await trio.sleep(30)
        nursery.cancel_scope.cancel()
    first, at_change, at_heartbeat = sent
    assert first == 0
    assert at_change == pytest.approx(5 + module.SETTLE)
    assert at_heartbeat == pytest.approx(5 + module.SETTLE + module.HEARTBEAT)
    assert [entry.event for entry in entries] == ["announce_failed"]
