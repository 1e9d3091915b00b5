"""The benches' arithmetic: rates over a common window, percentiles, turns, and figures."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts/benches"))

# Scripts are programs, not a package: mypy does not look there, and the path comes first.
import engine  # type: ignore[import-not-found]
import figures  # type: ignore[import-not-found]
import load  # type: ignore[import-not-found]
import pairs  # type: ignore[import-not-found]
import peer  # type: ignore[import-not-found]

HEAD = b"HTTP/1.1 200 \r\ncontent-type: text/event-stream\r\n\r\n"
EVENTS = (
    b'data: {"choices":[{"text":"","index":0}]}\n\n'
    b'data: {"choices":[{"text":"a","index":0}]}\n\n'
    b'data: {"choices": [{"text": "\\"", "index": 0}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":64,"completion_tokens":3}}\n\n'
    b"data: [DONE]\n\n"
)


def streams() -> tuple[Any, Any]:
    return trio.testing.memory_stream_one_way_pair()


def answer(times: list[float], tokens: int) -> Any:
    _, stream = streams()
    made = load.Answer(stream, 0.0)
    made.times = times
    made._tail = b'{"prompt_tokens":1,"completion_tokens":%d}' % tokens
    return made


async def read(*parts: bytes) -> Any:
    send, receive = streams()
    read = load.Answer(receive, trio.current_time())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read.all)
        for part in parts:
            await send.send_all(part)
            await trio.testing.wait_all_tasks_blocked()
        await send.aclose()
    return read


async def test_events_with_text_are_counted() -> None:
    found = await read(HEAD + EVENTS)
    assert (len(found.times), found.tokens, found.prompt_tokens) == (2, 3, 64)


@pytest.mark.parametrize("cut", range(1, len(EVENTS), 7))
async def test_a_cut_event_is_counted_once(cut: int) -> None:
    found = await read(HEAD, EVENTS[:cut], EVENTS[cut:])
    assert (len(found.times), found.weight) == (2, 1.5)


async def test_an_answer_that_breaks_off_is_an_error() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await read(HEAD + EVENTS.removesuffix(b"data: [DONE]\n\n"))
    assert caught.group_contains(RuntimeError, match="broke off")


async def test_a_refusal_is_an_error_that_shows_it() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await read(b'HTTP/1.1 404 \r\n\r\n{"error":{"message":"no such model"}}')
    assert caught.group_contains(RuntimeError, match="no such model")


def test_rate_is_of_the_time_when_all_are_written() -> None:
    early, late = answer([0.0, 1.0, 2.0, 3.0], 4), answer([1.0, 2.0, 3.0, 4.0, 5.0], 5)
    assert load.decode_rate([early, late]) == 2.0


def test_an_event_counts_for_its_tokens() -> None:
    assert load.decode_rate([answer([0.0, 1.0, 2.0], 6)]) == 2.0


def test_answers_one_after_the_other_have_no_rate() -> None:
    with pytest.raises(RuntimeError, match="never written at one time"):
        load.decode_rate([answer([0.0, 1.0], 2), answer([1.0, 2.0], 2)])


@pytest.mark.parametrize(("share", "value"), [(0.5, 5.0), (0.99, 10.0), (0.1, 1.0), (0.0, 1.0)])
def test_percentile(share: float, value: float) -> None:
    assert load.percentile([float(n) for n in range(10, 0, -1)], share) == value


def test_prompts_of_one_seed_are_equal_and_begin_unlike_others() -> None:
    first, again, other = (load.completion(Random(seed), 64, 8) for seed in (1, 1, 2))
    assert first == again
    assert first["prompt"][:8] != other["prompt"][:8]


def test_ratio_is_a_median_over_pairs() -> None:
    assert pairs.ratio([(1.0, 2.0), (9.0, 1.0), (3.0, 3.0)], float) == 1.0


@asynccontextmanager
async def served(server: str) -> AsyncIterator[str]:
    yield server


async def test_each_of_two_is_first_in_turn() -> None:
    order = []

    async def run(server: str, _random: Random) -> str:
        order.append(server)
        return server

    both = partial(served, "A"), partial(served, "B")
    found = await pairs.Turns(tries=1).pairs("letters", both, 2, run)
    assert order == ["A", "B", "B", "A"]
    assert found == [("A", "B"), ("A", "B")]


def test_a_figure_without_a_bound_holds() -> None:
    row = figures.Figure("rate", 12.3456, "tok/s").row()
    assert row == {
        "name": "rate",
        "value": 12.346,
        "unit": "tok/s",
        "wanted": "",
        "holds": True,
    }


def test_a_figure_is_held_to_its_bound() -> None:
    assert not figures.Figure("ratio", 0.96, "", ">=", 0.97).holds


@pytest.mark.parametrize("name", ["llama-server", "ggml-rpc-server", "test-llama-archs"])
async def test_a_built_program_is_found(tmp_path: Path, name: str) -> None:
    programs = tmp_path / f"llama.cpp-{version('llama-cpp-python')}" / "build/bin"
    programs.mkdir(parents=True)
    for one in ("llama-server", "llama-bench", "ggml-rpc-server", "test-llama-archs"):
        (programs / one).touch()
    said: list[str] = []
    assert await peer.build(tmp_path, said.append, name) == programs / name
    assert said == []


def test_parameters_are_counted() -> None:
    shape = engine.Shape(layers=2, width=64, heads=4, kv_heads=2, feed=128, vocabulary=512)
    assert engine._parameters(shape) == 139_584


async def test_repeats_end_when_their_time_is_used_up() -> None:
    turns = pairs.Turns(tries=3)
    turns._spare = 0.0
    both = partial(served, "A"), partial(served, "B")
    seeds = []

    async def run(_server: str, random: Random) -> float:
        seeds.append(random.random())
        return 1.0

    await turns.pairs("letters", both, 1, run)
    assert len(seeds) == 2
    assert seeds[0] == seeds[1]


def test_a_gap_is_measured_by_what_is_usual_at_that_length() -> None:
    gaps = [*[10.0] * 4, 20.0, 30.0, 25.0, *[30.0] * 4]  # 5th to 7th while the prompt was read
    times = list(accumulate(gaps, initial=0.0))
    assert load.longest_gap(times, 5, 7) == pytest.approx(2.0)
