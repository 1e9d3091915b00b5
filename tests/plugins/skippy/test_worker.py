from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from meshnode_llama_cpp.frames import Answer, Ask, Failed, Progress, Ready, encode
from meshnode_skippy.direct import KEY
from meshnode_skippy.frames import (
    Dial,
    Dialled,
    Listen,
    Listening,
    OpenStage,
    Ping,
    Pong,
    Restart,
    reports,
)
from msgspec.structs import replace

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import Delta, InferenceRequest, Sampling, TokenPrompt
from tests.plugins.skippy.ring import Ring, commands, ids, prompt


class Process:
    """A real worker, and its node's ends of both sockets."""

    def __init__(self, command: OpenStage) -> None:
        self.control, theirs = socket.socketpair()
        self.link, link = socket.socketpair()
        with theirs, link:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "meshnode_skippy.worker", str(theirs.fileno()),
                 str(link.fileno())],
                pass_fds=[theirs.fileno(), link.fileno()],
                env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
            )  # fmt: skip
        self._records, self._reports = reports(), list[Any]()
        self.say(command)

    def say(self, command: Any) -> None:
        self.control.sendall(encode(command))

    def hear(self) -> Any:
        """The next report that is no progress."""
        self.control.settimeout(20)
        while True:
            while self._reports:
                report = self._reports.pop(0)
                if not isinstance(report, Progress):
                    return report
            self._reports += self._records.feed(self.control.recv(65_536))

    def close(self) -> None:
        self.control.close()
        self.link.close()
        assert self._process.wait(10) in (0, 1)


def pump(workers: list[Process], until: Process) -> int:
    """Moves what goes around, until that one has a report; returns how many bytes went."""
    moved = 0
    links = {
        one.link: other.link for one, other in zip(workers, workers[1:] + workers[:1], strict=True)
    }
    while True:
        ready, _, _ = select.select([*links, until.control], [], [], 20)
        assert ready
        for one in ready:
            if one is until.control:
                return moved
            data = one.recv(1 << 20)
            moved += len(data)
            links[one].sendall(data)


@pytest.fixture
def opens(tmp_path: Path) -> list[OpenStage]:
    return commands(tmp_path, deterministic=True)


@pytest.fixture
def workers(opens: list[OpenStage]) -> Iterator[list[Process]]:
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Process(command))) for command in opens]


def ask(number: int, most: int) -> Ask:
    request = InferenceRequest(
        id=RequestId("r"), model=ModelId("m"), prompt=TokenPrompt(tokens=tuple(prompt(1, 60))),
        max_tokens=most, sampling=Sampling(temperature=0),
    )  # fmt: skip
    return Ask(number, request)


def answer(workers: list[Process], number: int, most: int) -> tuple[list[int], int]:
    """The tokens of an answer, and how many bytes went through nodes for it."""
    first, moved = workers[0], 0
    first.say(ask(number, most))
    deltas: list[Delta] = []
    while not deltas or deltas[-1].usage is None:
        if not first._reports:
            moved += pump(workers, first)
        report = first.hear()
        assert isinstance(report, Answer)
        deltas.append(report.delta)
    return ids(deltas), moved


def test_workers_answer_together_and_go_with_their_nodes(
    workers: list[Process], opens: list[OpenStage]
) -> None:
    ready = [worker.hear() for worker in workers]
    assert all(isinstance(one, Ready) for one in ready)
    assert [one.capabilities for one in ready] == [("generate",), ("forward",), ("forward",)]
    for worker in workers:
        worker.say(Ping())
    assert [worker.hear() for worker in workers] == [Pong()] * 3
    alone = Ring(opens)
    alone.ask(1, prompt(1, 60), 12)
    wanted = alone.run()[1]
    workers[0].say(Restart(1))
    said, through_nodes = answer(workers, 1, 12)
    assert said == wanted

    # And past the nodes.
    for one, other in zip(workers, workers[1:] + workers[:1], strict=True):
        key = os.urandom(KEY)
        other.say(Listen(key))
        listening = other.hear()
        assert isinstance(listening, Listening)
        one.say(Dial(("127.0.0.1",), listening.port, key))
        assert one.hear() == Dialled(True)
    workers[0].say(Restart(2))
    said, past_nodes = answer(workers, 2, 12)
    assert said == wanted
    assert past_nodes == 0 < through_nodes


def test_a_stage_that_cannot_be_loaded_says_why(opens: list[OpenStage], tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(Path(opens[1].path).read_bytes()[:2000])
    with closing(Process(replace(opens[1], path=str(broken)))) as worker:
        report = worker.hear()
    assert isinstance(report, Failed)
    assert "llama.cpp does not load" in report.reason
