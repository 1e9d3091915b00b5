"""A model of a foreign server, as an Engine. Questions go out as HTTP; what comes back is checked,
and becomes Deltas and Replies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from meshnode_openai_endpoint.answer import Answer
from meshnode_openai_endpoint.body import completion, refuse_ignored
from meshnode_openai_endpoint.failure import blaming, streamed
from meshnode_openai_endpoint.messages import Chunk, Listed, read
from meshnode_openai_endpoint.probe import Found, probe
from meshnode_openai_endpoint.query import asked, replied, template, templated
from meshnode_openai_endpoint.server import SILENCE, Chunks, Server
from meshnode_openai_endpoint.sse import Events
from p2p_mesh.core.records import (
    ChatPrompt,
    Delta,
    InferenceRequest,
    Query,
    Reply,
    TokenizeQuery,
)
from p2p_mesh.errors import EngineDied
from p2p_mesh.serve.backend import Description

TAIL = 1.0
"""Seconds for what follows the last event, so that the connection can be used again."""


class EndpointEngine:
    """Ends when its server is gone."""

    def __init__(self, server: Server, model: str, found: Found) -> None:
        self._server = server
        self._model = model
        self._found = found
        self._ended = trio.Event()
        self._reason = "it was closed"

    def describe(self) -> Description:
        return Description(
            capabilities=self._found.capabilities,
            context=self._found.context,
            slots=self._found.slots,
            resumable=False,
            device=self._server.endpoint.url,
        )

    @asynccontextmanager
    async def generate(self, request: InferenceRequest) -> AsyncIterator[AsyncIterator[Delta]]:
        self._check()
        if self._found.kind == "llama-server":
            refuse_ignored(request, self._server.endpoint.url)
        path, body = completion(request, self._model)
        async with self._server.stream(path, body) as chunks:
            yield Deltas(self._server, path, request.choices, chunks)

    async def query(self, query: Query) -> Reply:
        self._check()
        if isinstance(query, TokenizeQuery) and self._found.kind != "meshnode":
            query = await self._templated(query)
        path, body = asked(query, self._model)
        return replied(query, await self._server.ask(path, body, seconds=SILENCE))

    async def _templated(self, query: TokenizeQuery) -> TokenizeQuery:
        if not isinstance(query.prompt, ChatPrompt):
            return query
        path, body = template(query.prompt, self._model)
        return templated(query, await self._server.ask(path, body, seconds=SILENCE))

    async def wait_ended(self) -> str:
        await self._ended.wait()
        return self._reason

    async def close(self) -> None:
        self._ended.set()

    def end(self, reason: str) -> None:
        """The server is gone."""
        self._reason = reason
        self._ended.set()

    def _check(self) -> None:
        if self._ended.is_set():
            raise EngineDied(self._reason, retry_after=1.0)


class Deltas:
    """The deltas of one answer, in the order of the server's events."""

    def __init__(self, server: Server, path: str, choices: int, chunks: Chunks) -> None:
        self._server = server
        self._path = path
        self._chunks = chunks
        self._answer = Answer(choices)
        self._events = Events()
        self._ready: deque[Delta] = deque()
        self._is_over = False

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        if not self._ready:
            await self._fill()
        if not self._ready:
            raise StopAsyncIteration
        return self._ready.popleft()

    async def _fill(self) -> None:
        """Returns when there is a delta, or will be none."""
        with trio.move_on_after(SILENCE):
            while not self._ready and not self._is_over:
                await self._more()
            return
        url = self._server.endpoint.url
        raise EngineDied(f"the server at {url} said nothing for {SILENCE:g} s", retry_after=1.0)

    async def _more(self) -> None:
        chunk = await self._chunks.next()
        if chunk is None:
            self._end_of_bytes()
            return
        for event in self._events.feed(chunk):
            if self._is_over:
                break
            self._take(event)
        if self._is_over:
            await self._chunks.end(TAIL)

    def _take(self, event: bytes) -> None:
        if event.strip() == b"[DONE]":
            self._finish()
            return
        chunk = read(event, Chunk)
        if chunk.error is not None:
            raise blaming(streamed(chunk.error, self._server.endpoint), self._path)
        self._ready.extend(self._answer.take(chunk))

    def _end_of_bytes(self) -> None:
        """Some servers leave out `[DONE]`; an answer that says how it ended is whole without."""
        if not self._answer.is_finished:
            url = self._server.endpoint.url
            raise EngineDied(f"the server at {url} broke off its answer", retry_after=1.0)
        self._finish()

    def _finish(self) -> None:
        self._ready.extend(self._answer.end())
        self._is_over = True


@asynccontextmanager
async def open_engine(server: Server, model: Listed) -> AsyncIterator[EndpointEngine]:
    """Asks what the model can do, and stands for it until the server is gone. Raises EngineDied
    or Unavailable for one that is not there.
    """
    engine = EndpointEngine(server, model.id, await probe(server, model))
    server.listeners.add(engine.end)
    try:
        yield engine
    finally:
        server.listeners.discard(engine.end)
        await engine.close()
