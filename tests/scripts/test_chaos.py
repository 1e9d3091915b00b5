"""What the chaos proof makes of a run: what is lost or wrong, and whose doing a pause is."""

import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

# Scripts are programs, not a package: mypy does not look there, and the path comes first.
from disasters import clients, harm, questions, verdict  # type: ignore[import-not-found]

QUESTION = questions.Question(3, "chat", "/v1/chat/completions", {"temperature": 0})
HEAD = b"HTTP/1.1 200 \r\ncontent-type: text/event-stream\r\n\r\n"


def answer(times: Sequence[float] = (), text: str = "", **more: Any) -> Any:
    made = clients.Answer(QUESTION, "ask1", times[0] if times else 0.0, list(times), **more)
    made._text.append(text)
    made.end = times[-1] if times else 0.0
    return made


def disaster(kind: str, start: float, end: float, victim: str = "serve1") -> Any:
    return verdict.Disaster(kind, victim, f"peer of {victim}", start, end)


def line(at: float, event: str, **more: Any) -> dict[str, Any]:
    return {"timestamp": f"1970-01-01T{verdict.clock(at)}Z", "event": event, "message": event,
            **more}  # fmt: skip


async def asked(*parts: bytes) -> Any:
    """What a client makes of a node that answers with these bytes."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            for part in parts:
                await stream.send_all(part)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        found = await clients.ask(clients.Door("ask1", "127.0.0.1", port, "key"), QUESTION)
        nursery.cancel_scope.cancel()
    return found


async def test_what_was_said_is_put_together() -> None:
    found = await asked(
        HEAD,
        b'data: {"choices":[{"delta":{"role":"assistant"},"index":0}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"he"},"index":0}]}\n\ndata: {"choices":[{"de',
        b'lta":{"content":"llo"},"index":0}]}\n\n',
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"f"}}]}}]}\n\n',
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}}]}',
        b'\n\ndata: {"choices":[{"delta":{},"finish_reason":"tool_calls"}]}\n\ndata: [DONE]\n\n',
    )
    assert found.said == clients.Said("hello", (("f", "{}"),), "tool_calls")
    assert (found.error, len(found.times)) == ("", 5)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([HEAD, b'data: {"choices":[{"text":"a"}]}\n\n'], "broke off"),
        ([HEAD, b'data: {"error":{"message":"gone"}}\n\n'], "gone"),
        ([b'HTTP/1.1 503 \r\n\r\n{"error":{"message":"busy"}}'], "busy"),
        ([HEAD, b'data: {"choices":[{"text":"a"}]}\n\ndata: [DONE]\n\n'], "without a finish"),
    ],
)
async def test_answer_that_is_no_whole_one_is_lost(parts: list[bytes], why: str) -> None:
    assert why in (await asked(*parts)).error


def test_pause_is_blamed_on_what_struck_in_it() -> None:
    kill, cut = disaster("kill", 11.0, 15.0), disaster("cut", 12.0, 20.0)
    gap = next(verdict.gaps([answer([10.0, 14.0])]))
    assert verdict.blame(gap, [kill]) is kill
    assert verdict.blame(gap, [kill, cut]) is cut  # the one that takes longer to notice


def test_pause_after_a_disaster_is_its_doing_for_a_while() -> None:
    kill, engine = disaster("kill", 1.0, 5.0), disaster("engine", 3.0, 4.0)
    gap = next(verdict.gaps([answer([6.0, 8.0])]))
    assert verdict.blame(gap, [engine, kill]) is kill
    assert verdict.blame(next(verdict.gaps([answer([16.0, 17.0])])), [kill]) is None


def test_longest_pause_of_each_kind() -> None:
    answers = [answer([0.0, 1.0, 3.5]), answer([40.0, 44.0]), answer([80.0, 80.5])]
    found = verdict.longest(answers, [disaster("kill", 2, 6), disaster("cut", 41, 50)])
    assert found == {"kill": 2.5, "cut": 4.0, "quiet": 1.0}


def test_detection_is_the_first_line_of_that_peer() -> None:
    log = [
        line(9.0, "peer_left", peer="peer of serve1"),
        line(12.0, "peer_suspected", peer="peer of serve2"),
        line(13.5, "peer_suspected", peer="peer of serve1"),
    ]
    assert verdict.detection(disaster("cut", 10.0, 20.0), log) == pytest.approx(3.5)


def test_what_nobody_noticed_took_as_long_as_it_lasted() -> None:
    assert verdict.detection(disaster("stop", 10.0, 20.0), []) == 10.0


def test_other_text_is_wrong_and_a_lost_answer_is_not() -> None:
    right = {3: answer(text="abc").said}
    same, other, lost = answer(text="abc"), answer(text="abd"), answer(text="x", error="gone")
    assert verdict.wrongs([same, other, lost], right) == [other]
    assert "from 2 on 'c', not 'd'" in verdict.difference(other.said, right[3])


def test_account_shows_the_log_around_with_names_for_ids() -> None:
    logs = {"ask1": [line(1.0, "early"), line(10.5, "peer_left of serve1"), line(90.0, "late")]}
    logs["ask1"][1]["message"] = "peer of serve1 is gone"
    told = verdict.account(answer([9.0, 11.0]), "lost: x", [disaster("kill", 10.4, 15)], logs)
    assert told["disasters"] == ["00:00:10.400 kill serve1"]
    assert told["log"] == ["00:00:10.500 ask1 peer_left of serve1: serve1 is gone"]
    assert told["longest_gap_s"] == 2.0


def test_questions_are_mixed_and_the_same_for_a_seed() -> None:
    made = questions.make_questions(Random(1), 40, "m")
    assert made == questions.make_questions(Random(1), 40, "m")
    assert {one.kind for one in made} == {"chat", "completion", "tools", "schema"}
    assert {one.body["temperature"] == 0 for one in made} == {True, False}
    assert all(one.body["stream"] for one in made)


def test_every_kind_of_disaster_comes() -> None:
    kinds = harm._kinds(Random(1))
    assert {next(kinds) for _ in harm.DECK} == set(harm.DECK) == set(harm._PERFORM)
