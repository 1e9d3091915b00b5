"""Where a ranking comes from, and that all nodes come to the same one."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from meshnode_expert_shards import rankings
from meshnode_expert_shards.rankings import (
    RANKING,
    Ask,
    Better,
    Lacking,
    Ranked,
    answer,
    find,
    keep,
    kept,
    place,
)
from msgspec.structs import replace

from p2p_mesh.core.experts.layout import Layout
from p2p_mesh.core.experts.ranking import MAX_RANKING, Ranking, encode_ranking
from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.wire import encode
from p2p_mesh.errors import ModelError, RemoteError
from p2p_mesh.serve.backend import Stream
from tests.plugins.expert_shards.conftest import ranked
from tests.plugins.expert_shards.street import Neighbour, Street

MODEL, OTHER = Digest("a" * 64), Digest("b" * 64)


@pytest.fixture
def known(experts: Layout) -> Ranked:
    return Ranked.of(ranked(MODEL, experts))


def tells(node: Neighbour, *said: bytes) -> None:
    """A node that says this, whatever it is asked."""

    async def say(stream: Stream, _: PeerId) -> None:
        await stream.receive()
        for frame in said:
            await stream.send(frame)

    node.serve(RANKING, say)


def has(node: Neighbour, own: Ranked) -> None:
    """A node with a cache of its own."""
    node.serve(RANKING, partial(answer, look={own.ranking.model: own}.get))


def test_ranking_is_kept_by_its_model(cache: Path, known: Ranked) -> None:
    assert kept(MODEL) is None
    keep(known)
    assert place(MODEL).parent == cache / "rankings"
    assert kept(MODEL) == known
    assert kept(OTHER) is None
    assert [one.name for one in (cache / "rankings").iterdir()] == [place(MODEL).name]


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\x80", b"x" * (MAX_RANKING + 1)])
def test_damaged_ranking_counts_as_none(cache: Path, data: bytes) -> None:
    place(MODEL).parent.mkdir(parents=True)
    place(MODEL).write_bytes(data)
    assert kept(MODEL) is None


def test_ranking_of_another_model_counts_as_none(cache: Path, known: Ranked) -> None:
    place(OTHER).parent.mkdir(parents=True)
    place(OTHER).write_bytes(known.data)
    assert kept(OTHER) is None


def test_cache_that_cannot_be_written_is_named(cache: Path, known: Ranked) -> None:
    cache.mkdir(parents=True)
    (cache / "rankings").write_text("in the way")
    with pytest.raises(ModelError, match="cannot be written"):
        keep(known)


async def test_ranking_comes_from_a_peer_and_is_kept(
    street: Street, known: Ranked, experts: Layout
) -> None:
    me = street.node("a")
    has(street.node("b"), known)
    assert await find(MODEL, me, experts) == known
    assert me.said == []


async def test_the_best_of_several_is_taken_by_everybody(
    street: Street, experts: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = (Ranked.of(ranked(MODEL, experts, tokens)) for tokens in (1000, 2000))
    me = street.node("a")
    keep(small)
    for name, one in (("b", small), ("c", large), ("d", small)):
        has(street.node(name), one)
    assert await find(MODEL, me, experts) == large
    assert kept(MODEL) == large


async def test_own_ranking_does_where_nobody_has_a_better(
    street: Street, known: Ranked, experts: Layout
) -> None:
    me = street.node("a")
    street.node("b").serve(RANKING, answer)
    keep(known)
    assert await find(MODEL, me, experts) == known
    assert await find(OTHER, me, experts) is None


async def test_own_ranking_of_other_experts_counts_as_none(
    street: Street, ranking: Ranking, experts: Layout
) -> None:
    keep(Ranked.of(replace(ranking, model=MODEL, layers=ranking.layers[:1])))
    assert await find(MODEL, street.node("a"), experts) is None


async def test_who_runs_no_shards_is_not_asked(
    street: Street, known: Ranked, experts: Layout
) -> None:
    me, other = street.node("a"), street.node("b")
    has(other, known)
    other.backends = ("llama_cpp",)
    assert await find(MODEL, me, experts) is None


async def test_nonsense_of_a_peer_is_refused_and_others_are_asked(
    street: Street, known: Ranked, experts: Layout
) -> None:
    me = street.node("a")
    wrong = encode_ranking(replace(known.ranking, layers=known.ranking.layers[:1]))
    foreign = encode_ranking(replace(known.ranking, model=OTHER))
    lies = [b"", b"\xff", encode(Better(ranking=b"x")), encode(Better(ranking=wrong)),
            encode(Better(ranking=foreign)), encode(Ask(model=MODEL))]  # fmt: skip
    for number, lie in enumerate(lies):
        tells(street.node(f"liar {number}"), lie)
    tells(street.node("silent"))
    has(street.node("z"), known)
    assert await find(MODEL, me, experts) == known
    assert [event for event, _ in me.said] == ["ranking_refused"] * (len(lies) + 1)


async def test_peer_that_says_nothing_is_waited_for_and_not_for_ever(
    street: Street, experts: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rankings, "PATIENCE", 0.05)

    async def sleep(stream: Stream, _: PeerId) -> None:
        await trio.sleep_forever()

    me = street.node("a")
    street.node("b").serve(RANKING, sleep)
    with trio.fail_after(30):
        assert await find(MODEL, me, experts) is None


@given(st.binary(max_size=200))
def test_no_bytes_of_a_peer_raise_anything_but_remote_errors(data: bytes) -> None:
    nothing: Any = None
    with suppress(RemoteError):
        rankings._better(data, MODEL, nothing)


async def test_question_that_is_none_is_refused(street: Street, cache: Path) -> None:
    street.node("b").serve(RANKING, answer)
    async with street.node("a").open_stream(PeerId("b"), RANKING) as stream:
        await stream.send(b"nonsense")
        assert b"malformed" in await stream.receive()
    async with street.node("a").open_stream(PeerId("b"), RANKING) as stream:
        await stream.send(encode(Ask(model=MODEL)))
        assert await stream.receive() == encode(Lacking())
