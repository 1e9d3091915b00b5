from __future__ import annotations

import socket
from pathlib import Path

from meshnode_flash_moe import told
from meshnode_llama_cpp import frames

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import InferenceRequest, TokenPrompt
from tests.plugins.workers import reports, worker

WORKER = "meshnode_flash_moe.worker"


def open_command(path: Path, memory: int = 4 << 30) -> bytes:
    command = frames.Open("m", str(path), context=64, slots=1, threads=1, speculation=False)
    return frames.encode(told.Open(command, memory, 1 << 20))


def test_a_model_is_opened_asked_and_hung_up(mixture: Path) -> None:
    with worker(WORKER) as (connection, process):
        connection.sendall(open_command(mixture))
        said = reports(connection, told.reports())
        ready = next(one for one in said if not isinstance(one, frames.Progress))
        assert isinstance(ready, frames.Ready)
        assert ready.device == "cpu"
        prompt = TokenPrompt(tokens=(1, 5, 6))
        request = InferenceRequest(
            id=RequestId("r"), model=ModelId("m"), prompt=prompt, max_tokens=4
        )
        connection.sendall(frames.encode(frames.Ask(7, request)))
        answers = (one for one in said if isinstance(one, frames.Answer))
        assert next(one for one in answers if one.delta.usage is not None).number == 7
        connection.shutdown(socket.SHUT_WR)
        assert process.wait(30) == 0


def test_a_model_that_cannot_be_served_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "none.gguf").write_bytes(b"nothing")
    with worker(WORKER) as (connection, process):
        connection.sendall(open_command(tmp_path / "none.gguf"))
        failed = next(reports(connection, told.reports()))
        assert isinstance(failed, frames.Failed)
        assert "no GGUF" in failed.reason
        assert process.wait(30) == 0
