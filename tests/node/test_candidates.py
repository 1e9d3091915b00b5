"""What a node knows of the others decides whom it asks: busyness, distance, what was read there."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from p2p_mesh.core.inventory import Inventory, Offer
from p2p_mesh.core.load import FRESH
from p2p_mesh.core.names import Digest, ModelId, PeerId, RequestId
from p2p_mesh.core.records import (
    Announcement,
    EmbedQuery,
    InferenceRequest,
    ModelLoad,
    Resources,
    ServedModel,
    Shard,
    TextPrompt,
    TokenizeQuery,
)
from p2p_mesh.core.routing import Candidate
from p2p_mesh.node.candidates import Candidates

M = ModelId("m")
A, B = PeerId("a"), PeerId("b")
MODEL = ServedModel(id=M, digest=Digest("1" * 64), context=4096, slots=2, numerics="exact")
ASKED = InferenceRequest(id=RequestId("r"), model=M, prompt=TextPrompt(text="word " * 2000))

NOTHING: Mapping[PeerId, ServedModel] = {}


def known(
    *peers: PeerId, here: Any = None, serves: Mapping[PeerId, ServedModel] = NOTHING
) -> Candidates:
    inventory = Inventory()
    for peer in (*peers, *serves):
        announcement = Announcement(
            sequence=(1, 1), issued_at=0, lifetime=60, name=peer, version="1",
            resources=Resources(memory_total=1, memory_free=1, threads=1),
            models=(serves.get(peer, MODEL),),
        )  # fmt: skip
        inventory.apply(Offer(peer, announcement, b"", 60.0))
    candidates = Candidates({"m": here} if here else {}, inventory, lambda: 7.0)
    candidates.is_joining = False
    return candidates


def hosted(state: str = "ready") -> Any:
    return SimpleNamespace(
        id=M, state=state, active=1, queued=2, served=lambda: MODEL if state == "ready" else None,
        load_now=lambda: ModelLoad(model=M, slots=2, prefill=100.0),
    )  # fmt: skip


def order(candidates: Candidates, asked: InferenceRequest = ASKED) -> list[PeerId | None]:
    return [one.peer for one in candidates.of(asked, asked.id)]


async def test_a_peer_that_is_full_comes_after_one_that_is_free() -> None:
    candidates = known(A, B)
    candidates.heard_load(A, [ModelLoad(model=M, slots=2, active=2, queued=9, whole=10.0)])
    candidates.heard_load(B, [ModelLoad(model=M, slots=2, whole=10.0)])
    assert order(candidates) == [B, A]


async def test_a_full_house_is_forgotten_after_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    candidates = known(A)
    candidates.heard_load(A, [ModelLoad(model=M, slots=2, active=2, prefill=50.0)])
    await trio.sleep(FRESH + 1)
    (one,) = candidates.of(ASKED, ASKED.id)
    assert (one.busy, one.prefill) == (0, 50.0)


async def test_our_own_requests_are_counted_once() -> None:
    candidates = known(A)
    with candidates.counted(A, M), candidates.counted(A, ModelId("other")):
        candidates.heard_load(A, [ModelLoad(model=M, slots=2, active=2)])
        (one,) = candidates.of(ASKED, ASKED.id)
        assert (one.active, one.busy, one.counted, one.ahead) == (1, 2, 1, 2)
    (one,) = candidates.of(ASKED, ASKED.id)
    assert one.active == 0


async def test_this_node_is_known_by_its_own_slots() -> None:
    (one,) = known(here=hosted()).of(ASKED, ASKED.id)
    assert (one.peer, one.active, one.prefill, one.rtt) == (None, 3, 100.0, 0.0)


async def test_a_conversation_stays_where_it_was_read() -> None:
    candidates = known(A, B)
    first, second = candidates.of(ASKED, ASKED.id)
    candidates.has_read(second, ASKED)
    assert order(candidates) == [second.peer, first.peer]
    assert second.peer is not None
    candidates.forget(second.peer)
    assert order(candidates) == [first.peer, second.peer]


async def test_a_far_peer_comes_after_a_near_one() -> None:
    candidates = known(A, B)
    candidates.rtt = {A: 0.4, B: 0.001}.get
    assert order(candidates) == [B, A]


BROKEN = Candidate(A, M, slots=2, digest=MODEL.digest, numerics="exact")


async def test_who_failed_goes_on_only_where_nobody_else_does() -> None:
    both, alone = known(A, B), known(A)
    assert [one.peer for one in both.resumers(ASKED, BROKEN, {A})] == [B]
    assert [one.peer for one in both.resumers(ASKED, BROKEN, {A, B})] != []
    assert [one.peer for one in alone.resumers(ASKED, BROKEN, {A})] == [A]


async def test_nobody_goes_on_with_a_model_that_is_gone() -> None:
    assert known().resumers(ASKED, BROKEN, {A}) == ()


async def test_a_file_without_a_digest_goes_on_only_where_it_was() -> None:
    nameless = msgspec.structs.replace(MODEL, digest=None)
    here = hosted()
    here.served = lambda: nameless
    candidates = known(here=here)
    broken = Candidate(None, M, slots=2)
    assert [one.peer for one in candidates.resumers(ASKED, broken, {None})] == [None]


@pytest.mark.parametrize(("state", "is_loading"), [("loading", True), ("ready", False)])
def test_model_that_loads_here_will_be_there_soon(state: str, is_loading: bool) -> None:
    assert known(here=hosted(state)).is_loading(M) is is_loading
    assert not known().is_loading(M)


def shard(digest: str, mass: float = 0.9) -> ServedModel:
    part = Shard(model=Digest("1" * 64), mass=mass)
    return msgspec.structs.replace(MODEL, digest=Digest(digest * 64), shard=part)


SHARDS = {A: shard("2", 0.93), B: shard("3", 0.91)}


def asks(conversation: int) -> InferenceRequest:
    prompt = TextPrompt(text=f"conversation {conversation}")
    return msgspec.structs.replace(ASKED, id=RequestId(str(conversation)), prompt=prompt)


async def test_model_in_shards_is_one_model_and_says_so() -> None:
    (card,) = known(serves=SHARDS).models()
    assert (card.id, card.digest, card.nodes) == (M, MODEL.digest, 2)
    assert (card.shards, card.routing_mass) == (2, 0.91)
    (card,) = known(PeerId("c"), serves=SHARDS).models()
    assert (card.digest, card.nodes, card.shards) == (MODEL.digest, 3, 2)
    (card,) = known(A).models()
    assert (card.shards, card.routing_mass) == (0, None)


async def test_conversation_has_the_same_home_whichever_node_is_asked() -> None:
    from_afar = known(serves=SHARDS)
    from_a = known(here=serving(SHARDS[A]), serves={B: SHARDS[B]})
    from_a.me = A
    homes = [order(from_afar, asks(n))[0] for n in range(20)]
    assert set(homes) == {A, B}
    assert homes == [order(from_a, asks(n))[0] or A for n in range(20)]


async def test_conversation_goes_by_the_name_that_its_client_gives_it() -> None:
    candidates = known(serves=SHARDS)
    homes = {candidates.of(asks(n), RequestId(str(n)), "mine")[0].peer for n in range(20)}
    assert len(homes) == 1


async def test_queries_to_a_model_in_shards_go_to_one_of_them() -> None:
    embeds = msgspec.structs.replace(SHARDS[A], capabilities=("embed",))
    candidates = known(serves={A: embeds, B: embeds})
    query = EmbedQuery(model=M, inputs=("x",))
    assert len({candidates.of(query, RequestId(str(n)))[0].peer for n in range(20)}) == 1


async def test_busy_home_is_passed_over_until_it_is_free() -> None:
    candidates = known(serves=SHARDS)
    home, other = order(candidates, asks(1))
    assert home is not None
    candidates.heard_load(home, [ModelLoad(model=M, slots=2, active=2, queued=2, whole=10.0)])
    assert order(candidates, asks(1)) == [other, home]
    candidates.heard_load(home, [ModelLoad(model=M, slots=2)])
    assert order(candidates, asks(1)) == [home, other]


async def test_whole_model_here_goes_before_shards_elsewhere() -> None:
    candidates = known(here=serving(MODEL), serves=SHARDS)
    assert {order(candidates, asks(n))[0] for n in range(20)} == {None}


async def test_shard_goes_on_for_another() -> None:
    candidates = known(serves=SHARDS)
    (broken,) = (one for one in candidates.of(ASKED, ASKED.id) if one.peer == A)
    assert [one.peer for one in candidates.resumers(ASKED, broken, {A})] == [B]
    with_whole = known(PeerId("c"), serves=SHARDS)
    found = with_whole.resumers(ASKED, broken, {A, B})
    assert [one.peer for one in found] == ["c"]


def serving(model: ServedModel) -> Any:
    here = hosted()
    here.active = here.queued = 0
    here.served = lambda: model
    return here


async def test_conversation_that_has_settled_nowhere_may_be_handed_over() -> None:
    candidates = known(serves=SHARDS)
    assert {one.weighs for one in candidates.of(asks(1), RequestId("1"))} == {True}
    whole_too = known(PeerId("c"), serves=SHARDS).of(asks(1), RequestId("1"))
    assert {one.peer for one in whole_too if one.weighs} == {A, B}
    alone = known(PeerId("c"), serves={A: SHARDS[A]}).of(asks(1), RequestId("1"))
    assert not any(one.weighs for one in alone)
    query = TokenizeQuery(model=M, prompt=TextPrompt(text="conversation 1"))
    queries = candidates.of(query, RequestId("1"))
    assert not any(one.weighs for one in queries)


async def test_conversation_stays_where_it_has_settled_whatever_the_hash_says() -> None:
    candidates = known(serves=SHARDS)
    home, other = candidates.of(asks(1), RequestId("1"))
    candidates.settle(asks(1), "", other)
    assert order(candidates, asks(1)) == [other.peer, home.peer]
    first, second = candidates.of(asks(1), RequestId("1"))
    assert (first.settled, first.weighs, second.settled, second.weighs) == (True, False) + (
        False,
    ) * 2
    candidates.settle(asks(1), "", second)
    assert order(candidates, asks(1)) == [other.peer, home.peer], "one that stands in is no home"
    assert candidates.of(asks(1), RequestId("1"), "mine")[0].weighs, "another conversation"


async def test_shard_that_is_named_is_asked_where_it_is_soon_enough() -> None:
    candidates = known(serves=SHARDS)
    giver, other = candidates.of(asks(1), RequestId("1"))
    for named in ("c", giver.peer or "", ""):
        assert candidates.handed(asks(1), "", giver, named) is None
    found = candidates.handed(asks(1), "", giver, other.peer or "")
    assert found is not None
    assert (found.peer, found.settled, found.weighs) == (other.peer, True, False)


async def test_shard_that_is_named_and_busy_is_not_waited_for() -> None:
    candidates = known(serves=SHARDS)
    giver, other = candidates.of(asks(1), RequestId("1"))
    assert other.peer is not None
    candidates.heard_load(other.peer, [ModelLoad(model=M, slots=2, active=2, queued=2, whole=9.0)])
    assert candidates.handed(asks(1), "", giver, other.peer) is None


async def test_nobody_is_asked_for_a_model_that_is_gone() -> None:
    (giver, _) = known(serves=SHARDS).of(asks(1), RequestId("1"))
    assert known().handed(asks(1), "", giver, "b") is None
