"""An engine is listened to: how fast it is, and whether it lives."""

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import (
    ChatPrompt,
    Delta,
    EmbedQuery,
    InferenceRequest,
    ModelFile,
    Query,
    Reply,
    Resume,
    TextPrompt,
    TokenizeQuery,
    Usage,
)
from p2p_mesh.core.silence import QUIET
from p2p_mesh.core.tempo import Tempo
from p2p_mesh.errors import RequestError
from p2p_mesh.serve.backend import Load
from p2p_mesh.serve.pulse import LOOK_EVERY, PROBE_SHARE, Heard, Pulse, Work
from p2p_mesh.testing.backend import EchoEngine
from p2p_mesh.testing.offering import Spring

M = ModelId("m")
LOAD = Load(
    ModelFile(
        id=M, path="/m.gguf", size_bytes=1, architecture="llama", context_length=64,
        kv_bytes_per_token=1,
    )
)  # fmt: skip
ASK = InferenceRequest(id=RequestId("r"), model=M, prompt=TextPrompt(text="one"))


class Case:
    def __init__(self, engine: EchoEngine | None = None) -> None:
        self.engine = engine or EchoEngine(LOAD, 0.0)
        self.tempo = Tempo()
        self.changes = 0
        self.pulse = Pulse(self.engine, M, self.tempo, self._change)

    def _change(self) -> None:
        self.changes += 1


async def answer(*pauses: float, usage: Usage) -> AsyncIterator[Delta]:
    for pause in pauses:
        await trio.sleep(pause)
        yield Delta(tokens=(1,))
    yield Delta(finish="stop", usage=usage)


async def listen(case: Case, request: InferenceRequest, *pauses: float, usage: Usage) -> None:
    with case.pulse.working(request) as work:
        assert len([d async for d in Heard(answer(*pauses, usage=usage), work)]) == len(pauses) + 1


USAGE = Usage(prompt_tokens=500, completion_tokens=41, cached_tokens=100)


async def test_answer_shows_how_fast_it_was(autojump_clock: MockClock) -> None:
    case = Case()
    await listen(case, ASK, 4.0, 1.0, 1.0, usage=USAGE)
    assert case.tempo.prefill == pytest.approx(100)
    assert (case.tempo.first, case.tempo.whole) == pytest.approx((4.0, 6.0))
    assert case.tempo.speed == pytest.approx(20)
    assert case.changes == 1
    await listen(case, ASK, 4.0, 1.0, 1.0, usage=USAGE)
    assert case.changes == 1


@pytest.mark.parametrize("more", [{"choices": 2}, {"resume": (Resume(),)}])
async def test_answer_of_several_parts_shows_no_speed(
    more: dict[str, object], autojump_clock: MockClock
) -> None:
    case = Case()
    request = InferenceRequest(id=ASK.id, model=M, prompt=ASK.prompt, **more)  # type: ignore[arg-type]
    await listen(case, request, 4.0, 1.0, usage=USAGE)
    assert (case.tempo.prefill, case.tempo.speed, case.changes) == (0, 0, 0)
    assert case.tempo.whole == pytest.approx(5.0)


async def test_query_shows_how_fast_is_read(autojump_clock: MockClock) -> None:
    case = Case(EchoEngine(LOAD, 2.0))
    query = EmbedQuery(model=M, inputs=("x" * 100,))
    with case.pulse.working(query) as work:
        work.take(await case.engine.query(query))
    assert case.tempo.prefill == pytest.approx(50)


async def test_what_is_refused_or_read_off_shows_nothing(autojump_clock: MockClock) -> None:
    case = Case(EchoEngine(LOAD, 2.0))
    with case.pulse.working(ASK):
        await trio.sleep(1)
    query = TokenizeQuery(model=M, prompt=TextPrompt(text="x"))
    with case.pulse.working(query) as work:
        work.take(await case.engine.query(query))
    assert case.tempo.whole == 0.0


async def test_engine_that_ends_is_seen(autojump_clock: MockClock) -> None:
    case = Case()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end, case.engine)
        assert await case.pulse.watch() == "abort"
    assert trio.current_time() == pytest.approx(100)


async def _end(engine: EchoEngine) -> None:
    await trio.sleep(100)
    engine.die("abort")


async def test_frozen_engine_is_given_up(autojump_clock: MockClock) -> None:
    case = Case()
    case.engine.freeze()
    with case.pulse.working(ASK):
        assert "no sign of life" in await case.pulse.watch()
    bound = QUIET + LOOK_EVERY + QUIET * PROBE_SHARE + 1
    assert QUIET < trio.current_time() <= bound


async def test_image_may_take_long(autojump_clock: MockClock) -> None:
    case = Case()
    case.tempo.read(1000, 0.1)
    case.engine.freeze()
    part = {"type": "image_url", "image_url": {"url": "data:"}}
    prompt = ChatPrompt(messages=({"role": "user", "content": [part]},))
    with case.pulse.working(InferenceRequest(id=ASK.id, model=M, prompt=prompt)):
        await case.pulse.watch()
    assert trio.current_time() > 80


class Slow(EchoEngine):
    """Reads a prompt in one step, and answers nothing meanwhile."""

    async def query(self, query: Query) -> Reply:
        await trio.sleep(self.reading)
        return await super().query(query)

    reading = 300.0


PROMPT = InferenceRequest(id=ASK.id, model=M, prompt=TextPrompt(text="word " * 480))


async def test_first_prompt_of_a_slow_engine_is_read_to_its_end(autojump_clock: MockClock) -> None:
    case = Case(Slow(LOAD, 0.0))
    with case.pulse.working(PROMPT), trio.move_on_after(Slow.reading) as scope:
        await case.pulse.watch()
    assert scope.cancelled_caught


async def test_slow_engine_is_not_given_up_again_and_again(autojump_clock: MockClock) -> None:
    tempo, lives = Tempo(), list[float]()
    tempo.read(1000, 1.0)  # it was fast once
    for _ in range(3):
        began = trio.current_time()
        pulse = Pulse(Slow(LOAD, 0.0), M, tempo, lambda: None)
        with pulse.working(PROMPT), trio.move_on_after(Slow.reading) as scope:
            await pulse.watch()
        with pulse.working(PROMPT) as work:
            if scope.cancelled_caught:
                work.hear(Delta(tokens=(1,)))
        if scope.cancelled_caught:
            break
        lives.append(trio.current_time() - began)
    assert lives == sorted(lives)
    assert scope.cancelled_caught
    assert tempo.slack.times == 1.0


async def test_frozen_engine_with_nothing_to_do_disturbs_nobody(autojump_clock: MockClock) -> None:
    case = Case()
    case.engine.freeze()
    with trio.move_on_after(1000) as scope:
        await case.pulse.watch()
    assert scope.cancelled_caught


async def test_slow_engine_that_replies_is_left_alone(autojump_clock: MockClock) -> None:
    case = Case(EchoEngine(LOAD, 5.0))
    with case.pulse.working(ASK), trio.move_on_after(1000) as scope:
        await case.pulse.watch()
    assert scope.cancelled_caught


class Dumb(EchoEngine):
    """Has no vocabulary, and says so."""

    asked = 0

    async def query(self, query: Query) -> Reply:
        assert isinstance(query, TokenizeQuery)
        self.asked += 1
        raise RequestError("it has no vocabulary")


async def test_refusal_is_a_sign_of_life(autojump_clock: MockClock) -> None:
    engine = Dumb(LOAD, 0.0)
    case = Case(engine)
    with case.pulse.working(ASK), trio.move_on_after(100) as scope:
        await case.pulse.watch()
    assert scope.cancelled_caught
    assert 2 <= engine.asked <= 3


async def test_answer_that_grows_is_a_sign_of_life(autojump_clock: MockClock) -> None:
    case = Case()
    case.engine.freeze()  # so that a probe would end it
    with case.pulse.working(ASK) as work, trio.move_on_after(200) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_grow, work)
            await case.pulse.watch()
    assert scope.cancelled_caught


async def _grow(work: Work) -> None:
    while True:
        await trio.sleep(20)
        work.hear(Delta(tokens=(1,)))


async def test_what_is_taken_at_once_was_heard(autojump_clock: MockClock) -> None:
    case, spring = Case(), Spring[Delta]()
    taken: list[Delta] = []

    def take(delta: Delta) -> bool:
        taken.append(delta)
        return True

    async def read(deltas: Heard) -> None:
        assert [delta async for delta in deltas] == []

    with case.pulse.working(ASK) as work:
        deltas = Heard(spring, work)
        deltas.offer(take)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, deltas)
            await trio.testing.wait_all_tasks_blocked()
            assert spring.pour(Delta(text="a"))
            spring.pour(None)
        assert work.is_heard
    assert taken == [Delta(text="a")]
