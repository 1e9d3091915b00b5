"""The openai SDK, as strict as it can be, against both nodes: the one that serves and the one
that asks it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import trio

from p2p_mesh.serve.store import DEFAULT_MODEL
from p2p_mesh.testing.cluster import NodeProcess, start_node


def sdk(node: NodeProcess) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{node.url()}/v1", api_key="unused", max_retries=0,
        _strict_response_validation=True,
    )  # fmt: skip


@asynccontextmanager
async def two_nodes(folder: Path) -> AsyncIterator[list[openai.OpenAI]]:
    async with start_node(folder / "a") as server:
        invite = (await server.wait("ready"))["invite"]
        async with start_node(folder / "b", "--client", "--join", invite) as client:
            await client.wait("ready")
            yield [sdk(server), sdk(client)]


async def test_every_operation_on_both_nodes(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as clients:
        for client in clients:
            await trio.to_thread.run_sync(_everything, client)


def _everything(client: openai.OpenAI) -> None:
    with client:
        _models(client)
        _chat(client)
        _completions(client)
        _errors(client)


def _models(client: openai.OpenAI) -> None:
    models = client.models.list()
    assert [model.id for model in models.data] == [DEFAULT_MODEL]
    assert (client.models.retrieve(DEFAULT_MODEL)).id == DEFAULT_MODEL


def _chat(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=DEFAULT_MODEL, messages=[{"role": "user", "content": "hello"}], temperature=0,
        user="me", metadata={"a": "b"}, store=False, service_tier="auto",
    )  # fmt: skip
    choice = whole.choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content
    assert choice.message.content.rstrip()[-1] in ".!?"
    assert whole.usage is not None
    parts = []
    usage = None
    stream = client.chat.completions.create(
        model=DEFAULT_MODEL, messages=[{"role": "user", "content": "hello"}], temperature=0,
        stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    for chunk in stream:
        usage = chunk.usage or usage
        parts += [one.delta.content or "" for one in chunk.choices]
    assert "".join(parts) == choice.message.content
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def _completions(client: openai.OpenAI) -> None:
    whole = client.completions.create(
        model=DEFAULT_MODEL, prompt="Once upon a time", max_tokens=12, seed=5, stop=["\n\n"]
    )
    assert whole.choices[0].text
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 12
    # OpenAI's own streams have a null finish_reason in every chunk but the last, which its SDK's
    # strict validation of this one operation refuses.
    lenient = openai.OpenAI(base_url=client.base_url, api_key="unused", max_retries=0)
    stream = lenient.completions.create(
        model=DEFAULT_MODEL, prompt="Once upon a time", max_tokens=12, seed=5, stop=["\n\n"],
        stream=True,
    )  # fmt: skip
    assert "".join([chunk.choices[0].text for chunk in stream]) == whole.choices[0].text
    lenient.close()


def _errors(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.NotFoundError, match=DEFAULT_MODEL) as missing:
        client.chat.completions.create(model="gone", messages=messages)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=DEFAULT_MODEL, messages=messages, n=3)
    assert wrong.value.param == "n"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(
            model=DEFAULT_MODEL, messages=[{"role": "user", "content": "hello " * 9000}]
        )
    assert "context" in long.value.message
