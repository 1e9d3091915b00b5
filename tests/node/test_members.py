"""What a node announces, and what it makes of others' announcements."""

from collections.abc import Sequence
from functools import partial

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trio.testing import MockClock

from p2p_mesh.core.inventory import HEARTBEAT, Inventory, lifetime, read
from p2p_mesh.core.invite import (
    Credential,
    Invite,
    Member,
    found,
    make_invite,
    read_token,
    redeemed,
)
from p2p_mesh.core.names import ModelId, PeerId, peer_id
from p2p_mesh.core.records import (
    DetokenizeQuery,
    Held,
    InferenceRequest,
    ModelLoad,
    Query,
    Reply,
    Resources,
    ServedModel,
    Text,
    TextPrompt,
)
from p2p_mesh.core.revocation import NOTHING, revoke_peer, seal_revocation
from p2p_mesh.core.signature import Signed, public_bytes
from p2p_mesh.errors import Refused, RemoteError, Unavailable
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.node import members as module
from p2p_mesh.node.members import Announcer, Members, announce

MESH_KEY = Ed25519PrivateKey.from_private_bytes(b"m" * 32)
MESH = public_bytes(MESH_KEY)
KEY = Ed25519PrivateKey.from_private_bytes(b"n" * 32)
CREDENTIAL = found(MESH_KEY, public_bytes(KEY))
PEER = peer_id(public_bytes(KEY))
RESOURCES = Resources(memory_total=2, memory_free=1, threads=1)
TINY = ServedModel(id=ModelId("tiny"), context=8, slots=1)
LOAD = ModelLoad(model=ModelId("tiny"), slots=1)
NOW = 1000.0


def announcer() -> Announcer:
    return Announcer(KEY, CREDENTIAL, name="alice", boot=900.0)


class Case:
    def __init__(self) -> None:
        self.said: list[Entry] = []
        self.changes = 0
        self.now = NOW
        self.inventory = Inventory()
        self.known: list[tuple[PeerId, Sequence[str]]] = []
        self.loads: list[tuple[PeerId, Sequence[ModelLoad]]] = []
        self.forgotten: list[PeerId] = []
        self.members = Members(
            self.inventory, mesh_key=MESH, journal=Journal(self.said.append),
            clock=lambda: self.now, answer=_no_answer, look=_look, load=lambda: (LOAD,),
            heard_load=lambda peer, loads: self.loads.append((peer, loads)),
            forget=self.forgotten.append, changed=self._change,
        )  # fmt: skip
        self.members.know = lambda peer, addresses: self.known.append((peer, addresses))

    def _change(self) -> None:
        self.changes += 1


def _no_answer(request: InferenceRequest, asker: PeerId) -> module.Answer:
    raise NotImplementedError(request.id, asker)


async def _look(query: Query, asker: PeerId) -> Reply:
    return Text(text=f"{query.model} for {asker}")


async def test_query_of_a_peer_is_passed_on() -> None:
    query = DetokenizeQuery(model=ModelId("tiny"), tokens=(1,))
    asker = Member(PEER, "member", None)
    assert await Case().members.look(query, asker) == Text(text=f"tiny for {PEER}")


def test_model_files_are_announced() -> None:
    held = Held(id=ModelId("large"), size_bytes=9, loading=True)
    envelope = announcer().make([], RESOURCES, [], NOW, held=[held])
    assert read(envelope, MESH, NOW).announcement.held == (held,)


def test_backends_are_announced() -> None:
    names = [f"b{number}" for number in range(40)]
    envelope = announcer().make([], RESOURCES, [], NOW, backends=names)
    assert read(envelope, MESH, NOW).announcement.backends == tuple(names[:32])


def test_node_that_serves_nothing_says_so() -> None:
    envelope = announcer().make([], RESOURCES, [], NOW, role="client")
    assert read(envelope, MESH, NOW).announcement.role == "client"


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


def test_author_that_never_stops_is_heard_now_and_then() -> None:
    case, mine = Case(), announcer()
    taken = 0
    for _ in range(100):
        case.now += 0.1
        envelope = mine.make([], RESOURCES, [], NOW)
        goes_on = case.members.heard(envelope)
        assert case.members.holds(envelope) == goes_on
        taken += goes_on
    assert taken <= module.BURST + 10 / (module.GAP / 2)
    case.now += module.REFILL
    assert case.members.heard(mine.make([], RESOURCES, [], NOW))


def test_repetition_is_no_haste() -> None:
    case, mine = Case(), announcer()
    first, second = (mine.make([], RESOURCES, [], NOW) for _ in range(2))
    case.members.heard(second)
    assert all(case.members.heard(one) for one in [first, second] * 50)


def test_author_that_lapsed_is_paced_no_more() -> None:
    case = Case()
    case.members.heard(announcer().make([TINY], RESOURCES, [], NOW))
    case.now += lifetime(1)
    case.members.expire()
    assert not case.members._paces


def test_few_models_of_one_announcement_are_told_of() -> None:
    case = Case()
    many = [ServedModel(id=ModelId(f"m{n}"), context=8, slots=1) for n in range(100)]
    case.members.heard(announcer().make(many, RESOURCES, [], NOW))
    assert len(case.said) == module.MAX_NOTED


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
    case.members.suspected(PEER, "it was killed")
    assert case.inventory.is_suspect(PEER)
    case.members.joined(Member(PEER, "member", None))
    assert not case.inventory.is_suspect(PEER)


def test_suspect_is_trusted_when_it_answers_again() -> None:
    case = Case()
    case.members.heard(announcer().make([TINY], RESOURCES, [], NOW))
    case.members.suspected(PEER, "it does not answer")
    assert case.inventory.is_suspect(PEER)
    case.members.revived(PEER)
    assert not case.inventory.is_suspect(PEER)
    assert [entry.event for entry in case.said[-2:]] == ["peer_suspected", "peer_revived"]
    assert case.said[-2].fields["reason"] == "it does not answer"


def test_load_is_passed_on_both_ways() -> None:
    case = Case()
    assert case.members.load() == (LOAD,)
    case.members.heard_load(PEER, (LOAD,))
    assert case.loads == []  # it announces nothing, so nothing is asked of it
    case.members.heard(announcer().make([TINY], RESOURCES, [], NOW))
    case.members.heard_load(PEER, (LOAD,))
    assert case.loads == [(PEER, (LOAD,))]


def test_node_that_started_again_remembers_nothing() -> None:
    case = Case()
    first = announcer()
    for mine in (first, first, Announcer(KEY, CREDENTIAL, name="alice", boot=950.0)):
        assert case.forgotten == []
        case.members.heard(mine.make([TINY], RESOURCES, [], NOW))
    assert case.forgotten == [PEER]


def test_what_was_heard_is_held() -> None:
    case = Case()
    envelope = announcer().make([TINY], RESOURCES, [], NOW)
    assert not case.members.holds(envelope)
    case.members.heard(envelope)
    assert case.members.holds(envelope)


def test_announcement_holds_longer_in_a_large_mesh() -> None:
    envelope = announcer().make([TINY], RESOURCES, [], NOW, members=600)
    assert read(envelope, MESH, NOW).announcement.lifetime == lifetime(600)


def test_new_announcement_lifts_a_suspicion_but_not_of_silence() -> None:
    case, mine = Case(), announcer()
    case.members.heard(mine.make([TINY], RESOURCES, [], NOW))
    case.inventory.suspect(PEER)
    case.members.heard(mine.make([TINY], RESOURCES, [], NOW))
    assert not case.inventory.is_suspect(PEER)
    case.members.suspected(PEER, "it does not answer")
    case.members.heard(mine.make([TINY], RESOURCES, [], NOW))
    assert case.inventory.is_suspect(PEER)


def test_revoked_member_is_forgotten_and_refused() -> None:
    case, told = Case(), list[Signed]()
    case.members.told = told.append
    envelope = announcer().make([TINY], RESOURCES, ["/ip4/10.0.0.1/tcp/1"], NOW)
    case.members.heard(envelope)
    revoked = revoke_peer(NOTHING, public_bytes(KEY), None, [])
    signed = seal_revocation(revoked, MESH_KEY)
    case.members.revoked(signed, revoked)
    assert case.inventory.get(PEER) is None
    assert case.forgotten[-1:] == [PEER]
    assert case.known[-1] == (PEER, ())
    assert told == [signed]
    with pytest.raises(Refused, match="was revoked"):
        case.members.heard(envelope)


def test_node_that_is_out_forgets_all_others() -> None:
    case = Case()
    case.members.heard(announcer().make([TINY], RESOURCES, ["/ip4/10.0.0.1/tcp/1"], NOW))
    case.members.is_out = lambda: True
    revoked = revoke_peer(NOTHING, b"x" * 32, None, [])
    case.members.revoked(seal_revocation(revoked, MESH_KEY), revoked)
    assert case.inventory.offers() == ()


async def test_newcomer_is_let_in_once_the_node_can() -> None:
    case = Case()
    invite = read_token(make_invite(MESH_KEY, b"i" * 32, name="home", uses=1)).invite
    with pytest.raises(Unavailable, match="still starting"):
        await case.members.redeem(invite, b"g" * 32)

    async def give(invite: Invite, peer: bytes) -> Credential:
        return redeemed(MESH_KEY, invite, peer)

    case.members.redeems = give
    assert await case.members.redeem(invite, b"g" * 32) == redeemed(MESH_KEY, invite, b"g" * 32)


def test_silent_members_lapse() -> None:
    case = Case()
    case.members.heard(announcer().make([TINY], RESOURCES, [], NOW))
    case.now += lifetime(1)
    case.members.expire()
    assert case.members.snapshot() == []
    assert case.known[-1] == (PEER, ())  # and nobody expects it any more
    assert case.forgotten == [PEER]
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

    rhythm = partial(announce, pause=lambda: HEARTBEAT, journal=Journal(entries.append))
    async with trio.open_nursery() as nursery:
        start = trio.current_time()
        nursery.start_soon(rhythm, publish, lambda: b"envelope", lambda: changed)
        await trio.sleep(5)
        changed.set()
        changed = trio.Event()
        await trio.sleep(30)
        nursery.cancel_scope.cancel()
    first, at_change, at_heartbeat = sent
    assert first == 0
    assert at_change == pytest.approx(5 + module.SETTLE)
    assert at_heartbeat == pytest.approx(5 + module.SETTLE + HEARTBEAT)
    assert [entry.event for entry in entries] == ["announce_failed"]


async def test_what_flaps_is_not_told_each_time(autojump_clock: MockClock) -> None:
    sent: list[float] = []
    changed = trio.Event()

    async def publish(envelope: bytes) -> None:
        sent.append(trio.current_time())

    rhythm = partial(announce, pause=lambda: HEARTBEAT, journal=Journal(lambda entry: None))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rhythm, publish, lambda: b"envelope", lambda: changed)
        for _ in range(100):
            await trio.sleep(0.1)
            changed.set()
            changed = trio.Event()
        nursery.cancel_scope.cancel()
    assert len(sent) <= 1 + 10 / module.GAP
