"""The process that measures a model: `python -P -m meshnode_expert_shards.worker FD`.

It gets one command, tells how far it is, gives what it has counted, and ends. A bad GGUF ends this
process and nothing else; so does a hang-up of whoever started it.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from meshnode_llama_cpp.context import Plan
from meshnode_llama_cpp.frames import Failed, Ready, encode
from meshnode_llama_cpp.library import start
from meshnode_llama_cpp.model import LOAD_MODE_MMAP, Model
from meshnode_llama_cpp.prompt import Prompts
from meshnode_llama_cpp.worker import attend, limit_memory, tell

from meshnode_expert_shards.ahead import Ahead
from meshnode_expert_shards.counting import Chosen, CountingContext
from meshnode_expert_shards.frames import Count, Counted, commands
from meshnode_expert_shards.prompts import Asked
from meshnode_expert_shards.reading import ROWS, SLOTS, Reading, portions
from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import InferenceRequest
from p2p_mesh.errors import MeshError, ModelError, RequestError

SEED = 6
"""One model and the same prompts give the same ranking again."""

_LONGEST = 1 << 20
"""Tokens that a prompt may have before it is cut."""


def main(descriptor: int) -> None:
    connection = socket.socket(fileno=descriptor)
    inbox = attend(connection, commands())
    command = inbox.take()
    assert isinstance(command, Count)
    start()
    limit_memory(command.memory_limit, command.threads, ())
    try:
        report: Counted | Failed = count(command, connection)
    except MeshError as error:
        report = Failed(str(error))
    connection.sendall(encode(report))


class Mapped(Model):
    """A model of which nothing is copied: what does not fit is read again from its file."""

    def _load(self, path: str, params: Any) -> Any:
        params.use_extra_bufts = False  # they keep the weights in another order, in memory
        params.load_mode = LOAD_MODE_MMAP
        return super()._load(path, params)


def count(command: Count, connection: socket.socket) -> Counted:
    """Raises ModelError."""
    model = Mapped(command.path, name=command.name, progress=lambda share: tell(connection, share))
    model.check_writes()
    wanted = portions(
        tokenized(model, command.prompts), tokens=command.tokens, context=command.context
    )
    if not wanted:
        raise ModelError(f"{command.name} can read none of the prompts")
    longest = max(len(one.read) + one.write for one in wanted)
    context = CountingContext(
        model,
        Plan(context=longest, slots=SLOTS, threads=command.threads, rows=ROWS),
        experts=command.experts,
        family=command.family,
        chosen=_ahead(command),
    )
    connection.sendall(encode(Ready("", "cpu", ())))
    reading = Reading(model, context, seed=SEED, progress=lambda share: tell(connection, share))
    reading.run(wanted)
    return Counted(read=reading.read, written=reading.written, layers=context.counting.rankings())


def _ahead(command: Count) -> Chosen:
    if command.is_larger and hasattr(os, "posix_fadvise"):  # macOS has none
        return Ahead(Path(command.path)).read
    return lambda layer, experts: None


def tokenized(model: Model, prompts: Sequence[Asked]) -> list[list[int]]:
    """As an engine would read them. Chats that the template of this model refuses are left out."""
    reader, found = Prompts(model, _LONGEST), []
    for one in prompts:
        request = InferenceRequest(id=RequestId("count"), model=ModelId(model.name), prompt=one)
        with suppress(RequestError):
            found.append(reader.read(request).tokens)
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)  # no destructors: llama.cpp's take their time, and the memory goes back anyway
