from __future__ import annotations

import socket
import threading

from meshnode_llama_cpp import frames
from meshnode_llama_cpp.worker import Inbox, Worker, sort

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import InferenceRequest, TextPrompt


def ask(number: int) -> frames.Ask:
    request = InferenceRequest(
        id=RequestId("r"), model=ModelId("m"), prompt=TextPrompt(text="hello")
    )
    return frames.Ask(number, request)


def inbox_of(*commands: frames.Command) -> Inbox:
    ours, theirs = socket.socketpair()
    inbox = Inbox(theirs)
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
    worker._served, worker._connection = Broken(), theirs  # type: ignore[assignment]
    with ours, theirs:
        worker.obey(ask(7))
        (report,) = frames.reports().feed(ours.recv(65_536))
    assert isinstance(report, frames.Rejected)
    assert (report.number, report.code) == (7, "error")
    assert "a defect of ours" in report.message
