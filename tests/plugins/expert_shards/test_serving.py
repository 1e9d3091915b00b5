"""A shard that hands conversations over to the node whose part holds more of what they need."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from meshnode_expert_shards import serving
from meshnode_expert_shards.parts import Open, Parts, mask
from meshnode_expert_shards.serving import ShardWriter
from meshnode_expert_shards.switch import Switch
from meshnode_expert_shards.weighing import weigh
from meshnode_llama_cpp import frames
from meshnode_llama_cpp.library import start
from meshnode_llama_cpp.model import Model
from msgspec.structs import replace

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import ChatPrompt, InferenceRequest, Resume, Sampling, TextPrompt
from tests.plugins.expert_shards.demo import QUESTIONS, Cut
from tests.plugins.workers import reports, worker

WORKER = "meshnode_expert_shards.serving"

FIRST, SECOND = QUESTIONS[0], QUESTIONS[1]
"""A question for each half of the experts (test_questions_are_for_both_halves)."""


def opened(path: Path, slots: int = 2) -> frames.Open:
    return frames.Open("x", str(path), context=512, slots=slots, threads=1, speculation=False)


def writer(made: Cut, part: int = 0) -> ShardWriter:
    start()
    path = made.shards[part]
    model = Model(str(path), name="x", progress=lambda _: None)
    dealt = replace(made.dealt, own=part)
    return ShardWriter(model, opened(path), 0, routers=made.routers, dealt=dealt)


def question(text: str, **more: Any) -> InferenceRequest:
    more.setdefault("weigh", True)
    return InferenceRequest(
        id=RequestId("1"), model=ModelId("x"), prompt=TextPrompt(text=text), max_tokens=6,
        sampling=Sampling(temperature=0.0), **more,
    )  # fmt: skip


def run(shard: ShardWriter) -> list[Any]:
    found: list[Any] = []
    while not shard.idle:
        found += shard.step()
    return found


def answered(shard: ShardWriter, asked: InferenceRequest, number: int = 0) -> Any:
    """The last that is said of a question."""
    shard.ask(number, asked)
    return [one for one in run(shard) if one.number == number][-1]


def whole_mass(made: Cut, text: str, monkeypatch: pytest.MonkeyPatch) -> Mapping[int, float]:
    """What each part holds, as a shard of the first one sees it."""
    found: list[Any] = []

    def kept(*given: Any) -> Any:
        found.append(weigh(*given))
        return found[-1]

    with monkeypatch.context() as patch:
        patch.setattr(serving, "weigh", kept)
        answered(writer(made), question(text))
    return dict(enumerate(found[0].mean(0)))


@pytest.mark.parametrize("text", QUESTIONS)
def test_question_is_handed_over_where_another_part_holds_more(
    halves: Cut, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mass = whole_mass(halves, text, monkeypatch)
    assert sum(mass.values()) == pytest.approx(1)
    said = [answered(writer(halves, part), question(text)) for part in (0, 1)]
    kinds = [type(one) for one in said]
    most = max(mass, key=lambda part: mass[part])
    assert isinstance(said[most], frames.Answer)
    if mass[most] - mass[1 - most] > 0.1:
        assert kinds[1 - most] is frames.Rejected
    if kinds[1 - most] is frames.Rejected:
        assert (said[1 - most].code, said[1 - most].param) == ("handed_over", "ab"[most])


def test_nothing_is_said_before_it_is_handed_over_and_its_slot_is_free(halves: Cut) -> None:
    shard = writer(halves)
    shard.ask(1, question(SECOND, choices=2))
    (only,) = run(shard)
    assert isinstance(only, frames.Rejected)
    shard.ask(2, question(SECOND, weigh=False))
    shard.ask(3, question(FIRST, weigh=False))
    assert {type(one) for one in run(shard)} == {frames.Answer}


def test_other_answers_go_on_beside_one_that_is_handed_over(halves: Cut) -> None:
    shard = writer(halves)
    wanted = answered(writer(halves), question(FIRST, weigh=False)).delta.usage
    shard.ask(1, question(FIRST, weigh=False))
    said: list[Any] = list(shard.step())
    shard.ask(2, question(SECOND))
    said += run(shard)
    assert [one.param for one in said if isinstance(one, frames.Rejected)] == ["b"]
    usage = [one.delta.usage for one in said if one.number == 1 and one.delta.usage]
    assert usage == [wanted]


@pytest.mark.parametrize("asked", [
    question(SECOND, weigh=False),
    question(SECOND, resume=(Resume(tokens=(5,)),)),
    question("a"),
])  # fmt: skip
def test_question_that_may_not_be_handed_over_or_is_short_is_answered(
    halves: Cut, asked: InferenceRequest
) -> None:
    shard = writer(halves)
    assert isinstance(answered(shard, asked), frames.Answer)
    assert shard._heard is not None
    assert not shard._heard.given, "nothing was listened to"


def test_one_call_of_a_question_is_heard_and_no_step_of_an_answer(
    questions: Callable[[], int], halves: Cut
) -> None:
    shard = writer(halves)
    assert shard._heard is not None
    before = questions()
    assert isinstance(answered(shard, question(FIRST, weigh=False)), frames.Answer)
    assert questions() == before
    other = writer(halves, 1)
    assert other._heard is not None
    before = questions()
    other.ask(0, question(SECOND))
    other.step()
    heard = questions()
    assert heard > before
    assert [type(one) for one in run(other)][-1] is frames.Answer
    assert questions() == heard


def test_answers_are_the_same_whether_they_were_weighed(halves: Cut) -> None:
    def tokens(**more: Any) -> Sequence[int]:
        shard = writer(halves, 1)
        shard.ask(0, question(SECOND, **more))
        return [token for one in run(shard) for token in one.delta.tokens]

    assert tokens(weigh=True) == tokens(weigh=False)


def chat(*messages: tuple[str, str]) -> InferenceRequest:
    said = tuple({"role": role, "content": content} for role, content in messages)
    return replace(question(""), prompt=ChatPrompt(messages=said))


def test_conversation_that_goes_on_here_stays(halves: Cut) -> None:
    shard, begun = writer(halves), ("user", SECOND)
    assert isinstance(answered(shard, chat(begun)), frames.Rejected)
    assert isinstance(answered(shard, replace(chat(begun), weigh=False)), frames.Answer)
    on = chat(begun, ("assistant", "yes"), ("user", "more of it"))
    assert isinstance(answered(shard, on), frames.Answer), "most of it is here"
    again = answered(writer(halves), on)
    assert isinstance(again, frames.Rejected), "another node had it, and this one nothing"


def test_others_are_gone_by_as_they_are_now(halves: Cut) -> None:
    shard = writer(halves)
    everything = (mask(range(32), 32),) * 4
    nothing = (mask([], 32),) * 4
    shard.deal(Parts(0, ("a", "c"), (nothing, everything)))
    assert answered(shard, question(FIRST)).param == "c"
    shard.deal(Parts(0, ("a", "c"), (everything, nothing)))
    assert isinstance(answered(shard, question(FIRST)), frames.Answer)
    shard.deal(Parts(0, ("a",), (nothing,)))
    assert isinstance(answered(shard, question(FIRST)), frames.Answer)


def test_cancelled_question_is_not_weighed(halves: Cut) -> None:
    shard = writer(halves)
    shard.ask(1, question(SECOND))
    shard.cancel(1)
    assert run(shard) == []
    assert isinstance(answered(shard, question(SECOND, weigh=False), 1), frames.Answer)


def test_version_that_cannot_be_listened_to_serves_and_says_so(
    halves: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Switch, "find", lambda *_: False)
    shard = writer(halves)
    assert "not weighed" in shard.notes[-1]
    assert shard._heard is None
    assert isinstance(answered(shard, question(SECOND)), frames.Answer)


def test_family_whose_rule_is_not_known_serves_and_says_so(
    halves: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode_expert_shards.routers._FITS", -1.0)
    shard = writer(halves)
    assert "not weighed" in shard.notes[-1]
    assert isinstance(answered(shard, question(SECOND)), frames.Answer)


def test_layer_that_was_not_heard_says_nothing(
    halves: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = writer(halves)
    assert shard._heard is not None
    monkeypatch.setattr(shard._heard._tap, "_hear", lambda *_: None)
    assert isinstance(answered(shard, question(SECOND)), frames.Answer)


def test_questions_are_for_both_halves(halves: Cut) -> None:
    assert np.array_equal(halves.chosen(1), np.arange(16, 32))
    for part, text in ((0, FIRST), (1, SECOND)):
        assert isinstance(answered(writer(halves, part), question(text)), frames.Answer)
        assert isinstance(answered(writer(halves, 1 - part), question(text)), frames.Rejected)


# The process


def test_process_opens_hands_over_goes_by_others_and_ends(halves: Cut) -> None:
    with worker(WORKER) as (connection, process):
        command = Open(opened(halves.shards[0]), str(halves.routers), halves.dealt)
        connection.sendall(frames.encode(command))
        said = reports(connection, frames.reports())
        ready = next(one for one in said if not isinstance(one, frames.Progress))
        assert isinstance(ready, frames.Ready)
        assert ready.notes == ()
        connection.sendall(frames.encode(frames.Ask(7, question(SECOND))))
        handed = next(said)
        assert (handed.number, handed.code, handed.param) == (7, "handed_over", "b")
        alone = Parts(0, ("a",), halves.dealt.experts[:1])
        connection.sendall(frames.encode(alone) + frames.encode(frames.Ask(8, question(SECOND))))
        assert next(one for one in said if one.number == 8 and one.delta.usage is not None)
        connection.shutdown(socket.SHUT_WR)
        assert process.wait(30) == 0


def test_shard_without_its_routers_is_told_in_words(halves: Cut, tmp_path: Path) -> None:
    with worker(WORKER) as (connection, process):
        command = Open(opened(halves.shards[0]), str(tmp_path / "none"), halves.dealt)
        connection.sendall(frames.encode(command))
        failed = next(
            one
            for one in reports(connection, frames.reports())
            if not isinstance(one, frames.Progress)
        )
        assert isinstance(failed, frames.Failed)
        assert "cannot be read" in failed.reason
        assert process.wait(30) == 0
