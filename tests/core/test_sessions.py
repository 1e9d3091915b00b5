"""A conversation stays with one shard as long as that costs little; the whole model goes first."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_mesh.core.names import Digest, ModelId, PeerId, RequestId
from p2p_mesh.core.records import (
    ChatPrompt,
    EmbedQuery,
    InferenceRequest,
    RerankQuery,
    Shard,
    TextPrompt,
    TokenPrompt,
)
from p2p_mesh.core.routing import Candidate
from p2p_mesh.core.routing import rank as rank_by_time
from p2p_mesh.core.sessions import (
    BEGINNING,
    DELAY,
    KEPT,
    LATE,
    LESS,
    MOST_SETTLED,
    Settled,
    rank,
    score,
    session,
)

M = ModelId("m")
R = RequestId("r")
WHOLE = Digest("1" * 64)
SYSTEM = {"role": "system", "content": "Be brief."}


def chat(*messages: dict[str, Any]) -> InferenceRequest:
    return InferenceRequest(id=R, model=M, prompt=ChatPrompt(messages=messages))


def text(said: str) -> InferenceRequest:
    return InferenceRequest(id=R, model=M, prompt=TextPrompt(text=said))


def says(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


HELLO = says("user", "hello")


def test_conversation_keeps_its_session_however_long_it_grows() -> None:
    grown = chat(SYSTEM, HELLO, says("assistant", "yes?"), says("user", "tell me more"))
    assert session(grown) == session(chat(SYSTEM, HELLO))


@pytest.mark.parametrize(
    "other",
    [
        chat(HELLO),
        chat(says("system", "Be long."), HELLO),
        chat(SYSTEM, says("user", "goodbye")),
        text("hello"),
    ],
)
def test_conversations_that_begin_otherwise_are_others(other: InferenceRequest) -> None:
    assert session(other) != session(chat(SYSTEM, HELLO))


def test_conversation_without_a_user_is_known_by_its_first_message() -> None:
    answer = says("assistant", "so be it")
    assert session(chat(SYSTEM, answer)) == session(chat(SYSTEM)) != session(chat(answer))


def test_order_of_a_messages_fields_says_nothing() -> None:
    turned = dict(reversed(HELLO.items()))
    assert session(chat(turned)) == session(chat(HELLO))


def test_text_is_known_by_its_beginning() -> None:
    long = "x" * BEGINNING
    assert session(text(long + "more")) == session(text(long)) != session(text(long[1:]))
    tokens = InferenceRequest(id=R, model=M, prompt=TokenPrompt(tokens=(1,) * (BEGINNING + 1)))
    fewer = InferenceRequest(id=R, model=M, prompt=TokenPrompt(tokens=(1,) * BEGINNING))
    assert session(tokens) == session(fewer)


def test_client_may_say_which_conversation_it_is() -> None:
    assert session(text("a"), "mine") == session(chat(HELLO), "mine") != session(text("a"))
    assert session(text("a"), "mine") != session(text("a"), "yours")


def test_queries_to_one_model_go_together() -> None:
    embed = EmbedQuery(model=M, inputs=("a",))
    assert session(embed) == session(RerankQuery(model=M, query="q", documents=("d",)))
    assert session(embed) != session(EmbedQuery(model=ModelId("n"), inputs=("a",)))


@given(st.text(), st.text())
def test_session_is_made_of_whatever_a_client_writes(content: str, name: str) -> None:
    assert len(session(chat({"role": "user", "content": content}), name)) == 16


def shard(name: str, conversation: str = "c", *, mass: float = 0.9, **more: Any) -> Candidate:
    place = score(session(text(conversation)), PeerId(name))
    part = Shard(model=WHOLE, mass=mass)
    more.setdefault("rtt", 0.01)
    return Candidate(PeerId(name), M, 2, shard=part, score=place, **more)


def whole(name: str, **more: Any) -> Candidate:
    more.setdefault("rtt", 0.01)
    return Candidate(PeerId(name), M, 2, digest=WHOLE, **more)


def peers(*candidates: Candidate, prompt_tokens: int = 0) -> str:
    ranked = rank(candidates, R, prompt_tokens)
    return "".join(one.peer for one in ranked if one.peer)


def home(*candidates: Candidate) -> str:
    return peers(*candidates)[0]


def test_session_has_one_home_whatever_the_request_is() -> None:
    nodes = [shard(name) for name in "abcd"]
    homes = {rank(nodes, RequestId(str(turn)))[0] for turn in range(50)}
    assert homes == {max(nodes, key=lambda one: one.score)}


def test_sessions_spread_over_the_shards() -> None:
    homes = Counter(home(*(shard(name, f"c{n}") for name in "abc")) for n in range(300))
    assert min(homes.values()) > 60


@given(st.integers(0, 1000), st.sampled_from("abcd"))
def test_node_that_goes_moves_only_its_own_sessions(conversation: int, gone: str) -> None:
    nodes = {name: shard(name, str(conversation)) for name in "abcd"}
    before = peers(*nodes.values())
    del nodes[gone]
    assert peers(*nodes.values()) == before.replace(gone, "")


def nodes_of(conversation: str = "c") -> list[Candidate]:
    """Three shards, the home first."""
    return list(rank([shard(name, conversation) for name in "abc"], R))


def test_busy_home_is_passed_over_for_the_next_and_comes_back() -> None:
    first, second, third = nodes_of()
    full = replace(first, active=2, whole=20.0)
    assert rank([full, second, third], R) == (second, third, full)
    assert rank([replace(first, active=1), second, third], R)[0].peer == first.peer


def test_little_load_moves_no_session() -> None:
    first, second, third = nodes_of()
    slower = replace(first, active=1, rtt=0.15)
    assert rank([second, slower, third], R)[0] == slower


def test_session_stays_where_its_long_prompt_was_read() -> None:
    first, second, third = nodes_of()
    reader = replace(second, cached=0.95)
    assert rank([first, reader, third], R, 4000)[0] == reader
    assert rank([first, reader, third], R, 40)[0] == first


def test_suspect_home_and_one_without_room_are_passed_over() -> None:
    first, second, third = nodes_of()
    away, small = replace(first, suspect=True), replace(second, context=100)
    assert rank([away, small, third], R, 1000) == (third, away, small)


def test_shard_of_much_more_mass_goes_first_unless_it_is_busy() -> None:
    first, second, third = nodes_of()
    rich = replace(third, shard=Shard(model=WHOLE, mass=0.9 + 1.5 * LESS))
    assert rank([first, second, rich], R) == (rich, first, second)
    full = replace(rich, active=2, whole=20.0)
    assert rank([first, second, full], R) == (first, second, full)


def test_little_more_mass_moves_no_session() -> None:
    first, second, third = nodes_of()
    richer = replace(third, shard=Shard(model=WHOLE, mass=0.9 + LESS / 2))
    assert rank([first, second, richer], R)[0] == first


def test_whole_model_goes_first_where_it_answers_about_as_soon() -> None:
    first, second, third = nodes_of()
    assert rank([first, second, third, whole("w", rtt=0.2)], R)[0].peer == "w"
    late = whole("w", rtt=2.0)
    assert rank([first, late, second, third], R) == (first, second, third, late)


def test_busy_whole_is_fallen_back_on() -> None:
    first, second, third = nodes_of()
    full = whole("w", active=2, whole=8.0)
    assert rank([full, first, second, third], R) == (first, second, third, full)
    worse = [replace(one, active=9, whole=8.0) for one in (first, second)]
    away = replace(third, suspect=True)
    assert rank([*worse, away, full], R)[0] == full


def test_whole_takes_what_no_shard_has_room_for() -> None:
    small = [replace(one, context=100) for one in nodes_of()]
    slow = whole("w", prefill=10.0)
    assert rank([*small, slow], R, 1000)[0] == slow


def test_whole_that_writes_slowly_is_not_preferred() -> None:
    first, second, third = (replace(one, speed=20.0) for one in nodes_of())
    assert rank([whole("w", speed=9.0), first, second, third], R)[0] == first
    assert rank([whole("w", speed=11.0), first, second, third], R)[0].peer == "w"
    assert rank([whole("w", speed=1.0), *nodes_of()], R)[0].peer == "w"  # nobody knows of theirs


def test_models_without_shards_are_ranked_by_time() -> None:
    nodes = [whole("a", active=1), whole("b"), Candidate(None, M, 2)]
    assert rank(nodes, R, 100) == rank_by_time(nodes, R, 100)


CANDIDATES = st.builds(
    Candidate,
    st.sampled_from([None, *map(PeerId, "abcd")]),
    st.just(M),
    st.integers(0, 2**53),
    st.integers(0, 2**20),
    st.integers(0, 1000),
    st.booleans(),
    busy=st.integers(0, 2**53),
    queued=st.integers(0, 2**53),
    prefill=st.floats(0, 1e9),
    whole=st.floats(0, 86_400),
    rtt=st.floats(0, 60),
    cached=st.floats(0, 1),
    shard=st.none() | st.builds(Shard, model=st.just(WHOLE), mass=st.floats(0, 1)),
    score=st.binary(min_size=16, max_size=16),
    settled=st.booleans(),
    speed=st.floats(0, 1e9),
)


@settings(deadline=None)
@given(st.lists(CANDIDATES, unique_by=lambda one: one.peer), st.integers(0, 2**21))
def test_whatever_peers_say_all_are_ranked(candidates: list[Candidate], tokens: int) -> None:
    ranked = rank(candidates, R, tokens)
    assert Counter(ranked) == Counter(candidates)
    assert rank(reversed(candidates), R, tokens) == ranked


@given(st.floats(0.001, 2), st.floats(0.001, 2))
def test_nobody_waits_long_for_the_home(here: float, there: float) -> None:
    first, second, _ = nodes_of()
    asked = rank([replace(first, rtt=here), replace(second, rtt=there)], R)[0]
    assert asked.rtt <= LATE * min(here, there) + DELAY


C = session(text("c"))
FILE, OTHER = Digest("2" * 64), Digest("3" * 64)


def test_shard_where_it_has_settled_goes_first_whatever_the_hash_says() -> None:
    first, second, third = nodes_of()
    rich = replace(second, shard=Shard(model=WHOLE, mass=0.9 + 1.5 * LESS))
    home = replace(third, settled=True)
    assert rank([first, rich, home], R) == (home, rich, first)


def test_where_it_has_settled_is_passed_over_as_any_home_is() -> None:
    first, second, third = nodes_of()
    home = replace(third, settled=True)
    full, away = replace(home, active=2, whole=20.0), replace(home, suspect=True)
    assert rank([first, second, full], R) == (first, second, full)
    assert rank([first, second, away], R) == (first, second, away)
    assert rank([first, second, home, whole("w", rtt=0.2)], R)[0].peer == "w"


def test_conversation_settles_and_may_settle_anew() -> None:
    settled = Settled()
    assert settled.of(C, {FILE}, 0.0) is None
    settled.settle(C, FILE, 0.0)
    assert settled.of(C, {FILE, OTHER}, 1.0) == FILE
    settled.settle(C, OTHER, 2.0)
    assert settled.of(C, {FILE, OTHER}, 3.0) == OTHER
    assert settled.of(session(text("d")), {FILE, OTHER}, 3.0) is None


def test_shard_that_is_gone_is_a_home_no_longer() -> None:
    settled = Settled()
    settled.settle(C, FILE, 0.0)
    assert settled.of(C, {OTHER}, 1.0) is None
    assert settled.of(C, {FILE}, 2.0) is None, "it begins anew, and does not come back"


def test_conversation_is_forgotten_after_its_last_request() -> None:
    settled = Settled()
    settled.settle(C, FILE, 0.0)
    settled.settle(C, FILE, KEPT)
    assert settled.of(C, {FILE}, 2 * KEPT) == FILE
    assert settled.of(C, {FILE}, 2 * KEPT + 1) is None


@settings(deadline=None, max_examples=5)
@given(st.integers(1, 50))
def test_oldest_conversations_are_forgotten_where_there_are_too_many(more: int) -> None:
    settled = Settled()
    for number in range(MOST_SETTLED + more):
        settled.settle(number.to_bytes(16), FILE, float(number) / MOST_SETTLED)
    now = 2.0
    known = [settled.of(number.to_bytes(16), {FILE}, now) for number in range(MOST_SETTLED + more)]
    assert known == [None] * more + [FILE] * MOST_SETTLED
