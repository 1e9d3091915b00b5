"""Answers that outlive their nodes: what the client gets is what one node would have said."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
import trio.lowlevel
import trio.testing

from p2p_mesh.core.inventory import Inventory, Offer
from p2p_mesh.core.names import Digest, ModelId, PeerId, RequestId
from p2p_mesh.core.offers import offer
from p2p_mesh.core.records import (
    Announcement,
    ChatPrompt,
    Delta,
    InferenceRequest,
    ModelLoad,
    Resources,
    ServedModel,
    Shard,
    TextPrompt,
    Usage,
)
from p2p_mesh.errors import (
    BrokenOff,
    EngineDied,
    HandedOver,
    Overloaded,
    RequestError,
    Unavailable,
)
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.node.answers import PATIENCE, STREAMS, Answers
from p2p_mesh.node.attempts import TIMES
from p2p_mesh.testing.offering import Spring

WORDS = ["a1", "b2", "c3", "d4", "e5", "f6"]
ASKED = InferenceRequest(id=RequestId("r"), model=ModelId("m"), prompt=TextPrompt(text="hello"))
MODEL = ServedModel(id=ModelId("m"), digest=Digest("1" * 64), context=99, slots=2, numerics="exact")


class Speaker:
    """A node that says WORDS, a token each, and goes on where a request says."""

    def __init__(self, *, fails_after: int | None = None, error: Exception | None = None) -> None:
        self.fails_after = fails_after
        self.error = error or Unavailable("it is gone")
        self.pause = 0.0
        self.asked: list[InferenceRequest] = []
        self.under_way = 0
        self.speak: Callable[[InferenceRequest], AsyncIterator[Delta]] = self._speak

    @asynccontextmanager
    async def generate(
        self, request: InferenceRequest, _asker: str = ""
    ) -> AsyncIterator[AsyncIterator[Delta]]:
        self.asked.append(request)
        self.under_way += 1
        try:
            yield self.speak(request)
        finally:
            self.under_way -= 1

    async def _speak(self, request: InferenceRequest) -> AsyncIterator[Delta]:
        come = len(request.resume[0].tokens) if request.resume else 0
        await trio.sleep(self.pause)
        for said, place in enumerate(range(come, len(WORDS))):
            if said == self.fails_after:
                raise self.error
            await trio.lowlevel.checkpoint()
            yield Delta(tokens=(place,), text=WORDS[place])
        usage = Usage(prompt_tokens=1, completion_tokens=len(WORDS))
        yield Delta(finish="stop", usage=usage)


class World:
    """This node, which asks, and the speakers that it knows of."""

    def __init__(self, here: Speaker | None = None, **peers: Speaker) -> None:
        self.log: list[Entry] = []
        self.inventory = Inventory()
        self.hosted: dict[str, Any] = {"m": hosted(here)} if here else {}
        self.answers = Answers(self.hosted, self.inventory, Journal(self.log.append), lambda: 7.0)
        self.answers.candidates.is_joining = False
        self.answers.ask = lambda peer, request: peers[peer].generate(request)
        for peer in peers:
            self.announce(peer, MODEL)

    def announce(self, peer: str, model: ServedModel, count: int = 1) -> None:
        announcement = Announcement(
            sequence=(1, count), issued_at=0, lifetime=60, name=peer, version="1",
            resources=Resources(memory_total=1, memory_free=1, threads=1), models=(model,),
        )  # fmt: skip
        self.inventory.apply(Offer(PeerId(peer), announcement, b"", 60.0))

    async def text(self, asked: InferenceRequest = ASKED) -> str:
        async with self.answers.answer(asked) as deltas:
            return "".join([delta.text async for delta in deltas])

    def events(self, name: str) -> list[Entry]:
        return [entry for entry in self.log if entry.event == name]


def hosted(speaker: Speaker) -> Any:
    return SimpleNamespace(
        id=ModelId("m"), state="ready", slots=2, active=0, queued=0,
        generate=speaker.generate, served=lambda: MODEL,
        load_now=lambda: ModelLoad(model=ModelId("m"), slots=2),
    )  # fmt: skip


WHOLE = "".join(WORDS)


@pytest.mark.parametrize("said", range(1, len(WORDS)))
async def test_another_node_goes_on_wherever_an_answer_breaks(said: int) -> None:
    here, peer = Speaker(fails_after=said, error=EngineDied("killed")), Speaker()
    world = World(here, a=peer)
    assert await world.text() == WHOLE
    (resume,) = peer.asked[0].resume
    assert resume.tokens == tuple(range(said))
    assert resume.text == 2 * said
    assert (here.under_way, peer.under_way) == (0, 0)


@pytest.mark.parametrize("said", range(1, len(WORDS)))
async def test_another_node_goes_on_after_what_was_taken_at_once(said: int) -> None:
    """Also where none of it but the first delta had passed through who reads."""
    springs = [Spring[Delta](), Spring[Delta]()]
    here, peer, taken, read = Speaker(), Speaker(), list[str](), list[str]()
    for speaker, spring in zip((here, peer), springs, strict=True):
        speaker.speak = partial(_from, spring)
    world = World(here, a=peer)
    deltas = [Delta(tokens=(place,), text=word) for place, word in enumerate(WORDS)]

    def take(delta: Delta) -> bool:
        taken.append(delta.text)
        return True

    async def listen() -> None:
        async with world.answers.answer(ASKED) as answer:
            offer(answer, take)
            read.extend([delta.text async for delta in answer])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        springs[0].pour(deltas[0])
        await trio.testing.wait_all_tasks_blocked()
        assert all(springs[0].pour(delta) for delta in deltas[1:said])
        springs[0].pour(None)
        await trio.testing.wait_all_tasks_blocked()
        springs[1].pour(deltas[said])
        await trio.testing.wait_all_tasks_blocked()
        assert all(springs[1].pour(delta) for delta in deltas[said + 1 :])
        usage = Usage(prompt_tokens=1, completion_tokens=len(WORDS))
        assert not springs[1].pour(Delta(finish="stop", usage=usage))
        springs[1].pour(None)
    (resume,) = peer.asked[0].resume
    assert (resume.tokens, resume.text) == (tuple(range(said)), 2 * said)
    assert (taken, read) == ([*WORDS[1:said], *WORDS[said + 1 :]], [WORDS[0], WORDS[said], ""])


def _from(spring: Spring[Delta], _request: InferenceRequest) -> Spring[Delta]:
    return spring


async def test_what_was_not_asked_for_is_not_taken_at_once() -> None:
    spring, here = Spring[Delta](), Speaker()
    here.speak = partial(_from, spring)
    world = World(here)

    async def listen() -> None:
        async with world.answers.answer(ASKED) as answer:
            offer(answer, lambda _: True)
            with pytest.raises(BrokenOff, match="not asked for"):
                [delta async for delta in answer]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        spring.pour(Delta(tokens=(1,), text="a"))
        await trio.testing.wait_all_tasks_blocked()
        world.hosted["m"].state = "failed"
        assert not spring.pour(Delta(choice=1, tokens=(1,), text="b"))


async def test_going_on_is_said_and_whether_it_is_exact() -> None:
    world = World(Speaker(fails_after=2), a=Speaker())
    await world.text()
    (entry,) = world.events("answer_resumed")
    assert (entry.fields["peer"], entry.fields["tokens"]) == ("a", 2)
    assert entry.fields["exact"] is True


async def test_equal_numerics_go_first() -> None:
    other, equal = Speaker(), Speaker()
    world = World(Speaker(fails_after=2), a=other, b=equal)
    world.announce("a", msgspec.structs.replace(MODEL, numerics="another build"), 2)
    assert await world.text() == WHOLE
    assert not other.asked
    assert equal.asked


async def test_an_answer_outlives_several_nodes(autojump_clock: trio.testing.MockClock) -> None:
    peers = {name: Speaker(fails_after=1) for name in "abcd"} | {"e": Speaker()}
    world = World(Speaker(fails_after=1), **peers)
    assert await world.text() == WHOLE
    assert all(len(peer.asked) <= 1 for peer in peers.values())


async def test_another_file_of_that_name_does_not_go_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    other = Speaker()
    world = World(Speaker(fails_after=2), a=other)
    world.announce("a", msgspec.structs.replace(MODEL, digest=Digest("2" * 64)), 2)
    async with world.answers.answer(ASKED) as deltas:
        assert [(await anext(deltas)).text, (await anext(deltas)).text] == WORDS[:2]
        world.hosted["m"].state = "failed"
        with pytest.raises(BrokenOff, match="no other node"):
            await anext(deltas)
    assert not other.asked
    assert trio.current_time() >= PATIENCE


async def test_an_engine_that_comes_back_goes_on_itself(
    autojump_clock: trio.testing.MockClock,
) -> None:
    here = Speaker(fails_after=2, error=EngineDied("killed"))
    world = World(here)

    async def restart() -> None:
        await trio.sleep(1.0)
        world.hosted["m"].state, here.fails_after = "ready", None

    async with trio.open_nursery() as nursery, world.answers.answer(ASKED) as deltas:
        got = [(await anext(deltas)).text, (await anext(deltas)).text]
        world.hosted["m"].state = "loading"
        nursery.start_soon(restart)
        got += [delta.text async for delta in deltas]
    assert "".join(got) == WHOLE


async def test_a_busy_node_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    full = Speaker(fails_after=0, error=Overloaded("full", retry_after=1.0))
    world = World(Speaker(fails_after=2, error=Unavailable("gone")), a=full)

    async def free() -> None:
        await trio.sleep(2 * PATIENCE)
        full.fails_after = None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(free)
        assert await world.text() == WHOLE


async def test_what_one_node_cannot_say_twice_is_not_gone_on_with() -> None:
    other = Speaker()
    world = World(a=Speaker(fails_after=2), b=other)
    foreign = msgspec.structs.replace(MODEL, resumable=False)
    world.announce("a", foreign, 2)
    world.inventory.suspect(PeerId("b"))
    with pytest.raises(BrokenOff, match="after 2 tokens"):
        await world.text()
    assert not other.asked


async def test_a_request_that_turns_out_wrong_is_wrong_everywhere() -> None:
    other = Speaker()
    world = World(Speaker(fails_after=2, error=RequestError("no such grammar")), a=other)
    with pytest.raises(RequestError):
        await world.text()
    assert not other.asked


async def test_an_answer_that_always_breaks_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    words = [f"{number}" for number in range(5 * TIMES)]
    WORDS[:], before = words, list(WORDS)
    try:
        world = World(Speaker(fails_after=1, error=EngineDied("again")))
        with pytest.raises(EngineDied):
            await world.text()
    finally:
        WORDS[:] = before


async def usual(world: World, peers: list[Speaker]) -> None:
    """Enough answers that the node knows how long a first token takes."""
    for _ in range(12):
        await world.text()
    for peer in peers:
        peer.asked.clear()


async def test_a_late_first_token_is_asked_for_elsewhere(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow, quick = Speaker(), Speaker()
    world = World(slow, a=quick)
    await usual(world, [slow, quick])
    slow.pause = 60.0
    start = trio.current_time()
    assert await world.text() == WHOLE
    assert trio.current_time() - start < 5.0
    assert len(quick.asked) == 1
    assert (slow.under_way, quick.under_way) == (0, 0)
    assert world.events("answer_hedged")


async def test_whoever_is_first_is_taken_and_the_other_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow, slower = Speaker(), Speaker()
    world = World(slow, a=slower)
    await usual(world, [slow, slower])
    slow.pause, slower.pause = 3.0, 60.0
    assert await world.text() == WHOLE
    assert len(slower.asked) == 1
    assert (slow.under_way, slower.under_way) == (0, 0)


async def test_a_second_node_that_fails_changes_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow, broken = Speaker(), Speaker(fails_after=0)
    world = World(slow, a=broken)
    await usual(world, [slow, broken])
    slow.pause = 5.0
    assert await world.text() == WHOLE
    assert len(broken.asked) == 1


async def test_a_full_node_is_not_asked_beside_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow, full = Speaker(), Speaker()
    world = World(slow, a=full)
    await usual(world, [slow, full])
    world.answers.candidates.heard_load(
        PeerId("a"), [ModelLoad(model=ModelId("m"), slots=2, active=2)]
    )
    slow.pause = 5.0
    assert await world.text() == WHOLE
    assert not full.asked


async def test_leaving_an_answer_leaves_both_nodes(autojump_clock: trio.testing.MockClock) -> None:
    slow, slower = Speaker(), Speaker()
    world = World(slow, a=slower)
    await usual(world, [slow, slower])
    slow.pause = slower.pause = 60.0
    with trio.move_on_after(10.0):
        await world.text()
    assert slower.asked
    assert (slow.under_way, slower.under_way) == (0, 0)


async def test_a_node_that_dies_after_the_last_word_is_not_missed() -> None:
    class Dies(Speaker):
        async def _speak(self, request: InferenceRequest) -> AsyncIterator[Delta]:
            async for delta in super()._speak(request):
                yield delta
            raise Unavailable("gone before it said the end")

    other = Speaker()
    assert await World(Dies(), a=other).text() == WHOLE
    assert not other.asked


async def test_one_peer_alone_cannot_refuse_an_answer_that_has_begun() -> None:
    wrong = RequestError("no such grammar")
    first, second = Speaker(fails_after=2, error=wrong), Speaker()
    world = World(a=first, b=second)
    world.inventory.suspect(PeerId("b"))
    assert await world.text() == WHOLE
    second.fails_after, second.error = 1, wrong
    with pytest.raises(RequestError):
        await world.text()


async def test_a_second_node_that_failed_is_not_asked_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow, broken = Speaker(), Speaker(fails_after=0)
    world = World(slow, a=broken)
    await usual(world, [slow, broken])
    slow.pause, slow.fails_after = 5.0, 0
    with pytest.raises(Unavailable):
        await world.text()
    assert len(broken.asked) == 1


async def test_a_second_node_goes_on_where_the_first_fails_meanwhile(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow, second = Speaker(), Speaker()
    world = World(slow, a=second)
    await usual(world, [slow, second])
    slow.pause, slow.fails_after, second.pause = 5.0, 0, 8.0
    assert await world.text() == WHOLE
    assert len(second.asked) == 1


async def test_one_client_does_not_take_all_that_a_peer_lets_through(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = Speaker()
    world = World(a=peer)
    peer.pause = 1.0
    refused: list[str] = []

    async def ask(client: str) -> None:
        try:
            async with world.answers.answer(ASKED, client) as deltas:
                async for _ in deltas:
                    pass
        except Overloaded:
            refused.append(client)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "modest")
        await trio.sleep(0.1)
        for _ in range(STREAMS):
            nursery.start_soon(ask, "greedy")
        await trio.sleep(0.1)
        nursery.start_soon(ask, "modest")
    assert set(refused) == {"greedy"}


async def test_images_go_on_only_through_the_same_projector(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sees = msgspec.structs.replace(MODEL, capabilities=("generate", "vision"))
    first, other, same = Speaker(fails_after=2), Speaker(), Speaker()
    world = World(a=first, b=other, c=same)
    for peer, numerics in (
        ("a", "exact mmproj=1"),
        ("b", "exact mmproj=2"),
        ("c", "exact mmproj=1"),
    ):
        world.announce(peer, msgspec.structs.replace(sees, numerics=numerics), 2)
    for peer in "bc":
        world.inventory.suspect(PeerId(peer))
    picture = ChatPrompt(messages=({"role": "user", "content": [{"type": "image_url"}]},))
    assert await world.text(msgspec.structs.replace(ASKED, prompt=picture)) == WHOLE
    assert (len(other.asked), len(same.asked)) == (0, 1)


def shards(world: World, *peers: str) -> None:
    """These peers have a shard of the model each."""
    for place, peer in enumerate(peers, 2):
        part = Shard(model=Digest("1" * 64), mass=0.9)
        digest = Digest(str(place) * 64)
        world.announce(peer, msgspec.structs.replace(MODEL, digest=digest, shard=part), 2)


async def test_conversation_stays_with_one_shard() -> None:
    peers = {name: Speaker() for name in "abc"}
    world = World(**peers)
    shards(world, *"abc")
    for turn in range(9):
        await world.text(msgspec.structs.replace(ASKED, id=RequestId(str(turn))))
    assert sorted(len(peer.asked) for peer in peers.values()) == [0, 0, 9]


async def test_client_says_what_is_one_conversation() -> None:
    peers = {name: Speaker() for name in "abc"}
    world = World(**peers)
    shards(world, *"abc")
    for turn in range(9):
        asked = msgspec.structs.replace(ASKED, prompt=TextPrompt(text=str(turn)))
        async with world.answers.answer(asked, conversation="mine") as deltas:
            assert [delta async for delta in deltas]
    assert sorted(len(peer.asked) for peer in peers.values()) == [0, 0, 9]


@pytest.mark.parametrize("said", range(1, len(WORDS)))
async def test_conversation_goes_on_at_another_shard_where_its_node_dies(said: int) -> None:
    peers = {name: Speaker(fails_after=said) for name in "ab"}
    world = World(**peers)
    shards(world, *"ab")
    async with world.answers.answer(ASKED) as deltas:
        got = [(await anext(deltas)).text for _ in range(said)]
        (dies,) = (name for name, peer in peers.items() if peer.asked)
        (other,) = (peer for name, peer in peers.items() if name != dies)
        other.fails_after = None
        got += [delta.text async for delta in deltas]
    assert "".join(got) == WHOLE
    (resume,) = other.asked[0].resume
    assert resume.tokens == tuple(range(said))
    (entry,) = world.events("answer_resumed")
    assert entry.fields["exact"] is False
    peers[dies].fails_after = None  # it is suspect until it is heard of again
    assert await world.text() == WHOLE
    assert len(other.asked) == 2
    world.inventory.trust(PeerId(dies))
    assert await world.text() == WHOLE
    assert len(peers[dies].asked) == 2


async def test_whole_model_goes_on_where_the_last_shard_dies() -> None:
    dies, has_all = Speaker(fails_after=2), Speaker()
    world = World(a=dies, w=has_all)
    shards(world, "a")
    world.inventory.suspect(PeerId("w"))
    assert await world.text() == WHOLE
    assert len(has_all.asked[0].resume[0].tokens) == 2


async def test_shard_goes_on_where_the_whole_model_dies() -> None:
    part = Speaker()
    world = World(Speaker(fails_after=2), a=part)
    shards(world, "a")
    assert await world.text() == WHOLE
    assert part.asked[0].resume


class Giver(Speaker):
    """A shard that hands over to another what it may, and says what it must."""

    def __init__(self, to: str, *, fails_after: int | None = None) -> None:
        super().__init__(fails_after=fails_after)
        self.to = to

    async def _speak(self, request: InferenceRequest) -> AsyncIterator[Delta]:
        if request.weigh:
            raise HandedOver("the shard of another has more", param=self.to)
        async for delta in super()._speak(request):
            yield delta


def about(conversation: int) -> InferenceRequest:
    prompt = TextPrompt(text=f"conversation {conversation}")
    return msgspec.structs.replace(ASKED, prompt=prompt)


def asked_of(*speakers: Speaker) -> list[list[bool]]:
    """Of each: which of its requests it might have handed over."""
    return [[one.weigh for one in speaker.asked] for speaker in speakers]


async def told(world: World, conversation: int) -> None:
    assert await world.text(about(conversation)) == WHOLE


async def test_conversation_begins_and_goes_on_where_it_was_handed_over() -> None:
    gives, takes = Giver("b"), Speaker()
    world = World(a=gives, b=takes)
    shards(world, "a", "b")
    for conversation in range(20):
        await told(world, conversation)
    begun = len(gives.asked)
    assert begun > 3, "it is the home of some of them"
    assert asked_of(gives) == [[True] * begun]
    assert len(takes.asked) == 20
    for conversation in range(20):
        await told(world, conversation)
    assert len(gives.asked) == begun
    assert not any(one.weigh for one in takes.asked[20:])
    entries = world.events("answer_handed_over")
    assert len(entries) == begun
    assert (entries[0].fields["peer"], entries[0].fields["to"]) == ("a", "b")
    assert not world.events("answer_failed")
    assert not world.inventory.is_suspect(PeerId("a"))
    assert (gives.under_way, takes.under_way) == (0, 0)


async def test_shard_that_hands_over_each_to_the_other_is_asked_again_by_nobody() -> None:
    a, b = Giver("b"), Giver("a")
    world = World(a=a, b=b)
    shards(world, "a", "b")
    await told(world, 1)
    assert sorted(asked_of(a, b)) == [[False], [True]]
    await told(world, 1)
    assert sorted(asked_of(a, b)) == [[False, False], [True]]


@pytest.mark.parametrize("to", ["z", "a", ""])
async def test_shard_that_names_nobody_who_is_there_answers_itself(to: str) -> None:
    gives = Giver(to)
    world = World(a=gives, b=Speaker())
    shards(world, "a", "b")
    for conversation in range(10):
        await told(world, conversation)
    for marks in asked_of(gives):
        assert marks == [True, False] * (len(marks) // 2)
    assert not world.events("answer_failed")


async def test_shard_that_is_not_there_any_more_is_passed_over_and_the_giver_answers() -> None:
    gives, dead = Giver("b"), Speaker(fails_after=0)
    world = World(a=gives, b=dead)
    shards(world, "a", "b")
    conversation = next(n for n in range(20) if begins_at(world, n, "a"))
    gives.asked.clear()
    await told(world, conversation)
    assert asked_of(gives, dead)[0] == [True, False]
    assert len(dead.asked) == 1
    assert world.inventory.is_suspect(PeerId("b"))
    assert not world.inventory.is_suspect(PeerId("a"))
    world.inventory.trust(PeerId("b"))
    await told(world, conversation)
    assert len(dead.asked) == 1, "it stays where it began"


def begins_at(world: World, conversation: int, peer: str) -> bool:
    asked = about(conversation)
    return world.answers.candidates.of(asked, asked.id)[0].peer == peer


async def test_busy_shard_is_not_waited_for() -> None:
    gives, busy = Giver("b"), Speaker()
    world = World(a=gives, b=busy)
    shards(world, "a", "b")
    load = ModelLoad(model=ModelId("m"), slots=2, active=2, queued=9, whole=10.0)
    world.answers.candidates.heard_load(PeerId("b"), [load])
    await told(world, 1)
    assert asked_of(gives, busy) == [[True, False], []]


async def test_peer_that_hands_over_what_it_must_answer_itself_has_failed() -> None:
    class Stubborn(Speaker):
        async def _speak(self, request: InferenceRequest) -> AsyncIterator[Delta]:
            raise HandedOver("no", param="b")
            yield Delta()

    stubborn, other = Stubborn(), Speaker()
    world = World(a=stubborn, b=other)
    shards(world, "a")
    world.announce("b", MODEL, 2)
    world.inventory.suspect(PeerId("b"))
    assert await world.text() == WHOLE
    assert asked_of(stubborn) == [[False]], "there is no other shard"
    assert world.inventory.is_suspect(PeerId("a"))


async def test_shard_here_hands_over_to_a_peer_and_a_peer_to_the_shard_here() -> None:
    for here, there, heard in ((Giver("b"), Speaker(), "b"), (Speaker(), Giver("me"), "me")):
        world = World(here, b=there)
        world.answers.candidates.me = PeerId("me")
        shards(world, "b")
        part = Shard(model=Digest("1" * 64), mass=0.9)
        mine = msgspec.structs.replace(MODEL, digest=Digest("9" * 64), shard=part)
        world.hosted["m"].served = lambda mine=mine: mine
        for conversation in range(20):
            await told(world, conversation)
        assert {entry.fields["to"] for entry in world.events("answer_handed_over")} == {heard}


@pytest.mark.parametrize("said", range(1, len(WORDS)))
async def test_answer_that_breaks_after_it_was_handed_over_goes_on(said: int) -> None:
    gives, dies = Giver("b"), Speaker(fails_after=said)
    world = World(a=gives, b=dies)
    shards(world, "a", "b")
    await told(world, 1)
    assert asked_of(gives)[0][-1] is False
    assert gives.asked[-1].resume
