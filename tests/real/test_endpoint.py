"""Foreign servers as engines of a real node: another node, and llama.cpp's own llama-server."""

import math
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from p2p_mesh.testing.cluster import NodeProcess, start_node
from p2p_mesh.testing.events import Events, post_stream
from p2p_mesh.testing.models import write_embedder
from tests.real.shared import running

HELLO = [{"role": "user", "content": "hello"}]
BUILT = Path.home() / ".cache/meshnode/bench/llama.cpp-0.3.36/build/bin/llama-server"
LLAMA_SERVER = Path(os.environ.get("LLAMA_SERVER") or BUILT)
"""Where `scripts/bench engine` builds it."""

needs_llama_server = pytest.mark.skipif(
    not LLAMA_SERVER.exists(), reason=f"there is no llama-server: {LLAMA_SERVER}, or LLAMA_SERVER"
)


def question(model: str, **body: Any) -> dict[str, Any]:
    return {"model": model, "messages": HELLO, "seed": 3, "max_tokens": 16, **body}


async def chat(node: NodeProcess, model: str, key: str = "", **body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(timeout=30, headers=headers) as client:
        url = f"{node.url()}/v1/chat/completions"
        return await client.post(url, json=question(model, **body))


async def posted(node: NodeProcess, path: str, **body: Any) -> dict[str, Any]:
    async with httpx.AsyncClient(timeout=30) as client:
        found: dict[str, Any] = (await client.post(f"{node.url()}{path}", json=body)).json()
        return found


async def models(node: NodeProcess) -> list[dict[str, Any]]:
    async with httpx.AsyncClient() as client:
        found = (await client.get(f"{node.url('console')}/api/status")).json()["models"]
        return list(found)


async def until_answered(node: NodeProcess, model: str, seconds: float) -> None:
    with trio.fail_after(seconds):
        while (await chat(node, model, max_tokens=2)).status_code != 200:
            await trio.sleep(0.1)


async def streamed(node: NodeProcess, model: str, **body: Any) -> list[dict[str, Any]]:
    url = f"{node.url()}/v1/chat/completions"
    async with post_stream(url, question(model, **body)) as events:
        return await events.all()


def text(events: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for event in events
                   for choice in event["choices"])  # fmt: skip


@pytest.fixture(scope="module")
def far(
    tmp_path_factory: pytest.TempPathFactory, bytecode: Path, tiny: Path
) -> Iterator[NodeProcess]:
    """A node of another mesh, whose API takes a key."""
    arguments = ("--model", str(tiny), "--api-key", "sk-far")
    with running(tmp_path_factory.mktemp("far"), bytecode, *arguments) as node:
        yield node


async def test_another_node_is_an_engine_of_the_mesh(tmp_path: Path, far: NodeProcess) -> None:
    key = {"MESHNODE_ENDPOINT_KEY": "sk-far"}
    endpoint = ("--endpoint", far.url())
    async with start_node(tmp_path / "a", *endpoint, environment=key) as near:
        ready = await near.wait("ready")
        assert ready["models"] == ["tiny"]
        (model,) = await models(near)
        assert (model["device"], model["digest"]) == (far.url(), None)
        whole = (await chat(near, "tiny")).json()["choices"][0]["message"]["content"]
        assert text(await streamed(near, "tiny")) == whole != ""
        arguments = ("--client", "--join", ready["invite"])
        async with start_node(tmp_path / "b", *arguments) as client:
            await client.wait("ready")
            answers = [await chat(client, "tiny"), await chat(far, "tiny", key="sk-far")]
            found = [one.json()["choices"][0]["message"]["content"] for one in answers]
            assert found == [whole, whole]
        assert "sk-far" not in f"{near.log}{near.text}{await models(near)}"


async def test_server_without_the_key_is_said_with_its_variable(
    tmp_path: Path, far: NodeProcess
) -> None:
    async with start_node(tmp_path / "a", "--endpoint", far.url()) as near:
        said = (await near.wait("source_note"))["note"]
        assert "wants a key: put it into MESHNODE_ENDPOINT_KEY" in said
        assert (await near.wait("ready"))["models"] == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _command(model: Path, port: int, *flags: str) -> list[str]:
    return [str(LLAMA_SERVER), "-m", str(model), "--port", str(port), "-t", "1", "-np", "2",
            "-c", "8192", "--no-warmup", *flags]  # fmt: skip


@asynccontextmanager
async def llama_server(model: Path, port: int) -> AsyncIterator[trio.Process]:
    process = await trio.lowlevel.open_process(
        _command(model, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.kill()
            await process.wait()


async def _load(node: NodeProcess, ends: list[dict[str, Any]]) -> None:
    """Answers one after the other; keeps how each ended."""
    while True:
        url = f"{node.url()}/v1/chat/completions"
        async with post_stream(url, question("slow", max_tokens=400)) as events:
            found = await _last(events)
        ends.append(found)
        await trio.sleep(0.05)


async def _last(events: Events) -> dict[str, Any]:
    last: dict[str, Any] = {"status": events.head.decode()}
    while (event := await events.next()) is not None:
        last = event
    return last if "error" not in last else {"code": last["error"]["code"]}


@dataclass
class Foreign:
    """A node whose models are all llama-server's, and the URL of the server of each."""

    node: NodeProcess
    urls: dict[str, str]


@pytest.fixture(scope="module")
def foreign(
    tmp_path_factory: pytest.TempPathFactory, bytecode: Path, tiny: Path, slow: Path
) -> Iterator[Foreign]:
    folder = tmp_path_factory.mktemp("foreign")
    vectors = Path(write_embedder(folder / "vectors.gguf").path)
    urls: dict[str, str] = {}
    with ExitStack() as stack:
        for model, flags in ((slow, ()), (tiny, ()), (vectors, ("--embeddings",))):
            port = free_port()
            stack.enter_context(_tended(_command(model, port, *flags)))
            urls[model.stem] = f"http://localhost:{port}"
        words = [word for url in urls.values() for word in ("--endpoint", url)]
        yield Foreign(stack.enter_context(running(folder, bytecode, *words)), urls)


@contextmanager
def _tended(command: list[str]) -> Iterator[None]:
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:  # fmt: skip
        try:
            yield
        finally:
            process.kill()


async def served(foreign: Foreign, model: str) -> NodeProcess:
    """The node, once it serves the model."""
    with trio.fail_after(60):
        while model not in [one["id"] for one in await models(foreign.node)
                            if one["state"] == "ready"]:  # fmt: skip
            await trio.sleep(0.1)
    return foreign.node


@needs_llama_server
async def test_llama_server_is_an_engine(foreign: Foreign) -> None:
    node = await served(foreign, "slow")
    (model,) = [one for one in await models(node) if one["id"] == "slow"]
    assert model["device"] == foreign.urls["slow"]
    assert (model["context"], model["slots"]) == (4096, 2)
    events = await streamed(
        node, "slow", n=2, logprobs=True, top_logprobs=2, stream_options={"include_usage": True}
    )
    assert {choice["index"] for event in events for choice in event["choices"]} == {0, 1}
    assert events[-1]["usage"]["completion_tokens"] == 32
    too_long = await chat(node, "slow", messages=[{"role": "user", "content": "hi " * 9000}])
    assert too_long.status_code == 400
    assert too_long.json()["error"]["code"] == "context_length_exceeded"


@needs_llama_server
async def test_llama_servers_vocabulary_is_asked(foreign: Foreign) -> None:
    node = await served(foreign, "tiny")
    tokens = await posted(node, "/tokenize", model="tiny", content="the a of")
    assert len(tokens["tokens"]) > 2
    again = await posted(node, "/detokenize", model="tiny", tokens=tokens["tokens"])
    assert again["content"].strip() == "the a of"
    refused = await posted(node, "/v1/embeddings", model="tiny", input="x")
    assert "tiny" in refused["error"]["message"]


@needs_llama_server
async def test_llama_servers_embeddings_are_served(foreign: Foreign) -> None:
    node = await served(foreign, "vectors")
    found = await posted(node, "/v1/embeddings", model="vectors", input=["a b", "c"])
    assert [one["index"] for one in found["data"]] == [0, 1]
    assert math.hypot(*found["data"][0]["embedding"]) == pytest.approx(1, abs=1e-3)
    assert "writes no text" in (await chat(node, "vectors")).json()["error"]["message"]


@needs_llama_server
async def test_answer_that_is_left_frees_llama_servers_slot(foreign: Foreign) -> None:
    node, url = await served(foreign, "slow"), foreign.urls["slow"]
    asked = question("slow", max_tokens=4000)
    async with post_stream(f"{node.url()}/v1/chat/completions", asked) as events:
        await events.next()
        assert await busy(url) == 1
    with trio.fail_after(2):
        while await busy(url):
            await trio.sleep(0.02)


async def busy(url: str) -> int:
    async with httpx.AsyncClient() as client:
        return sum(slot["is_processing"] for slot in (await client.get(f"{url}/slots")).json())


@needs_llama_server
async def test_killed_llama_server_comes_back_by_itself(tmp_path: Path, slow: Path) -> None:
    port = free_port()
    async with start_node(tmp_path / "a", "--endpoint", f"http://localhost:{port}") as node:
        await node.wait("source_note")
        ends: list[dict[str, Any]] = []
        async with trio.open_nursery() as nursery:
            async with llama_server(slow, port) as server:
                await node.wait("model_ready", 60)
                for _ in range(3):
                    nursery.start_soon(_load, node, ends)
                await until_answered(node, "slow", 30)
                server.send_signal(signal.SIGKILL)
                await server.wait()
                died = len(node.log)
                await node.wait("engine_died")
                refused = await chat(node, "slow")
            assert refused.json()["error"]["code"] == "loading"
            assert refused.status_code == 503
            assert "out of reach: Connection refused" in refused.json()["error"]["message"]
            assert int(refused.headers["retry-after"]) >= 1
            async with llama_server(slow, port):
                await node.wait("model_ready", 60, after=died)
                await until_answered(node, "slow", 30)
                nursery.cancel_scope.cancel()
        codes = {one["code"] for one in ends if "code" in one}
        assert codes <= {"answer_broken_off", "engine_died", "loading", "unavailable"}
        assert "answer_broken_off" in codes
        assert node.process.poll() is None
