"""A real backend without a model: its engines say back what they are told.

For tests of whatever stands above an engine. `Echo.engines` are the engines that were opened,
so that a test can end one; `failures` are raised by the next openings, in order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from p2p_mesh.core.records import ChatPrompt, Delta, InferenceRequest, Resources, TextPrompt, Usage
from p2p_mesh.errors import EngineDied, RequestError
from p2p_mesh.serve.backend import Description, Fit, Load, Mesh, Refusal


class EchoEngine:
    """Answers with the words of the prompt, one delta each; the token ids are their lengths."""

    def __init__(self, load: Load, pause: float) -> None:
        self._load = load
        self._pause = pause
        self._ended = trio.Event()
        self._reason = ""
        self.active = 0

    def die(self, reason: str = "killed by SIGKILL") -> None:
        """Ends the engine as a crash would."""
        self._reason = reason
        self._ended.set()

    def describe(self) -> Description:
        return Description(
            capabilities=frozenset({"generate"}),
            context=self._load.context or 1024,
            slots=self._load.slots or 2,
            numerics="echo",
        )

    @asynccontextmanager
    async def generate(self, request: InferenceRequest) -> AsyncIterator[AsyncIterator[Delta]]:
        self.active += 1
        try:
            yield self._speak(_words(request))
        finally:
            self.active -= 1

    async def _speak(self, words: list[str]) -> AsyncIterator[Delta]:
        for index, word in enumerate(words):
            await trio.sleep(self._pause)
            if self._ended.is_set():
                raise EngineDied(f"the engine ended: {self._reason}")
            yield Delta(tokens=(len(word),), text=word if index == 0 else f" {word}")
        usage = Usage(prompt_tokens=len(words), completion_tokens=len(words))
        yield Delta(finish="stop", usage=usage)

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


def _words(request: InferenceRequest) -> list[str]:
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        return str(prompt.messages[-1].get("content", "")).split()
    if isinstance(prompt, TextPrompt):
        return prompt.text.split()
    raise RequestError("an echo has no vocabulary; send text", param="prompt")
