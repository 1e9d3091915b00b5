"""The echo backend keeps the contract of serve/backend.py."""

import pytest

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import (
    ChatPrompt,
    Delta,
    InferenceRequest,
    ModelFile,
    Resources,
    TextPrompt,
    TokenPrompt,
    Usage,
)
from p2p_mesh.errors import EngineDied, RequestError
from p2p_mesh.serve.backend import Backend, Fit, Load, Refusal
from p2p_mesh.testing.backend import Echo, EchoEngine
from p2p_mesh.testing.mesh import NoMesh

LOAD = Load(
    ModelFile(
        id=ModelId("m"), path="/m.gguf", size_bytes=1, architecture="llama", context_length=64,
        kv_bytes_per_token=1,
    )
)  # fmt: skip


def ask(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> InferenceRequest:
    return InferenceRequest(id=RequestId("r"), model=ModelId("m"), prompt=prompt)


async def deltas(engine: EchoEngine, prompt: ChatPrompt | TextPrompt | TokenPrompt) -> list[Delta]:
    async with engine.generate(ask(prompt)) as found:
        return [delta async for delta in found]


async def test_echo_says_it_again() -> None:
    backend: Backend = Echo()
    assert isinstance(backend, Echo)
    async with backend.open(LOAD, NoMesh()) as engine:
        found = await deltas(engine, ChatPrompt(messages=({"role": "user", "content": "a bc"},)))
        assert [delta.text for delta in found] == ["a", " bc", ""]
        assert found[-1].usage == Usage(prompt_tokens=2, completion_tokens=2)
        assert await deltas(engine, TextPrompt(text="x")) != []
        with pytest.raises(RequestError):
            await deltas(engine, TokenPrompt(tokens=(1,)))


async def test_dead_engine_says_so() -> None:
    async with Echo().open(LOAD, NoMesh()) as engine:
        engine.die("out of memory")
        assert await engine.wait_ended() == "out of memory"
        with pytest.raises(EngineDied, match="out of memory"):
            await deltas(engine, TextPrompt(text="x"))


def test_assessment() -> None:
    resources = Resources(memory_total=10, memory_free=5, threads=1)
    assert isinstance(Echo().assess(LOAD, resources), Fit)
    assert isinstance(Echo(memory=6).assess(LOAD, resources), Refusal)
