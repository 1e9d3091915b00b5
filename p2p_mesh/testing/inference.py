"""A fake of what the HTTP front asks: answers from a script."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import Delta, Finish, InferenceRequest, Query, Reply, Usage
from p2p_mesh.errors import MeshError, RequestError, UnknownModel
from p2p_mesh.front.app import ModelCard

Step = Delta | Exception | trio.Event
"""A delta to give, an error to raise, or an event to wait for."""

Replies = Mapping[type, Reply | MeshError] | Callable[[Query], Reply]
"""What a kind of query is replied with, or is refused with; or who replies."""


def deltas(*texts: str, finish: Finish = "stop", prompt_tokens: int = 3) -> tuple[Delta, ...]:
    """An answer of one token for each text, with its end."""
    usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=len(texts), cached_tokens=1)
    grown = (Delta(tokens=(place,), text=text) for place, text in enumerate(texts))
    return (*grown, Delta(finish=finish, usage=usage))


class ScriptedInference:
    """Answers every request for its one model with the same steps, and remembers them.

    An error that stands first is raised on entering the answer, as an unknown model's is.
    """

    def __init__(self, *steps: Step, model: str = "tiny", replies: Replies | None = None) -> None:
        self.requests: list[InferenceRequest] = []
        self.queries: list[Query] = []
        self.clients: list[str] = []
        """Who asked them."""
        self.conversations: list[str] = []
        self.active = 0
        self.started = trio.Event()
        """Set when the first answer is entered."""
        self.cancelled = trio.Event()
        """Set when an answer was left before its last step."""
        self._steps = steps
        self._replies = replies or {}
        self._model = ModelId(model)

    def models(self) -> Sequence[ModelCard]:
        return (ModelCard(self._model, created=1_700_000_000, context=4096, digest=None),)

    @asynccontextmanager
    async def answer(
        self, request: InferenceRequest, client: str = "", conversation: str = ""
    ) -> AsyncIterator[AsyncIterator[Delta]]:
        self.clients.append(client)
        self.conversations.append(conversation)
        self.requests.append(request)
        self._check(request.model)
        if self._steps and isinstance(self._steps[0], Exception):
            raise self._steps[0]
        run = _Run(self._steps)
        self.active += 1
        self.started.set()
        try:
            yield run
        finally:
            self.active -= 1
            if not run.is_over:
                self.cancelled.set()

    async def query(self, query: Query, client: str = "") -> Reply:
        self.clients.append(client)
        self.queries.append(query)
        self._check(query.model)
        await trio.lowlevel.checkpoint()
        if callable(self._replies):
            return self._replies(query)
        default = RequestError(f"{self._model} cannot do that", param="model")
        reply = self._replies.get(type(query), default)
        if isinstance(reply, MeshError):
            raise reply
        return reply

    def _check(self, model: ModelId) -> None:
        if model != self._model:
            names = f"there are: {self._model}"
            raise UnknownModel(f"there is no model {model!r} here; {names}", param="model")


class _Run:
    """Like an engine: deltas that are there come without a turn of the loop for each."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = iter(steps)
        self._is_begun = False
        self.is_over = False

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        if not self._is_begun:
            self._is_begun = True
            await trio.lowlevel.checkpoint()
        for step in self._steps:
            match step:
                case Delta():
                    return step
                case trio.Event():
                    await step.wait()
                case Exception():
                    self.is_over = True
                    raise step
        self.is_over = True
        raise StopAsyncIteration
