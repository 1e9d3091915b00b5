"""A real backend without a model: its engines say back what they are told.

For tests of whatever stands above an engine. `Echo.engines` are the engines that were opened,
so that a test can end one; `failures` are raised by the next openings, in order.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from p2p_mesh.core.records import (
    ChatPrompt,
    Delta,
    EmbedQuery,
    InferenceRequest,
    Query,
    Reply,
    RerankQuery,
    Resources,
    Scores,
    Text,
    TextPrompt,
    TokenizeQuery,
    TokenLogprob,
    TokenPrompt,
    Tokens,
    Usage,
    Vectors,
)
from p2p_mesh.errors import EngineDied, RequestError
from p2p_mesh.serve.backend import Description, Fit, Load, Mesh, Refusal


class EchoEngine:
    """Answers with the words of the prompt, one delta each; the token ids are their lengths. In
    a query, the tokens of a text are its bytes.
    """

    def __init__(self, load: Load, pause: float) -> None:
        self._load = load
        self._pause = pause
        self._ended = trio.Event()
        self._is_frozen = False
        self._reason = ""
        self.active = 0

    def die(self, reason: str = "killed by SIGKILL") -> None:
        """Ends the engine as a crash would."""
        self._reason = reason
        self._ended.set()

    def freeze(self) -> None:
        """Stops the engine as SIGSTOP would: from now on it says nothing, until it is ended."""
        self._is_frozen = True

    def describe(self) -> Description:
        return Description(
            capabilities=frozenset({"generate", "embed", "rerank"}),
            context=self._load.context or 1024,
            slots=self._load.slots or 2,
            numerics="echo",
        )

    @asynccontextmanager
    async def generate(self, request: InferenceRequest) -> AsyncIterator[AsyncIterator[Delta]]:
        self.active += 1
        try:
            yield self._speak(request, _text(request.prompt).split())
        finally:
            self.active -= 1

    async def _speak(self, request: InferenceRequest, words: list[str]) -> AsyncIterator[Delta]:
        before = {one.choice: one for one in request.resume}
        live = [c for c in range(request.choices) if c not in before or not before[c].finished]
        for place, word in enumerate(words):
            await self._think()
            for choice in live:
                if choice not in before or place >= len(before[choice].tokens):
                    yield _delta(request, choice, word if place == 0 else f" {word}")
        for choice in live[:-1]:
            yield Delta(choice=choice, finish="stop")
        usage = Usage(prompt_tokens=len(words), completion_tokens=len(words) * request.choices)
        yield Delta(choice=live[-1], finish="stop", usage=usage) if live else Delta(usage=usage)

    async def query(self, query: Query) -> Reply:
        await self._think()
        match query:
            case TokenizeQuery():
                data = _text(query.prompt).encode()
                pieces = tuple(bytes([byte]) for byte in data) if query.with_pieces else ()
                return Tokens(tokens=tuple(data), pieces=pieces)
            case EmbedQuery():
                texts = [_spelled(one) for one in query.inputs]
                return Vectors(
                    vectors=tuple(map(_vector, texts)), prompt_tokens=sum(map(len, texts))
                )
            case RerankQuery():
                asked = set(query.query.split())
                scores = tuple(float(len(asked & {*one.split()})) for one in query.documents)
                return Scores(scores=scores, prompt_tokens=len(asked) * len(scores))
        return Text(text=_spelled(query.tokens).decode(errors="replace"))

    async def _think(self) -> None:
        await trio.sleep(self._pause)
        if self._is_frozen:
            await self._ended.wait()
        if self._ended.is_set():
            raise EngineDied(f"the engine ended: {self._reason}")

    async def wait_ended(self) -> str:
        await self._ended.wait()
        return self._reason

    async def close(self) -> None:
        self.die("closed")


class Echo:
    """Serves any model file."""

    name = "echo"

    def __init__(self, *, pause: float = 0.0, load_seconds: float = 0.0, memory: int = 1) -> None:
        self.engines: list[EchoEngine] = []
        self.failures: list[Exception] = []
        self._pause = pause
        self._load_seconds = load_seconds
        self._memory = memory

    def assess(self, load: Load, resources: Resources) -> Fit | Refusal:
        if self._memory > resources.memory_free:
            return Refusal("there is too little memory", "free some")
        return Fit(load.context or 1024, load.slots or 2, self._memory)

    @asynccontextmanager
    async def open(self, load: Load, mesh: Mesh) -> AsyncIterator[EchoEngine]:
        await trio.sleep(self._load_seconds)
        if self.failures:
            raise self.failures.pop(0)
        load.progress(1.0)
        engine = EchoEngine(load, self._pause)
        self.engines.append(engine)
        try:
            yield engine
        finally:
            await engine.close()


def _text(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> str:
    if isinstance(prompt, ChatPrompt):
        return str(prompt.messages[-1].get("content", ""))
    if isinstance(prompt, TextPrompt):
        return prompt.text
    raise RequestError("an echo has no vocabulary; send text", param="prompt")


def _delta(request: InferenceRequest, choice: int, text: str) -> Delta:
    token, piece = len(text.strip()), text.encode()
    logprobs: tuple[TokenLogprob, ...] = ()
    if request.logprobs is not None:
        top = ((token, piece, 0.0),)[: request.logprobs]
        logprobs = (TokenLogprob(token=token, piece=piece, logprob=0.0, top=top),)
    return Delta(choice=choice, tokens=(token,), text=text, logprobs=logprobs)


def _spelled(text: str | Sequence[int]) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if max(text, default=0) > 255:
        raise RequestError("the tokens of an echo are bytes", param="tokens")
    return bytes(text)


def _vector(text: bytes) -> bytes:
    """Eight floats of length one, which a hash of the text gives."""
    parts = [byte - 127.5 for byte in hashlib.blake2b(text, digest_size=8).digest()]
    return struct.pack("<8f", *(part / math.hypot(*parts) for part in parts))
