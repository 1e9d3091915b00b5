"""What a model can do, as its server lets one know."""

from typing import Any

import pytest
from meshnode_openai_endpoint.messages import Listed
from meshnode_openai_endpoint.probe import (
    SLOTS,
    Found,
    by_name,
    llama_server,
    lm_studio,
    meshnode,
    ollama,
    probe,
)
from meshnode_openai_endpoint.server import open_server

from p2p_mesh.errors import EngineDied, Unavailable
from p2p_mesh.serve.backend import Capability
from tests.plugins.openai_endpoint.foreign import ENDPOINT, REFUSED, Foreign

NOBODY: frozenset[Capability] = frozenset()
PERHAPS: frozenset[Capability] = frozenset({"generate", "vision", "audio"})
PROPS = {
    "default_generation_settings": {"n_ctx": 4096},
    "total_slots": 4,
    "modalities": {"vision": True, "audio": False, "video": True},
}


def can(*names: Capability) -> frozenset[Capability]:
    return frozenset(names)


async def found(model: Listed, **replies: Any) -> Found:
    paths = {f"/{name.replace('__', '/')}": reply for name, reply in replies.items()}
    async with open_server(ENDPOINT, Foreign(**paths)) as server:
        return await probe(server, model)


def test_llama_server_tells_context_slots_and_senses() -> None:
    model = Listed("m", meta={"n_ctx": 512})
    assert llama_server(model, PROPS, NOBODY) == Found(
        can("generate", "vision"), 4096, 4, "llama-server"
    )
    assert llama_server(model, None, NOBODY) == Found(can("generate"), 512, SLOTS, "llama-server")
    assert llama_server(model, {"total_slots": -1}, can("embed")) == Found(
        can("embed"), 512, kind="llama-server"
    )


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        ({"capabilities": ["completion", "vision", "tools"], "parameters": "stop x\nnum_ctx  8192"},
         Found(can("generate", "vision"), 8192)),
        ({"capabilities": ["embedding"]}, Found(can("embed"))),
        ({"capabilities": 5}, None),
        ({"error": "model not found"}, None),
        (None, None),
    ],
)  # fmt: skip
def test_ollama(shown: Any, wanted: Found | None) -> None:
    assert ollama(shown) == wanted


def test_lm_studio() -> None:
    assert lm_studio({"type": "vlm", "max_context_length": 9, "loaded_context_length": 8}) == Found(
        can("generate", "vision"), 8
    )
    assert lm_studio({"type": "embeddings", "max_context_length": 9}) == Found(can("embed"), 9)
    assert lm_studio({"error": "Unexpected endpoint"}) is None
    assert lm_studio({"type": ["llm"]}) is None


def test_other_nodes_say_it_in_their_list() -> None:
    about = {"context": 64, "capabilities": ["embed", "forward", "magic"]}
    assert meshnode(Listed("m", meshnode=about)) == Found(can("embed"), 64, kind="meshnode")
    assert meshnode(Listed("m", meshnode="x")) == Found(can("generate"), kind="meshnode")


@pytest.mark.parametrize(
    ("name", "does"),
    [("text-embedding-3-small", "embed"), ("BAAI/bge-m3", "embed"),
     ("bge-reranker-v2", "rerank"), ("intfloat/e5-large", "embed")],
)  # fmt: skip
def test_name_decides_where_nothing_is_said(name: str, does: Capability) -> None:
    assert by_name(Listed(name, context_window=9)) == Found(can(does), 9)


@pytest.mark.parametrize("name", ["gpt-5", "glm-e57"])
def test_whether_a_model_sees_is_left_to_a_server_that_does_not_say(name: str) -> None:
    assert by_name(Listed(name)) == Found(PERHAPS)


async def test_llama_server_is_asked() -> None:
    model = Listed("m", owned_by="llamacpp")
    assert await found(model, health={}, props=PROPS) == Found(
        can("generate", "vision"), 4096, 4, "llama-server"
    )
    embeds = await found(model, health={}, props=PROPS, v1__embeddings={"data": []})
    assert embeds.capabilities == can("embed")
    reranks = await found(model, health={}, v1__embeddings={"data": []}, v1__rerank={"results": []})
    assert reranks.capabilities == can("rerank")


async def test_llama_server_that_loads_is_not_ready() -> None:
    with pytest.raises(Unavailable, match="Loading model"):
        await found(Listed("m", owned_by="llamacpp"), health=(503, {"error": "Loading model"}))


async def test_vllm_is_asked() -> None:
    model = Listed("m", owned_by="vllm", max_model_len=32)
    assert await found(model) == Found(PERHAPS, 32)
    assert await found(model, v1__embeddings={"data": []}) == Found(can("embed"), 32)
    assert await found(model, v1__embeddings=(500, {})) == Found(PERHAPS, 32)


async def test_unknown_server_may_be_ollama_or_lm_studio() -> None:
    model = Listed("a/m", owned_by="library")
    shown = {"capabilities": ["completion"]}
    assert await found(model, api__show=shown) == Found(can("generate"))
    sees = await found(model, api__v0__models__a__m={"type": "vlm"})
    assert sees.capabilities == can("generate", "vision")
    assert await found(model) == Found(PERHAPS)


async def test_server_that_is_gone_is_no_guess() -> None:
    with pytest.raises(EngineDied):
        await found(Listed("m"), api__show=REFUSED)
