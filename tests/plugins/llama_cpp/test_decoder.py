from __future__ import annotations

from collections import defaultdict

from meshnode_llama_cpp.batching import Limits
from meshnode_llama_cpp.context import Context
from meshnode_llama_cpp.decoder import Decoder, Task
from meshnode_llama_cpp.model import Model

from p2p_mesh.core.records import Delta, Sampling, Usage

LIMITS = Limits(rows=32, chunk=8)
GREEDY = Sampling(temperature=0)


def task(number: int, length: int = 20, most: int = 12, stops: tuple[str, ...] = ()) -> Task:
    prompt = [1, *(10 + (7 * number + place) % 400 for place in range(length - 1))]
    return Task(number, prompt, GREEDY, stops, most)


def run(decoder: Decoder, *tasks: Task) -> dict[int, list[Delta]]:
    found: dict[int, list[Delta]] = defaultdict(list)
    for one in tasks:
        decoder.add(one)
    while not decoder.idle:
        for answer in decoder.step():
            found[answer.number].append(answer.delta)
    return found


def fresh(model: Model, context: Context) -> Decoder:
    return Decoder(model, context, slots=2, limits=LIMITS)


def test_an_answer_has_a_delta_for_each_token_and_usage_at_the_end(
    model: Model, context: Context
) -> None:
    deltas = run(fresh(model, context), task(0, length=70))[0]
    assert [len(delta.tokens) for delta in deltas] == [1] * 12
    assert [delta.finish for delta in deltas] == [None] * 11 + ["length"]
    assert deltas[-1].usage == Usage(prompt_tokens=70, completion_tokens=12)
    assert all(delta.usage is None for delta in deltas[:-1])


def test_company_does_not_change_an_answer(model: Model, context: Context) -> None:
    tasks = [task(number, length=5 + 9 * number) for number in range(5)]
    together = run(fresh(model, context), *tasks)
    for one in tasks:
        assert run(fresh(model, context), one)[one.number] == together[one.number]


def test_a_stop_string_ends_an_answer_and_frees_the_slot(model: Model, context: Context) -> None:
    whole = "".join(delta.text for delta in run(fresh(model, context), task(0))[0])
    stop = whole[len(whole) // 2 :][:3]
    decoder = fresh(model, context)
    deltas = run(decoder, task(0, stops=(stop,)))[0]
    assert deltas[-1].finish == "stop"
    assert "".join(delta.text for delta in deltas) == whole[: whole.index(stop)]


def test_the_end_of_a_turn_is_counted_and_not_shown(model: Model, context: Context) -> None:
    found = run(fresh(model, context), *(task(number, most=200) for number in range(8)))
    ended = [deltas for deltas in found.values() if deltas[-1].finish == "stop"]
    assert ended
    for deltas in ended:
        last = deltas[-1]
        assert model.ends(last.tokens[0])
        assert last.text == ""
        assert last.usage
        assert last.usage.completion_tokens == len(deltas)


def test_cancelled_answers_make_room(model: Model, context: Context) -> None:
    decoder = fresh(model, context)
    for number in range(3):
        decoder.add(task(number, most=10_000))
    decoder.step()
    decoder.cancel(0)
    decoder.cancel(2)
    decoder.cancel(1)
    decoder.cancel(1)
    assert decoder.idle
    assert run(decoder, task(3)) == run(fresh(model, context), task(3))
