"""The engine process of a shard: `python -P -m meshnode_expert_shards.serving FD`.

It is llama_cpp's worker (see there), with one more thing to do: of a prompt that may be handed over
it hears, in the first call that reads it, what its routers are given, and works out what the whole
model's routers would choose. Where another node's part has materially more of that, the answer ends
before its first token, and says whose. No other call is listened to: writing is as fast as ever.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from meshnode_llama_cpp import frames
from meshnode_llama_cpp.context import Context, Plan, Rows
from meshnode_llama_cpp.library import L
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.sequence import Sequence as Sitting
from meshnode_llama_cpp.served import Outcome, Served, Writer, open_model
from meshnode_llama_cpp.worker import Inbox, Worker, attend, serve

from meshnode_expert_shards import parts
from meshnode_expert_shards.routers import Floats, Routers, Rule, read
from meshnode_expert_shards.tap import Graph, Tap
from meshnode_expert_shards.weighing import alone, better, unmasked, weigh
from p2p_mesh.core.records import ChatPrompt, InferenceRequest
from p2p_mesh.errors import HandedOver

Wanted = Callable[[Rows], Graph | None]
"""Which graph of a call is to be heard, if any."""


def main(descriptor: int) -> None:
    connection = socket.socket(fileno=descriptor)
    inbox = attend(connection, parts.commands())
    command = inbox.take()
    assert isinstance(command, parts.Open)
    writer = partial(ShardWriter, routers=Path(command.routers), dealt=command.parts)
    serve(
        command.open,
        connection,
        lambda served: ShardWorker(served, connection, inbox),
        partial(open_model, writer=writer),
    )


class ShardWorker(Worker):
    def __init__(self, served: Served, connection: socket.socket, inbox: Inbox) -> None:
        super().__init__(served, connection, inbox)
        self._shard = served

    def obey(self, command: Any) -> None:
        if not isinstance(command, parts.Parts):
            super().obey(command)
        elif isinstance(self._shard, ShardWriter):
            self._shard.deal(command)


class Unheard(Exception):
    """This version of llama.cpp cannot be listened to now and then."""


class WeighingContext(Context):
    """Computes as any context does. What its routers are given in a call that is `wanted`, `given`
    says after it.
    """

    def __init__(self, model: Model, plan: Plan, routers: Routers, wanted: Wanted) -> None:
        """Raises Unheard."""
        self._tap, self._wanted = Tap(routers), wanted
        self.rule: Rule | None = None
        self.given: Mapping[int, Floats] = {}
        super().__init__(model, plan)

    def decode(self) -> None:
        graph = self._wanted(self.rows)
        if graph is None:
            super().decode()
            return
        self._tap.begin(graph)
        super().decode()
        self.given = self._tap.end()

    def _adapt(self, params: object) -> None:
        self._tap.attach(params)

    def _warm(self, token: int) -> None:
        if not self._tap.find(self.handle):
            L.llama_free(self.handle)
            raise Unheard
        super()._warm(token)
        self.rule = self._tap.study()


class ShardWriter(Writer):
    """A shard that writes, and knows what the others have."""

    def __init__(
        self,
        model: Model,
        command: frames.Open,
        gpu_layers: int,
        *,
        routers: Path,
        dealt: parts.Parts,
    ) -> None:
        """Raises ModelError."""
        self._asked: set[int] = set()
        """Answers that may be handed over, until they are read."""
        self._weighed: int | None = None
        self._heard: WeighingContext | None = None
        self._routers = read(routers, Path(command.path))
        self.deal(dealt)
        make = partial(self._make, model)
        super().__init__(model, command, gpu_layers, make=make)
        if self._heard is None or self._heard.rule is None:
            self.notes = (*self.notes, "prompts are not weighed: it does not show how it chooses "
                          "experts, and a conversation goes by its beginning alone")  # fmt: skip

    def deal(self, dealt: parts.Parts) -> None:
        """Others take part now."""
        self._dealt = dealt
        self._has = unmasked(dealt.experts, self._routers.layers, self._routers.experts)

    def ask(self, number: int, request: InferenceRequest) -> None:
        super().ask(number, request)
        may = request.weigh and not request.resume and request.max_tokens != 0
        if may and len(self._dealt.peers) > 1:
            self._asked.add(number)

    def cancel(self, number: int) -> None:
        self._asked.discard(number)
        super().cancel(number)

    def step(self) -> Sequence[Outcome]:
        outcomes = super().step()
        number, self._weighed = self._weighed, None
        if number is None or (other := self._better()) is None:
            return outcomes
        self._decoder.cancel(number)  # what was read of it stays in the cache
        said = f"the shard of {other} has more of what the prompt needs"
        handed = frames.Rejected(number, HandedOver.code, said, other)
        return [*(one for one in outcomes if one.number != number), handed]

    def _make(self, model: Model, plan: Plan) -> Context:
        try:
            self._heard = WeighingContext(model, plan, self._routers, self._wanted)
        except Unheard:
            return Context(model, plan)
        return self._heard

    def _wanted(self, rows: Rows) -> Graph | None:
        """The first call that reads a prompt which may be handed over."""
        if not self._asked or self._heard is None or self._heard.rule is None:
            return None
        found, counts = None, Counter(rows.owners)
        sitting = {slot: self._decoder.seated(slot) for slot in counts}
        for number in {one.task.number for one in sitting.values()} & self._asked:
            self._asked.discard(number)
            choices = {slot: one for slot, one in sitting.items() if one.task.number == number}
            if any(map(_is_new, choices.values())) and (graph := alone(counts, choices)):
                found, self._weighed = graph, number
        return found

    def _better(self) -> str | None:
        """The node whose part holds materially more of what was read in the last call."""
        heard = self._heard
        if heard is None or heard.rule is None or not heard.given:
            return None
        masses = weigh(heard.given, self._routers.whole, heard.rule, self._has)
        found = better(masses, self._dealt.own)
        return None if found is None else self._dealt.peers[found]


def _is_new(sequence: Sitting) -> bool:
    """Whether the conversation begins, as far as can be told: else it has its home here."""
    prompt = sequence.task.request.prompt
    begins = isinstance(prompt, ChatPrompt) and not any(
        one.get("role") == "assistant" for one in prompt.messages
    )
    return begins or 2 * sequence.read_first < sequence.start


if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)  # no destructors: llama.cpp's take their time, and the memory goes back anyway
