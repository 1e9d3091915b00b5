from __future__ import annotations

import socket
import threading

from meshnode_llama_cpp import frames
from meshnode_llama_cpp.evenly import Outlet
from meshnode_llama_cpp.worker import Inbox, Worker, _rejection, sort

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import Delta, InferenceRequest, TextPrompt
from p2p_mesh.errors import RequestError


def ask(number: int) -> frames.Ask:
    request = InferenceRequest(
        id=RequestId("r"), model=ModelId("m"), prompt=TextPrompt(text="hello")
    )
    return frames.Ask(number, request)


def inbox_of(*commands: frames.Command) -> Inbox:
    ours, theirs = socket.socketpair()
    inbox = Inbox(theirs, frames.commands())
    with ours, theirs:
        reader = threading.Thread(target=inbox._read)
        reader.start()
        ours.sendall(b"".join(map(frames.encode, commands)))
        ours.shutdown(socket.SHUT_WR)
        reader.join()
    return inbox


def test_commands_are_taken_in_order() -> None:
    inbox = inbox_of(frames.Cancel(1), ask(2), ask(3))
    assert inbox.batch(wait=True) == [frames.Cancel(1), ask(2)]
    assert inbox.batch(wait=True) == [ask(3)]
    assert inbox.batch(wait=False) == []


def test_question_that_was_taken_back_costs_nothing() -> None:
    inbox = inbox_of(ask(1), ask(2), frames.Cancel(1), frames.Cancel(2), ask(3))
    assert inbox.batch(wait=True) == [ask(3)]


def test_one_question_is_begun_between_two_steps() -> None:
    now, held = sort([ask(1), frames.Cancel(9), ask(2), ask(3)])
    assert now == [frames.Cancel(9), ask(1)]
    assert held == [ask(2), ask(3)]


def test_a_question_can_be_taken_back_while_it_is_answered() -> None:
    inbox = inbox_of(ask(1), frames.Cancel(7), ask(2))
    assert inbox.is_cancelled(7)
    assert not inbox.is_cancelled(1)
    assert inbox.batch(wait=True) == [frames.Cancel(7), ask(1)]
    assert inbox.batch(wait=True) == [ask(2)]


class Broken:
    idle = True

    def ask(self, number: int, request: InferenceRequest) -> None:
        raise KeyError("a defect of ours")


def test_a_defect_that_one_question_meets_is_the_end_of_that_question() -> None:
    ours, theirs = socket.socketpair()
    worker = Worker.__new__(Worker)
    worker._served, worker._outlet = Broken(), Outlet(theirs)  # type: ignore[assignment]
    with ours, theirs:
        worker.obey(ask(7))
        (report,) = frames.reports().feed(ours.recv(65_536))
    assert isinstance(report, frames.Rejected)
    assert (report.number, report.code) == (7, "error")
    assert "a defect of ours" in report.message


class Unspeakable:
    idle, hold = False, 0.0
    cancelled: list[int] = []  # noqa: RUF012

    def step(self) -> list[frames.Answer]:
        broken, good = Delta(text="\ud800"), Delta(text="good")
        return [frames.Answer(1, broken), frames.Answer(2, good)]

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)


def test_an_answer_that_cannot_be_passed_on_ends_alone() -> None:
    ours, theirs = socket.socketpair()
    worker = Worker.__new__(Worker)
    served = Unspeakable()
    worker._served, worker._outlet = served, Outlet(theirs)  # type: ignore[assignment]
    with ours, theirs:
        worker.step()
        rejected, answered = frames.reports().feed(ours.recv(65_536))
    assert isinstance(rejected, frames.Rejected)
    assert rejected.number == 1
    assert answered == frames.Answer(2, Delta(text="good"))
    assert served.cancelled == [1]


def test_a_reason_that_quotes_half_a_character_is_sent() -> None:
    assert _rejection(1, RequestError("no \ud800")).message == "no ?"
