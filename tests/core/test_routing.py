"""Which node a question goes to."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_mesh.core.names import Digest, ModelId, PeerId, RequestId
from p2p_mesh.core.records import (
    ChatPrompt,
    DetokenizeQuery,
    EmbedQuery,
    InferenceRequest,
    Query,
    RerankQuery,
    ServedModel,
    Shard,
    TextPrompt,
    TokenizeQuery,
)
from p2p_mesh.core.routing import (
    COMPANY,
    Candidate,
    Serving,
    catalogue,
    goes_on_exactly,
    needs,
    predicted,
    promising,
    rank,
    resumers,
)
from p2p_mesh.errors import ContextExceeded, RequestError, Unavailable

R = RequestId("r")
M = ModelId("m")
HERE = Candidate(None, M, slots=2)
A = Candidate(PeerId("a"), M, slots=2)


def test_here_comes_first() -> None:
    assert rank([A, HERE], R) == (HERE, A)


def test_free_slot_comes_before_a_queue() -> None:
    full = Candidate(None, M, slots=2, active=2)
    assert rank([full, A], R) == (A, full)


def test_suspect_comes_last() -> None:
    suspect = Candidate(PeerId("b"), M, slots=8, suspect=True)
    busy = Candidate(PeerId("c"), M, slots=1, active=5)
    assert rank([suspect, busy], R) == (busy, suspect)


def test_least_loaded_peer_comes_first() -> None:
    busy = Candidate(PeerId("b"), M, slots=4, active=3)
    assert rank([busy, A], R) == (A, busy)


def test_equal_peers_share_the_requests() -> None:
    peers = [Candidate(PeerId(name), M, slots=2) for name in "abc"]
    firsts = Counter(rank(peers, RequestId(str(n)))[0].peer for n in range(300))
    assert min(firsts.values()) > 60


def peer(name: str, slots: int = 2, **more: Any) -> Candidate:
    return Candidate(PeerId(name), M, slots, **more)


def best(*candidates: Candidate, prompt_tokens: int = 0, turn: str = "r") -> str | None:
    return rank(candidates, RequestId(turn), prompt_tokens)[0].peer


def test_wait_is_for_as_many_as_must_end_first() -> None:
    full = Candidate(None, M, slots=2, active=2, whole=4.0)
    assert predicted(full, 0) == pytest.approx(2.0 + COMPANY)
    longer = replace(full, queued=3)
    assert predicted(longer, 0) == pytest.approx(8.0 + COMPANY)


def test_own_requests_are_counted_once() -> None:
    said = peer("a", active=3, busy=2, queued=2, counted=2)
    assert said.ahead == 5
    assert peer("a", active=1, busy=1, counted=4).ahead == 1


def test_reading_is_of_what_is_not_cached() -> None:
    here = Candidate(None, M, slots=2, prefill=100.0, cached=0.75)
    assert predicted(here, 1000) == pytest.approx(2.5)
    busy = replace(here, active=1)
    assert predicted(busy, 1000) == pytest.approx(2.5 * 1.5 + COMPANY / 2)


def test_node_that_never_said_its_speed_is_judged_by_its_last_answers() -> None:
    here = Candidate(None, M, slots=2, first=3.0)
    assert predicted(here, 10) == predicted(here, 100_000) == 3.0


def test_far_peer_comes_later() -> None:
    assert predicted(peer("a", rtt=0.2), 0) == pytest.approx(0.2)
    assert best(peer("a", rtt=0.2), peer("b", rtt=0.01)) == "b"
    assert best(peer("a", rtt=0.2), HERE) is None


def test_short_queue_of_a_fast_node_may_be_better_than_a_slow_one() -> None:
    fast = peer("a", active=2, whole=0.5, prefill=5000.0)
    slow = peer("b", prefill=50.0)
    assert best(fast, slow, prompt_tokens=2000) == "a"
    assert best(fast, slow, prompt_tokens=10) == "b"


def test_faster_reader_has_the_long_prompt() -> None:
    slow = Candidate(None, M, slots=2, prefill=100.0)
    fast = peer("a", prefill=1000.0)
    assert best(slow, fast, prompt_tokens=2000) == "a"
    assert best(slow, fast, prompt_tokens=1) is None


def test_conversation_stays_with_its_node() -> None:
    for turn in "abcdefgh":
        assert best(peer("a"), peer("b", cached=0.9), HERE, prompt_tokens=2000, turn=turn) == "b"


def test_conversation_leaves_a_node_that_is_full() -> None:
    full = peer("a", cached=0.9, prefill=500.0, active=2, whole=20.0)
    assert best(full, peer("b", prefill=500.0), prompt_tokens=2000) == "b"


@given(st.floats(0.96, 1.04), st.floats(0, 0.01))
def test_noise_moves_no_conversation(prefill: float, rtt: float) -> None:
    here = Candidate(None, M, slots=2, prefill=2000 * prefill)
    stay = peer("a", cached=0.6, rtt=rtt, prefill=800.0)
    assert best(here, stay, prompt_tokens=1000) == "a"


def test_unknown_node_is_taken_for_one_of_the_others() -> None:
    known = [peer("a", prefill=1000.0, whole=2.0, rtt=0.2), peer("b", prefill=1200.0, rtt=0.2)]
    firsts = Counter(best(*known, peer("c"), prompt_tokens=1000, turn=str(n)) for n in range(300))
    assert firsts["c"] > 60
    assert set(firsts) > {"c"}


def test_prompt_that_has_no_room_goes_elsewhere() -> None:
    small = replace(HERE, context=1000)
    suspect = peer("a", context=8000, suspect=True)
    assert best(small, suspect, prompt_tokens=1400) is None
    assert best(small, suspect, prompt_tokens=1600) == "a"
    assert best(small, peer("b"), prompt_tokens=1600) == "b"
    assert rank([small], R, 10_000) == (small,)


CANDIDATES = st.builds(
    Candidate,
    st.sampled_from([None, *map(PeerId, "abcd")]),
    st.just(M),
    st.integers(0, 2**53),
    st.integers(0, 2**53),
    st.integers(0, 1000),
    st.booleans(),
    busy=st.integers(0, 2**53),
    queued=st.integers(0, 2**53),
    counted=st.integers(0, 1000),
    prefill=st.floats(0, 1e9),
    first=st.floats(0, 86_400),
    whole=st.floats(0, 86_400),
    rtt=st.floats(0, 60),
    cached=st.floats(0, 1),
)


@settings(deadline=None)
@given(st.lists(CANDIDATES, unique_by=lambda one: one.peer), st.integers(0, 2**21))
def test_whatever_peers_say_all_are_ranked(candidates: list[Candidate], tokens: int) -> None:
    ranked = rank(candidates, R, tokens)
    assert Counter(ranked) == Counter(candidates)
    assert rank(reversed(candidates), R, tokens) == ranked
    assert all(0 <= predicted(one, tokens) < math.inf for one in ranked)


FILE = Digest("1" * 64)


def test_only_the_same_file_goes_on() -> None:
    same, other = peer("a", digest=FILE), peer("b", digest=Digest("2" * 64))
    unknown, endpoint = peer("c"), peer("d", digest=FILE, resumable=False)
    able = resumers([same, other, unknown, endpoint], (), broken=peer("x", digest=FILE))
    assert able == (same,)
    assert resumers([same, unknown], (), broken=peer("x")) == ()


def test_failed_node_does_not_go_on() -> None:
    here, there = replace(HERE, digest=FILE), peer("a", digest=FILE)
    assert resumers([here, there], {None}, broken=here) == (there,)


def test_node_that_computes_alike_goes_on_first() -> None:
    first = peer("a", digest=FILE, numerics="x")
    second = peer("b", digest=FILE, numerics="y")
    third = peer("c", digest=FILE, numerics="x")
    broken = peer("x", digest=FILE, numerics="y")
    assert resumers([first, second, third], (), broken=broken) == (second, first, third)


def test_shard_goes_on_for_another_and_the_whole_for_both_but_the_same_file_first() -> None:
    one, other = (shard("a", "3"), shard("b", "4"))
    same = replace(one, peer=PeerId("c"), numerics="y")
    all_of_it = peer("d", digest=FILE)
    stranger = shard("e", "5", of="6")
    able = resumers([other, all_of_it, stranger, same], (), broken=replace(one, numerics="x"))
    assert able == (same, other, all_of_it)
    assert resumers([one, other], (), broken=all_of_it) == (one, other)


def test_shard_of_which_the_file_is_not_known_goes_on_too() -> None:
    one = replace(shard("a", "3"), digest=None)
    other = replace(one, peer=PeerId("b"))
    assert resumers([other], (), broken=one) == (other,)


def test_only_the_same_file_goes_on_exactly() -> None:
    same = peer("a", digest=FILE, numerics="exact 1")
    assert goes_on_exactly(same, replace(same, peer=PeerId("b")))
    assert not goes_on_exactly(same, replace(same, numerics="exact 2"))
    assert not goes_on_exactly(same, replace(shard("b", "3"), numerics="exact 1"))
    nameless = replace(same, digest=None)
    assert goes_on_exactly(nameless, nameless)
    assert not goes_on_exactly(nameless, replace(nameless, peer=PeerId("b")))


def test_shards_of_unknown_files_are_never_exact() -> None:
    one = replace(shard("a", "3"), digest=None, numerics="exact 1")
    assert not goes_on_exactly(one, one)
    assert not goes_on_exactly(one, replace(one, peer=PeerId("b")))


def shard(name: str, digest: str, *, of: str = "1", mass: float = 0.9) -> Candidate:
    part = Shard(model=Digest(of * 64), mass=mass)
    return peer(name, digest=Digest(digest * 64), shard=part)


def serving(
    peer: str | None, digest: str | None, name: str = "m", *, of: str | None = None
) -> Serving:
    file = Digest(digest * 64) if digest else None
    part = Shard(model=Digest(of * 64), mass=0.9) if of else None
    model = ServedModel(id=ModelId(name), digest=file, context=8, slots=1, shard=part)
    return Serving(PeerId(peer) if peer else None, model)


def names(*servings: Serving) -> dict[str, list[str | None]]:
    return {name: [one.peer for one in group] for name, group in catalogue(servings).items()}


def test_one_file_has_one_name() -> None:
    found = names(serving("a", "1"), serving("b", "1"), serving("b", "2", name="n"))
    assert found == {"m": ["a", "b"], "n": ["b"]}


def test_name_means_the_file_of_this_node() -> None:
    found = names(serving("a", "1"), serving("b", "1"), serving(None, "2"))
    assert found == {"m": [None], "m@11111111": ["a", "b"], "m@22222222": [None]}


def test_name_means_the_file_that_most_nodes_have() -> None:
    found = names(serving("a", "2"), serving("b", "1"), serving("c", "2"))
    assert found["m"] == ["a", "c"]
    assert names(serving("a", "2"), serving("b", "1"))["m"] == ["b"]  # a tie: everywhere the same


def test_file_without_a_digest_goes_with_the_name() -> None:
    assert names(serving("a", None), serving("b", "1")) == {"m": ["a", "b"]}


def test_shards_of_one_model_count_as_that_model() -> None:
    shards = serving("a", "2", of="1"), serving("b", "3", of="1"), serving("c", None, of="1")
    assert names(*shards) == {"m": ["a", "b", "c"]}
    assert names(*shards, serving("d", "1")) == {"m": ["a", "b", "c", "d"]}


def test_shards_of_another_model_have_another_name() -> None:
    found = names(serving("a", "3", of="1"), serving("b", "1"), serving(None, "4", of="2"))
    assert found == {"m": [None], "m@11111111": ["a", "b"], "m@22222222": [None]}


def chat(*contents: Any) -> InferenceRequest:
    messages = tuple({"role": "user", "content": content} for content in contents)
    return InferenceRequest(id=R, model=M, prompt=ChatPrompt(messages=messages))


@pytest.mark.parametrize(
    ("question", "needed"),
    [
        (chat("hello"), {"generate"}),
        (chat("hello", [{"type": "image_url"}]), {"generate", "vision"}),
        (chat([{"type": "input_audio"}, {"type": "image_url"}]), {"generate", "vision", "audio"}),
        (InferenceRequest(id=R, model=M, prompt=TextPrompt(text="x")), {"generate"}),
        (EmbedQuery(model=M, inputs=("x",)), {"embed"}),
        (RerankQuery(model=M, query="x", documents=("y",)), {"rerank"}),
        (TokenizeQuery(model=M, prompt=TextPrompt(text="x")), set()),
        (DetokenizeQuery(model=M, tokens=()), set()),
    ],
)
def test_question_needs(question: InferenceRequest | Query, needed: set[str]) -> None:
    assert needs(question) == needed


LEAVES = st.none() | st.integers() | st.text()


@given(
    st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.just("type"), inner))
)
def test_content_of_any_shape_needs_no_more_than_text(content: Any) -> None:
    assert needs(chat(content)) == {"generate"}


B = Candidate(PeerId("b"), M, slots=2, context=8192)
LONG = ContextExceeded("too long")
WRONG = RequestError("wrong")


def test_one_peer_alone_is_not_believed() -> None:
    assert promising([A, B], A, [WRONG]) == [A, B]
    assert promising([A, B], A, [WRONG, WRONG]) == ()
    assert promising([A, B], HERE, [WRONG]) == ()


def test_too_long_here_may_have_room_elsewhere() -> None:
    small = replace(A, context=64)
    assert promising([small, B], replace(HERE, context=64), [LONG]) == [B]
    assert promising([B], B, [WRONG, LONG]) == []


def test_a_node_whose_context_nobody_knows_may_have_room() -> None:
    small = replace(A, context=64)
    assert promising([small, A], replace(HERE, context=128), [LONG]) == [A]
    assert promising([A], HERE, [LONG]) == [A]


def test_failing_node_says_nothing_of_the_others() -> None:
    assert promising([A, B], HERE, [WRONG, Unavailable("gone")]) == [A, B]
