"""The process of one stage: `python -P -m meshnode_skippy.worker CONTROL LINK`.

Theory of operation:

1. Two sockets of the node: commands and answers on one, as an engine of llama_cpp has it; on the
   other the ring: what comes from the stage before, and what goes to the next.
2. A stage in the middle waits for a batch, obeys its orders, computes its layers and sends the rows
   on. The last one draws tokens and sends these. The first one is the coordinator: it has the
   prompts, the queue and the texts, makes the batches and takes the results.
3. A batch of a newer epoch empties the memory: the ring is up anew, and all is read again. One of
   an older epoch is dropped.
4. A thread reads commands, and ends the process when the node has gone.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Sequence

from meshnode_llama_cpp.drawing import Drawing
from meshnode_llama_cpp.frames import Failed, Ready, encode
from meshnode_llama_cpp.grammar import Grammars
from meshnode_llama_cpp.library import Device, devices, numerics, start
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.worker import Inbox, Worker, attend, limit_memory, tell

from meshnode_skippy.compute import StageContext
from meshnode_skippy.coordinating import Coordinator, limits, plan
from meshnode_skippy.embeddings import Embeddings
from meshnode_skippy.frames import Dial, Listen, OpenStage, Ping, Restart, commands
from meshnode_skippy.hop import Hop
from meshnode_skippy.link import Bell, Link
from meshnode_skippy.stage import Stage
from meshnode_skippy.wire import Batch, Result, decode, encode_batch, encode_result
from p2p_mesh.errors import MeshError, RemoteError

LOOK = 10.0
"""Seconds without a result after which the first stage looks whether one is lost."""

_TABLE = "token_embd.weight"


def main(control: int, ring: int) -> None:
    connection, bell = socket.socket(fileno=control), Bell()
    hop = Hop(Link(socket.socket(fileno=ring)), bell, connection.sendall)
    inbox = attend(connection, commands(), bell.ring)
    command = inbox.take()
    assert isinstance(command, OpenStage)
    start()
    accelerators = devices()
    limit_memory(command.memory_limit, command.threads, accelerators)
    try:
        served = opened(command, connection, hop, accelerators)
    except MeshError as error:
        connection.sendall(encode(Failed(str(error))))
        return
    device = ", ".join(one.name for one in accelerators) or "cpu"
    connection.sendall(encode(_ready(command, served, device)))
    gc.freeze()  # what was made until now stays: the collector need not look it through again
    try:
        if isinstance(served, First):
            served.run(Worker(served.coordinator, connection, inbox), inbox)
        else:
            served.run(inbox)
    except EOFError:
        return  # the node has gone


def opened(
    command: OpenStage, connection: socket.socket, hop: Hop, accelerators: Sequence[Device]
) -> First | Later:
    """Loads the stage. Raises ModelError."""
    gpu_layers = (-1 if command.gpu_layers is None else command.gpu_layers) if accelerators else 0
    model = Model(
        command.path,
        name=command.name,
        progress=lambda share: tell(connection, share),
        gpu_layers=gpu_layers,
        part="layers",
    )
    context = StageContext(model, plan(command), command.wiring)
    drawing = Drawing(context, model, _grammars(model)) if command.is_last else None
    embeddings = Embeddings(command.embeddings, _TABLE) if command.embeddings else None
    stage = Stage(
        context,
        slots=command.slots,
        length=command.context,
        embeddings=embeddings,
        drawing=drawing,
    )
    if command.is_first:
        return First(command, stage, hop, gpu_layers=gpu_layers)
    return Later(command, stage, hop)


def _grammars(model: Model) -> Grammars:
    grammars = Grammars(model)
    grammars.prepare()
    return grammars


def _ready(command: OpenStage, served: First | Later, device: str) -> Ready:
    rows, exact = limits(command).rows, command.deterministic
    alike = numerics(device, rows, kv_type=command.kv_type, exact=exact)
    if isinstance(served, First):
        return Ready(alike, device, served.coordinator.capabilities, served.coordinator.notes)
    return Ready(alike, device, ("forward",))


class First:
    """The coordinator, and its own layers."""

    def __init__(self, command: OpenStage, stage: Stage, hop: Hop, *, gpu_layers: int) -> None:
        self._stage, self._hop, self._wire = stage, hop, command.wire
        self.coordinator = Coordinator(
            command, self._compute, state_size=stage.state_size, gpu_layers=gpu_layers
        )

    def run(self, worker: Worker, inbox: Inbox) -> None:
        """Until the node closes the link."""
        is_busy = True
        while True:
            self._hear(0 if is_busy or not inbox.is_empty else None)
            for command in inbox.batch(wait=False):
                if isinstance(command, Restart):
                    self.coordinator.restart(command.epoch)
                elif not _obeyed(self._hop, command):
                    worker.obey(command)
            sent = self.coordinator.sent
            while worker.step():
                pass  # what was told came of a call, and the next one can go
            is_busy = self.coordinator.sent != sent

    def _hear(self, seconds: float | None) -> None:
        """Takes results. What is wrong, or does not come, is for the node to mend."""
        if seconds is None and self.coordinator.is_flying:
            seconds = LOOK
        try:
            for body in self._hop.wait(seconds):
                result = decode(body)
                if isinstance(result, Result):
                    self.coordinator.hear(result)
        except RemoteError as error:
            self._hop.lost(str(error))
        if seconds == LOOK and self.coordinator.give_up():
            self._hop.lost("a batch did not come around")

    def _compute(self, batch: Batch) -> None:
        self._stage.compute(batch)
        self._hop.send(encode_batch(batch, self._wire))


class Later:
    """Any other stage."""

    def __init__(self, command: OpenStage, stage: Stage, hop: Hop) -> None:
        self._stage, self._hop, self._wire = stage, hop, command.wire
        self._is_last = command.is_last

    def run(self, inbox: Inbox) -> None:
        """Until the node closes the link."""
        while True:
            for body in self._hop.wait():
                batch = decode(body)
                if isinstance(batch, Batch):
                    self._take(batch)
            for command in inbox.batch(wait=False):
                _obeyed(self._hop, command)

    def _take(self, batch: Batch) -> None:
        self._stage.check(batch)
        if not self._stage.compute(batch):
            return
        if self._is_last:
            self._hop.send(encode_result(batch, self._stage.draw(batch)))
        else:
            self._hop.send(encode_batch(batch, self._wire))


def _obeyed(hop: Hop, command: object) -> bool:
    """Obeys a command that any stage has."""
    match command:
        case Ping():
            hop.pong()
        case Listen():
            hop.listen(command)
        case Dial():
            hop.dial(command)
        case _:
            return False
    return True


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)  # no destructors: llama.cpp's take their time, and the memory goes back anyway
